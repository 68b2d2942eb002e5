"""From a causal language model's IR to an ONNX graph for ONNX Runtime, without torch.

The paged graph (``backends.openvino.graph``) is read from the tokens to the logits, and every part of it that has an
operator of its own in ONNX Runtime becomes that operator: MatMulNBits for a product with compressed weights, whose
codes, steps and zero points are taken over as they are, SimplifiedLayerNormalization for RMSNorm, GroupQueryAttention
for rotary embedding and attention. What has none raises ConversionError. Weights that are shared in the IR are shared
here. Norms and attention, which span several operators of the IR, are read in ``norms`` and ``attention``.

Operators: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgespec.backends.onnx.attention import Attention
from edgespec.backends.onnx.builder import OnnxBuilder
from edgespec.backends.onnx.counterparts import Counterparts, is_flat, length
from edgespec.backends.onnx.norms import Norms
from edgespec.backends.onnx.rotary import LAYOUT
from edgespec.backends.onnx.shared_weights import SharedWeights
from edgespec.backends.onnx.tables import write_tables
from edgespec.backends.onnx.weights import Compressed, constant_below, nibbles, number, origin, unsupported, weights_of
from edgespec.errors import ConversionError, wrap_errors

MODEL_FILE = "model.onnx"
WEIGHTS_FILE = "model.onnx.data"
_FLOAT = 1  # TensorProto.FLOAT
_INT8 = 4  # accuracy_level: activations in 8 bits too, a step for each block of them


def write_onnx(xml: Path, folder: Path, *, longest: int, shares_weights: bool = False) -> None:
    """Write ``model.onnx``, its weights and the first rows of its rotary tables into a folder.

    longest: context that the model was made for. shares_weights: ``folder`` is the IR's own, and what lies in its .bin
    as it is wanted here is not written again.

    The graph takes

    - input_ids ``(1, n)`` int64, and logits_rows ``(r,)`` int64: of which rows it returns logits ``(1, r, vocab)`` f32;
    - attention_rows ``(m,)`` and own_rows ``(n,)`` int64: the attention is given these of the n rows, one perhaps
      twice, and of what it gives these are gone on with. A single row runs another kernel there, whose sums are in
      another order; in twos it does not;
    - seqlens_k ``(1,)`` and total_sequence_length ``()`` int32, of GroupQueryAttention: all m rows are counted;
    - past_key_values.i.key and .value ``(1, heads, rows, size)`` f32, to be bound to the memory of present.i.key and
      .value, which it returns;
    - cos.i and sin.i ``(positions, size / 2)`` f32, the tables of ``backends.onnx.tables``.

    Raises NoONNXForm: an operator or a form of weights that has no counterpart, with its name. Other ConversionErrors
    say nothing of the model: no memory, a full disk. That the graph is the IR's function is for ``backends.onnx.check``
    to say.
    """
    import onnx

    from edgespec.backends.openvino.graph import uncapped_graph
    from edgespec.backends.openvino.runtime import ov

    model, caps = uncapped_graph(ov.Core(), xml)
    folder.mkdir(exist_ok=True)
    with (
        wrap_errors(ConversionError, f"cannot write {xml} as ONNX to {folder}", hint="is the disk full?"),
        (folder / WEIGHTS_FILE).open("wb") as weights,
    ):
        reader = _Reader(OnnxBuilder(weights, SharedWeights(xml) if shares_weights else None), caps)
        try:
            reader.read(model)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:  # not such a graph
            raise unsupported(f"{type(error).__name__}: {error}") from error
        write_tables(reader.attention.rotaries, model, folder, longest)
        onnx.save_model(reader.onnx.model(), str(folder / MODEL_FILE))


class _Reader:
    """Reads a paged graph in topological order, and adds to the ONNX graph what it finds."""

    def __init__(self, onnx: OnnxBuilder, caps: Sequence[float] = ()) -> None:
        """caps: of the attention's scores, of each layer, or none."""
        self.onnx = onnx
        self._values = values = Counterparts(onnx)
        self._widths = values.widths
        self.attention = Attention(values, caps)
        self._norms = Norms(values)

    def read(self, model: Any) -> None:
        self.onnx.input("attention_rows", "INT64", ["padded"])
        self.onnx.input("own_rows", "INT64", ["n"])
        self.onnx.input("seqlens_k", "INT32", [1])
        self.onnx.input("total_sequence_length", "INT32", [])
        for node in model.get_ordered_ops():
            kind = node.get_type_name()
            if kind == "PagedAttentionExtension":
                self.attention.read(node)
            elif kind in _READERS:
                _READERS[kind](self, node)
        [result] = [node for node in model.get_results() if "logits" in node.output(0).get_names()]
        logits = self._values.need(result.input_value(0))
        self.onnx.add("Identity", [logits], ["logits"])
        self.onnx.output("logits", "FLOAT", [1, "rows", self._widths[logits]])

    # Each reads one node of the IR, and adds its counterpart if it has one

    def _parameter(self, node: Any) -> None:
        name = node.get_friendly_name()
        names = node.output(0).get_names() or {name}
        if "input_ids" in names:
            self.onnx.input("input_ids", "INT64", [1, "n"])
            self._values.name(node.output(0), "input_ids", 1)
        elif "logits_rows" in names:
            self.onnx.input("logits_rows", "INT64", ["rows"])
            self._values.name(node.output(0), "logits_rows", 1)

    def _pass(self, node: Any) -> None:
        if (name := self._values.of(node.input_value(0))) is not None:
            self._values.name(node.output(0), name, self._widths[name])

    def _gather(self, node: Any) -> None:
        table, indices = node.input_value(0), node.input_value(1)
        ids = self._values.of(indices)
        if ids is None:
            self._columns(node)
        elif (rows := self._values.of(table)) is not None:
            self._values.add("Gather", [rows, ids], node, self._widths[rows], axis=1)
        elif (weights := weights_of(table.get_node())) is not None:
            self._embedding(node, table.get_node(), weights, ids)

    def _columns(self, node: Any) -> None:
        """Columns by constant indices."""
        source, indices = self._values.of(node.input_value(0)), constant_below(node.input_value(1).get_node())
        if source is None or indices is None or not is_flat(node) or number(node.input_value(2)) not in (-1, 2):
            return
        chosen = np.array(indices.get_data(), np.int64)
        if chosen.ndim != 1:
            return
        self._values.add("Gather", [source, self.onnx.constant(origin(indices), chosen)], node, len(chosen), axis=-1)

    def _embedding(self, node: Any, table: Any, weights: Compressed | NDArray[Any], ids: str) -> None:
        if not isinstance(weights, Compressed):
            self._values.add(
                "Gather", [self.onnx.constant(origin(table), weights), ids], node, weights.shape[1], axis=0
            )
            return
        codes, steps, *zeros = (
            self.onnx.make("Gather", [name, ids], axis=0) for name in self._compressed(table, weights)
        )
        _, blocks, size = weights.codes.shape
        if weights.bits == 4:
            if zeros:
                raise unsupported("an embedding in 4 bits with zero points of its own")
            codes = self._unpacked(codes, blocks, size)
        last = self.onnx.integers(-1)
        if zeros:
            zero = self.onnx.make("Unsqueeze", [self.onnx.make("Cast", zeros, to=_FLOAT), last])
        else:
            zero = self.onnx.constant(f"zero.{weights.bits}", np.array(weights.middle, np.float32))
        shifted = self.onnx.make("Sub", [self.onnx.make("Cast", [codes], to=_FLOAT), zero])
        values = self.onnx.make("Mul", [shifted, self.onnx.make("Unsqueeze", [steps, last])])
        self._values.add("Reshape", [values, self.onnx.integers(0, 0, blocks * size)], node, blocks * size)

    def _unpacked(self, packed: str, blocks: int, size: int) -> str:
        """Two 4-bit codes of each byte, ``(1, n, blocks, size)``."""
        four, low_half = (self.onnx.constant(f"byte.{n}", np.array(n, np.uint8)) for n in (4, 15))
        low = self.onnx.make("BitwiseAnd", [packed, low_half])
        high = self.onnx.make("BitShift", [packed, four], direction="RIGHT")
        pairs = [self.onnx.make("Unsqueeze", [part, self.onnx.integers(-1)]) for part in (low, high)]
        shape = self.onnx.integers(0, 0, blocks, size)
        return self.onnx.make("Reshape", [self.onnx.make("Concat", pairs, axis=-1), shape])

    def _product(self, node: Any) -> None:
        source = self._values.of(node.input_value(0))
        if source is None:
            return
        attributes = node.get_attributes()
        weights = weights_of(node.input_value(1).get_node())
        if weights is None or attributes["transpose_a"] or not attributes["transpose_b"]:
            return
        if not isinstance(weights, Compressed):
            name = self.onnx.constant(f"{origin(node.input_value(1).get_node())}.T", weights.T.copy())
            self._values.add("MatMul", [source, name], node, len(weights))
            return
        inputs = [source, *self._compressed(node.input_value(1).get_node(), weights)]
        rows, blocks, size = weights.codes.shape
        self._values.add(
            *("MatMulNBits", inputs, node, rows),
            domain="com.microsoft",
            N=rows,
            K=blocks * size,
            bits=weights.bits,
            block_size=size,
            accuracy_level=_INT8,
        )

    def _split(self, node: Any) -> None:
        source = self._values.of(node.input_value(0))
        if source is None or not is_flat(node):
            return
        sizes = [length(part.get_partial_shape()[-1]) for part in node.outputs()]
        if sum(sizes) != self._widths[source]:
            return
        names = [f"{node.get_name()}.{index}" for index in range(len(sizes))]
        lengths = self.onnx.integers(*sizes)
        self.onnx.add("Split", [source, lengths], names, axis=-1)
        self._values.together[tuple(names)] = source
        for part, name, size in zip(node.outputs(), names, sizes, strict=True):
            self._values.name(part, name, size)

    def _slice(self, node: Any) -> None:
        source = self._values.of(node.input_value(0))
        if source is None or not is_flat(node):
            return
        numbers = [number(value) for value in node.input_values()[1:]]  # begin, end, step, axis
        width = self._widths[source]
        if len(numbers) < 4 or None in numbers or numbers[2:] not in ([1, 2], [1, -1]):
            return
        begin, end, *_ = slice(int(numbers[0] or 0), int(numbers[1] or 0)).indices(width)
        bounds = [self.onnx.integers(value) for value in (begin, end, 2)]
        self._values.add("Slice", [source, *bounds], node, end - begin)

    def _joined(self, node: Any) -> None:
        """Columns beside each other."""
        names = [self._values.of(value) for value in node.input_values()]
        known = [name for name in names if name is not None]
        if len(known) == len(names) and is_flat(node) and node.get_attributes()["axis"] in (-1, 2):
            self._values.add("Concat", known, node, sum(self._widths[name] for name in known), axis=-1)

    def _swish(self, node: Any) -> None:
        source = self._values.of(node.input_value(0))
        slope = 1.0 if node.get_input_size() == 1 else number(node.input_value(1))
        if source is not None and slope is not None:
            self._values.add("QuickGelu", [source], node, self._widths[source], domain="com.microsoft", alpha=slope)

    def _gelu(self, node: Any) -> None:
        source = self._values.of(node.input_value(0))
        if source is not None:
            kind = "tanh" if node.get_attributes()["approximation_mode"].lower() == "tanh" else "none"
            self._values.add("Gelu", [source], node, self._widths[source], approximate=kind)

    def _tanh(self, node: Any) -> None:
        if (source := self._values.of(node.input_value(0))) is not None:
            self._values.add("Tanh", [source], node, self._widths[source])

    def _sum_or_product(self, node: Any) -> None:
        kind = {"Add": "Add", "Multiply": "Mul"}[node.get_type_name()]
        values = [node.input_value(0), node.input_value(1)]
        names = [self._values.of(value) for value in values]
        if kind == "Mul" and self._norms.read(node, values, names):
            return
        if None not in names:
            known = [name for name in names if name is not None]
            self._values.add(kind, known, node, max(self._widths[name] for name in known))
            return
        for value, source in zip(values, reversed(names), strict=True):
            constant = weights_of(value.get_node())
            if source is not None and constant is not None and not isinstance(constant, Compressed):
                if constant.size not in (1, self._widths[source]):
                    return
                name = self.onnx.constant(origin(value.get_node()), constant.reshape(-1).astype(np.float32))
                self._values.add(kind, [source, name], node, self._widths[source])

    def _ids(self, node: Any) -> None:
        """Whole numbers made of the ids: which row of a table each chooses."""
        kind = {"Minimum": "Min", "Subtract": "Sub"}[node.get_type_name()]
        known, other = self._values.of(node.input_value(0)), node.input_value(1)
        constant = number(other) if other.get_element_type().is_integral() else None
        second = self.onnx.integers(int(constant)) if constant is not None else self._values.of(other)
        if known is not None and second is not None and node.get_element_type().is_integral():
            self._values.add(kind, [known, second], node, 1)

    def _block_sums(self, node: Any) -> None:
        """Sums over each block of columns."""
        source, shape = self._values.of(node.input_value(0)), node.get_input_partial_shape(0)
        if source is None or length(shape.rank) != 4 or number(node.input_value(1)) not in (-1, 3):
            return
        blocks, size = length(shape[2]), length(shape[3])
        if blocks * size == self._widths[source]:
            in_blocks = self.onnx.make("Reshape", [source, self.onnx.integers(0, 0, blocks, size)])
            self._values.add("ReduceSum", [in_blocks, self.onnx.integers(-1)], node, blocks, keepdims=0)

    def _repeated(self, node: Any) -> None:
        """Each column ``times`` times."""
        source, shape = self._values.of(node.input_value(0)), node.get_input_partial_shape(0)
        times = constant_below(node.input_value(1).get_node())
        if source is None or times is None or length(shape.rank) != 4 or length(shape[3]) != 1:
            return
        *others, last = (int(value) for value in times.get_data())
        if others == [1, 1, 1] and length(shape[2]) == self._widths[source]:
            single = self.onnx.make("Unsqueeze", [source, self.onnx.integers(-1)])
            tiled = self.onnx.make("Tile", [single, self.onnx.integers(1, 1, 1, last)])
            width = last * self._widths[source]
            self._values.add("Reshape", [tiled, self.onnx.integers(0, 0, width)], node, width)

    def _compressed(self, node: Any, weights: Compressed) -> list[str]:
        """Constants: codes, steps, and zero points if they are not in the middle."""
        name = origin(node)
        packed = nibbles if weights.bits == 4 else np.asarray
        parts = {"q": packed(weights.codes), "s": weights.steps}
        if (weights.zeros != weights.middle).any():
            parts["z"] = packed(weights.zeros)
        return [self.onnx.constant(f"{name}.{part}", array) for part, array in parts.items()]


_READERS = {
    "Parameter": _Reader._parameter,
    "Gather": _Reader._gather,
    "MatMul": _Reader._product,
    "VariadicSplit": _Reader._split,
    "Split": _Reader._split,
    "Slice": _Reader._slice,
    "Concat": _Reader._joined,
    "Swish": _Reader._swish,
    "Gelu": _Reader._gelu,
    "Tanh": _Reader._tanh,
    "ReduceSum": _Reader._block_sums,
    "Tile": _Reader._repeated,
    "Add": _Reader._sum_or_product,
    "Multiply": _Reader._sum_or_product,
    "Minimum": _Reader._ids,
    "Subtract": _Reader._ids,
} | dict.fromkeys(LAYOUT, _Reader._pass)
