"""Heads of random weights, to be timed: what a draft costs by ids, rows, bits and length. See ``latency``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from edgespec import Pipeline
from edgespec.backends.openvino.graph import decoder_layers
from edgespec.backends.openvino.runtime import ov
from edgespec.backends.openvino.static_graph import OpenVINOStaticGraph
from edgespec.bundle import IR_FILE
from edgespec_train.corpus.layers import usual_layers
from edgespec_train.corpus.paged_texts import graph_of
from edgespec_train.narrow import GROUP
from edgespec_train.redrafter import graph
from edgespec_train.redrafter.head import Head, HeadShape

_IDS, _STATE = 8192, 768
"""of the head that was trained (docs/log/redrafter.md)"""


@dataclass(frozen=True)
class TimedHead:
    """A step is one call, which drafts ``length`` tokens."""

    head: Head
    bits: graph.Bits
    length: int = 3
    beams: int = 1

    def __str__(self) -> str:
        beams = f"{self.beams} beams of " if self.beams > 1 else "a chain of "
        rows = self.head.shape.rows
        rank = f", rank {self.head.shape.rank}" if rows == "low-rank" else ""
        return f"{beams}{self.length}, {len(self.head.bias)} ids{rank}, int{self.bits}"

    def write(self, folder: Path) -> Path:
        never = np.zeros(0, np.intp)
        graph.write(self.head, never, folder / IR_FILE, self.length, self.beams, self.bits, self.bits)
        return folder / IR_FILE

    def opened(self, xml: Path) -> Callable[[], object]:
        return OpenVINOStaticGraph(ov.Core(), xml).repeat


def heads_for(pipeline: Pipeline) -> Iterator[TimedHead]:
    """One dimension at a time around a chain of 3 with the target's rows of 8192 ids in 8 bits."""
    depth, width = decoder_layers(ov.Core(), graph_of(pipeline.bundle))
    layers, ids = usual_layers(depth), min(_IDS, pipeline.target.vocab_size)
    full, trimmed = (_random(HeadShape(layers, _STATE), count, width) for count in (ids, ids // 2))
    rank = max(1, width // 6 // GROUP) * GROUP
    narrow = _random(HeadShape(layers, _STATE, rows="low-rank", rank=rank), ids, width)
    kinds: tuple[graph.Bits, ...] = (8, 4)
    for bits in kinds:
        for head in (full, trimmed, narrow):
            yield TimedHead(head, bits)
    yield TimedHead(full, 8, length=5)
    yield TimedHead(full, 8, length=4, beams=3)


def _random(shape: HeadShape, ids: int, width: int) -> Head:
    torch.manual_seed(0)
    rows = torch.randn(ids, width)
    return Head(shape, rows, rows, torch.ones(len(shape.layers) * width)).eval()
