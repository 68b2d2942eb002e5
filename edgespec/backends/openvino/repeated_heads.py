"""Heads of keys and values that are repeated for the heads of queries, written as OpenVINO's plugins know it.

They look for broadcasts in both directions, as optimum-intel exports them. In one direction it is the same function.
But NPUW then leaves a 1 in the place of the number of rows, and the CPU's plugin does not see attention over states: it
computes it step by step, and copies the states in each forward. Files that were converted from GGUF may have that.
"""

from __future__ import annotations

from edgespec.backends.openvino.runtime import ops, ov

_REPEATED_AXES = 5  # (batch, heads, times, rows, size)


def broadcast_both_ways(graph: ov.Model) -> None:
    for node in graph.get_ordered_ops():
        if node.get_type_name() != "Broadcast" or node.get_input_size() != 2:  # a third input says which axes stay
            continue
        if node.get_output_partial_shape(0).rank == _REPEATED_AXES:
            both_ways = ops.broadcast(node.input_value(0), node.input_value(1), broadcast_spec="BIDIRECTIONAL")
            for reader in node.output(0).get_target_inputs():
                reader.replace_source_output(both_ways.output(0))
