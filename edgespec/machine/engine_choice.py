"""The choice of a target's engine: the one asked for, else the one that was measured to be faster on this CPU."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

from edgespec import cache, files
from edgespec.backends.cores import available_cores, kinds
from edgespec.backends.onnx import providers
from edgespec.errors import BackendError, ConversionError, SettingError, SourceError
from edgespec.machine import engine_comparison, measurement_store
from edgespec.machine.devices import devices, onnx_devices
from edgespec.machine.engine_comparison import Comparison
from edgespec.machine.plans import Place
from edgespec.types import Backend, Numerics

REFUSALS = (BackendError, ConversionError, SourceError)
"""errors for a model that does not run on ONNX Runtime here, because of the model or the disk"""
_PACKAGES = ("onnxruntime", *(f"onnxruntime-{kind}" for kind in ("directml", "gpu", "openvino", "qnn")))
"""Each brings a module of the same name, which runs on the CPU too."""
_LARGEST_BYTES = 2 * 2**30
"""most bytes of weights that are written again, without being asked, to find out whether another engine is faster"""


def named(asked: str | None, device: str) -> Backend | None:
    """The engine that is asked for, or that EDGESPEC_BACKEND names. None leaves the choice to ``faster``.

    Raises SettingError if no engine has this name, if it is not installed, or if it does not run on this device.
    """
    if providers.is_other(device):
        if asked == "openvino":
            allowed = "CPU, and what edgespec doctor lists"
            raise SettingError("this device belongs to ONNX Runtime", got=device, allowed=allowed)
        asked = "onnxruntime"
    given = asked or os.environ.get("EDGESPEC_BACKEND") or None
    source = given if asked or not given else f"{given} (EDGESPEC_BACKEND)"
    if given not in (None, *get_args(Backend)):
        raise SettingError("backend", got=source, allowed=", ".join(get_args(Backend)))
    if given == "onnxruntime":
        if providers.of(device) is None:
            allowed = ", ".join(providers.PROVIDERS)
            raise SettingError(f"backend {source} has no such device", got=f"device {device}", allowed=allowed)
        if reason := missing() or broken():
            hint = "pip install --force-reinstall onnx onnxruntime"
            raise SettingError(f"backend {source} is not here", got=reason, hint=hint)
        return "onnxruntime"
    return "openvino" if given == "openvino" or device != "CPU" or missing() else None


def places() -> list[Place]:
    """Every device here, with the engines that run models on it; the CPU's first. A hybrid CPU's kinds of cores are
    devices too. EDGESPEC_BACKEND leaves one engine.

    Raises SettingError like ``named``.
    """
    found = [Place(device.name, "openvino") for device in devices()]
    if not (missing() or broken()):
        others = [name for name, state in onnx_devices().items() if state == "here"]
        found[1:1] = [Place("CPU", "onnxruntime")]
        found += [Place(name, "onnxruntime") for name in others]
    of_cpu = [place.backend for place in found if place.device == "CPU"]
    found += [Place(f"CPU.{kind}", backend) for kind in kinds() for backend in of_cpu]
    asked = named(None, "CPU") if os.environ.get("EDGESPEC_BACKEND") else None
    return [place for place in found if asked in (None, place.backend)]


def of_ready(graph: Path, asked: str | None, device: str, hint: str | None = None) -> Backend:
    """The only engine of a model that is there in ONNX alone. Raises SettingError if another one is asked for.

    hint: what to do then.
    """
    if asked == "openvino" or providers.of(device) is None:
        got = f"device {device}" if providers.of(device) is None else f"backend {asked}"
        allowed = f"backend onnxruntime, device {', '.join(providers.PROVIDERS)}"
        raise SettingError(f"{graph} runs on ONNX Runtime only", got=got, allowed=allowed, hint=hint)
    named("onnxruntime", device)  # it is here
    return "onnxruntime"


def of_draft(asked: Backend | None, device: str, target: Backend) -> Backend:
    """The engine of a draft model: the one asked for, else that of its device. On the CPU, its target's."""
    found = named(asked, device) if asked or providers.is_other(device) else None
    return found or (target if device.split(".")[0] == "CPU" else "openvino")


def faster(
    xml: Path,
    numerics: Numerics | None,
    compare: Callable[[], Comparison],
    *,
    has_form: bool = False,
    layers: Sequence[int] = (),
) -> Backend:
    """The result of ``compare`` on this machine, found once for these weights, engines and numerics. OpenVINO where
    nothing can be compared, unless it cannot run the model.

    has_form: the other engine's form of the model is there. layers: whose hidden states both return.
    """
    from edgespec.backends.openvino.soft_caps import spelt_out

    if spelt_out(xml) and not broken():
        return "onnxruntime"
    file = engine_comparison.file_of(_key(xml, numerics, layers))
    if not has_form and xml.with_suffix(".bin").stat().st_size > _LARGEST_BYTES:
        return "openvino"
    try:
        found = measurement_store.remembered(file, lambda: engine_comparison.remembered(file), compare).faster
    except REFUSALS:  # nothing is stored: next time there may be room on the disk
        return "openvino"
    return "openvino" if found == "openvino" or broken() else found


def why(graph: Path | None, numerics: Numerics, asked: str | None = None) -> str:
    """Which engine runs a model, and by which figures if nobody asks for one. graph: its file, if it is here."""
    if asked:
        return f"{asked}, as asked for"
    if asked := os.environ.get("EDGESPEC_BACKEND"):
        return f"{asked}, as EDGESPEC_BACKEND says"
    if reason := missing():
        return f"openvino: {reason}"
    if graph is not None and graph.suffix == ".onnx":
        return "onnxruntime: there is this model for it alone"
    file = engine_comparison.file_of(_key(graph, numerics, ())) if graph is not None else None
    if file is None or (found := measurement_store.read(file, Comparison)) is None:
        return "OpenVINO or ONNX Runtime, whichever is faster on this CPU: measured when the model is first loaded"
    if not found.paces:
        return "openvino: this model has no ONNX form, or no exact widths there"
    again = "; measured again after a day, if the machine is idle then" if found.noisy else ""
    return f"{found.faster}, as last measured: {found}{again}"


def _key(xml: Path, numerics: Numerics | None, layers: Sequence[int]) -> str:
    from edgespec.backends.engine_model import fingerprint
    from edgespec.backends.openvino.runtime import core, cpu_name
    from edgespec.backends.openvino.settings import Settings

    versions = [cache.VERSIONS[kind] for kind in ("onnx_form", "forward_times")]
    engines = core().get_versions("CPU")["CPU"].build_number, *packages().items()
    identity = files.sha256(xml), files.sha256(xml.with_suffix(".bin")), numerics or "exact"
    properties = Settings.make("CPU", numerics).properties
    # The engine's own property says 0 for all of them, however few they are.
    return fingerprint([*versions, *engines, *identity, cpu_name(), available_cores(), properties, *layers])


def packages() -> dict[str, str]:
    """The installed packages with a module ``onnxruntime``, and their versions. Each overwrites the files of the
    others."""
    found = {}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version_of(name)
    return found


def missing() -> str | None:
    """Which package of the second engine is not installed. Other packages may bring a module with its name."""
    if not packages():
        return "no onnxruntime"
    found = find_spec("onnx")
    return None if found is not None and found.origin is not None else "no onnx"


def broken() -> str | None:
    """Why the second engine cannot be imported."""
    try:
        import_module("edgespec.backends.onnx.session")
    except (ImportError, OSError) as error:
        return f"onnxruntime cannot be imported: {error}"
    return None
