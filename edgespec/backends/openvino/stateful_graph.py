"""From a causal language model's IR to a graph that keeps its cache inside the engine, and still goes back for nothing.

The states of an IR only grow. Reading and writing them takes longer than a forward. Two other ways back are made here:

masked: attention takes its mask from outside. Rows that went stay in the states, and nobody sees them. The engine keeps
    its own fast form of attention with states, and any tree can be masked.
cut: each forward takes the first ``past_len`` rows of each state. The engine copies the states then, and computes
    attention step by step. It is for graphs whose own masks must stay, such as those with windows: in a mask of the
    graph's own, rows that went would count as tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgespec.backends.openvino.graph import SMALL, choose_outputs, read_graph
from edgespec.backends.openvino.merge_matmuls import merge_products
from edgespec.backends.openvino.repeated_heads import broadcast_both_ways
from edgespec.backends.openvino.runtime import ops, ov
from edgespec.backends.openvino.settings import FULL_PRECISION
from edgespec.errors import BackendError, wrap_errors

BIAS = "attention_bias"
"""Input of a masked graph, ``(1, 1, n, rows in the states + n)``: 0 where a row may look, HIDDEN elsewhere."""
PAST_LEN = "past_len"
"""Input of a cut graph, ``(1,)``: how many rows of the states are the text."""
HIDDEN = -65504.0
"""the lowest number in 16 bits: an infinite one would be no number where it meets another"""
_ATTENTION = "ScaledDotProductAttention"
_MASK = 3  # input of it
_TOKENS_AXIS = 2  # of a state: (1, heads, tokens, size)


def stateful_graph(
    core: ov.Core, xml: Path, layers: Sequence[int] = (), *, rows: int, masked: bool = True
) -> tuple[ov.Model, bool]:
    """Read an IR and change it. Also tells whether it is masked. Raises BackendError if it is damaged, or not a causal
    language model with states.

    layers: whose hidden states it returns too. rows: the longest text. masked: False makes a cut graph of any.
    """
    model = read_graph(core, xml)
    with wrap_errors(BackendError, f"{xml} cannot keep its cache", hint="is it a decoder exported with past?"):
        states = [node for node in model.get_ordered_ops() if node.get_type_name() == "ReadValue"]
        if not states:
            raise BackendError(f"{xml} has no states for keys and values", hint="export it again, with past")
        if xml.with_suffix(".bin").stat().st_size <= SMALL:
            merge_products(model)
        broadcast_both_ways(model)
        masked = masked and _sees_all(core, model, rows)
        if masked:
            _mask_from_outside(model)
        else:
            _cut(model, states)
        choose_outputs(model, layers, attention=_ATTENTION, tokens_axis=1)
        for parameter in model.get_parameters():
            if not parameter.output(0).get_target_inputs():
                model.remove_parameter(parameter)
        model.validate_nodes_and_infer_types()
    return model, masked


def _attentions(model: ov.Model) -> list[Any]:
    return [node for node in model.get_ordered_ops() if node.get_type_name() == _ATTENTION]


def _has_own_mask(attention: Any) -> bool:
    """Else it hides what follows a row, and nothing more."""
    return attention.get_input_size() > _MASK and not attention.get_attributes()["causal"]


def _sees_all(core: ov.Core, model: ov.Model, rows: int) -> bool:
    """Whether the last of ``rows`` tokens sees all of them in each layer, equally. The masks are computed to find out:
    a window has no name in a graph."""
    copy = model.clone()
    attentions = _attentions(copy)
    masks = {
        (mask.get_node().get_name(), mask.get_index()): mask
        for mask in (node.input_value(_MASK) for node in attentions if _has_own_mask(node))
    }
    if not attentions or not masks:
        return bool(attentions)
    given = {parameter.get_friendly_name(): parameter for parameter in copy.get_parameters()}
    kept = list(given.values())
    for node in copy.get_ordered_ops():
        if node.get_type_name() == "ReadValue":  # of states a mask uses the length only
            past = ops.parameter([-1, -1, -1, -1], np.float32, name=f"past.{len(kept)}")
            for reader in node.output(0).get_target_inputs():
                reader.replace_source_output(past.output(0))
            kept.append(past)
    values: dict[str, Any] = {
        "input_ids": np.zeros((1, 1), np.int64),
        "attention_mask": np.ones((1, rows), np.int64),
        "position_ids": np.full((1, 1), rows - 1, np.int64),
        "beam_idx": np.zeros(1, np.int32),
    }
    past_rows = np.zeros((1, 1, rows - 1, 1), np.float32)
    try:
        found = [ops.result(mask) for mask in masks.values()]
        request = core.compile_model(ov.Model(found, kept, "masks"), "CPU", FULL_PRECISION).create_infer_request()
        outputs = request.infer([values.get(port.get_friendly_name(), past_rows) for port in kept])
        return all((array if array.dtype == bool else array == 0).all() for array in outputs.values())
    except (RuntimeError, TypeError, ValueError):  # masks that depend on the text
        return False


def _mask_from_outside(model: ov.Model) -> None:
    bias = ops.parameter([1, 1, -1, -1], np.float32, name=BIAS)
    bias.output(0).get_tensor().set_names({BIAS})
    for node in _attentions(model):
        if _has_own_mask(node):
            node.input(_MASK).replace_source_output(bias.output(0))
            continue
        query, key, value, *others = node.input_values()
        made = ops.scaled_dot_product_attention(query, key, value, bias, *others[1:])
        made.set_friendly_name(node.get_friendly_name())
        node.output(0).replace(made.output(0))
    model.add_parameters([bias])


def _cut(model: ov.Model, states: Sequence[Any]) -> None:
    length = ops.parameter([1], np.int64, name=PAST_LEN)
    length.output(0).get_tensor().set_names({PAST_LEN})
    first, step, axis = (ops.constant(np.array([number], np.int64)) for number in (0, 1, _TOKENS_AXIS))
    for state in states:
        readers = state.output(0).get_target_inputs()
        beams = [reader.get_node() for reader in readers if reader.get_node().get_type_name() == "Gather"]
        rows = beams[0].output(0) if beams else state.output(0)
        readers = rows.get_target_inputs()
        kept = ops.slice(rows, first, length, step, axis)
        for reader in readers:
            reader.replace_source_output(kept.output(0))
    model.add_parameters([length])
