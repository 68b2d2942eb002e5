"""Whether a GGUF file says exactly a function that is computed here: every key, every value, every tensor."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from edgespec.errors import ConversionError
from edgespec.gguf import keys
from edgespec.gguf.architectures import ARCHITECTURES
from edgespec.gguf.dimensions import Dimensions
from edgespec.gguf.forms import QUANTIZATIONS
from edgespec.gguf.header import ELSE, Header
from edgespec.gguf.tokenizer import PRE_TOKENIZERS
from edgespec.gguf.values import DAMAGED, incomplete

VECTORS = ("F32", "F16", "BF16")  # of norms and biases

_LAYER = re.compile(r"blk\.(0|[1-9][0-9]{0,4})\.")
_TOKENIZERS = {"gpt2": ("byte-level BPE", "merges"), "llama": ("SentencePiece's BPE", "scores")}
"""what each is, and what it ranks pieces by"""
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "eot_token_id", "eom_token_id", "eos_token_ids", "unknown_token_id")
_NOT_MODELS = {  # general.type -> what it is, and the way out
    "adapter": ("an adapter, not a model", "merge it into its base model first, with llama-export-lora"),
    "mmproj": ("a part of a model, for images or sound", "name the file of its language model"),
}
Rule = TypeVar("Rule")


def longest(key: str) -> int:
    """How many items of an array are read at most: 0 for arrays that are not used."""
    return _rule(key, key.split(".")[0], keys.LONGEST) or 0


def check(header: Header) -> None:
    """Raises ConversionError, which names the first thing that is not computed here, or not right."""
    _check_types(header)
    _check_kind(header)
    _check_tokenizer(header)
    if "token_embd.weight" not in header.tensors:
        raise incomplete(header, "token_embd.weight")
    sizes = Dimensions.of(header)
    for key in header.kinds:
        _check_key(header, key, sizes)
    _check_tensors(header, sizes)
    _check_quantization(header)
    _check_vocabulary(header, sizes)


def _check_types(header: Header) -> None:
    """Every key that is used holds what it should."""
    for pattern, words in _used(header.architecture).items():
        key = pattern.format(arch=header.architecture)
        kind = re.sub("^array of [0-9]+", "array of", header.kinds.get(key, ""))
        if kind and kind not in keys.HOLDS[words]:
            raise ConversionError(f"{key} of {header.path.name}", got=_held(header, key), allowed=words, hint=ELSE)


def _check_kind(header: Header) -> None:
    """It is a language model, the whole of one, of a known architecture."""
    name = header.path.name
    kind: str = header.get("general.type", "model")
    if kind != "model":
        what, hint = _NOT_MODELS.get(kind, ("not a model", ELSE))
        raise ConversionError(f"{name} is {what}", got=f"general.type {kind}", hint=hint)
    if header.get("split.count", 1) > 1:
        raise ConversionError(f"{name} is one part of several", hint="join them first with llama-gguf-split --merge")
    architecture = header.get("general.architecture", "none")
    if architecture not in ARCHITECTURES:
        raise ConversionError(f"architecture of {name}", got=architecture, allowed=", ".join(ARCHITECTURES), hint=ELSE)


def _check_key(header: Header, key: str, sizes: Dimensions) -> None:
    architecture, name = header.architecture, header.path.name
    if _rule(key, architecture, _used(architecture)) or not key.startswith((f"{architecture}.", *keys.OTHERS)):
        return
    refused = _rule(key, architecture, keys.REFUSED_OF.get(architecture, {}) | keys.REFUSED)
    if refused is None:
        if _rule(key, architecture, keys.HARMLESS) is None:
            what = f"{key} of {name} is unknown here and may change what the model computes"
            raise ConversionError(what, got=_held(header, key), hint=ELSE)
        return
    value = header.metadata.get(key)
    allowed = [getattr(sizes, text, text) if isinstance(text, str) else text for text in refused.unless]
    if any(_equal(value, one) for one in allowed):
        return
    if refused.least and isinstance(value, int) and value >= getattr(sizes, refused.least):
        return
    words = [str(one) for one in allowed]
    if refused.least:
        words.append(f"{getattr(sizes, refused.least)} and more")
    what = f"{key} of {name} is not computed here: {refused.reason}"
    raise ConversionError(what, got=_held(header, key), allowed=", ".join(words) or None, hint=ELSE)


def _check_tensors(header: Header, sizes: Dimensions) -> None:
    """All that a model of these sizes has, in their shapes, and nothing else."""
    name = header.path.name
    needed = keys.needed_tensors(ARCHITECTURES[header.architecture])
    shapes = {**needed, **keys.OPTIONAL_TENSORS}
    for tensor, place in header.tensors.items():
        layer = _LAYER.match(tensor)
        pattern = _LAYER.sub("blk.{i}.", tensor) if layer and int(layer[1]) < sizes.layers else tensor
        if pattern not in shapes:
            reasons = (reason for like, reason in keys.REFUSED_TENSORS.items() if fnmatchcase(tensor, like))
            reason = next(reasons, "it is unknown and may change what the model computes")
            raise ConversionError(f"tensor {tensor} of {name} is not computed here: {reason}", hint=ELSE)
        shape = tuple(getattr(sizes, size) for size in shapes[pattern])
        if place.shape != shape:
            raise ConversionError(f"shape of {tensor} of {name}", got=place.shape, allowed=shape, hint=DAMAGED)
    for pattern in needed:
        for i in range(sizes.layers if "{i}" in pattern else 1):
            if pattern.format(i=i) not in header.tensors:
                raise incomplete(header, pattern.format(i=i))


def _check_quantization(header: Header) -> None:
    matrices = {name: tensor.kind for name, tensor in header.tensors.items() if len(tensor.shape) > 1}
    unread = [name for name, kind in matrices.items() if kind not in QUANTIZATIONS]
    if unread:
        kinds = ", ".join(sorted({matrices[name] for name in unread}))
        raise ConversionError(
            f"quantization of {header.path.name}",
            got=f"{kinds} in {len(unread)} of {len(matrices)} matrices, e.g. {unread[0]}",
            allowed=", ".join(QUANTIZATIONS),
            hint=f"get a file with these types only, such as a Q8_0 or Q4_0 file of the model, or {ELSE}",
        )
    for name, tensor in header.tensors.items():
        if name not in matrices and tensor.kind not in VECTORS:
            what = f"type of {name} of {header.path.name}"
            raise ConversionError(what, got=tensor.kind, allowed=", ".join(VECTORS), hint=ELSE)


def _check_tokenizer(header: Header) -> None:
    name = header.path.name
    kind = header.get("tokenizer.ggml.model", "none")
    if kind not in _TOKENIZERS:
        words = ", ".join(f"{known} ({what})" for known, (what, _) in _TOKENIZERS.items())
        raise ConversionError(f"tokenizer of {name}", got=kind, allowed=words, hint=ELSE)
    pre = header.get("tokenizer.ggml.pre", "none")
    if kind == "gpt2" and pre not in PRE_TOKENIZERS:
        raise ConversionError(f"pre-tokenizer of {name}", got=pre, allowed=", ".join(PRE_TOKENIZERS), hint=ELSE)
    for key in ("tokens", "token_type", _TOKENIZERS[kind][1]):
        if header.get(f"tokenizer.ggml.{key}") is None:
            raise incomplete(header, f"tokenizer.ggml.{key}")


def _check_vocabulary(header: Header, sizes: Dimensions) -> None:
    damaged = f"vocabulary of {header.path.name} is damaged"
    tokens, types = header.get("tokenizer.ggml.tokens"), header.get("tokenizer.ggml.token_type")
    if len(types) != len(tokens) or not 0 < len(tokens) <= sizes.vocabulary:
        got = f"{len(tokens)} tokens, {len(types)} types, {sizes.vocabulary} embeddings"
        raise ConversionError(damaged, got=got, hint=DAMAGED)
    if len(set(tokens)) != len(tokens):
        raise ConversionError(damaged, got="one token twice", hint=DAMAGED)
    for key in _TOKEN_IDS:
        found = header.get(f"tokenizer.ggml.{key}", 0)
        for token_id in found if isinstance(found, list) else [found]:
            if not 0 <= token_id < len(tokens):
                got = f"tokenizer.ggml.{key}: {token_id}"
                raise ConversionError(damaged, got=got, allowed=f"0 to {len(tokens) - 1}", hint=DAMAGED)


def _used(architecture: str) -> dict[str, str]:
    return keys.USED | keys.USED_OF.get(architecture, {})


def _rule(key: str, architecture: str, rules: Mapping[str, Rule]) -> Rule | None:
    """The rule of the first pattern that a key matches."""
    if key in rules:
        return rules[key]
    plain = "{arch}" + key[len(architecture) :] if key.startswith(f"{architecture}.") else key
    if plain in rules:
        return rules[plain]
    patterns: Iterable[str] = (pattern for pattern in rules if "*" in pattern)
    return next((rules[pattern] for pattern in patterns if fnmatchcase(plain, pattern)), None)


def _equal(value: Any, allowed: float | str) -> bool:
    if isinstance(value, str) or isinstance(allowed, str) or value is None:
        return bool(value == allowed)
    return not isinstance(value, list) and math.isclose(value, allowed, rel_tol=1e-6)


def _held(header: Header, key: str) -> str:
    """What a key holds, for a message."""
    value = header.metadata.get(key)
    return header.kinds[key] if value is None or isinstance(value, list) else f"{header.kinds[key]} {value!r}"
