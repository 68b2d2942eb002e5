"""The text side of a model: tokenizer.json, chat template, and what begins a prompt and ends a generation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from edgespec.bundle import Generation
from edgespec.errors import ConversionError, foreign
from edgespec.gguf import convert as gguf
from edgespec_export.sources import Source, read_json


@dataclass(frozen=True)
class Texts:
    """tokenizer_json is the file's text, kept as the source has it."""

    tokenizer_json: str
    chat_template: str | None
    generation: Generation

    @cached_property
    def tokenizer(self) -> Tokenizer:
        tokenizer = Tokenizer.from_str(self.tokenizer_json)
        tokenizer.no_truncation()
        return tokenizer


def read(source: Source, *, trust_remote_code: bool = False) -> Texts:
    """Raises ConversionError: no usable tokenizer, no end-of-text token, no context length."""
    if source.gguf is not None:
        return _from_gguf(source)
    with foreign(ConversionError, f"cannot read the texts of {source.folder}", hint="download the model again"):
        return _from_folder(source.folder, trust_remote_code)


def _from_folder(folder: Path, trust_remote_code: bool) -> Texts:
    config = read_json(folder / "config.json")
    text_config = {**config, **(config.get("text_config") or {})}
    tokenizer_config = read_json(folder / "tokenizer_config.json")
    tokenizer_json = _tokenizer_json(folder, trust_remote_code)
    tokenizer = Tokenizer.from_str(tokenizer_json)
    bos, eos = _text(tokenizer_config.get("bos_token")), _text(tokenizer_config.get("eos_token"))
    eos_ids = read_json(folder / "generation_config.json").get("eos_token_id")
    if eos_ids is None:  # null says nothing
        eos_ids = text_config.get("eos_token_id")
    if eos_ids is None and eos is not None:
        eos_ids = tokenizer.token_to_id(eos)
    if eos_ids is None:
        raise ConversionError(f"{folder} names no end-of-text token", hint="set eos_token_id in generation_config.json")
    context_length = context_length_of(text_config)
    if context_length is None:
        raise ConversionError("config.json gives no context length", hint="set max_position_embeddings in it")
    return Texts(
        tokenizer_json,
        _chat_template(folder, tokenizer_config),
        Generation(
            eos_token_ids=tuple(eos_ids) if isinstance(eos_ids, list) else (int(eos_ids),),
            context_length=context_length,
            bos_token=bos,
            eos_token=eos,
            add_bos=_adds_bos(tokenizer, tokenizer_config, bos),
        ),
    )


def context_length_of(config: dict[str, Any]) -> int | None:
    """Positions the exported graph is right for.

    Phi-3's long variants switch their rotary factors at original_max_position_embeddings, once for a whole prompt;
    with a cache that grows across that line old rows would have the other factors, so the line is the limit.
    """
    for name in ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length"):
        if isinstance(config.get(name), int):
            longest = int(config[name])
            original = config.get("original_max_position_embeddings")
            return min(longest, int(original)) if original and config.get("model_type") == "phi3" else longest
    return None


def _tokenizer_json(folder: Path, trust_remote_code: bool) -> str:
    path = folder / "tokenizer.json"
    if path.is_file():
        text = path.read_text(encoding="utf-8")
    else:
        from transformers import AutoTokenizer

        try:
            fast = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
            text = fast.backend_tokenizer.to_str()
        except Exception as error:  # slow tokenizers fail in many ways
            raise ConversionError(
                f"{folder} has no tokenizer.json and its tokenizer cannot be converted",
                hint="save it with a fast tokenizer of transformers first",
            ) from error
    try:
        Tokenizer.from_str(text)
    except Exception as error:  # tokenizers raises plain Exception
        raise ConversionError(f"cannot read {path}: {error}", hint="download the model again") from error
    return text


def _chat_template(folder: Path, tokenizer_config: dict[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = tokenizer_config.get("chat_template") or read_json(folder / "chat_template.json").get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _adds_bos(tokenizer: Tokenizer, tokenizer_config: dict[str, Any], bos: str | None) -> bool:
    if bos is None:
        return False
    said = tokenizer_config.get("add_bos_token")
    if isinstance(said, bool):
        return said
    return bool(tokenizer.encode("a").tokens[:1] == [bos])


def _text(token: Any) -> str | None:
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def _from_gguf(source: Source) -> Texts:
    # transformers has a tokenizer for GGUF files too, but takes the class from the architecture: a Llama with a
    # byte-level vocabulary comes out as a SentencePiece one and encodes wrongly.
    assert source.gguf is not None
    texts = Texts(*gguf.texts(gguf.read_header(source.gguf)))
    if not texts.generation.eos_token_ids:
        raise ConversionError(f"{source.reference} names no end-of-text token", hint="export the original model")
    return texts
