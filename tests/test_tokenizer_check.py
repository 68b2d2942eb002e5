"""A tokenizer of a stranger's makes no text much longer, and is a file of a size that tokenizers have."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from edgespec import files, ir_folder
from edgespec.errors import BundleError
from edgespec.text.tokenizer import Tokenizer


def replace(old: str, new: str, kind: str = "String") -> dict[str, Any]:
    return {"type": "Replace", "pattern": {kind: old}, "content": new}


def write(folder: Path, **parts: Any) -> Path:
    model = {"type": "WordLevel", "vocab": {"a": 0, "<unk>": 1}, "unk_token": "<unk>"}
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model, **parts}), encoding="utf-8")
    return path


DOUBLE = [replace("a", "aa")] * 40
FOREIGN = {
    "doubles": {"normalizer": {"type": "Sequence", "normalizers": DOUBLE}},
    "doubles by a pattern": {"normalizer": {"type": "Sequence", "normalizers": [replace("[ab]", "ab", "Regex")] * 40}},
    "fills the gaps": {"normalizer": {"type": "Sequence", "normalizers": [replace("z*", "z", "Regex")] * 40}},
    "nests": {
        "normalizer": {
            "type": "Sequence",
            "normalizers": [{"type": "Sequence", "normalizers": DOUBLE[:8]}] * 5,
        }
    },
    "puts much in front": {"normalizer": {"type": "Prepend", "prepend": "a" * 10**6}},
    "has many tables": {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFKD"}] * 40}},
    "maps bytes again": {"normalizer": {"type": "Sequence", "normalizers": [{"type": "ByteLevel"}] * 2}},
    "doubles what is written": {"decoder": {"type": "Sequence", "decoders": DOUBLE}},
}
KNOWN = {
    "llama": {
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace(" ", "▁")]},
        "decoder": {
            "type": "Sequence",
            "decoders": [
                replace("▁", " "),
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
    },
    "clip": {
        "normalizer": {
            "type": "Sequence",
            "normalizers": [{"type": "NFC"}, replace(r"\s+", " ", "Regex"), {"type": "Lowercase"}],
        }
    },
    "qwen": {"normalizer": {"type": "NFC"}},
    "none": {},
}


@pytest.mark.parametrize("parts", FOREIGN.values(), ids=FOREIGN)
def test_what_makes_texts_much_longer_is_refused(tmp_path: Path, parts: dict[str, Any]) -> None:
    with pytest.raises(BundleError, match="tokenizer (makes|puts|has)"):
        Tokenizer(write(tmp_path, **parts))


@pytest.mark.parametrize("parts", KNOWN.values(), ids=KNOWN)
def test_what_known_models_do_is_read(tmp_path: Path, parts: dict[str, Any]) -> None:
    Tokenizer(write(tmp_path, **parts)).encode("a")


def test_a_file_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MOST_TOKENIZER_BYTES", 10)
    with pytest.raises(BundleError, match="too large"):
        Tokenizer(write(tmp_path))


def test_a_post_processor_has_a_limit(tmp_path: Path) -> None:
    path = write(tmp_path, post_processor=[[]] * 10**6)
    with pytest.raises(BundleError, match="post-processor"):
        ir_folder._processor(path, ir_folder._tokenizer_file(path))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes have names on POSIX only")
def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BundleError, match="not a file"):
        Tokenizer(tmp_path / "pipe")
    for read in (files.read_bytes, files.sha256):
        with pytest.raises(ValueError, match="not a file"):
            read(tmp_path / "pipe")
