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
from edgespec.gguf.architectures import Architecture
from edgespec.gguf.dimensions import Dimensions
from edgespec.gguf.forms import TABLES, Form, Losses, Weights, form_of
from edgespec.gguf.matrices import Matrix, given, integers
from edgespec.gguf.positions import attention_mask, length_of, rotary_tables, rotated
from edgespec.gguf.tensors import Stored


def decoder(
    architecture: Architecture, sizes: Dimensions, tensors: Mapping[str, Stored], weights: Weights, losses: Losses
) -> Any:
    """An ``ov.Model``. Raises ConversionError: numbers that are not finite, or rotary factors that are not positive."""
    return _Decoder(architecture.gelu, sizes, tensors, weights, losses).model()


def boundary(layer: int) -> str:
    """Name of the node that gives what a layer begins from; of one more, what the output head does."""
    return f"hidden.{layer}"


class _Decoder:
    def __init__(
        self, gelu: bool, sizes: Dimensions, tensors: Mapping[str, Stored], weights: Weights, losses: Losses
    ) -> None:
        self._gelu = gelu
        self._sizes = sizes
        self._tensors = tensors
        self._weights = weights
        self._losses = losses
        self._ids = _input("input_ids", [-1, -1], np.int64)
        self._mask = _input("attention_mask", [-1, -1], np.int64)
        self._positions = _input("position_ids", [-1, -1], np.int64)
        self._beam = _input("beam_idx", [-1], np.int32)
        self._states: list[Any] = []
        self._matrices: list[Any] = []  # those that are inputs
        self._given: dict[tuple[str, Form], tuple[Any, Any]] = {}
        self._masks: dict[int, Any] = {}
        self._turns: dict[bool, tuple[Any, Any]] = {}

    def model(self) -> Any:
        sizes = self._sizes
        table = self._matrix(["token_embd.weight"])
        hidden = _scaled(table.lookup(self._ids), sizes.embedding_scale)
        for layer in range(sizes.layers):
            block = f"blk.{layer}"
            hidden.set_friendly_name(boundary(layer))
            normed = self._norm(hidden, f"{block}.attn_norm", sizes.embedding)
            found = self._normed_if(self._attention(normed, layer), f"{block}.post_attention_norm")
            hidden = ops.add(hidden, _scaled(found, sizes.residual_scale))
            normed = self._norm(hidden, f"{block}.ffn_norm", sizes.embedding)
            found = self._normed_if(self._feed_forward(normed, block), f"{block}.post_ffw_norm")
            hidden = ops.add(hidden, _scaled(found, sizes.residual_scale))
        hidden.set_friendly_name(boundary(sizes.layers))
        last = self._norm(hidden, "output_norm", sizes.embedding)
        head = self._matrix(["output.weight"]) if "output.weight" in self._tensors else table
        logits = _scaled(head.product(*self._given_to(head, last)), 1 / sizes.logit_scale)
        result = ops.result(_capped(logits, sizes.logit_cap))
        result.output(0).get_tensor().set_names({"logits"})
        inputs = [self._ids, self._mask, self._positions, self._beam, *self._matrices]
        return ov.Model([result], self._states, inputs, "decoder")

    def _attention(self, x: Any, layer: int) -> Any:
        sizes, block = self._sizes, f"blk.{layer}"
        query, key, value = self._products(x, [f"{block}.attn_{of}" for of in "qkv"])
        query = self._heads(query, sizes.heads, f"{block}.attn_q_norm")
        key = self._heads(key, sizes.kv_heads, f"{block}.attn_k_norm")
        if sizes.rotates(layer):
            query, key = (rotated(x, self._tables(layer), sizes.head) for x in (query, key))
        key = self._remembered(key, f"past_key_values.{layer}.key")
        value = self._remembered(self._heads(value, sizes.kv_heads), f"past_key_values.{layer}.value")
        found = self._attended(query, self._repeated(key), self._repeated(value), self._seen(layer))
        rows = ops.reshape(ops.transpose(found, integers(0, 2, 1, 3)), integers(0, 0, sizes.queries), True)
        [out] = self._products(rows, [f"{block}.attn_output"])
        return out

    def _attended(self, query: Any, key: Any, value: Any, mask: Any) -> Any:
        scale, cap = self._sizes.attention_scale, self._sizes.score_cap
        if not cap:
            return ops.scaled_dot_product_attention(query, key, value, mask, np.float32(scale))
        scores = _capped(ops.multiply(ops.matmul(query, key, False, True), np.float32(scale)), cap)
        return ops.matmul(ops.softmax(ops.add(scores, mask), -1), value, False, False)

    def _seen(self, layer: int) -> Any:
        window = self._sizes.window if self._sizes.local(layer) else 0
        if window not in self._masks:
            self._masks[window] = attention_mask(self._ids, self._mask, window)
        return self._masks[window]

    def _tables(self, layer: int) -> tuple[Any, Any]:
        local = self._sizes.rope.local_base is not None and self._sizes.local(layer)
        if local not in self._turns:
            self._turns[local] = rotary_tables(self._positions, self._sizes, self._tensors, local=local)
        return self._turns[local]

    def _feed_forward(self, x: Any, block: str) -> Any:
        gate, up = self._products(x, [f"{block}.ffn_gate", f"{block}.ffn_up"])
        [out] = self._products(ops.multiply(self._activated(gate), up), [f"{block}.ffn_down"])
        return out

    def _activated(self, x: Any) -> Any:
        return ops.gelu(x, "tanh") if self._gelu else ops.swish(x)

    # Of queries, keys and values

    def _heads(self, x: Any, count: int, norm: str | None = None) -> Any:
        """``(batch, heads, length, size)``"""
        heads = ops.reshape(x, integers(0, 0, count, self._sizes.head), True)
        if norm is not None and f"{norm}.weight" in self._tensors:
            heads = self._norm(heads, norm, self._sizes.head)
        return ops.transpose(heads, integers(0, 2, 1, 3))

    def _remembered(self, x: Any, name: str) -> Any:
        """Behind what the state of this name holds, which becomes both."""
        heads, size = self._sizes.kv_heads, self._sizes.head
        empty = ops.broadcast(np.float32(0), ops.concat([length_of(self._ids, 0), integers([heads, 0, size])], 0))
        state = ops.read_value(empty, name, np.float32, ov.PartialShape([-1, heads, -1, size]))
        both = ops.concat([ops.gather(state, self._beam, integers(0)), x], 2)
        self._states.append(ops.assign(both, name))
        return both

    def _repeated(self, x: Any) -> Any:
        """A head of keys or values for each head of queries."""
        sizes = self._sizes
        times = sizes.heads // sizes.kv_heads
        if times == 1:
            return x
        shape = ops.concat(
            [length_of(x, 0), integers([sizes.kv_heads, times]), length_of(x, 2), integers([sizes.head])], 0
        )
        repeated = ops.broadcast(ops.unsqueeze(x, integers(2)), shape, broadcast_spec="BIDIRECTIONAL")
        return ops.reshape(repeated, integers(0, sizes.heads, -1, sizes.head), True)

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
            product = matrix.product(*self._given_to(matrix, x), self._bias(group, sizes))
            parts = ops.variadic_split(product, integers(-1), integers(sizes)).outputs() if sizes[1:] else [product]
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
        return form_of(tensor.kind, tensor.shape[1], self._weights, table=name in TABLES)

    def _matrix(self, names: Sequence[str]) -> Matrix:
        matrix = Matrix([self._tensors[name] for name in names], self._form(names[0]), self._losses)
        if matrix.parameter is not None:
            self._matrices.append(matrix.parameter)
        return matrix

    def _given_to(self, matrix: Matrix, x: Any) -> tuple[Any, Any]:
        """What its product takes, made once for all matrices of its form that read x."""
        key = x.get_name(), matrix.form
        if key not in self._given:
            self._given[key] = given(x, matrix.columns, matrix.form)
        return self._given[key]

    def _normed_if(self, x: Any, name: str) -> Any:
        return self._norm(x, name, self._sizes.embedding) if f"{name}.weight" in self._tensors else x

    def _norm(self, x: Any, name: str, size: int) -> Any:
        """RMSNorm, over the last ``size`` numbers."""
        squares = ops.reduce_mean(ops.power(x, np.float32(2)), integers([-1]), True)
        inverse = ops.divide(np.float32(1), ops.sqrt(ops.add(squares, np.float32(self._sizes.norm_epsilon))))
        scale = self._tensors[f"{name}.weight"].vector_values()
        return ops.multiply(ops.multiply(x, inverse), ops.constant(scale.reshape(1, 1, size)))


def _input(name: str, shape: list[int], kind: Any) -> Any:
    parameter = ops.parameter(shape, kind, name=name)
    parameter.output(0).get_tensor().set_names({name})
    return parameter


def _capped(x: Any, cap: float) -> Any:
    return x if not cap else ops.multiply(ops.tanh(ops.multiply(x, np.float32(1 / cap))), np.float32(cap))


def _scaled(x: Any, factor: float) -> Any:
    return x if factor == 1 else ops.multiply(x, np.float32(factor))
