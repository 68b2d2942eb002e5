"""Opens a model on an engine, by the engine's name. A new engine adds a file, and a line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from edgespec import cache
from edgespec.backends.cores import kind_of
from edgespec.errors import BackendError
from edgespec.exact_devices import require_exact
from edgespec.types import Backend, KVPath, Numerics

if TYPE_CHECKING:
    from edgespec.backends.engine_model import PaddedModel


@dataclass(frozen=True, kw_only=True)
class Opening:
    """A model to open, and how it will be used.

    graph: the .xml of an IR, or an .onnx file. form: the .onnx of edgespec's own form, if the bundle has one; it may be
    ``graph`` itself. device: a device that exists, by its engine's name. name: of the model, for whoever reads what is
    said.
    numerics: None is exact where that is known to hold. capacity: rows of KV cache.
    context_length: rows that the model was made for. layers: whose hidden states it returns. trees: whether its drafter
    drafts trees.
    threads: how many it computes with on the CPU. None: the engine's own choice, which is all cores.
    say: reports slow steps. kv: where OpenVINO keeps keys and values; None: the device's own way.
    """

    graph: Path
    form: Path | None
    device: str
    numerics: Numerics | None
    capacity: int
    context_length: int
    layers: tuple[int, ...]
    trees: bool
    is_draft: bool
    say: Callable[[str], None]
    name: str
    threads: int | None = None
    kv: KVPath | None = None


def is_ready(graph: Path) -> bool:
    """Whether it is a model for ONNX Runtime alone, which needs no conversion."""
    return graph.suffix == ".onnx"


def open_model(name: Backend, opening: Opening) -> PaddedModel:
    """Imports the engine and compiles the model. Raises BackendError or ConversionError if it cannot run the model."""
    return _FACTORIES[name](opening)


def _openvino(opening: Opening) -> PaddedModel:
    from edgespec.backends.openvino import rollback_check
    from edgespec.backends.openvino.npu_settings import is_npu
    from edgespec.backends.openvino.paged import OpenVINOPagedModel
    from edgespec.backends.openvino.runtime import core
    from edgespec.backends.openvino.settings import Settings
    from edgespec.backends.openvino.stateful_model import OpenVINOStatefulModel

    device = opening.device
    if is_ready(opening.graph):
        raise BackendError(f"{opening.graph} runs on ONNX Runtime only", hint="use --backend onnxruntime")
    if is_npu(device):
        from edgespec.backends.openvino.npu import open_npu

        return open_npu(
            core(),
            opening.graph,
            device,
            numerics=opening.numerics,
            capacity=opening.capacity,
            layers=opening.layers,
            is_draft=opening.is_draft,
            say=opening.say,
        )

    def on_cores(settings: Settings) -> Settings:
        if opening.threads is not None and device.startswith("CPU"):
            settings = settings.with_threads(opening.threads)
        return settings.with_cores(device)

    target = Settings.make(device, opening.numerics, trees=opening.trees)
    settings = on_cores(Settings.of_draft(device) if opening.is_draft else target)
    on_cpu, plugin = device.startswith("CPU"), "CPU" if kind_of(device) else device
    # On CPU the engine's model cache saves nothing (docs/log/engines.md); on GPU it keeps compiled kernels.
    kernels = None if on_cpu else cache.cache_dir() / "compiled"
    paged = partial(
        OpenVINOPagedModel,
        core(),
        opening.graph,
        plugin,
        settings,
        capacity=opening.capacity,
        layers=opening.layers,
        cache_dir=kernels,
    )
    stateful = partial(
        OpenVINOStatefulModel,
        core(),
        opening.graph,
        plugin,
        on_cores(Settings.over_states(device)),
        capacity=opening.capacity,
        layers=opening.layers,
        cache_dir=kernels,
    )
    if opening.kv == "stateful" or (opening.kv is None and not on_cpu):
        return stateful()
    return paged() if on_cpu else rollback_check.either(paged, stateful, device, opening.say)


def _onnxruntime(opening: Opening) -> PaddedModel:
    from edgespec.backends.onnx.form import open_bundled, open_form
    from edgespec.backends.onnx.ready import ReadyModel
    from edgespec.backends.openvino.runtime import cpu_name

    device = opening.device
    numerics: Numerics | None = "fast" if opening.is_draft or not device.startswith("CPU") else opening.numerics
    if not opening.is_draft:
        require_exact(opening.numerics, device)
    if opening.form is not None:
        ir = None if is_ready(opening.graph) else opening.graph
        return open_bundled(
            opening.form,
            ir,
            numerics or "exact",
            capacity=opening.capacity,
            layers=opening.layers,
            threads=opening.threads,
            device=device,
        )
    if is_ready(opening.graph):
        return ReadyModel(
            opening.graph,
            numerics,
            capacity=opening.capacity,
            layers=opening.layers,
            threads=opening.threads,
            cpu=cpu_name(),
            device=device,
        )
    return open_form(
        opening.graph,
        numerics or "exact",
        capacity=opening.capacity,
        context_length=opening.context_length,
        name=opening.name,
        say=opening.say,
        layers=opening.layers,
        threads=opening.threads,
        device=device,
    )


_FACTORIES: dict[Backend, Callable[[Opening], PaddedModel]] = {"openvino": _openvino, "onnxruntime": _onnxruntime}
