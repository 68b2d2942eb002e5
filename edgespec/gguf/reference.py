"""What a GGUF file says, computed from its own numbers in full precision: the yardstick for every form of its weights.

The graph is the one that is converted, with an input in the place of each matrix. It is cut before each layer. So the
weights of one layer are in memory at a time, as ``gguf`` reads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgespec.backends.openvino.runtime import ops, ov
from edgespec.backends.openvino.settings import FULL_PRECISION
from edgespec.errors import ConversionError, wrap_errors
from edgespec.gguf import tensors
from edgespec.gguf.architectures import ARCHITECTURES, Architecture
from edgespec.gguf.convert import read_header
from edgespec.gguf.dimensions import Dimensions
from edgespec.gguf.forms import TABLES, Losses
from edgespec.gguf.graph import boundary, decoder

_HEAD_ROWS = 1 << 14
"""rows of the output head that are multiplied at a time"""

Floats = NDArray[np.float32]


def logits_of(path: Path, ids: Sequence[int]) -> Floats:
    """``(len(ids), vocabulary)``. Raises ConversionError."""
    header = read_header(path)
    with wrap_errors(ConversionError, f"cannot compute {path}"):
        return _Reference(ARCHITECTURES[header.architecture], Dimensions.of(header), tensors.read(header), ids).logits()


class _Reference:
    def __init__(
        self, architecture: Architecture, sizes: Dimensions, stored: dict[str, tensors.Stored], ids: Sequence[int]
    ) -> None:
        self._stored = stored
        self._layers = sizes.layers
        self._table, self._rows = np.unique(np.array(ids), return_inverse=True)
        self._graph = decoder(architecture, sizes, stored, "given", Losses())
        self._cuts = [self._cut(layer, sizes.embedding) for layer in range(sizes.layers + 1)]
        length = len(ids)
        self._inputs: dict[str, NDArray[Any]] = {
            "input_ids": self._rows.reshape(1, length).astype(np.int64),
            "attention_mask": np.ones((1, length), np.int64),
            "position_ids": np.arange(length, dtype=np.int64)[None],
            "beam_idx": np.zeros(1, np.int32),
        }

    def logits(self) -> Floats:
        before, _ = self._cuts[0]
        hidden = self._run(before, {TABLES[0]: self._stored[TABLES[0]].chosen(self._table)})
        for layer, ((_, begin), (end, _)) in enumerate(zip(self._cuts, self._cuts[1:], strict=False)):
            hidden = self._run(end, {begin.get_friendly_name(): hidden}, layer)
        head = TABLES[1] if TABLES[1] in self._stored else TABLES[0]
        rows, (_, begin) = self._stored[head].shape[0], self._cuts[-1]
        last = self._graph.output("logits").get_node().input_value(0)
        parts = []
        for at in range(0, rows, _HEAD_ROWS):
            part = self._stored[head].rows(slice(at, min(at + _HEAD_ROWS, rows)))
            parts.append(self._run(last, {begin.get_friendly_name(): hidden, head: part})[0])
        return np.concatenate(parts, 1)

    def _cut(self, layer: int, width: int) -> tuple[Any, Any]:
        """The value before a layer (or the head), and the input that takes its place in what follows."""
        name = boundary(layer)
        before = next(node for node in self._graph.get_ordered_ops() if node.get_friendly_name() == name).output(0)
        readers = before.get_target_inputs()
        after = ops.parameter([1, -1, width], np.float32, name=f"{name}.given")
        for reader in readers:
            reader.replace_source_output(after.output(0))
        return before, after

    def _run(self, end: Any, given: dict[str, Floats], layer: int | None = None) -> Floats:
        prefix = f"past_key_values.{layer}."
        sinks = [sink for sink in self._graph.get_sinks() if sink.get_variable_id().startswith(prefix)]
        result = ops.result(end)
        parameters = _parameters([result, *sinks])
        compiled = ov.compile_model(ov.Model([result], sinks, parameters, "part"), "CPU", FULL_PRECISION)
        known = self._inputs | given
        found = compiled([self._values(parameter.get_friendly_name(), known) for parameter in parameters])[0]
        return np.array(found)

    def _values(self, name: str, known: dict[str, NDArray[Any]]) -> NDArray[Any]:
        """Of an input by its name: a matrix's is those of its tensors, with ``+`` between them."""
        if name in known:
            return known[name]
        return np.concatenate([self._stored[one].rows(slice(None)) for one in name.split("+")])


def _parameters(ends: Sequence[Any]) -> list[Any]:
    """Inputs that these depend on."""
    seen, todo, found = set(), list(ends), []
    while todo:
        node = todo.pop()
        if node.get_name() not in seen:
            seen.add(node.get_name())
            if node.get_type_name() == "Parameter":
                found.append(node)
            todo += [value.get_node() for value in node.input_values()]
    return found
