"""A folder in the layout that optimum-intel writes, described as a bundle without drafters.

Four JSON files say what begins a prompt and what ends a text. Each of them may leave it out. They are read as
transformers reads them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import msgspec

from edgespec import files
from edgespec.errors import BundleError, foreign
from edgespec.manifest import FORMAT, Generation, HashedFile, Manifest, ModelFile, VocabSize, line

IR_FILE = "openvino_model.xml"

_AGAIN = "export or pull the model again"
_MOST_PROCESSOR_BYTES = 1 << 20
"""of a post-processor. Known ones have a few kilobytes. Once read, it takes twenty times as much memory."""


class _AddedToken(msgspec.Struct):
    id: int | None = None
    content: str | None = None


class _TokenizerFile(msgspec.Struct):
    """The needed parts of ``tokenizer.json``. The rest is skipped, which takes milliseconds."""

    post_processor: msgspec.Raw = msgspec.Raw(b"null")
    added_tokens: Annotated[list[_AddedToken], msgspec.Meta(max_length=1 << 20)] = []


def describe(folder: Path) -> tuple[Manifest, str | None]:
    """The manifest, and the chat template if a JSON file holds it. Raises BundleError."""
    require(folder, IR_FILE, IR_FILE.replace(".xml", ".bin"))
    source = folder / "config.json"
    config = transformers_config(source)
    return described(folder, IR_FILE, source, config, _precision(folder, config))


def require(folder: Path, model: str, *needed: str) -> None:
    """Raises BundleError: a file that a folder with this model needs, besides a tokenizer, is not there."""
    for name in (*needed, "tokenizer.json"):
        if not (folder / name).is_file():
            raise BundleError(f"{folder} has {model} but no {name}", hint=_AGAIN)


def transformers_config(path: Path) -> dict[str, Any]:
    """``config.json``; of a model with parts, what it says of the one for text."""
    config = json_object(path)
    return {**config, **part(config, "text_config", path)}


def described(
    folder: Path, model: str, source: Path, config: dict[str, Any], precision: str
) -> tuple[Manifest, str | None]:
    """A folder with the texts of transformers beside the file ``model``. config: keys of a transformers config, which
    stand in the file ``source``."""
    tokenizer_config = json_object(folder / "tokenizer_config.json", optional=True)
    template = folder / "chat_template.jinja"
    with foreign(BundleError, f"{source} does not describe a model", hint="export it again"):
        vocab_size = msgspec.convert(config.get("vocab_size"), VocabSize)
        target = ModelFile(precision=line(precision), vocab_size=vocab_size, file=model)
    manifest = Manifest(
        format=FORMAT,
        name=line(folder.name),
        target=target,
        tokenizer=_hashed(folder / "tokenizer.json"),
        chat_template=_hashed(template) if template.is_file() else None,
        generation=_generation(folder, source, config, tokenizer_config),
    )
    return manifest, _inline_template(folder, tokenizer_config)


def _generation(folder: Path, source: Path, config: dict[str, Any], tokenizer_config: dict[str, Any]) -> Generation:
    generation_config = json_object(folder / "generation_config.json", optional=True)
    bos, eos = (_text(tokenizer_config.get(name)) for name in ("bos_token", "eos_token"))
    ends = next(
        (ids for source in (generation_config, config) if (ids := _ids(source.get("eos_token_id")))), None
    )  # null, an empty list and -1 mean that none is given
    add_bos = tokenizer_config.get("add_bos_token")
    if ends is None or not isinstance(add_bos, bool):
        path = folder / "tokenizer.json"
        tokenizer = _tokenizer_file(path)
        if ends is None:
            ends = [token.id for token in tokenizer.added_tokens if eos and token.content == eos]
        if not isinstance(add_bos, bool):
            begin = _first_special(_processor(path, tokenizer))
            add_bos = begin is not None and bos in (None, begin)
            bos = begin if add_bos else bos
    found = {
        "eos_token_ids": ends,
        "context_length": config.get("max_position_embeddings"),
        "bos_token": bos,
        "eos_token": eos,
        "add_bos": add_bos,
    }
    with foreign(BundleError, f"{source} does not describe a model", hint="export it again"):
        return msgspec.convert(found, Generation)


def _ids(said: Any) -> list[Any]:
    listed = said if isinstance(said, list) else [said]
    return [token for token in listed if token is not None and token != -1]


def _first_special(processor: Any) -> str | None:
    """The token that the tokenizer's post-processor puts in front of a text. transformers uses it too.

    >>> _first_special({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {}}]})
    '<s>'
    """
    match processor:
        case {"type": "Sequence", "processors": [*parts]}:
            return next((found for part in parts if (found := _first_special(part))), None)
        case {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": str(token)}}, *_]}:
            return token
        case {"type": "RobertaProcessing" | "BertProcessing", "cls": [str(token), *_]}:
            return token
    return None


def _inline_template(folder: Path, tokenizer_config: dict[str, Any]) -> str | None:
    """The template in tokenizer_config.json or chat_template.json. In a list of named templates, ``default`` counts."""
    said = tokenizer_config.get("chat_template")
    if said is None:
        said = json_object(folder / "chat_template.json", optional=True).get("chat_template")
    if isinstance(said, list):
        named = [entry for entry in said if isinstance(entry, dict) and entry.get("name") == "default"]
        said = named[0].get("template") if named else None
    return said if isinstance(said, str) else None


def _tokenizer_file(path: Path) -> _TokenizerFile:
    with foreign(BundleError, f"{path} is not a tokenizer", hint=_AGAIN):
        return msgspec.json.decode(files.read_bytes(path, files.MOST_TOKENIZER_BYTES), type=_TokenizerFile)


def _processor(path: Path, tokenizer: _TokenizerFile) -> Any:
    with foreign(BundleError, f"{path} is not a tokenizer", hint=_AGAIN):
        if len(raw := bytes(tokenizer.post_processor)) > _MOST_PROCESSOR_BYTES:
            raise ValueError(f"its post-processor has over {_MOST_PROCESSOR_BYTES >> 20} MiB")
        return msgspec.json.decode(raw)


def _precision(folder: Path, config: dict[str, Any]) -> str:
    path = folder / "openvino_config.json"
    quantization = part(json_object(path, optional=True), "quantization_config", path)
    bits = quantization.get("bits")
    return f"int{bits}" if bits else str(config.get("edgespec_precision", "unknown"))


def _text(token: Any) -> str | None:
    """The text of a special token, which is a string or an object with one."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def part(of: dict[str, Any], key: str, path: Path) -> dict[str, Any]:
    """An object inside another; empty if it is null or missing."""
    value = of.get(key)
    if value is not None and not isinstance(value, dict):
        raise BundleError(f"{path}: {key} is not an object", hint=_AGAIN)
    return value or {}


def json_object(path: Path, optional: bool = False) -> dict[str, Any]:
    """A file that holds one. Raises BundleError."""
    if optional and not path.is_file():
        return {}
    with foreign(BundleError, f"cannot read {path}", hint=_AGAIN):
        value = json.loads(files.read_bytes(path).decode("utf-8-sig"))
    if not isinstance(value, dict):
        raise BundleError(f"{path} is not a JSON object")
    return value


def _hashed(path: Path) -> HashedFile:
    with foreign(BundleError, f"cannot read {path}", hint=_AGAIN):
        return HashedFile(file=path.name, sha256=files.sha256(path))
