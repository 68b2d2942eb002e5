"""Sizes of the model in a GGUF file."""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgespec.errors import ConversionError
from edgespec.gguf.header import ELSE, Header

LARGEST = 2**31 - 1  # no model comes near
DAMAGED = "download it again"


@dataclass(frozen=True)
class Dimensions:
    """Sizes of a model, and what it multiplies with.

    embedding: of a hidden state. head: of one head's queries, keys and values. Granite multiplies embeddings, and what
    a layer adds to the hidden states, and divides logits.
    """

    layers: int
    embedding: int
    feed_forward: int
    heads: int
    kv_heads: int
    head: int
    vocabulary: int
    context: int
    norm_epsilon: float
    rope_base: float
    attention_scale: float
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0

    @classmethod
    def of(cls, header: Header) -> Dimensions:
        """Raises ConversionError: a size is missing, of the wrong type, or fits no other."""
        embedding = _size(header, "{arch}.embedding_length")
        heads = _size(header, "{arch}.attention.head_count")
        head = _size(header, "{arch}.attention.key_length", max(1, embedding // heads))
        scales = {}
        if header.architecture == "granite":
            usually = {"embedding_scale": 1.0, "residual_scale": 1.0, "logit_scale": None}
            scales = {name: _number(header, f"{{arch}}.{name}", number) for name, number in usually.items()}
        usual = 1 / math.sqrt(head)
        found = cls(
            layers=_size(header, "{arch}.block_count"),
            embedding=embedding,
            feed_forward=_size(header, "{arch}.feed_forward_length"),
            heads=heads,
            kv_heads=_size(header, "{arch}.attention.head_count_kv", heads),
            head=head,
            vocabulary=header.tensors["token_embd.weight"].shape[-1],
            context=_size(header, "{arch}.context_length"),
            norm_epsilon=_number(header, "{arch}.attention.layer_norm_rms_epsilon", None),
            rope_base=_number(header, "{arch}.rope.freq_base", 10000.0),
            attention_scale=_number(header, "{arch}.attention.scale", usual) if scales else usual,
            **scales,
        )
        if found.head % 2 or heads % found.kv_heads or found.layers > len(header.tensors):
            got = f"{found.layers} layers, {heads} heads of {found.head}, {found.kv_heads} of keys"
            raise ConversionError(f"sizes of {header.path.name} do not fit each other", got=got, hint=DAMAGED)
        return found

    @property
    def queries(self) -> int:
        return self.heads * self.head

    @property
    def keys(self) -> int:
        return self.kv_heads * self.head

    @property
    def frequencies(self) -> int:
        return self.head // 2

    @property
    def usual_attention_scale(self) -> float:
        return 1 / math.sqrt(self.head)


def _size(header: Header, key: str, default: int | None = None) -> int:
    """A positive number of the metadata. Where layers may differ, they must not."""
    found = header.get(key, default)
    values = set(found) if isinstance(found, list) else {found}
    name = key.format(arch=header.architecture)
    if values == {None}:
        raise incomplete(header, name)
    if len(values) != 1:
        got = f"{min(values)} to {max(values)}" if values else "none"
        raise ConversionError(f"{name} of {header.path.name}", got=got, allowed="the same in all layers", hint=ELSE)
    value: int = values.pop()
    if not 1 <= value <= LARGEST:
        raise ConversionError(f"{name} of {header.path.name}", got=value, allowed=f"1 to {LARGEST}", hint=DAMAGED)
    return value


def _number(header: Header, key: str, default: float | None) -> float:
    value = header.get(key, default)
    name = key.format(arch=header.architecture)
    if value is None:
        raise incomplete(header, name)
    if not 0 < value < 1e12:
        raise ConversionError(f"{name} of {header.path.name}", got=value, allowed="0 to 1e12", hint=DAMAGED)
    return float(value)


def incomplete(header: Header, what: str) -> ConversionError:
    return ConversionError(f"{header.path.name} is not a whole language model", got=f"no {what}", hint=DAMAGED)
