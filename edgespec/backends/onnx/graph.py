"""From a causal language model's IR to an ONNX graph for ONNX Runtime, without torch.

The paged graph (``backends.openvino.graph``) is read from the tokens to the logits, and every part of it that has an
operator of its own in ONNX Runtime becomes that operator: MatMulNBits for a product with compressed weights, whose
codes, steps and zero points are taken over as they are, SimplifiedLayerNormalization for RMSNorm, GroupQueryAttention
for rotary embedding and attention. What has none raises ConversionError. Weights that are shared in the IR are shared
here. (A long file, since every rule is a step of the same walk over one graph.)

Operators: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgespec.backends.onnx.builder import OnnxBuilder
from edgespec.backends.onnx.rotary import LAYOUT, Rotary, behind
from edgespec.backends.onnx.shared_weights import SharedWeights
from edgespec.backends.onnx.tables import write_tables
from edgespec.backends.onnx.weights import Compressed, constant_below, nibbles, number, origin, unsupported, weights_of
from edgespec.backends.openvino import windows
from edgespec.errors import ConversionError, wrap_errors

MODEL_FILE = "model.onnx"
WEIGHTS_FILE = "model.onnx.data"
_ALIBI, _SINKS = 11, 20  # inputs of PagedAttentionExtension
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
        write_tables(reader.rotaries, model, folder, longest)
        onnx.save_model(reader.onnx.model(), str(folder / MODEL_FILE))


class _Reader:
    """Reads a paged graph in topological order, and adds to the ONNX graph what it finds."""

    def __init__(self, onnx: OnnxBuilder, caps: Sequence[float] = ()) -> None:
        """caps: of the attention's scores, of each layer, or none."""
        self.onnx = onnx
        self._caps = caps
        self.rotaries: dict[tuple[str, str], tuple[Rotary, int]] = {}  # by the names of its tables; size of a head
        self._names: dict[tuple[str, int], str] = {}  # of values that have a counterpart, by the IR's node and port
        self._widths: dict[str, int] = {}  # columns of each of them
        self._normed: dict[tuple[str, int], tuple[str, float]] = {}  # x / rms(x): x and epsilon
        self._together: dict[tuple[str, ...], str] = {}  # parts: the value that was split into them

    def read(self, model: Any) -> None:
        self.onnx.input("attention_rows", "INT64", ["padded"])
        self.onnx.input("own_rows", "INT64", ["n"])
        self.onnx.input("seqlens_k", "INT32", [1])
        self.onnx.input("total_sequence_length", "INT32", [])
        layer = 0
        for node in model.get_ordered_ops():
            kind = node.get_type_name()
            if kind == "PagedAttentionExtension":
                self._attention(node, layer)
                layer += 1
            elif kind in _READERS:
                _READERS[kind](self, node)
        [result] = [node for node in model.get_results() if "logits" in node.output(0).get_names()]
        logits = self._need(result.input_value(0))
        self.onnx.add("Identity", [logits], ["logits"])
        self.onnx.output("logits", "FLOAT", [1, "rows", self._widths[logits]])

    # Each reads one node of the IR, and adds its counterpart if it has one

    def _parameter(self, node: Any) -> None:
        name = node.get_friendly_name()
        names = node.output(0).get_names() or {name}
        if "input_ids" in names:
            self.onnx.input("input_ids", "INT64", [1, "n"])
            self._name(node.output(0), "input_ids", 1)
        elif "logits_rows" in names:
            self.onnx.input("logits_rows", "INT64", ["rows"])
            self._name(node.output(0), "logits_rows", 1)

    def _pass(self, node: Any) -> None:
        source = node.input_value(0)
        if (name := self._of(source)) is not None:
            self._names[_key(node.output(0))] = name

    def _gather(self, node: Any) -> None:
        table, indices = node.input_value(0), node.input_value(1)
        ids = self._of(indices)
        if ids is None:
            self._columns(node)
        elif (rows := self._of(table)) is not None:
            self._add("Gather", [rows, ids], node, self._widths[rows], axis=1)
        elif (weights := weights_of(table.get_node())) is not None:
            self._embedding(node, table.get_node(), weights, ids)

    def _columns(self, node: Any) -> None:
        """Columns by constant indices."""
        source, indices = self._of(node.input_value(0)), constant_below(node.input_value(1).get_node())
        if source is None or indices is None or not _is_flat(node) or number(node.input_value(2)) not in (-1, 2):
            return
        chosen = np.array(indices.get_data(), np.int64)
        if chosen.ndim != 1:
            return
        self._add("Gather", [source, self.onnx.constant(origin(indices), chosen)], node, len(chosen), axis=-1)

    def _embedding(self, node: Any, table: Any, weights: Compressed | NDArray[Any], ids: str) -> None:
        if not isinstance(weights, Compressed):
            self._add("Gather", [self.onnx.constant(origin(table), weights), ids], node, weights.shape[1], axis=0)
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
        self._add("Reshape", [values, self.onnx.integers(0, 0, blocks * size)], node, blocks * size)

    def _unpacked(self, packed: str, blocks: int, size: int) -> str:
        """Two 4-bit codes of each byte, ``(1, n, blocks, size)``."""
        four, low_half = (self.onnx.constant(f"byte.{n}", np.array(n, np.uint8)) for n in (4, 15))
        low = self.onnx.make("BitwiseAnd", [packed, low_half])
        high = self.onnx.make("BitShift", [packed, four], direction="RIGHT")
        pairs = [self.onnx.make("Unsqueeze", [part, self.onnx.integers(-1)]) for part in (low, high)]
        shape = self.onnx.integers(0, 0, blocks, size)
        return self.onnx.make("Reshape", [self.onnx.make("Concat", pairs, axis=-1), shape])

    def _product(self, node: Any) -> None:
        source = self._of(node.input_value(0))
        if source is None:
            return
        attributes = node.get_attributes()
        weights = weights_of(node.input_value(1).get_node())
        if weights is None or attributes["transpose_a"] or not attributes["transpose_b"]:
            return
        if not isinstance(weights, Compressed):
            name = self.onnx.constant(f"{origin(node.input_value(1).get_node())}.T", weights.T.copy())
            self._add("MatMul", [source, name], node, len(weights))
            return
        inputs = [source, *self._compressed(node.input_value(1).get_node(), weights)]
        rows, blocks, size = weights.codes.shape
        self._add(
            *("MatMulNBits", inputs, node, rows),
            domain="com.microsoft",
            N=rows,
            K=blocks * size,
            bits=weights.bits,
            block_size=size,
            accuracy_level=_INT8,
        )

    def _split(self, node: Any) -> None:
        source = self._of(node.input_value(0))
        if source is None or not _is_flat(node):
            return
        sizes = [_length(part.get_partial_shape()[-1]) for part in node.outputs()]
        if sum(sizes) != self._widths[source]:
            return
        names = [f"{node.get_name()}.{index}" for index in range(len(sizes))]
        lengths = self.onnx.integers(*sizes)
        self.onnx.add("Split", [source, lengths], names, axis=-1)
        self._together[tuple(names)] = source
        for part, name, size in zip(node.outputs(), names, sizes, strict=True):
            self._name(part, name, size)

    def _slice(self, node: Any) -> None:
        source = self._of(node.input_value(0))
        if source is None or not _is_flat(node):
            return
        numbers = [number(value) for value in node.input_values()[1:]]  # begin, end, step, axis
        width = self._widths[source]
        if len(numbers) < 4 or None in numbers or numbers[2:] not in ([1, 2], [1, -1]):
            return
        begin, end, *_ = slice(int(numbers[0] or 0), int(numbers[1] or 0)).indices(width)
        bounds = [self.onnx.integers(value) for value in (begin, end, 2)]
        self._add("Slice", [source, *bounds], node, end - begin)

    def _joined(self, node: Any) -> None:
        """Columns beside each other."""
        names = [self._of(value) for value in node.input_values()]
        known = [name for name in names if name is not None]
        if len(known) == len(names) and _is_flat(node) and node.get_attributes()["axis"] in (-1, 2):
            self._add("Concat", known, node, sum(self._widths[name] for name in known), axis=-1)

    def _swish(self, node: Any) -> None:
        source = self._of(node.input_value(0))
        slope = 1.0 if node.get_input_size() == 1 else number(node.input_value(1))
        if source is not None and slope is not None:
            self._add("QuickGelu", [source], node, self._widths[source], domain="com.microsoft", alpha=slope)

    def _gelu(self, node: Any) -> None:
        source = self._of(node.input_value(0))
        if source is not None:
            kind = "tanh" if node.get_attributes()["approximation_mode"].lower() == "tanh" else "none"
            self._add("Gelu", [source], node, self._widths[source], approximate=kind)

    def _tanh(self, node: Any) -> None:
        if (source := self._of(node.input_value(0))) is not None:
            self._add("Tanh", [source], node, self._widths[source])

    def _sum_or_product(self, node: Any) -> None:
        kind = {"Add": "Add", "Multiply": "Mul"}[node.get_type_name()]
        values = [node.input_value(0), node.input_value(1)]
        names = [self._of(value) for value in values]
        if kind == "Mul" and self._norm(node, values, names):
            return
        if None not in names:
            known = [name for name in names if name is not None]
            self._add(kind, known, node, max(self._widths[name] for name in known))
            return
        for value, source in zip(values, reversed(names), strict=True):
            constant = weights_of(value.get_node())
            if source is not None and constant is not None and not isinstance(constant, Compressed):
                if constant.size not in (1, self._widths[source]):
                    return
                name = self.onnx.constant(origin(value.get_node()), constant.reshape(-1).astype(np.float32))
                self._add(kind, [source, name], node, self._widths[source])

    def _ids(self, node: Any) -> None:
        """Whole numbers made of the ids: which row of a table each chooses."""
        kind = {"Minimum": "Min", "Subtract": "Sub"}[node.get_type_name()]
        known, other = self._of(node.input_value(0)), node.input_value(1)
        constant = number(other) if other.get_element_type().is_integral() else None
        second = self.onnx.integers(int(constant)) if constant is not None else self._of(other)
        if known is not None and second is not None and node.get_element_type().is_integral():
            self._add(kind, [known, second], node, 1)

    def _block_sums(self, node: Any) -> None:
        """Sums over each block of columns."""
        source, shape = self._of(node.input_value(0)), node.get_input_partial_shape(0)
        if source is None or _length(shape.rank) != 4 or number(node.input_value(1)) not in (-1, 3):
            return
        blocks, size = _length(shape[2]), _length(shape[3])
        if blocks * size == self._widths[source]:
            in_blocks = self.onnx.make("Reshape", [source, self.onnx.integers(0, 0, blocks, size)])
            self._add("ReduceSum", [in_blocks, self.onnx.integers(-1)], node, blocks, keepdims=0)

    def _repeated(self, node: Any) -> None:
        """Each column ``times`` times."""
        source, shape = self._of(node.input_value(0)), node.get_input_partial_shape(0)
        times = constant_below(node.input_value(1).get_node())
        if source is None or times is None or _length(shape.rank) != 4 or _length(shape[3]) != 1:
            return
        *others, last = (int(value) for value in times.get_data())
        if others == [1, 1, 1] and _length(shape[2]) == self._widths[source]:
            single = self.onnx.make("Unsqueeze", [source, self.onnx.integers(-1)])
            tiled = self.onnx.make("Tile", [single, self.onnx.integers(1, 1, 1, last)])
            width = last * self._widths[source]
            self._add("Reshape", [tiled, self.onnx.integers(0, 0, width)], node, width)

    def _norm(self, node: Any, values: list[Any], names: list[str | None]) -> bool:
        """RMSNorm is two products: ``x * (1 / rms(x))``, and that with a constant, unless it is all ones. Whether
        ``node`` is one of them."""
        for value, other, source in zip(values, reversed(values), reversed(names), strict=True):
            epsilon = _epsilon(value.get_node(), other)
            if epsilon is not None and source is not None:
                size = _length(other.get_partial_shape()[-1])
                self._normed[_key(node.output(0))] = source, epsilon
                self._normalize(
                    node, source, epsilon, self.onnx.constant(f"ones.{size}", np.ones(size, np.float32)), size
                )
                return True
            constant = weights_of(value.get_node())
            normed = self._normed.get(_key(_passed(other)))
            if normed is not None and constant is not None and not isinstance(constant, Compressed):
                scale = self.onnx.constant(origin(value.get_node()), constant.reshape(-1))
                self._normalize(node, *normed, scale, constant.size)
                return True
        return False

    def _normalize(self, node: Any, source: str, epsilon: float, scale: str, size: int) -> None:
        """size: columns that are normed together, all or those of one head."""
        width = self._widths[source]
        options = {"axis": -1, "epsilon": epsilon, "stash_type": 1}
        if size == width:
            self._add("SimplifiedLayerNormalization", [source, scale], node, width, **options)
            return
        heads = self.onnx.integers(0, 0, -1, size)
        flat = self.onnx.integers(0, 0, width)
        of_head = self.onnx.make(
            "SimplifiedLayerNormalization", [self.onnx.make("Reshape", [source, heads]), scale], **options
        )
        self._add("Reshape", [of_head, flat], node, width)

    def _attention(self, node: Any, layer: int) -> None:
        """Rotary embedding, the cache and attention, of what the three products before it give."""
        inputs = node.input_values()
        (query, turned), (key, turned_key), (value, turned_value) = (behind(value, self._of) for value in inputs[:3])
        if turned != turned_key or turned_value is not None:
            raise unsupported("attention that turns queries and keys in different ways")
        size = _head_size(inputs[0])
        if {_head_size(value) for value in inputs[1:3]} != {size} or self._widths[key] != self._widths[value]:
            raise unsupported("attention with heads of different sizes")
        scale, window = number(inputs[9]), windows.of(node)
        others = any(_has_rows(inputs[at]) for at in (_ALIBI, _SINKS) if at < len(inputs))
        if scale is None or window is None or others:
            raise unsupported("attention with a varying window, ALiBi or sinks")
        options: dict[str, Any] = {"local_window_size": window} if window else {}
        if self._caps:
            options["softcap"] = float(self._caps[layer])
        kv_heads = self._widths[key] // size
        names = [f"past_key_values.{layer}.{part}" for part in ("key", "value")]
        presents = [f"present.{layer}.{part}" for part in ("key", "value")]
        for name in names:
            self.onnx.input(name, "FLOAT", [1, kv_heads, "capacity", size])
        for name in presents:
            self.onnx.output(name, "FLOAT", [1, kv_heads, "capacity", size])
        together = self._together.get((query, key, value))
        read = [
            self.onnx.make("Gather", [name, "attention_rows"], axis=1)
            for name in ([together] if together else (query, key, value))
        ]
        out, padded = f"attention.{layer}", f"attention.{layer}.padded"
        self.onnx.add(
            "GroupQueryAttention",
            [*read, *[""] * (3 - len(read)), *names, "seqlens_k", "total_sequence_length", *self._tables(turned, size)],
            [padded, *presents],
            domain="com.microsoft",
            num_heads=self._widths[query] // size,
            kv_num_heads=kv_heads,
            scale=scale,
            do_rotary=int(turned is not None),
            rotary_interleaved=0,
            **options,
        )
        self.onnx.add("Gather", [padded, "own_rows"], [out], axis=1)
        self._name(node.output(0), out, self._widths[query])

    def _tables(self, turned: Rotary | None, size: int) -> list[str]:
        """Names of the inputs with cosines and sines of each position."""
        if turned is None:
            return []
        for names, known in self.rotaries.items():
            if known == (turned, size):
                return list(names)
        names = f"cos.{len(self.rotaries)}", f"sin.{len(self.rotaries)}"
        for name in names:
            self.onnx.input(name, "FLOAT", ["positions", size // 2])
        self.rotaries[names] = turned, size
        return list(names)

    # Values and their names

    def _of(self, value: Any) -> str | None:
        return self._names.get(_key(value))

    def _need(self, value: Any) -> str:
        name = self._of(value)
        if name is None:
            node, below = value.get_node(), value.get_node()
            while below is not None:
                node = below
                unknown = (source for source in node.input_values() if self._of(source) is None)
                below = next((source.get_node() for source in unknown if _depends(source.get_node())), None)
            raise unsupported(f"{node.get_type_name()} {node.get_friendly_name()}")
        return name

    def _name(self, value: Any, name: str, width: int) -> None:
        self._names[_key(value)] = name
        self._widths[name] = width

    def _add(self, kind: str, inputs: list[str], node: Any, width: int, **options: Any) -> None:
        self.onnx.add(kind, inputs, [node.get_name()], **options)
        self._name(node.output(0), node.get_name(), width)

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


def _head_size(value: Any) -> int:
    """The heads of an attention's input are laid beside each other last of all."""
    node = value.get_node()
    shape = node.get_input_partial_shape(0) if node.get_type_name() == "Reshape" else None
    if shape is None or _length(shape.rank) != 4:
        raise unsupported("attention whose heads are not laid beside each other")
    return _length(shape[3])


def _has_rows(value: Any) -> bool:
    return bool(_length(value.get_partial_shape()[0]))


def _is_flat(node: Any) -> bool:
    """Whether it takes ``(tokens, 1, columns)``, not yet grouped into heads."""
    return _length(node.get_input_partial_shape(0).rank) == 3


def _length(dimension: Any) -> int:
    if dimension.is_dynamic:
        raise unsupported("a size that varies where none should")
    return int(dimension.get_length())


def _epsilon(inverse: Any, x: Any) -> float | None:
    """If ``inverse`` is ``1 / sqrt(mean(x ** 2) + epsilon)``: epsilon."""
    if inverse.get_type_name() not in ("Divide", "Power"):
        return None
    root = inverse.input_value(1 if inverse.get_type_name() == "Divide" else 0).get_node()
    if root.get_type_name() == "Sqrt":
        root = root.input_value(0).get_node()
    if root.get_type_name() != "Add":
        return None
    for mean, epsilon in (root.input_values(), reversed(root.input_values())):
        if mean.get_node().get_type_name() == "ReduceMean" and (found := number(epsilon)) is not None:
            square = mean.get_node().input_value(0).get_node()
            if square.get_type_name() in ("Power", "Multiply") and _key(square.input_value(0)) == _key(x):
                return found
    return None


def _depends(node: Any) -> bool:
    """Whether a node depends on what the model is given."""
    seen, todo = set(), [node]
    while todo:
        node = todo.pop()
        if node.get_type_name() == "Parameter":
            return True
        if node.get_name() not in seen:
            seen.add(node.get_name())
            todo += [source.get_node() for source in node.input_values()]
    return False


def _passed(value: Any) -> Any:
    while value.get_node().get_type_name() == "Convert":
        value = value.get_node().input_value(0)
    return value


def _key(value: Any) -> tuple[str, int]:
    return value.get_node().get_name(), value.get_index()
