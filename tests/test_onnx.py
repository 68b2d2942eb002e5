"""The second engine: what its graph is made of, and when it is chosen."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from click.testing import CliRunner

import edgespec
from edgespec import cache
from edgespec.backends.engine_model import LONGEST_PAD, PaddedModel
from edgespec.backends.fake import FakeModel, VirtualClock, random_table
from edgespec.backends.onnx.check import check
from edgespec.backends.onnx.graph import MODEL_FILE, WEIGHTS_FILE, write_onnx
from edgespec.backends.onnx.session import SPARE_ROWS, OnnxRuntimeModel
from edgespec.backends.onnx.weights import NoONNXForm
from edgespec.backends.openvino.runtime import ops, ov
from edgespec.cli import cli
from edgespec.errors import BackendError, ConversionError, SettingError
from edgespec.machine import engine_choice, engine_comparison, other_programs
from edgespec.pipeline import Pipeline
from edgespec.types import Logits
from tests.conftest import load_ir, load_onnx
from tests.tiny_models import build, export_ir


def both(ir: Path, text: list[int]) -> tuple[Logits, Logits]:
    """OpenVINO's logits in full precision, and ONNX Runtime's. A chunk at a time: positions behind the first must be
    right too."""
    found = []
    for model in (load_ir(ir, full_precision=True), load_onnx(ir, "fast")):
        rows = [model.forward(text[begin : begin + 8]).logits.copy() for begin in range(0, len(text), 8)]
        found.append(np.concatenate(rows))
    return found[0], found[1]


@pytest.mark.parametrize(
    ("arch", "weights", "off"),
    [
        ("llama", "f32", 1e-4),  # all in f32 on both sides
        ("llama", "int4", 0.2),  # activations of compressed products are in 8 bits here
        ("qwen2", "int8", 0.2),  # products with a bias
        ("qwen3", "f32", 1e-4),  # norms of queries and keys
        pytest.param("phi3", "f32", 1e-4, marks=pytest.mark.slow),
    ],
)
def test_it_is_the_function_of_the_ir(tmp_path: Path, arch: str, weights: str, off: float) -> None:
    ir = export_ir(build(arch, tmp_path / "torch"), tmp_path / "ir", weights)
    theirs, ours = both(ir, [(7 * i + i * i) % 200 + 5 for i in range(48)])
    assert np.abs(theirs - ours).max() < off * np.abs(theirs).max()


@pytest.mark.cpu
def test_weights_are_taken_over_code_by_code(tiny_fast_ir: Path, tmp_path: Path) -> None:
    """In full precision on both sides nothing is left but the order of sums."""
    import onnx

    write_onnx(tiny_fast_ir, tmp_path, longest=64)
    model = onnx.load(str(tmp_path / MODEL_FILE), load_external_data=False)
    products = [node for node in model.graph.node if node.op_type == "MatMulNBits"]
    assert len(products) == 2 * 4 + 1  # query, key and value are one, gate and up are one
    for node in products:
        [level] = [option for option in node.attribute if option.name == "accuracy_level"]
        level.i = 1
    onnx.save(model, str(tmp_path / MODEL_FILE))
    text = [(7 * i + i * i) % 200 + 5 for i in range(40)]
    theirs = load_ir(tiny_fast_ir, full_precision=True).forward(text).logits.copy()
    ours = OnnxRuntimeModel(tmp_path, "fast", capacity=64).forward(text).logits
    assert np.abs(theirs - ours).max() < 1e-4 * np.abs(theirs).max()


def test_what_has_no_operator_is_refused_by_name(tiny_ir: Path, tmp_path: Path) -> None:
    model = ov.Core().read_model(tiny_ir)
    head = model.output("logits").get_node().input_value(0).get_node()
    capped = ops.tanh(head.input_value(0))
    capped.set_friendly_name("soft_cap")
    head.input(0).replace_source_output(capped.output(0))
    model.validate_nodes_and_infer_types()
    ov.save_model(model, tmp_path / "capped.xml", compress_to_fp16=False)
    with pytest.raises(ConversionError, match="got Tanh soft_cap"):
        write_onnx(tmp_path / "capped.xml", tmp_path / "made", longest=64)


def test_a_swish_keeps_its_slope(tiny_ir: Path, tmp_path: Path) -> None:
    model = ov.Core().read_model(tiny_ir)
    swishes = [node for node in model.get_ordered_ops() if node.get_type_name() == "Swish"]
    assert swishes
    for swish in swishes:
        steeper = ops.swish(swish.input_value(0), np.float32(3.0))
        swish.output(0).replace(steeper.output(0))
    model.validate_nodes_and_infer_types()
    ov.save_model(model, tmp_path / "steeper.xml", compress_to_fp16=False)
    write_onnx(tmp_path / "steeper.xml", tmp_path, longest=128)
    theirs = load_ir(tmp_path / "steeper.xml", full_precision=True)
    check(tmp_path, theirs)
    theirs.cache.reset()
    ours = OnnxRuntimeModel(tmp_path, "exact", capacity=64).forward([5, 6, 7]).logits
    assert np.abs(ours - theirs.forward([5, 6, 7]).logits).max() < 1e-4 * np.abs(ours).max()


@pytest.mark.slow
def test_a_window_over_what_is_attended_to_is_refused_by_name(tmp_path: Path) -> None:
    """Mistral has one by default; without it it is a Llama."""
    with pytest.raises(NoONNXForm, match="got attention with a sliding window"):
        write_onnx(export_ir(build("mistral", tmp_path / "torch"), tmp_path / "ir"), tmp_path / "made", longest=64)
    ir = export_ir(build("mistral", tmp_path / "whole", sliding_window=None), tmp_path / "whole_ir")
    write_onnx(ir, tmp_path, longest=128)
    check(tmp_path, load_ir(ir, full_precision=True))


@pytest.mark.parametrize("change", ["interleaved", "tables"])
def test_a_form_that_means_something_else_is_noticed(tiny_fast_ir: Path, tmp_path: Path, change: str) -> None:
    """Pairs of other columns turned; tables of another scale (as YaRN has one)."""
    import onnx

    write_onnx(tiny_fast_ir, tmp_path, longest=128)
    theirs = load_ir(tiny_fast_ir, full_precision=True)
    check(tmp_path, theirs)
    model = onnx.load(str(tmp_path / MODEL_FILE))
    for node in model.graph.node:
        for option in node.attribute:
            if option.name == "rotary_interleaved":
                option.i = int(change == "interleaved")
    onnx.save(model, str(tmp_path / MODEL_FILE))
    if change == "tables":
        with np.load(tmp_path / "rotary.npz") as stored:
            tables = {name: stored[name] for name in stored.files}
        scaled = {name: 1.14 * table for name, table in tables.items() if name != "longest"}
        np.savez(tmp_path / "rotary.npz", **(tables | scaled))
    files = {path.name for path in tmp_path.iterdir()}
    with pytest.raises(NoONNXForm, match="says something else"):
        check(tmp_path, theirs)
    assert {path.name for path in tmp_path.iterdir()} == files, "what it was asked with is gone"


LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8, "long_factor": [4.0] * 8}


@pytest.mark.parametrize("context_length", [300, 8192])
def test_tables_that_change_with_the_length_of_the_text_are_refused_by_name(
    tmp_path: Path, context_length: int
) -> None:
    """A row of another position cannot be computed later on, when a context grows."""
    rope = LONGROPE | {"original_max_position_embeddings": 128}
    options = {"rope_parameters": rope, "original_max_position_embeddings": 128, "context_length": context_length}
    ir = export_ir(build("phi3", tmp_path / "torch", **options), tmp_path / "ir")
    with pytest.raises(NoONNXForm, match="changes with the length of the text"):
        write_onnx(ir, tmp_path, longest=context_length)


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


def test_a_claimed_context_takes_no_memory(tmp_path: Path) -> None:
    """The same model, made for 512 tokens and for a million; with a text of 4 tokens."""
    script = """if True:
        import sys, edgespec
        from edgespec_bench.peers.worker import peak_bytes
        edgespec.load(sys.argv[1], backend="onnxruntime", draft="none").generate([1, 2, 3, 4], max_new_tokens=2)
        print(peak_bytes())
    """
    peaks = []
    for rows in (512, 1_010_000):
        torch = build("llama", tmp_path / f"torch{rows}", hidden=256, heads=2, kv_heads=1, context_length=rows)
        ir, cache = export_ir(torch, tmp_path / f"ir{rows}", "int8"), tmp_path / f"cache{rows}"
        ran = subprocess.run(
            [sys.executable, "-c", script, str(ir.parent)],
            check=True, capture_output=True, text=True, env=os.environ | {"EDGESPEC_CACHE": str(cache)},
        )  # fmt: skip
        peaks.append(int(ran.stdout))
        assert sum(file.stat().st_size for file in cache.rglob("*") if file.is_file()) < 8 << 20
    assert peaks[1] - peaks[0] < 64 << 20


@pytest.mark.parametrize(
    ("arch", "options"),
    [
        ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}}),
        ("smollm3", {"no_rope_layer_interval": 2, "num_hidden_layers": 4}),  # every other layer turns nothing
    ],
)
def test_tables_and_layers_without_are_the_models_own(tmp_path: Path, arch: str, options: dict[str, Any]) -> None:
    ir = export_ir(build(arch, tmp_path / "torch", **options), tmp_path / "ir", "f32")
    write_onnx(ir, tmp_path, longest=128)
    check(tmp_path, load_ir(ir, full_precision=True))


def test_what_is_done_to_queries_on_their_way_is_not_left_out(tiny_ir: Path, tmp_path: Path) -> None:
    model = ov.Core().read_model(tiny_ir)
    attention = next(n for n in model.get_ordered_ops() if n.get_type_name() == "ScaledDotProductAttention")
    product = attention.input_value(0).get_node()
    while product.get_type_name() != "MatMul":
        product = product.input_value(0).get_node()
    readers = product.output(0).get_target_inputs()
    clipped = ops.clamp(product, -8.0, 8.0)
    for reader in readers:
        reader.replace_source_output(clipped.output(0))
    model.validate_nodes_and_infer_types()
    ov.save_model(model, tmp_path / "clipped.xml", compress_to_fp16=False)
    with pytest.raises(NoONNXForm, match="got Clamp between a product and the attention"):
        write_onnx(tmp_path / "clipped.xml", tmp_path / "made", longest=64)


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


# Which engine


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_fast_ir: Path) -> dict[str, float]:
    """Seconds that each engine is made to take, in an empty cache."""
    seconds = {"openvino": 2.0, "onnxruntime": 1.0}

    def answer_s(model: PaddedModel) -> float:
        seconds["measured"] = seconds.get("measured", 0) + 1
        return seconds[model.capabilities.backend]

    monkeypatch.setenv("EDGESPEC_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("EDGESPEC_BACKEND")
    monkeypatch.setattr(engine_comparison, "answer_s", answer_s)
    monkeypatch.setattr(engine_comparison.Others, "cores", lambda self: 0.0)
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


def test_what_was_found_beside_other_programs_is_found_again_when_they_are_gone(
    engines: dict[str, float], tiny_fast_ir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as busy:
        busy.setattr(engine_comparison.Others, "cores", lambda self: 0.5)
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


@pytest.mark.parametrize(("onnxruntime_s", "chosen"), [(1.0, "openvino"), (0.96, "openvino"), (0.94, "onnxruntime")])
def test_a_near_tie_is_openvinos(
    engines: dict[str, float], tiny_fast_ir: Path, onnxruntime_s: float, chosen: str
) -> None:
    engines |= {"openvino": 1.0, "onnxruntime": onnxruntime_s}
    assert loaded(tiny_fast_ir).target.capabilities.backend == chosen


def test_doctor_says_which_was_chosen_and_why(engines: dict[str, float], tiny_fast_ir: Path) -> None:
    folder = str(tiny_fast_ir.parent)
    assert "whichever is faster" in CliRunner().invoke(cli, ["doctor", "-m", folder, "--json"]).stdout
    loaded(tiny_fast_ir)
    plan = json.loads(CliRunner().invoke(cli, ["doctor", "-m", folder, "--json"]).stdout)["model"]
    assert plan["engine"].startswith("onnxruntime, as last measured: onnxruntime 1.0 s, openvino 2.0 s expected for")


def test_a_drafted_token_is_not_free() -> None:
    """Rows that cost little make drafts pay only if drafting costs less than they bring: here it costs as much."""

    def took(forward_s: Callable[[int], float]) -> float:
        clock = VirtualClock()
        model = FakeModel(random_table(8, seed=0), 8, forward_s=forward_s, clock=clock)
        return engine_comparison.answer_s(model, clock)  # type: ignore[arg-type]

    flat = took(lambda width: 1.0 if width < 64 else 0.0)  # rounds of 4: 1 + 0.45 + 0.2 + 0.09 tokens
    assert flat == pytest.approx(256 * 1.2 / (1 + 0.45 + 0.45**2), rel=1e-6)
    steep = took(lambda width: float(width) if width < 64 else 0.0)
    assert steep == pytest.approx(256), "no drafts"
    read = took(lambda width: 1.0 if width < 64 else 2.0)
    assert read - flat == pytest.approx(2.0 * 128 / 64), "half as much prompt as answer"


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
    from edgespec.backends.onnx.graph import OnnxBuilder

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
    real = engine_choice.version_of
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


def test_it_runs_on_cpu_only() -> None:
    with pytest.raises(SettingError, match="runs on CPU only"):
        engine_choice.named("onnxruntime", "GPU")
    assert engine_choice.named("openvino", "GPU") == engine_choice.named(None, "GPU") == "openvino"


def test_a_damaged_form_is_made_again(engines: dict[str, float], tiny_fast_ir: Path, tmp_path: Path) -> None:
    before = loaded(tiny_fast_ir, backend="onnxruntime").generate([1, 2], max_new_tokens=4, ignore_eos=True)
    [folder] = (tmp_path / "cache" / "onnx").iterdir()
    for file in (WEIGHTS_FILE, "rotary.npz"):
        (folder / file).write_bytes((folder / file).read_bytes()[:100])
        again = loaded(tiny_fast_ir, backend="onnxruntime").generate([1, 2], max_new_tokens=4, ignore_eos=True)
        assert again.token_ids == before.token_ids


def test_a_form_is_of_these_weights(engines: dict[str, float], tiny_fast_ir: Path, tmp_path: Path) -> None:
    """Others of the same size and time have a form of their own."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_fast_ir.parent, folder)
    weights = next(folder.rglob("openvino_model.bin"))
    loaded(weights.with_suffix(".xml"), backend="onnxruntime")
    [before] = (tmp_path / "cache" / "onnx").iterdir()
    was, data = weights.stat(), bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    os.utime(weights, ns=(was.st_atime_ns, was.st_mtime_ns))
    loaded(weights.with_suffix(".xml"), backend="onnxruntime")
    assert [path for path in (tmp_path / "cache" / "onnx").iterdir() if path != before]


def test_a_form_half_written_is_none(engines: dict[str, float], tiny_fast_ir: Path, tmp_path: Path) -> None:
    """What a killed process left behind is made again."""
    loaded(tiny_fast_ir, backend="onnxruntime")
    [folder] = (tmp_path / "cache" / "onnx").iterdir()
    shutil.move(str(folder), folder.with_name(folder.name + ".partial"))
    assert loaded(tiny_fast_ir, backend="onnxruntime").generate([1, 2], max_new_tokens=2).token_ids
    assert [path.name for path in (tmp_path / "cache" / "onnx").iterdir()] == [folder.name]
