"""The graph of a language model from the sizes and tensors of its GGUF file: a stateful OpenVINO IR.

It takes and gives what the IRs of other exporters do: input_ids, attention_mask, position_ids and beam_idx, and logits;
keys and values are states. So it runs wherever they run.

Llama, Qwen2 (biases of queries, keys and values), Qwen3 (norms of queries and keys) and Granite (factors) are one
graph: which of these a file has is told by its tensors and sizes. Products that read the same activations are written
as one (see ``backends.openvino.merge_matmuls``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgespec.backends.openvino.runtime import ops, ov
from edgespec.errors import ConversionError
from edgespec.gguf.dimensions import Dimensions
from edgespec.gguf.forms import Losses, Weights, form_of
from edgespec.gguf.matrices import Matrix, block_sums
from edgespec.gguf.tensors import Stored

FACTORS = "rope_freqs.weight"
_LOWEST = float(np.finfo(np.float32).min)
"""added to what is not attended to; not -inf, for a row of a padded batch may attend to nothing"""


def decoder(sizes: Dimensions, tensors: Mapping[str, Stored], weights: Weights, losses: Losses) -> Any:
    """An ``ov.Model``. Raises ConversionError: numbers that are not finite, or rotary factors that are not positive."""
    return _Decoder(sizes, tensors, weights, losses).model()


class _Decoder:
    def __init__(self, sizes: Dimensions, tensors: Mapping[str, Stored], weights: Weights, losses: Losses) -> None:
        self._sizes = sizes
        self._tensors = tensors
        self._weights = weights
        self._losses = losses
        self._ids = _input("input_ids", [-1, -1], np.int64)
        self._mask = _input("attention_mask", [-1, -1], np.int64)
        self._positions = _input("position_ids", [-1, -1], np.int64)
        self._beam = _input("beam_idx", [-1], np.int32)
        self._states: list[Any] = []
        self._sums: dict[tuple[str, int], Any] = {}

    def model(self) -> Any:
        sizes = self._sizes
        table = self._matrix(["token_embd.weight"])
        self._attended = self._attention_mask()
        self._turn = self._rotary_tables()
        hidden = _scaled(table.lookup(self._ids), sizes.embedding_scale)
        for layer in range(sizes.layers):
            block = f"blk.{layer}"
            normed = self._norm(hidden, f"{block}.attn_norm", sizes.embedding)
            hidden = ops.add(hidden, _scaled(self._attention(normed, layer), sizes.residual_scale))
            normed = self._norm(hidden, f"{block}.ffn_norm", sizes.embedding)
            hidden = ops.add(hidden, _scaled(self._feed_forward(normed, block), sizes.residual_scale))
        last = self._norm(hidden, "output_norm", sizes.embedding)
        head = self._matrix(["output.weight"]) if "output.weight" in self._tensors else table
        logits = _scaled(head.product(last, self._sums_of(last, head)), 1 / sizes.logit_scale)
        result = ops.result(logits)
        result.output(0).get_tensor().set_names({"logits"})
        inputs = [self._ids, self._mask, self._positions, self._beam]
        return ov.Model([result], self._states, inputs, "decoder")

    def _attention(self, x: Any, layer: int) -> Any:
        sizes, block = self._sizes, f"blk.{layer}"
        query, key, value = self._products(x, [f"{block}.attn_{of}" for of in "qkv"])
        query = self._turned(self._heads(query, sizes.heads, f"{block}.attn_q_norm"))
        key = self._turned(self._heads(key, sizes.kv_heads, f"{block}.attn_k_norm"))
        key = self._remembered(key, f"past_key_values.{layer}.key")
        value = self._remembered(self._heads(value, sizes.kv_heads), f"past_key_values.{layer}.value")
        of_all = [self._repeated(key), self._repeated(value)]
        found = ops.scaled_dot_product_attention(query, *of_all, self._attended, np.float32(sizes.attention_scale))
        rows = ops.reshape(ops.transpose(found, _integers(0, 2, 1, 3)), _integers(0, 0, sizes.queries), True)
        [out] = self._products(rows, [f"{block}.attn_output"])
        return out

    def _feed_forward(self, x: Any, block: str) -> Any:
        gate, up = self._products(x, [f"{block}.ffn_gate", f"{block}.ffn_up"])
        [out] = self._products(ops.multiply(ops.swish(gate), up), [f"{block}.ffn_down"])
        return out

    # Of queries, keys and values

    def _heads(self, x: Any, count: int, norm: str | None = None) -> Any:
        """``(batch, heads, length, size)``"""
        heads = ops.reshape(x, _integers(0, 0, count, self._sizes.head), True)
        if norm is not None and f"{norm}.weight" in self._tensors:
            heads = self._norm(heads, norm, self._sizes.head)
        return ops.transpose(heads, _integers(0, 2, 1, 3))

    def _turned(self, x: Any) -> Any:
        """RoPE: the halves of a head are pairs."""
        half, end, one, axis = (_integers([n]) for n in (self._sizes.frequencies, self._sizes.head, 1, 3))
        left = ops.slice(x, _integers([0]), half, one, axis)
        right = ops.slice(x, half, end, one, axis)
        across = ops.concat([ops.multiply(right, np.float32(-1)), left], -1)
        cos, sin = self._turn
        return ops.add(ops.multiply(x, cos), ops.multiply(across, sin))

    def _remembered(self, x: Any, name: str) -> Any:
        """Behind what the state of this name holds, which becomes both."""
        heads, size = self._sizes.kv_heads, self._sizes.head
        empty = ops.broadcast(np.float32(0), ops.concat([_size(self._ids, 0), _integers([heads, 0, size])], 0))
        state = ops.read_value(empty, name, np.float32, ov.PartialShape([-1, heads, -1, size]))
        both = ops.concat([ops.gather(state, self._beam, _integers(0)), x], 2)
        self._states.append(ops.assign(both, name))
        return both

    def _repeated(self, x: Any) -> Any:
        """A head of keys or values for each head of queries."""
        sizes = self._sizes
        times = sizes.heads // sizes.kv_heads
        if times == 1:
            return x
        shape = ops.concat([_size(x, 0), _integers([sizes.kv_heads, times]), _size(x, 2), _integers([sizes.head])], 0)
        repeated = ops.broadcast(ops.unsqueeze(x, _integers(2)), shape, "BIDIRECTIONAL")
        return ops.reshape(repeated, _integers(0, sizes.heads, -1, sizes.head), True)

    def _attention_mask(self) -> Any:
        """``(batch, 1, length, total)``, to be added to scores: up to a row's own place, and not to pads."""
        total, length = _size(self._mask, 1), _size(self._ids, 1)
        last = ops.squeeze(total, _integers(0))
        columns = ops.range(np.int64(0), last, np.int64(1), "i64")
        rows = ops.range(ops.squeeze(ops.subtract(total, length), _integers(0)), last, np.int64(1), "i64")
        seen = ops.less_equal(columns, ops.unsqueeze(rows, _integers(1)))
        kept = ops.unsqueeze(ops.not_equal(self._mask, np.int64(0)), _integers(1, 2))
        return ops.select(ops.logical_and(kept, seen), np.float32(0), np.float32(_LOWEST))

    def _rotary_tables(self) -> tuple[Any, Any]:
        """Cosines and sines of ``(batch, 1, length, size)``."""
        frequencies = ops.constant(self._frequencies().astype(np.float32).reshape(1, 1, -1))
        angles = ops.multiply(ops.unsqueeze(ops.convert(self._positions, "f32"), _integers(2)), frequencies)
        both = ops.unsqueeze(ops.concat([angles, angles], -1), _integers(1))
        return ops.cos(both), ops.sin(both)

    def _frequencies(self) -> Any:
        """llama.cpp, ggml_rope_ext: the angle of pair ``i`` is ``position * base ** (-2 i / head) / factor[i]``."""
        sizes = self._sizes
        plain = sizes.rope_base ** (-2 * np.arange(sizes.frequencies) / sizes.head)
        if FACTORS not in self._tensors:
            return plain
        factors = self._tensors[FACTORS].vector_values()
        if not (factors > 0).all():
            raise ConversionError(f"{FACTORS} holds numbers that are not positive", hint="download the file again")
        return plain / factors

    # Products and norms

    def _products(self, x: Any, names: Sequence[str]) -> list[Any]:
        """``x @ weights.T + bias`` of each; matrices of one form are stacked."""
        groups: dict[Any, list[str]] = {}
        for name in names:
            groups.setdefault(self._form(f"{name}.weight"), []).append(name)
        found: dict[str, Any] = {}
        for group in groups.values():
            matrix = self._matrix([f"{name}.weight" for name in group])
            sizes = [self._tensors[f"{name}.weight"].shape[0] for name in group]
            product = matrix.product(x, self._sums_of(x, matrix), self._bias(group, sizes))
            parts = ops.variadic_split(product, _integers(-1), _integers(sizes)).outputs() if sizes[1:] else [product]
            found |= dict(zip(group, parts, strict=True))
        return [found[name] for name in names]

    def _bias(self, names: Sequence[str], sizes: Sequence[int]) -> Any:
        """Of stacked products, zero for those without; None if all are."""
        biases = [self._tensors.get(f"{name}.bias") for name in names]
        if not any(biases):
            return None
        numbers = [
            np.zeros(size, np.float32) if bias is None else bias.vector_values()
            for bias, size in zip(biases, sizes, strict=True)
        ]
        return ops.constant(np.concatenate(numbers).reshape(1, 1, -1))

    def _form(self, name: str) -> Any:
        tensor = self._tensors[name]
        return form_of(tensor.kind, tensor.shape[1], self._weights)

    def _matrix(self, names: Sequence[str]) -> Matrix:
        return Matrix([self._tensors[name] for name in names], self._form(names[0]), self._losses)

    def _sums_of(self, x: Any, matrix: Matrix) -> Any:
        """What the second product multiplies, made once for all that read x."""
        if not matrix.form.offsets:
            return None
        key = x.get_name(), matrix.form.block
        if key not in self._sums:
            self._sums[key] = block_sums(x, matrix.columns, matrix.form.block)
        return self._sums[key]

    def _norm(self, x: Any, name: str, size: int) -> Any:
        """RMSNorm, over the last ``size`` numbers."""
        squares = ops.reduce_mean(ops.power(x, np.float32(2)), _integers([-1]), True)
        inverse = ops.divide(np.float32(1), ops.sqrt(ops.add(squares, np.float32(self._sizes.norm_epsilon))))
        scale = self._tensors[f"{name}.weight"].vector_values()
        return ops.multiply(ops.multiply(x, inverse), ops.constant(scale.reshape(1, 1, size)))


def _input(name: str, shape: list[int], kind: Any) -> Any:
    parameter = ops.parameter(shape, kind, name=name)
    parameter.output(0).get_tensor().set_names({name})
    return parameter


def _scaled(x: Any, factor: float) -> Any:
    return x if factor == 1 else ops.multiply(x, np.float32(factor))


def _size(x: Any, axis: int) -> Any:
    """``(1,)``"""
    return ops.gather(ops.shape_of(x), _integers([axis]), _integers(0))


def _integers(*values: Any) -> Any:
    """A constant: of one whole number a scalar, of several or of a list a row."""
    return ops.constant(np.array(values[0] if len(values) == 1 else values, np.int64))
