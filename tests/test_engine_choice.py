"""Which engine runs a model: the faster one, unless it cannot or somebody said."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version as version_of
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from click.testing import CliRunner

import edgespec
from edgespec import cache, trial_loading
from edgespec.backends.engine_model import PaddedModel
from edgespec.backends.onnx.weights import NoONNXForm
from edgespec.cli import cli
from edgespec.commands import run
from edgespec.errors import BundleError, ConversionError, SettingError
from edgespec.machine import engine_choice, engine_comparison, other_programs
from edgespec.machine.other_programs import Others
from edgespec.pipeline import Pipeline
from edgespec.types import Needs
from tests.tiny_models import build, export_ir


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_fast_ir: Path) -> dict[str, float]:
    """Seconds that each engine is made to take for 200 tokens, in an empty cache."""
    seconds = {"openvino": 2.0, "onnxruntime": 1.0}

    class MadeUp:
        def __init__(self, target: PaddedModel, *_: Any, **__: Any) -> None:
            self.engine, self.edit = target.capabilities.backend, [1, 2]
            seconds["layers"] = len(target.capabilities.hidden)

        def read(self) -> float:
            return 1e-5

        def write(self, text: Sequence[int], tokens: int, most_s: float) -> tuple[list[int], float]:
            seconds["measured"] = seconds.get("measured", 0) + 1
            return [1] * tokens, seconds[self.engine] / 200

    monkeypatch.setenv("EDGESPEC_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("EDGESPEC_BACKEND")
    monkeypatch.setattr(trial_loading, "Trial", MadeUp)
    monkeypatch.setattr(Others, "cores", lambda self: 0.0)
    return seconds


def loaded(ir: Path, **options: Any) -> Pipeline:
    return edgespec.load(ir.parent, num_draft_tokens=0, **options)


def test_the_faster_one_is_chosen_and_remembered(engines: dict[str, float], tiny_fast_ir: Path) -> None:
    first = loaded(tiny_fast_ir)
    assert first.target.capabilities.backend == "onnxruntime"
    assert first.generate([1, 2, 3], max_new_tokens=2).as_dict()["backend"] == "onnxruntime"
    measured = engines["measured"]
    engines["openvino"] = 0.5
    assert loaded(tiny_fast_ir).target.capabilities.backend == "onnxruntime"
    assert engines["measured"] == measured
    assert loaded(tiny_fast_ir, numerics="fast").target.capabilities.backend == "openvino"  # measured again
    assert loaded(tiny_fast_ir, backend="openvino").target.capabilities.backend == "openvino"


def test_a_target_that_returns_hidden_states_is_compared_with_them(
    engines: dict[str, float], tiny_fast_ir: Path
) -> None:
    assert loaded(tiny_fast_ir).target.capabilities.backend == "onnxruntime"
    measured = engines["measured"]
    assert engines["layers"] == 0
    engines["openvino"] = 0.5
    target = loaded(tiny_fast_ir, needs=Needs((1, 2))).target
    assert (target.capabilities.backend, target.capabilities.hidden) == ("openvino", (1, 2))
    assert engines["measured"] == 2 * measured and engines["layers"] == 2
    assert loaded(tiny_fast_ir).target.capabilities.backend == "onnxruntime", "what was found without them holds"


def test_engines_are_not_compared_where_both_would_fill_the_memory(
    engines: dict[str, float], tiny_fast_ir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tiny_fast_ir.with_suffix(".bin").stat().st_size
    with monkeypatch.context() as full:
        full.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2 * weights))
        assert loaded(tiny_fast_ir, progress=True).target.capabilities.backend == "openvino"
    assert "no memory to compare the engines, so OpenVINO runs" in capsys.readouterr().err
    assert "measured" not in engines
    assert loaded(tiny_fast_ir).target.capabilities.backend == "onnxruntime", "nothing was stored"


def test_what_was_found_beside_other_programs_is_found_again_when_they_are_gone(
    engines: dict[str, float], tiny_fast_ir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as busy:
        busy.setattr(Others, "cores", lambda self: 0.5)
        assert loaded(tiny_fast_ir).target.capabilities.backend == "onnxruntime"
        measured = engines["measured"]
        engines["openvino"] = 0.5
        assert loaded(tiny_fast_ir).target.capabilities.backend == "onnxruntime"
        assert engines["measured"] == measured, "they are still there: it would find nothing better"
        plan = CliRunner().invoke(cli, ["doctor", "-m", str(tiny_fast_ir.parent), "--json"]).stdout
        assert "beside other programs that took 0.5 cores; measured again" in plan
    assert loaded(tiny_fast_ir).target.capabilities.backend == "onnxruntime", "not more than once a day"
    monkeypatch.setattr(engine_comparison, "_AGAIN_S", -1)
    assert loaded(tiny_fast_ir).target.capabilities.backend == "openvino"
    engines["openvino"] = 2.0
    assert loaded(tiny_fast_ir).target.capabilities.backend == "openvino"


def test_doctor_says_which_was_chosen_and_why(engines: dict[str, float], tiny_fast_ir: Path) -> None:
    folder = str(tiny_fast_ir.parent)
    assert "whichever is faster" in CliRunner().invoke(cli, ["doctor", "-m", folder, "--json"]).stdout
    loaded(tiny_fast_ir)
    plan = json.loads(CliRunner().invoke(cli, ["doctor", "-m", folder, "--json"]).stdout)["model"]
    assert plan["engine"].startswith("onnxruntime, as last measured: 500 tokens read, 100 written and 100 copied")
    assert "onnxruntime 1.0 s (100000, 200.0 and 200.0 tokens a second), openvino 2.0 s (" in plan["engine"]
    explained = CliRunner().invoke(cli, ["run", "-m", folder, "-n", "2", "--raw", "--explain", "abc"])
    assert "Engine: onnxruntime, as last measured" in explained.stderr
    asked = CliRunner().invoke(
        cli, ["run", "-m", folder, "-n", "2", "--raw", "--explain", "--backend", "openvino", "abc"]
    )
    assert "Engine: openvino, as asked" in asked.stderr


def test_which_engine_ran_is_told_of_a_model_that_cannot_be_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The text is written: no error may follow it."""

    def broken(*_: object) -> None:
        raise BundleError("bundle.json is no longer a bundle")

    monkeypatch.setattr("edgespec.hub.resolve.path_here", broken)
    monkeypatch.delenv("EDGESPEC_BACKEND", raising=False)
    pipeline: Any = SimpleNamespace(bundle=SimpleNamespace(manifest=SimpleNamespace(target=None)))
    result: Any = SimpleNamespace(numerics="exact", backend="openvino")
    assert run._engine(pipeline, result, None).startswith("Engine: openvino, not compared with another")


def test_other_programs_are_noticed() -> None:
    """A process that counts, beside one that sleeps."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        try:
            assert other_programs.busy(0.5)
        finally:
            other.kill()


def test_the_environment_decides_before_the_measure(
    engines: dict[str, float], tiny_fast_ir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGESPEC_BACKEND", "openvino")
    assert loaded(tiny_fast_ir).target.capabilities.backend == "openvino"
    assert loaded(tiny_fast_ir, backend="onnxruntime").target.capabilities.backend == "onnxruntime"
    monkeypatch.setenv("EDGESPEC_BACKEND", "llama")
    with pytest.raises(SettingError, match="got llama .EDGESPEC_BACKEND.; allowed: openvino, onnxruntime"):
        loaded(tiny_fast_ir)
    assert "measured" not in engines


def test_a_model_without_an_onnx_form_stays_on_openvino(
    engines: dict[str, float], tiny_fast_ir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgespec.backends.onnx import graph

    tried = []

    def refuse(*arguments: Any, **options: Any) -> None:
        tried.append(arguments)
        raise NoONNXForm("no", got="Tanh")

    with monkeypatch.context() as patch:
        patch.setattr(graph, "write_onnx", refuse)
        assert loaded(tiny_fast_ir).target.capabilities.backend == "openvino"
        with pytest.raises(NoONNXForm, match="Tanh"):
            loaded(tiny_fast_ir, backend="onnxruntime")
    assert len(tried) == 1, "the reason is kept"
    kept = cache.cache_dir() / "onnx"
    assert [path.suffix for path in kept.iterdir()] == [".refused"]
    monkeypatch.setitem(cache.VERSIONS, "onnx_form", cache.VERSIONS["onnx_form"] + 1)
    assert loaded(tiny_fast_ir).target.capabilities.backend == "onnxruntime", "another version judges it again"
    assert [path.is_dir() for path in kept.iterdir()] == [True], "and the reason is gone"


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("Failed to allocate 8 bytes")])
def test_that_there_was_no_memory_is_not_remembered(
    engines: dict[str, float], tiny_fast_ir: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    from edgespec.backends.onnx.builder import OnnxBuilder

    def fail(*arguments: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(OnnxBuilder, "constant", fail)
        assert loaded(tiny_fast_ir).target.capabilities.backend == "openvino"
        with pytest.raises(ConversionError, match="cannot write"):
            loaded(tiny_fast_ir, backend="onnxruntime")
    assert loaded(tiny_fast_ir).target.capabilities.backend == "onnxruntime"


def test_a_full_disk_is_not_remembered(
    engines: dict[str, float], tiny_fast_ir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(needed_bytes: int) -> None:
        raise ConversionError("not enough disk space")

    with monkeypatch.context() as patch:
        patch.setattr(cache, "require_space", full)
        assert loaded(tiny_fast_ir).target.capabilities.backend == "openvino"
    assert loaded(tiny_fast_ir).target.capabilities.backend == "onnxruntime"


def test_a_cache_that_cannot_be_written_leaves_openvino(
    engines: dict[str, float], tiny_fast_ir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("EDGESPEC_CACHE", str(tmp_path / "file" / "cache"))
    assert loaded(tiny_fast_ir).target.capabilities.backend == "openvino"


@pytest.mark.parametrize("context_length", [pytest.param(None, marks=pytest.mark.slow), 32])
def test_engines_are_compared_and_measured_whatever_the_context(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, context_length: int | None
) -> None:
    """A model made for 256 tokens, and one of which 32 are to be used; nothing of the measuring replaced."""
    monkeypatch.setenv("EDGESPEC_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("EDGESPEC_BACKEND")
    ir = export_ir(build("llama", tmp_path / "torch", context_length=256), tmp_path / "ir", "int8")
    for backend in (None, "onnxruntime"):
        pair = edgespec.load(ir.parent, draft=str(ir.parent), backend=backend, context_length=context_length)
        assert pair.generate([1, 2, 3], max_new_tokens=20, ignore_eos=True).token_ids
    assert list((tmp_path / "cache" / "measured").glob("engines-*.json"))


def test_numerics_are_checked_for_both(engines: dict[str, float], tiny_fast_ir: Path) -> None:
    with pytest.raises(SettingError, match="got sloppy; allowed: exact, fast"):
        loaded(tiny_fast_ir, backend="onnxruntime", numerics="sloppy")


def test_without_the_package_it_is_not_considered(
    engines: dict[str, float], tiny_fast_ir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_choice, "missing", lambda: "no onnxruntime")
    assert loaded(tiny_fast_ir).target.capabilities.backend == "openvino"
    with pytest.raises(SettingError, match="ip install --force-reinstall onnx onnxruntime"):
        loaded(tiny_fast_ir, backend="onnxruntime")


def test_packages_that_are_installed_over_one_another_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = version_of
    monkeypatch.setattr(engine_choice, "version_of", lambda name: "1.9" if name.endswith("-gpu") else real(name))
    assert list(engine_choice.packages()) == ["onnxruntime", "onnxruntime-gpu"]
    versions = json.loads(CliRunner().invoke(cli, ["doctor", "--json"]).stdout)["versions"]
    assert versions["onnxruntime-gpu"] == "1.9; installed over one another, the last one runs"


def test_a_broken_engine_is_not_considered(
    engines: dict[str, float], tiny_fast_ir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it was found to be the faster one, before it broke."""
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "edgespec.backends.onnx.session", None)
            assert loaded(tiny_fast_ir).target.capabilities.backend == "openvino"
            with pytest.raises(SettingError, match="got onnxruntime cannot be imported"):
                loaded(tiny_fast_ir, backend="onnxruntime")
        assert loaded(tiny_fast_ir).target.capabilities.backend == "onnxruntime"


def test_an_engine_that_is_not_used_is_not_imported(
    engines: dict[str, float], tiny_fast_ir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines["openvino"] = 0.5
    assert loaded(tiny_fast_ir).target.capabilities.backend == "openvino"
    monkeypatch.delitem(sys.modules, "edgespec.backends.onnx.session")
    assert loaded(tiny_fast_ir).target.capabilities.backend == "openvino"
    assert "edgespec.backends.onnx.session" not in sys.modules


def test_it_does_not_run_on_openvinos_devices() -> None:
    with pytest.raises(SettingError, match="no such device; got device GPU"):
        engine_choice.named("onnxruntime", "GPU")
    assert engine_choice.named("openvino", "GPU") == engine_choice.named(None, "GPU") == "openvino"
