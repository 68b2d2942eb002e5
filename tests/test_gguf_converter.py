"""GenAI gets a file of ours, in a process that has limits."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from edgespec.errors import ConversionError
from edgespec.gguf import convert as gguf
from edgespec.gguf import genai
from tests import tiny_gguf


def convert(folder: Path) -> str:
    """What is said of a conversion that fails, which leaves nothing behind."""
    source = tiny_gguf.write(folder / "tiny.gguf")
    (folder / "ir").mkdir()
    with pytest.raises(ConversionError) as caught:
        gguf.convert(gguf.read_header(source), folder / "ir", name="tiny", source="tiny")
    assert not list((folder / "ir").iterdir())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_staged_file_holds_what_was_checked_and_no_more(tmp_path: Path) -> None:
    import gguf as package

    extra = {
        "general.name": "a stranger's",
        "tokenizer.ggml.fim_pre_token_id": 1,
        "llama.attention.head_count_kv": [2, 2],
    }
    tensors = {"rope_freqs.weight": np.ones(8), "blk.0.attn_q.bias": np.arange(64)}
    source = tiny_gguf.write(tmp_path / "tiny.gguf", quantize="F32", extra=extra, tensors=tensors)
    genai.stage(gguf.read_header(source), tmp_path / "staged.gguf")

    staged = package.GGUFReader(tmp_path / "staged.gguf")
    fields = {name: field.contents() for name, field in staged.fields.items()}
    assert fields["llama.attention.head_count_kv"] == 2
    assert fields["tokenizer.ggml.tokens"] == ["a", "b"]
    assert not fields.keys() & {"general.name", "tokenizer.ggml.fim_pre_token_id"}
    found = {tensor.name: tensor for tensor in staged.tensors}
    given = {tensor.name: tensor for tensor in package.GGUFReader(source).tensors if tensor.name != "rope_freqs.weight"}
    assert found.keys() == given.keys()
    for name, tensor in given.items():
        if len(tensor.shape) == 2:
            np.testing.assert_array_equal(found[name].data, tensor.data.astype(np.float16))
    # llama.cpp stores a head of 16 rows as 0, 8, 1, 9, ...: GenAI puts the rows of matrices back, but not biases.
    head = [*range(0, 16, 2), *range(1, 16, 2)]
    assert found["blk.0.attn_q.bias"].data.tolist() == [16 * i + row for i in range(4) for row in head]


def test_a_broken_conversion_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(genai, "_CONVERT", "raise RuntimeError('first\\nno such layer')")
    said = convert(tmp_path)
    assert said.startswith("cannot convert tiny.gguf: no such layer. Free disk space")


def test_a_crash_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(genai, "_CONVERT", "import os; os._exit(3)")
    assert "the converter ended with code 3" in convert(tmp_path)


def test_a_conversion_that_does_not_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(genai, "_CONVERT", "import time; time.sleep(600)")
    monkeypatch.setattr(genai, "_SECONDS_BASE", 1)
    assert "it was not done after 1 seconds" in convert(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="no such limit")
def test_a_conversion_without_bounds_is_refused_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(genai, "_CONVERT", "bytes(3 << 30)")
    monkeypatch.setattr(genai, "_MEMORY_BASE_BYTES", 2 << 30)
    assert "no memory (2 GiB are allowed)" in convert(tmp_path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full disk to write to")
def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(genai, "STAGED", "/dev/full")
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)
    source = tiny_gguf.write(tmp_path / "tiny.gguf")
    with pytest.raises(ConversionError, match=r"cannot write .*No space left.*Free disk space"):
        genai.write_ir(gguf.read_header(source), tmp_path)
