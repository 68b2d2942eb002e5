"""Graphs as NPUW wants them. It knows those of optimum-intel's exports, and takes two of their habits for granted:

    names of states     past_key_values.0.keypresent.0.key: by these it tells keys, values and layers
    heads repeated      by broadcasts in both directions: it leaves a 1 in the place of the number of rows

Without the first it computes wrong rows, without a word. Without the second, nine layers do not compile, and three do.
Converted GGUF files have neither.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from edgespec.backends.openvino.graph import read_graph
from edgespec.backends.openvino.runtime import ops, ov

_SHORT_NAME = re.compile(r"past_key_values\.(\d+)\.(key|value)")
_REPEATED_AXES = 5  # (batch, heads, times, rows, size)


def read_for_npu(core: ov.Core, xml: Path) -> ov.Model:
    """An IR as NPUW wants it. Raises BackendError if it is damaged."""
    graph = read_graph(core, xml)
    _name_states(graph)
    _broadcast_both_ways(graph)
    return graph


def _name_states(graph: ov.Model) -> None:
    for variable in graph.get_variables():
        info: Any = variable.get_info()
        if found := _SHORT_NAME.fullmatch(info.variable_id):
            info.variable_id += "present.{}.{}".format(*found.groups())
            variable.update(info)


def _broadcast_both_ways(graph: ov.Model) -> None:
    for node in graph.get_ordered_ops():
        if node.get_type_name() != "Broadcast" or node.get_input_size() != 2:  # a third input says which axes stay
            continue
        if node.get_output_partial_shape(0).rank == _REPEATED_AXES:
            both_ways = ops.broadcast(node.input_value(0), node.input_value(1), broadcast_spec="BIDIRECTIONAL")
            for reader in node.output(0).get_target_inputs():
                reader.replace_source_output(both_ways.output(0))
