"""A graph of fixed shapes on an OpenVINO device, such as a drafting head: one inference computes a whole draft.

The file may come from a stranger. So its shapes are read before it is compiled, and the work of a run is bounded by
them: no shape may depend on data, nothing may loop, and no state may be kept from run to run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgespec.backends import mapped_weights
from edgespec.backends.engine_model import fingerprint
from edgespec.backends.openvino import npu_blobs
from edgespec.backends.openvino.graph import read_graph
from edgespec.backends.openvino.npu_rules import require_weights
from edgespec.backends.openvino.npu_settings import is_npu, plugin_properties
from edgespec.backends.openvino.paged import fingerprint_of
from edgespec.backends.openvino.runtime import ov
from edgespec.backends.openvino.settings import Settings
from edgespec.errors import BackendError, foreign, wrap_errors

_MOST_ELEMENTS = 1 << 29
"""of a tensor inside the graph. The embeddings of the largest vocabularies have as many."""
_MOST_IN_ALL = 1 << 31
"""of all tensors that a run makes. A beam search of 16 steps with 64 beams over the largest vocabulary has as many."""
_MOST_PER_WEIGHT = 8
"""A weight in 4 bits goes through five operations before it is used. Each has a tensor, until they become one."""
_MOST_PORT_ELEMENTS = 1 << 24
"""of an input or output. The logits of 64 steps over the largest vocabulary have as many."""
_MOST_OPERATIONS = 20_000
"""A beam search of five steps has a few hundred."""
_TYPES = ("f32", "i32", "i64")
"""of inputs and outputs"""
_STATE = {"ReadValue", "Assign"}
_AGAIN = "export or train the draft again"


class OpenVINOStaticGraph:
    """See ``protocols.StaticGraph``. say: reports a slow step.

    fingerprint: all that a measurement of this graph depends on. Raises BackendError for a graph that is damaged or
    that is not one of fixed shapes.
    """

    def __init__(
        self, core: ov.Core, xml: Path, device: str = "CPU", say: Callable[[str], None] = lambda text: None
    ) -> None:
        model = read_graph(core, xml)
        with foreign(BackendError, f"{xml} is not a graph of fixed shapes", hint=_AGAIN):
            _require_static(model)
            types = {port.get_any_name(): port.get_element_type().to_dtype() for port in model.inputs}
            self.inputs: dict[str, tuple[int, ...]] = _shapes(model.inputs)
            self.outputs: dict[str, tuple[int, ...]] = _shapes(model.outputs)
        with foreign(BackendError, f"cannot compile {xml} for {device}", hint="see: edgespec doctor"):
            if is_npu(device):
                require_weights(model, xml)
                compiled = npu_blobs.compiled(core, xml, model, plugin_properties(), say)
                self.fingerprint = fingerprint([npu_blobs.name_of(core, xml, plugin_properties())])
            else:
                compiled = core.compile_model(model, device, Settings.of_draft(device).properties)
                self.fingerprint = fingerprint_of(core, compiled, xml, device)
            self._request = compiled.create_infer_request()
        self.device = device
        self._xml = xml
        self._buffers = {name: np.zeros(shape, types[name]) for name, shape in self.inputs.items()}
        for name, buffer in self._buffers.items():
            self._request.set_tensor(name, ov.Tensor(buffer, shared_memory=True))
        self.repeat()  # the first run packs the weights
        mapped_weights.release(xml.with_suffix(".bin"))

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        if inputs.keys() != self.inputs.keys():
            raise BackendError(f"inputs of {self._xml.name}", got=sorted(inputs), allowed=sorted(self.inputs))
        for name, array in inputs.items():
            buffer = self._buffers[name]
            if array.shape != buffer.shape or not np.can_cast(array.dtype, buffer.dtype, "same_kind"):
                allowed = f"{buffer.dtype}{list(buffer.shape)}"
                got = f"{array.dtype}{list(array.shape)}"
                raise BackendError(f"input {name} of {self._xml.name}", got=got, allowed=allowed)
            np.copyto(buffer, array, casting="same_kind")
        self.repeat()
        return {name: self._request.get_tensor(name).data for name in self.outputs}

    def repeat(self) -> None:
        """Run on the inputs of the run before, or on zeros: to be timed."""
        with wrap_errors(BackendError, "inference failed"):
            self._request.infer(share_outputs=True)


def _require_static(model: ov.Model) -> None:
    """Raises ValueError."""
    nodes = model.get_ordered_ops()
    if len(nodes) > _MOST_OPERATIONS:
        raise ValueError(f"{len(nodes)} operations; allowed: {_MOST_OPERATIONS}")
    if kept := sorted({node.get_type_name() for node in nodes} & _STATE):
        raise ValueError(f"operation {kept[0]} keeps a state")
    stored = made = 0
    for node in nodes:
        for output in node.outputs():
            shape = output.get_partial_shape()
            if shape.is_dynamic:
                raise ValueError(f"{node.get_type_name()} {node.get_friendly_name()} has the shape {shape}")
            size = prod(shape.to_shape())
            if size > _MOST_ELEMENTS:
                raise ValueError(
                    f"{node.get_friendly_name()} has the shape {shape}; allowed: {_MOST_ELEMENTS} elements"
                )
            if node.get_type_name() == "Constant":  # it lies in the file
                stored += size
            else:
                made += size
    if made > (most := _MOST_IN_ALL + _MOST_PER_WEIGHT * stored):
        raise ValueError(f"its tensors have {made} elements; allowed: {most}")


def _shapes(ports: list[Any]) -> dict[str, tuple[int, ...]]:
    """By name. Raises ValueError for a port of another type, without a name or too large."""
    found = {}
    for port in ports:
        names, shape, kind = sorted(port.get_names()), tuple(port.get_shape()), port.get_element_type().get_type_name()
        if len(names) != 1:
            raise ValueError(f"an input or output with the names {names}; allowed: one name")
        if kind not in _TYPES:
            raise ValueError(f"{names[0]} is of type {kind}; allowed: {', '.join(_TYPES)}")
        if not 0 < prod(shape) <= _MOST_PORT_ELEMENTS:
            raise ValueError(f"{names[0]} has the shape {list(shape)}; allowed: {_MOST_PORT_ELEMENTS} elements")
        found[names[0]] = shape
    if len(found) < len(ports) or not found:
        raise ValueError("no input or output, or a name twice")
    return found
