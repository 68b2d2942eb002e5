"""Compiled graphs for an NPU: from a blob beside the model or in the cache, else made in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from edgespec import cache
from edgespec.backends.openvino.compile_apart import blob_name, compile_apart
from edgespec.backends.openvino.npu_settings import NPU, on_cpu
from edgespec.backends.openvino.runtime import ov
from edgespec.errors import BackendError, wrap_errors


def compiled(
    core: ov.Core, xml: Path, graph: ov.Model, properties: Mapping[str, object], say: Callable[[str], None]
) -> Any:
    """``graph`` is what is in ``xml``. Raises DeviceError, BackendError."""
    name = name_of(core, xml, properties)
    made = cache.cache_dir() / "compiled" / name
    for blob in (xml.with_name(name), made):
        if blob.is_file() and (found := _imported(core, xml, blob, say)) is not None:
            return found
    with suppress(OSError):
        made.unlink(missing_ok=True)  # what is damaged would be tried each time
    is_made = compile_apart(xml, NPU, properties, made, say=say)
    try:
        is_same = name_of(core, xml, properties) == name
    except OSError:  # it is gone
        is_same = False
    if not is_same:  # the blob may be of another graph, or be imported with other weights
        with suppress(OSError):
            made.unlink(missing_ok=True)
        raise BackendError(f"{xml} was changed while it was compiled for {NPU}", hint="run the command again")
    if is_made and (found := _imported(core, xml, made, say)) is not None:
        return found
    with wrap_errors(BackendError, f"cannot compile {xml} for {NPU}", hint="use --device CPU"):
        return core.compile_model(graph, NPU, dict(properties))


def _imported(core: ov.Core, xml: Path, blob: Path, say: Callable[[str], None]) -> Any:
    """None if the plugin does not take it."""
    if on_cpu():  # a blob does not say in which type a CPU computes
        core.set_property("CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    try:
        with wrap_errors(BackendError, f"cannot import {blob}"):
            return core.import_model(blob.read_bytes(), NPU, {"WEIGHTS_PATH": str(xml.with_suffix(".bin"))})
    except BackendError as error:
        say(f"{error}; it is compiled again")
        return None


def name_of(core: ov.Core, xml: Path, properties: Mapping[str, object]) -> str:
    """Of the blob of a graph: it depends on the plugin, its driver and its device too."""
    found = [core.get_versions(NPU)[NPU].build_number]
    for name in ("NPU_DRIVER_VERSION", "FULL_DEVICE_NAME"):
        try:
            found.append(str(core.get_property(NPU, name)))
        except RuntimeError:  # on a CPU
            found.append("")
    return blob_name(xml, properties, " ".join(found))
