"""An ONNX graph under construction: nodes, constants, what comes in and out. ``backends.onnx.graph`` says what goes
into it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from edgespec.backends.onnx.shared_weights import SharedWeights

_BESIDE_BYTES = 1024
"""constants of as many bytes lie in the file of weights"""
_ALIGNMENT = 64


class OnnxBuilder:
    """Nodes are added in the order they run in. A value is known by its name.

    weights: an open file beside the model's, which large constants are written to at once: a model is never in memory
    as a whole. shared: another file beside it, that holds some of them already.
    """

    def __init__(self, weights: BinaryIO, shared: SharedWeights | None = None) -> None:
        self._weights = weights
        self._shared = shared
        self._nodes: list[Any] = []
        self._constants: dict[str, Any] = {}
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []

    def input(self, name: str, kind: str, shape: list[Any]) -> None:
        """kind: of its numbers, as ``TensorProto`` calls it. shape: sizes, or names of those that vary."""
        self._inputs.append(_value(name, kind, shape))

    def output(self, name: str, kind: str, shape: list[Any]) -> None:
        self._outputs.append(_value(name, kind, shape))

    def constant(self, name: str, array: NDArray[Any]) -> str:
        """The constant of this name, which is made the first time."""
        from onnx import numpy_helper

        if name not in self._constants:
            large = array.nbytes >= _BESIDE_BYTES
            self._constants[name] = self._beside(name, array) if large else numpy_helper.from_array(array, name)
        return name

    def _beside(self, name: str, array: NDArray[Any]) -> Any:
        from onnx import TensorProto, helper

        file, offset = Path(self._weights.name), None
        if self._shared is not None and (offset := self._shared.find(array)) is not None:
            file = self._shared.file
        if offset is None:
            self._weights.write(bytes(-self._weights.tell() % _ALIGNMENT))
            offset = self._weights.tell()
            self._weights.write(np.ascontiguousarray(array).data)
        place = {"location": file.name, "offset": offset, "length": array.nbytes}
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        tensor = TensorProto(name=name, dims=array.shape, data_type=kind, data_location=TensorProto.EXTERNAL)
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))
        return tensor

    def integers(self, *values: int) -> str:
        return self.constant("integers." + ".".join(map(str, values)), np.array(values, np.int64))

    def add(self, kind: str, inputs: list[str], outputs: list[str], **options: Any) -> None:
        """An operator, by its ONNX name, and the names of what it gives."""
        from onnx import helper

        self._nodes.append(helper.make_node(kind, inputs, outputs, name=outputs[0], **options))

    def make(self, kind: str, inputs: list[str], **options: Any) -> str:
        """An operator whose one output needs no name that means something."""
        name = f"{kind}.{len(self._nodes)}"
        self.add(kind, inputs, [name], **options)
        return name

    def model(self) -> Any:
        """The finished ``ModelProto``, without what nothing reads."""
        from onnx import helper

        self._prune()
        self._fuse_residuals()
        graph = helper.make_graph(self._nodes, "decoder", self._inputs, self._outputs, list(self._constants.values()))
        domains = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=domains, ir_version=10, producer_name="edgespec")

    def _prune(self) -> None:
        """Drop what nothing reads: heads that were taken apart for an attention that does so itself."""
        needed = {output.name for output in self._outputs}
        kept = []
        for node in reversed(self._nodes):
            if needed & set(node.output):
                needed |= set(node.input)
                kept.append(node)
        self._nodes = kept[::-1]
        self._constants = {name: value for name, value in self._constants.items() if name in needed}

    def _fuse_residuals(self) -> None:
        """A sum and the norm that reads it are one operator, which returns the sum too."""
        from onnx import helper

        sums = {node.output[0]: at for at, node in enumerate(self._nodes) if node.op_type == "Add"}
        fused = set()
        for norm in [node for node in self._nodes if node.op_type == "SimplifiedLayerNormalization"]:
            total, scale = norm.input
            at = sums.pop(total, None)
            if at is None or any(name in self._constants for name in self._nodes[at].input):
                continue
            epsilon = next(option.f for option in norm.attribute if option.name == "epsilon")
            self._nodes[at] = helper.make_node(
                "SkipSimplifiedLayerNormalization",
                [*self._nodes[at].input, scale],
                [norm.output[0], "", "", total],
                name=norm.name,
                domain="com.microsoft",
                epsilon=epsilon,
            )
            fused.add(norm.name)
        self._nodes = [
            node for node in self._nodes if node.op_type != "SimplifiedLayerNormalization" or node.name not in fused
        ]


def _value(name: str, kind: str, shape: list[Any]) -> Any:
    from onnx import TensorProto, helper

    return helper.make_tensor_value_info(name, getattr(TensorProto, kind), shape)
