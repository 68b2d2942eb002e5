"""``edgespec bench server``: what it takes, on a model that takes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgespec_bench import server
from edgespec_bench.server import bench_server
from tests.fake_server import fake_pipeline
from tests.test_infill import QWEN
from tests.tiny_models import SPECIAL, train_tokenizer


def test_each_goal_has_a_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_REST_S", 0.3)
    train_tokenizer(tmp_path / "tokenizer.json", special=(*SPECIAL, *QWEN[1:]))
    bench_server(fake_pipeline(tmp_path, capacity=4096), pairs=2)
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["pairs"] == 2 and figures["library_batch_ms"] > 0
    assert figures["first_byte_ms"] > 0 and figures["idle_cpu_ms_a_second"] >= 0
    assert {"request_ms", "batch_ms"} <= figures.keys() and "ready_later_s" not in figures


@pytest.mark.slow
@pytest.mark.real
def test_the_start_is_timed_by_processes(tmp_path: Path) -> None:
    from edgespec_bench.server import _as_installed, _loaded_s, _ready_s

    words, env = ["--backend", "openvino", "--draft", "ngram"], _as_installed(str(tmp_path))
    assert _ready_s(words, env) > 0 and list(tmp_path.rglob("listen.*.pyc"))
    assert _loaded_s(words, env) > 0
