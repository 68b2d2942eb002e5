"""Target and draft on different engines and devices: the target's exact text, whatever drafts for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import edgespec
from edgespec.backends.open import open_model
from edgespec.errors import BackendError, SettingError
from edgespec.machine import loader
from edgespec.pipeline import Pipeline

PROMPT = [(7 * i + i * i) % 50 for i in range(40)]
OPTIONS: dict[str, Any] = {"max_new_tokens": 24, "ignore_eos": True}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGESPEC_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def plain(tiny_fast_ir: Path) -> dict[str, list[int]]:
    """The text of each engine with no draft."""
    found = {}
    for backend in ("openvino", "onnxruntime"):
        pipeline = edgespec.load(tiny_fast_ir.parent, draft="none", backend=backend)
        found[backend] = pipeline.generate(PROMPT, **OPTIONS).token_ids
    return found


def mixed(folder: Path, **options: Any) -> Pipeline:
    """The draft is its own target: it is right nearly always."""
    return edgespec.load(folder, draft=folder, num_draft_tokens=3, **options)


def check(pipeline: Pipeline, expected: list[int]) -> None:
    result = pipeline.generate(PROMPT, **OPTIONS)
    assert result.token_ids == expected and result.numerics == "exact"
    assert sum(round_.accepted for round_ in result.stats.rounds) > OPTIONS["max_new_tokens"] / 3


@pytest.mark.parametrize(("target", "draft"), [("openvino", "onnxruntime"), ("onnxruntime", "openvino")])
def test_two_engines(target: Any, draft: Any, plain: dict[str, list[int]], tiny_fast_ir: Path) -> None:
    pipeline = mixed(tiny_fast_ir.parent, backend=target, draft_backend=draft)
    drafting = pipeline.drafter and pipeline.drafter.model
    assert drafting and drafting.capabilities.backend == draft and pipeline.target.capabilities.backend == target
    check(pipeline, plain[target])


@pytest.mark.slow
@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
def test_a_draft_on_an_npu(
    target: Any, plain: dict[str, list[int]], tiny_fast_ir: Path, npu_on_cpu: None, capfd: pytest.CaptureFixture[str]
) -> None:
    pipeline = mixed(tiny_fast_ir.parent, backend=target, draft_device="npu")
    assert pipeline.devices == {"target": "CPU", "draft": "NPU"}
    check(pipeline, plain[target])


def test_a_draft_that_its_device_does_not_take_runs_on_the_cpu(
    tiny_fast_ir: Path, npu_on_cpu: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A target there is an error: it was asked for."""
    opened = open_model

    def refusing(backend: Any, opening: Any) -> Any:
        if opening.device == "NPU":
            raise BackendError("cannot compile it for NPU: out of memory")
        return opened(backend, opening)

    monkeypatch.setattr(loader, "open_model", refusing)
    pipeline = mixed(tiny_fast_ir.parent, backend="openvino", numerics="fast", draft_device="NPU", progress=True)
    assert pipeline.devices == {"target": "CPU", "draft": "CPU"}
    assert "the draft runs on the CPU: cannot compile it for NPU: out of memory" in capfd.readouterr().err
    assert len(pipeline.generate(PROMPT, **OPTIONS).token_ids) == OPTIONS["max_new_tokens"]
    with pytest.raises(BackendError, match="out of memory"):
        edgespec.load(tiny_fast_ir.parent, draft="none", device="NPU")


def test_a_pair_without_a_draft_model_has_no_engine_for_it(tiny_fast_ir: Path) -> None:
    with pytest.raises(SettingError, match="only a draft model has a draft backend, and ngram is none"):
        edgespec.load(tiny_fast_ir.parent, draft_backend="onnxruntime")
