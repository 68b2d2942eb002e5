"""The whole draft as one graph of fixed shapes: every step of the head unrolled, with its choice of a token between.

inputs   ``states`` ``(1, layers * d)``, ``token`` ``(1,)`` the head's id of the last token, ``noise`` ``(k, vocab)``
         that is added to the logits before a choice: zeros when greedy
chain    outputs ``logits`` ``(k, vocab)`` and ``tokens`` ``(k,)``: what was chosen at each step and read at the next
beams    outputs ``beams`` ``(m, k)`` and ``scores`` ``(m, k)``: the log-probability of each beam so far

Weights are in 8 or 4 bits. Each matrix is in the graph once, though every step uses it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgespec.backends.openvino.runtime import ops, ov
from edgespec_train.narrow import GROUP, narrow_constant
from edgespec_train.redrafter.head import Head

Bits = Literal[4, 8, 32]
_NEVER = -1e4
"""a logit that is never chosen"""


class _Unrolled:
    """Nodes of the head's parts. wide: bits of the table and of the matrices that every step reads; states: of those
    that are read once a round."""

    def __init__(self, head: Head, never: NDArray[np.intp], bits: Bits, states: Bits) -> None:
        def matrix(values: Any, kind: Bits) -> Any:
            return _weights(values.detach().float().numpy(), kind)

        shape = head.shape
        self.state = bool(shape.state)
        self.scales = ops.constant(head.scales.reciprocal().numpy()[None])
        self.table = matrix(head.table, bits)
        self.table_scale = ops.constant(np.float32(float(head.table_scale)))
        self.out_scale = ops.constant(np.float32(float(head.out_scale)))
        self.from_states = matrix(head.from_states.weight, states)
        self.base_bias = _vector(head.from_states.bias)
        self.from_token = matrix(head.from_token.weight, bits)
        if shape.state:
            self.first = matrix(head.first.weight, states)
            self.read, self.read_bias = matrix(head.read.weight, bits), _vector(head.read.bias)
            self.carry = matrix(head.carry.weight, bits)
            self.from_state = matrix(head.from_state.weight, bits)
        self.blocks = [(matrix(block.weight, bits), _vector(block.bias)) for block in head.blocks]
        bias = head.bias.detach().numpy().copy()
        bias[never] = _NEVER
        self.bias = ops.constant(bias[None])
        self.rows = self.table if shape.rows == "target" else matrix(head.rows, bits)
        self.narrow = matrix(head.narrow, bits) if shape.rows == "low-rank" else None

    def begin(self, states: Any) -> tuple[Any, Any]:
        scaled = ops.multiply(states, self.scales)
        base = ops.add(_product(scaled, self.from_states), self.base_bias)
        return base, _product(scaled, self.first) if self.state else None

    def step(self, base: Any, s: Any, ids: Any) -> tuple[Any, Any]:
        """Logits ``(n, vocab)`` and the next s."""
        e = ops.multiply(ops.gather(self.table, ids, ops.constant(np.int32(0))), self.table_scale)
        x = ops.add(base, _product(e, self.from_token))
        if self.state:
            read = ops.add(_product(e, self.read), self.read_bias)
            s = _silu(ops.add(read, _product(s, self.carry)))
            x = ops.add(x, _product(s, self.from_state))
        for weight, bias in self.blocks:
            x = ops.add(x, _silu(ops.add(_product(x, weight), bias)))
        if self.narrow is not None:
            x = _product(x, self.narrow)
        return ops.add(_product(ops.multiply(x, self.out_scale), self.rows), self.bias), s


def write(
    head: Head, never: NDArray[np.intp], xml: Path, k: int, count: int = 1, bits: Bits = 8, states: Bits = 8
) -> None:
    """An IR of ``count`` beams, or of a chain."""
    model = beams(head, never, k, count, bits, states) if count > 1 else chain(head, never, k, bits, states)
    xml.parent.mkdir(parents=True, exist_ok=True)
    ov.save_model(model, xml, compress_to_fp16=False)


def chain(head: Head, never: NDArray[np.intp], k: int, bits: Bits = 8, states: Bits = 8) -> ov.Model:
    """never: ids of the head that must not be chosen."""
    parts = _Unrolled(head, never, bits, states)
    inputs, noise = _inputs(head, k)
    base, s = parts.begin(inputs[0])
    token = inputs[1]
    logits, tokens = [], []
    for place in range(k):
        row, s = parts.step(base, s, token)
        token = _reshaped(_best(ops.add(row, _row(noise, place)), 1), [1])
        logits.append(row)
        tokens.append(token)
    outputs = {"logits": _joined(logits, 0), "tokens": _joined(tokens, 0)}
    return _model(outputs, inputs)


def beams(head: Head, never: NDArray[np.intp], k: int, count: int, bits: Bits = 8, states: Bits = 8) -> ov.Model:
    """Beam search: the ``count`` likeliest of all continuations of the beams, at each step."""
    parts = _Unrolled(head, never, bits, states)
    vocab = len(head.bias)
    inputs, noise = _inputs(head, k)
    base, s = parts.begin(inputs[0])
    token = inputs[1]
    score: Any = ops.constant(np.zeros((1, 1), np.float32))
    held: list[tuple[Any, Any]] = []  # tokens and scores so far, a column a step
    for place in range(k):
        row, s = parts.step(base, s, token)
        total = ops.add(ops.log_softmax(row, -1), score)
        rows = 1 if not place else count
        found = _best(_reshaped(ops.add(total, _row(noise, place)), [1, rows * vocab]), count)
        found = _reshaped(found, [count])
        score = _reshaped(ops.gather(_reshaped(total, [rows * vocab]), found, ops.constant(np.int32(0))), [count, 1])
        width = ops.constant(np.int32(vocab))
        beam, token = ops.divide(found, width), ops.mod(found, width)
        take = [ops.gather(column, beam, ops.constant(np.int32(0))) for pair in held for column in pair]
        held = [*zip(take[0::2], take[1::2], strict=True), (_reshaped(token, [count, 1]), score)]
        s = ops.gather(s, beam, ops.constant(np.int32(0))) if s is not None else None
    outputs = {name: _joined([pair[side] for pair in held], 1) for side, name in enumerate(("beams", "scores"))}
    return _model(outputs, inputs)


def _inputs(head: Head, k: int) -> tuple[list[Any], Any]:
    states = ops.parameter([1, len(head.scales)], np.float32, name="states")
    token = ops.parameter([1], np.int32, name="token")
    noise = ops.parameter([k, len(head.bias)], np.float32, name="noise")
    for node in (states, token, noise):
        node.output(0).get_tensor().set_names({node.get_friendly_name()})
    return [states, token, noise], noise


def _model(outputs: dict[str, Any], inputs: list[Any]) -> ov.Model:
    results = []
    for name, node in outputs.items():
        results.append(ops.result(node))
        results[-1].output(0).get_tensor().set_names({name})
    return ov.Model(results, inputs, "redrafter")


def _product(x: Any, matrix: Any) -> Any:
    return ops.matmul(x, matrix, False, True)


def _silu(x: Any) -> Any:
    return ops.swish(x)


def _best(row: Any, count: int) -> Any:
    """Indices of the largest values, largest first."""
    return ops.topk(row, ops.constant(np.int32(count)), -1, "max", "value", index_element_type="i32").output(1)


def _row(table: Any, index: int) -> Any:
    return ops.gather(table, ops.constant(np.array([index], np.int32)), ops.constant(np.int32(0)))


def _reshaped(node: Any, shape: list[int]) -> Any:
    return ops.reshape(node, ops.constant(np.array(shape, np.int64)), False)


def _joined(nodes: list[Any], axis: int) -> Any:
    return ops.concat(nodes, axis) if len(nodes) > 1 else nodes[0]


def _vector(values: Any) -> Any:
    return ops.constant(values.detach().float().numpy()[None])


def _weights(values: NDArray[np.float32], bits: Bits) -> Any:
    if bits == 32:
        return ops.constant(values)
    if bits == 4 and values.shape[1] % GROUP == 0:
        return narrow_constant(values)
    steps = (np.abs(values).max(1, keepdims=True) / 127).astype(np.float16)
    safe = np.where(steps == 0, 1, steps).astype(np.float32)
    codes = ops.constant((np.clip(np.rint(values / safe), -127, 127) + 128).astype(np.uint8))
    shifted = ops.subtract(ops.convert(codes, "f16"), ops.convert(ops.constant(np.array(128, np.uint8)), "f16"))
    return ops.convert(ops.multiply(shifted, ops.constant(steps)), "f32")
