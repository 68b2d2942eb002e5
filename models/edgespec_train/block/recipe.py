"""The recipe of ``edgespec train block``: see ``heads`` for its folder. The packed draft is in ``draft``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgespec_export import convert
from edgespec_export.settings import Kind, Weights
from edgespec_train import heads
from edgespec_train.block import graph
from edgespec_train.block.head import BlockHead, Shape
from edgespec_train.block.losses import Loss
from edgespec_train.block.training import Blocks, head_ids
from edgespec_train.block.warm_start import Embeddings, initialise
from edgespec_train.draft_model import UNKNOWN
from edgespec_train.heads import Ground, HeadSettings, Say
from edgespec_train.loop import Schedule
from edgespec_train.target import source_of


@dataclass(frozen=True)
class Options:
    """Those of the recipe alone. width to rank: see ``Shape``. loss, decay: see ``Blocks``. fit_rows: answer rows that
    the head is fitted to before training; 0: it begins with random weights. embeddings_from: a checkpoint of the target
    that torch reads."""

    width: int = 640
    block: int = 5
    depth: int = 1
    heads: int = 8
    intermediate: int = 1280
    window: int = 32
    rank: int = 128
    loss: Loss = "kl"
    decay: float = 2.0
    fit_rows: int = 60_000
    weights: Kind = "int8"
    embeddings_from: str | None = None


def make(settings: HeadSettings, schedule: Schedule, options: dict[str, Any], say: Say) -> Path:
    """Train, and return the packed draft's folder. Goes on from a checkpoint if there is one."""
    own = Options(**options)
    settings, target = heads.prepared(
        settings, own.embeddings_from, say, reads=own.fit_rows > 0 and not settings.from_draft
    )
    sizes = (own.width, own.block, own.depth, own.heads, own.intermediate, own.window, own.rank)
    shape = Shape(settings.layers, *sizes)
    if settings.start:
        settings.start.require("block", shape)
    on = heads.ground(settings, target, say)
    ids = on.id_map[on.id_map != UNKNOWN]
    inverse = head_ids(on.id_map, on.target.manifest.target.vocab_size)
    torch.manual_seed(schedule.seed)
    head = BlockHead(shape, on.states.hidden_size, len(ids))
    millions = sum(parameter.numel() for parameter in head.parameters()) / 1e6
    say(f"head: {millions:.1f} M parameters, {len(ids)} ids, states of layers {', '.join(map(str, shape.layers))}")
    if not heads.begins(head, settings, say) and own.fit_rows:
        embeddings = _embeddings(own.embeddings_from or settings.target, ids, on)
        explained = initialise(head, on.states, inverse, embeddings, own.fit_rows)
        say(f"next state fitted by least squares: R squared {explained:.2f}")
    how: dict[str, Any] = {"loss": own.loss, "decay": own.decay}
    task = Blocks(
        *(head, on.states, on.held_out, inverse), **how, positions=schedule.tokens_per_batch, seed=schedule.seed
    )
    curve = heads.trained(task, schedule, settings, on, say, {"shape": asdict(shape)} | how)
    packing: dict[str, Any] = {"settings": settings, "schedule": schedule, "on": on, "curve": curve}
    return heads.packed("block", ids, own, lambda xml: write(head, xml, own.weights, say), **packing)


def write(head: BlockHead, xml: Path, kind: Kind, say: Say) -> None:
    """The head's draft as an IR, held against the torch model."""
    if note := graph.write(head, xml, Weights(kind)):
        say(note)
    gap, same = graph.differences(head, xml)
    say(f"the graph against torch: logits differ by at most {gap:.3f} of their spread, {same:.0%} of first tokens same")


def _embeddings(reference: str, ids: NDArray[np.int32], on: Ground) -> Embeddings:
    source = source_of(reference)
    model: Any = convert.load(source, Weights("f32"), convert.read_config(source))
    rows = torch.from_numpy(ids.astype(np.int64))
    read, written = (
        part.weight[rows].detach().float().numpy()
        for part in (model.get_input_embeddings(), model.get_output_embeddings())
    )
    counts = on.states.token_counts(on.target.manifest.target.vocab_size)[ids]
    return Embeddings(np.concatenate([read, read.mean(0, keepdims=True)]), written, counts)
