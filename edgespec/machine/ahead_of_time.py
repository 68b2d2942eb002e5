"""Blobs of a bundle's models for the NPU of this machine, written into the bundle (``edgespec export --aot``)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edgespec.backends.exact_widths import ROWS_NEEDED
from edgespec.backends.open import is_ready
from edgespec.errors import BackendError
from edgespec.hub.resolve import resolve
from edgespec.machine.devices import require_device


def require_npu() -> None:
    """Before anything is exported. Raises DeviceError."""
    require_device("NPU")


def write_blobs(folder: Path, say: Callable[[str], None]) -> list[Path]:
    """Of target and draft model, each beside its graph: for their whole context, as ``edgespec run`` would ask for it.

    Raises DeviceError and BackendError, also where the plugin cannot write a blob.
    """
    from edgespec.backends.openvino import npu_blobs
    from edgespec.backends.openvino.compile_apart import compile_apart
    from edgespec.backends.openvino.npu import require_graph
    from edgespec.backends.openvino.npu_graph import read_for_npu
    from edgespec.backends.openvino.npu_settings import NPU, Windows
    from edgespec.backends.openvino.runtime import core

    require_npu()
    pair = resolve(str(folder), progress=False)
    longest = pair.manifest.generation.context_length
    models = [(pair.manifest.target, longest)]
    for entry in pair.manifest.drafters:
        if entry.model is not None and not entry.is_head:
            models.append((entry.model, min(longest, entry.context_length or longest)))
    written = []
    for model, rows in models:
        xml = pair.model_path(model)
        if is_ready(xml):
            raise BackendError(f"{xml} runs on ONNX Runtime only", hint="export with --format both")
        require_graph(read_for_npu(core(), xml), xml)
        properties = Windows.of(max(rows, ROWS_NEEDED)).properties()
        blob = xml.with_name(npu_blobs.name_of(core(), xml, properties))
        if not compile_apart(xml, NPU, properties, blob, say=say):
            raise BackendError(f"{xml} compiles, but the plugin cannot write a blob of it", hint="leave out --aot")
        written.append(blob)
    return written
