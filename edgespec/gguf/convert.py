"""GGUF file -> OpenVINO IR folder, without torch.

OpenVINO GenAI writes the graph; the tokenizer, the chat template and the token ids that end a turn come from the
file's own metadata. GenAI reads few architectures and quantizations, and says nothing of what it leaves out, so a file
is checked key by key before it is converted.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from edgespec import bundle
from edgespec.errors import ConversionError, foreign
from edgespec.gguf import check
from edgespec.gguf import header as gguf_header
from edgespec.gguf.genai import write_ir
from edgespec.gguf.header import Header
from edgespec.gguf.tokenizer import CONTROL, tokenizer_json
from edgespec.gguf.weights import requantize

INPUT = "model.gguf"
"""Name of a file that was put into the folder to be converted there; it is removed."""

_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<|endofturn|>", "<end_of_turn>")


def read_header(path: Path) -> Header:
    """Raises ConversionError: not a GGUF file, cut short, or anything in it that is not computed here."""
    header = gguf_header.read(path, check.longest)
    with foreign(ConversionError, f"cannot read {path}"):
        check.check(header)
    return header


def texts(header: Header) -> tuple[str, str | None, bundle.Generation]:
    """tokenizer.json, chat template, and what begins a prompt and ends a generation."""
    template = header.get("tokenizer.chat_template")
    tokens, types = header.get("tokenizer.ggml.tokens"), list(header.get("tokenizer.ggml.token_type"))
    ends = [header.get(f"tokenizer.ggml.{key}") for key in ("eos_token_id", "eot_token_id", "eom_token_id")]
    ends += header.get("tokenizer.ggml.eos_token_ids", [])
    for text in _TURN_ENDS:
        if text in (template or "") and text in tokens:
            # Whatever type the file gives it: llama.cpp makes it a control token, too.
            types[tokens.index(text)] = CONTROL
            ends.append(tokens.index(text))
    pre = header.get("tokenizer.ggml.pre")
    with foreign(ConversionError, f"cannot read the tokenizer of {header.path.name}", hint="download the file again"):
        tokenizer = tokenizer_json(pre, tokens, types, header.get("tokenizer.ggml.merges"))
    return (
        tokenizer,
        template,
        bundle.Generation(
            eos_token_ids=tuple(dict.fromkeys(end for end in ends if end is not None)),
            context_length=header.get("{arch}.context_length"),
            bos_token=header.token("bos_token_id"),
            eos_token=header.token("eos_token_id"),
            add_bos=header.get("tokenizer.ggml.add_bos_token", pre == "llama-bpe"),
        ),
    )


def convert(
    header: Header,
    folder: Path,
    *,
    name: str,
    source: str,
    revision: str | None = None,
    weights: Literal["int8", "faithful"] = "faithful",
    merge: bool = True,
) -> bundle.Bundle:
    """Fill an empty folder: IR, texts, the JSON files other OpenVINO tools look for, and last of all bundle.json.

    revision: SHA-256 of the file, for the record.
    weights: "faithful" keeps the file's own precision, "int8" compresses its weights again (see ``gguf.weights``).
    merge: matrix products that read the same activations become one (see ``backends.openvino.merge_matmuls``).
    """
    tokenizer, template, generation = texts(header)
    with foreign(ConversionError, f"cannot convert {header.path.name}"):
        precision = requantize(write_ir(header, folder), header, weights, merge=merge)
        (folder / INPUT).unlink(missing_ok=True)
        config = {
            "model_type": header.architecture,
            "vocab_size": header.vocab_size,
            "max_position_embeddings": generation.context_length,
            "edgespec_precision": precision,
        }
        tokenizer_config = {
            "bos_token": generation.bos_token,
            "eos_token": generation.eos_token,
            "add_bos_token": generation.add_bos,
        }
        for file, content in (
            ("config.json", config),
            ("generation_config.json", {"eos_token_id": generation.eos_token_ids}),
            ("tokenizer_config.json", tokenizer_config),
        ):
            (folder / file).write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        return bundle.write(
            folder,
            bundle.Manifest(
                format=bundle.FORMAT,
                name=name,
                target=bundle.model_file(folder, bundle.IR_FILE, precision=precision, vocab_size=header.vocab_size),
                tokenizer=_write(folder / "tokenizer.json", tokenizer),
                chat_template=None if template is None else _write(folder / "chat_template.jinja", template),
                generation=generation,
                provenance=bundle.Provenance(
                    licence=header.licence and bundle.line(header.licence), source=source, revision=revision
                ),
            ),
        )


def _write(path: Path, text: str) -> bundle.HashedFile:
    path.write_bytes(text.encode())  # bytes: no line end is translated
    return bundle.HashedFile(file=path.name, sha256=bundle.sha256_of(path))
