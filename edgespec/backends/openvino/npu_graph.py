"""Graphs as NPUW wants them. It knows those of optimum-intel's exports, and takes two of their habits for granted:

    names of states     past_key_values.0.keypresent.0.key: by these it tells keys, values and layers
    heads repeated      by broadcasts in both directions: it leaves a 1 in the place of the number of rows

Without the first it computes wrong rows, without a word. Without the second, nine layers do not compile, and three do.
Files that were converted from GGUF lack the names, and older ones both.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from edgespec.backends.openvino.graph import read_graph
from edgespec.backends.openvino.repeated_heads import broadcast_both_ways
from edgespec.backends.openvino.runtime import ov

_SHORT_NAME = re.compile(r"past_key_values\.(\d+)\.(key|value)")


def read_for_npu(core: ov.Core, xml: Path) -> ov.Model:
    """An IR as NPUW wants it. Raises BackendError if it is damaged."""
    graph = read_graph(core, xml)
    _name_states(graph)
    broadcast_both_ways(graph)
    return graph


def _name_states(graph: ov.Model) -> None:
    for variable in graph.get_variables():
        info: Any = variable.get_info()
        if found := _SHORT_NAME.fullmatch(info.variable_id):
            info.variable_id += "present.{}.{}".format(*found.groups())
            variable.update(info)
