"""ONNX Runtime as an engine: memory, threads, and forwards that were interrupted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from edgespec.backends.engine_model import LONGEST_PAD
from edgespec.backends.onnx.bound_cache import SPARE_ROWS
from edgespec.backends.onnx.graph import WEIGHTS_FILE, write_onnx
from edgespec.backends.onnx.session import OnnxRuntimeModel
from edgespec.errors import BackendError
from tests.conftest import load_ir, load_onnx
from tests.tiny_models import build, export_ir


def test_tables_grow_with_the_context(tiny_fast_ir: Path, tmp_path: Path) -> None:
    """Behind the rows that are kept, the next forward still is the function of the IR."""
    write_onnx(tiny_fast_ir, tmp_path, longest=10_000)
    assert (tmp_path / "rotary.npz").stat().st_size < 2 << 20
    text = [(31 * i + i * i) % 200 + 10 for i in range(4200)]
    ours, theirs = OnnxRuntimeModel(tmp_path, "fast", capacity=10_000), load_ir(tiny_fast_ir, capacity=4300)
    rows = []
    for model in (ours, theirs):
        model.prefill(text)
        rows.append(model.forward([7, 8, 9]).logits.copy())
    assert ours._rotary.rows == 8192
    assert np.abs(rows[0] - rows[1]).max() < 0.2 * np.abs(rows[1]).max()  # activations in 8 bits
    ours.prefill(text * 2)
    ours.forward([7] * 100)
    most = 10_000 + LONGEST_PAD + SPARE_ROWS
    assert ours._rotary.rows == most, "no further than the context and the pads behind it"


def test_tables_that_cannot_grow_say_why(tiny_fast_ir: Path, tmp_path: Path) -> None:
    """Each failure had been called a lack of memory."""
    write_onnx(tiny_fast_ir, tmp_path, longest=10_000)
    model = OnnxRuntimeModel(tmp_path, "fast", capacity=10_000)
    (tmp_path / "rotary.xml").rename(tmp_path / "away.xml")
    with pytest.raises(BackendError, match=r"no more positions from .*rotary\.xml: .*smaller --context-length"):
        model.prefill([7] * 4200)
    (tmp_path / "away.xml").rename(tmp_path / "rotary.xml")
    model.cache.reset()
    model.prefill([7] * 4200)
    assert model._rotary.rows == 8192


def test_a_claimed_context_takes_no_memory(tmp_path: Path) -> None:
    """The same model, made for 512 tokens and for a million; with a text of 4 tokens."""
    script = """if True:
        import sys, edgespec
        from edgespec_bench.peers.worker import peak_bytes
        edgespec.load(sys.argv[1], backend="onnxruntime", draft="none").generate([1, 2, 3, 4], max_new_tokens=2)
        print(peak_bytes())
    """
    torch = build("llama", tmp_path / "torch", hidden=256, heads=2, kv_heads=1)
    folder = export_ir(torch, tmp_path / "ir", "int8").parent
    config, peaks = json.loads((folder / "config.json").read_text(encoding="utf-8")), []
    for rows in (512, 1_010_000):
        (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": rows}), encoding="utf-8")
        cache = tmp_path / f"cache{rows}"
        ran = subprocess.run(
            [sys.executable, "-c", script, str(folder)],
            check=True, capture_output=True, text=True, env=os.environ | {"EDGESPEC_CACHE": str(cache)},
        )  # fmt: skip
        peaks.append(int(ran.stdout))
        assert sum(file.stat().st_size for file in cache.rglob("*") if file.is_file()) < 8 << 20
    assert peaks[1] - peaks[0] < 64 << 20


def test_a_damaged_file_is_an_error_that_says_what_to_do(tiny_fast_ir: Path, tmp_path: Path) -> None:
    write_onnx(tiny_fast_ir, tmp_path, longest=64)
    (tmp_path / WEIGHTS_FILE).write_bytes((tmp_path / WEIGHTS_FILE).read_bytes()[:100])
    with pytest.raises(BackendError, match="Delete that folder"):
        OnnxRuntimeModel(tmp_path, "fast", capacity=64)


def test_the_engine_is_told_how_many_threads(tiny_fast_ir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unasked it ties them to cores, which made every forward a tenth slower."""
    for cores, available, told in ((2, 4, 2), (4, 2, 2), (None, 3, 3)):
        monkeypatch.setattr(psutil, "cpu_count", lambda logical, cores=cores: cores)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, n=available: range(n), raising=False)
        options = load_onnx(tiny_fast_ir).session.get_session_options()
        assert options.intra_op_num_threads == told


def test_the_cache_grows_by_little_more_than_it_must(tiny_fast_ir: Path) -> None:
    model = load_onnx(tiny_fast_ir, capacity=4000)
    model.prefill([1] * 50)
    model.prefill([1] * 900)
    assert 900 < model.cache.rows < 1.3 * 900


def test_a_forward_nobody_waited_for_is_over_before_the_cache_grows(tiny_fast_ir: Path) -> None:
    """It writes into the tensors that growing replaces."""
    model, other = (load_onnx(tiny_fast_ir, capacity=1000) for _ in range(2))
    model.prefill([1] * 250)
    model.start([2] * 5)
    model._running = None  # as an interrupted start leaves it
    text = [1] * 250 + [3] * 200
    assert model.prefill(text) == 250
    other.prefill(text)
    assert np.array_equal(model.forward([2]).logits, other.forward([2]).logits)


def test_a_start_that_fails_does_not_last(tiny_fast_ir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_onnx(tiny_fast_ir)

    def interrupted() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(model, "_start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            model.start([1, 2])
    assert len(model.forward([1, 2, 3]).logits) == 3
