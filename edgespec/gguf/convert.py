"""GGUF file -> OpenVINO IR folder, without torch.

The graph is built here (``gguf.graph``); the tokenizer, the chat template and the token ids that end a turn come from
the file's own metadata. Nothing of it is left out: a file is checked key by key before it is converted.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from edgespec import bundle
from edgespec.errors import ConversionError, foreign
from edgespec.gguf import check, tensors
from edgespec.gguf import header as gguf_header
from edgespec.gguf.architectures import ARCHITECTURES
from edgespec.gguf.dimensions import Dimensions
from edgespec.gguf.forms import TABLES, Losses, Weights, form_of
from edgespec.gguf.header import Header
from edgespec.gguf.sentencepiece import Pieces
from edgespec.gguf.tokenizer import CONTROL, tokenizer_json

INPUT = "model.gguf"
"""Name of a file that was put into the folder to be converted there; it is removed."""

_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<|endofturn|>", "<end_of_turn>")


def read_header(path: Path) -> Header:
    """Raises ConversionError: not a GGUF file, cut short, or anything in it that is not computed here."""
    header = gguf_header.read(path, check.longest)
    with foreign(ConversionError, f"cannot read {path}"):
        check.check(header)
    return header


def generation(header: Header) -> bundle.Generation:
    """What begins a prompt and ends a text."""
    ends = [header.get(f"tokenizer.ggml.{key}") for key in ("eos_token_id", "eot_token_id", "eom_token_id")]
    ends += [*header.get("tokenizer.ggml.eos_token_ids", []), *_turn_ends(header)]
    of_pieces, pre = _is_of_pieces(header), header.get("tokenizer.ggml.pre")
    return bundle.Generation(
        eos_token_ids=tuple(dict.fromkeys(end for end in ends if end is not None)),
        context_length=Dimensions.of(header).context,
        bos_token=header.token("bos_token_id"),
        eos_token=header.token("eos_token_id"),
        add_bos=header.get("tokenizer.ggml.add_bos_token", of_pieces or pre == "llama-bpe"),
    )


def _turn_ends(header: Header) -> list[int]:
    """Of the tokens that end a turn, those that the chat template has."""
    template, tokens = header.get("tokenizer.chat_template") or "", header.get("tokenizer.ggml.tokens")
    return [tokens.index(text) for text in _TURN_ENDS if text in template and text in tokens]


def _is_of_pieces(header: Header) -> bool:
    return bool(header.get("tokenizer.ggml.model") == "llama")


def texts(header: Header) -> tuple[str, str | None, bundle.Generation]:
    """tokenizer.json, chat template, and what begins a prompt and ends a generation."""
    tokens, types = header.get("tokenizer.ggml.tokens"), list(header.get("tokenizer.ggml.token_type"))
    for end in _turn_ends(header):
        types[end] = CONTROL  # whatever type the file gives it: llama.cpp makes it a control token, too
    with foreign(ConversionError, f"cannot read the tokenizer of {header.path.name}", hint="download the file again"):
        if _is_of_pieces(header):
            tokenizer = Pieces(
                tokens,
                types,
                header.get("tokenizer.ggml.scores"),
                unknown=header.get("tokenizer.ggml.unknown_token_id", 0),
                prefixed=header.get("tokenizer.ggml.add_space_prefix", True),
                stripping=header.architecture == "phi3",
            ).tokenizer_json()
        else:
            merges = header.get("tokenizer.ggml.merges")
            tokenizer = tokenizer_json(header.get("tokenizer.ggml.pre"), tokens, types, merges)
    return tokenizer, header.get("tokenizer.chat_template"), generation(header)


def convert(
    header: Header,
    folder: Path,
    *,
    name: str,
    source: str,
    revision: str | None = None,
    weights: Weights = "faithful",
    say: Callable[[str], object] = lambda line: None,
) -> bundle.Bundle:
    """Fill an empty folder: texts, the JSON files other OpenVINO tools look for, IR, and last of all bundle.json.

    revision: SHA-256 of the file, for the record.
    weights: "faithful" keeps the file's own numbers, "int8" and "int4" compress them again (see ``gguf.forms``).
    say: is told which form the weights of each type got, and what that rounds.
    """
    tokenizer, template, ends = texts(header)
    with foreign(ConversionError, f"cannot convert {header.path.name}"):
        precision = header.precision if weights == "faithful" else weights
        config = {
            "model_type": header.architecture,
            "vocab_size": header.vocab_size,
            "max_position_embeddings": ends.context_length,
            "edgespec_precision": precision,
        }
        tokenizer_config = {
            "bos_token": ends.bos_token,
            "eos_token": ends.eos_token,
            "add_bos_token": ends.add_bos,
        }
        for file, content in (
            ("config.json", config),
            ("generation_config.json", {"eos_token_id": ends.eos_token_ids}),
            ("tokenizer_config.json", tokenizer_config),
        ):
            (folder / file).write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        losses = Losses()
        _write_ir(header, folder / bundle.IR_FILE, weights, losses)
        say(", ".join(losses.lines()))
        (folder / INPUT).unlink(missing_ok=True)
        return bundle.write(
            folder,
            bundle.Manifest(
                format=bundle.FORMAT,
                name=name,
                target=bundle.model_file(folder, bundle.IR_FILE, precision=precision, vocab_size=header.vocab_size),
                tokenizer=_write(folder / "tokenizer.json", tokenizer),
                chat_template=None if template is None else _write(folder / "chat_template.jinja", template),
                generation=ends,
                provenance=bundle.Provenance(
                    licence=header.licence and bundle.line(header.licence), source=source, revision=revision
                ),
            ),
        )


def ir_bytes(header: Header, weights: Weights = "faithful") -> int:
    """About as many as the IR of a file that was checked will take."""
    found = 1 << 20
    for name, tensor in header.tensors.items():
        if len(tensor.shape) > 1:
            columns, rows = tensor.shape
            found += form_of(tensor.kind, columns, weights, table=name in TABLES).nbytes(rows, columns)
    return found


def _write_ir(header: Header, xml: Path, weights: Weights, losses: Losses) -> None:
    from edgespec.backends.openvino.runtime import ov
    from edgespec.gguf.graph import decoder

    with np.errstate(all="ignore"):  # what is not finite is refused where it is read
        model = decoder(
            ARCHITECTURES[header.architecture], Dimensions.of(header), tensors.read(header), weights, losses
        )
    free = shutil.disk_usage(xml.parent).free >> 20
    with foreign(ConversionError, f"cannot write {xml}", hint=f"free disk space: {free} MiB"):
        ov.serialize(model, xml)
        ov.Core().read_model(xml)  # it says nothing of a disk that was full


def _write(path: Path, text: str) -> bundle.HashedFile:
    path.write_bytes(text.encode())  # bytes: no line end is translated
    return bundle.HashedFile(file=path.name, sha256=bundle.sha256_of(path))
