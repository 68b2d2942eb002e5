"""The recipe of ``edgespec train redrafter``: see ``heads`` for its folder. The packed draft is in ``draft``."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgespec.errors import SettingError
from edgespec_export import convert
from edgespec_export.settings import Weights
from edgespec_train import heads
from edgespec_train.corpus import shards
from edgespec_train.draft_model import UNKNOWN, invert
from edgespec_train.heads import Ground, HeadSettings, Say
from edgespec_train.loop import Schedule
from edgespec_train.losses import Loss
from edgespec_train.redrafter import graph, warm_start
from edgespec_train.redrafter.head import Head, HeadShape, Rows
from edgespec_train.redrafter.training import LookAhead
from edgespec_train.target import source_of

_BITS: dict[str, graph.Bits] = {"int4": 4, "int8": 8, "f32": 32}


@dataclass(frozen=True)
class Options:
    """Those of the recipe alone. fit_rows: places of the warm start; 0: begin with random weights. share: see
    ``LookAhead``. draft_length, beams: of the packed graph; one beam is a chain. states_weights: of the matrices that a
    round reads once. embeddings_from: a checkpoint of the target that torch reads."""

    state: int = 768
    blocks: int = 2
    rows: Rows = "target"
    rank: int = 256
    lookahead: int = 5
    loss: Loss = "kd"
    share: float = 0.6
    fit_rows: int = 60_000
    draft_length: int = 5
    beams: int = 1
    weights: str = "int8"
    states_weights: str = "int8"
    embeddings_from: str | None = None


def make(settings: HeadSettings, schedule: Schedule, options: dict[str, Any], say: Say) -> Path:
    """Train, and return the packed draft's folder. Goes on from a checkpoint if there is one."""
    own = Options(**options)
    if not 1 <= own.beams <= settings.vocabulary - 1:
        raise SettingError("beams", got=own.beams, allowed=f"1 to {settings.vocabulary - 1}")
    settings, target = heads.prepared(settings, own.embeddings_from, say, reads=True)
    shape = HeadShape(settings.layers, own.state, own.blocks, own.rows, own.rank, own.lookahead)
    if settings.start:
        settings.start.require("redrafter", shape)
    on = heads.ground(settings, target, say)
    head = _begun(shape, settings, own, on, schedule.seed, say)
    task = LookAhead(
        *(head, on.states, on.held_out, on.id_map, on.target.manifest.target.vocab_size),
        loss=own.loss,
        share=own.share,
        tokens_per_batch=schedule.tokens_per_batch,
        seed=schedule.seed,
    )
    same = {"shape": asdict(shape), "loss": own.loss, "share": own.share}
    curve = heads.trained(task, schedule, settings, on, say, same)
    packing: dict[str, Any] = {
        "settings": settings,
        "schedule": schedule,
        "on": on,
        "curve": curve,
        "trees": own.beams > 1,
    }
    return heads.packed("redrafter", on.id_map, own, lambda xml: write(head, on.id_map, own, xml), **packing)


def write(head: Head, id_map: NDArray[np.int32], options: Options, xml: Path) -> None:
    """The head's draft as an IR."""
    never = np.flatnonzero(id_map == UNKNOWN)
    bits = _BITS[options.weights], _BITS[options.states_weights]
    graph.write(head.to("cpu").eval(), never, xml, options.draft_length, options.beams, *bits)


def _begun(shape: HeadShape, settings: HeadSettings, options: Options, on: Ground, seed: int, say: Say) -> Head:
    """The head before training, with the target's rows."""
    source = options.embeddings_from or settings.target
    digest = hashlib.sha256(on.id_map.tobytes() + source.encode()).hexdigest()[:16]
    kept = settings.folder / f"rows-{digest}.pt"
    with on.accelerator.main_process_first():
        if not kept.is_file():
            with shards.written(kept) as file:
                torch.save(_rows(source, on.id_map), file)
    embeddings, output = torch.load(kept, weights_only=True)
    torch.manual_seed(seed)
    head = Head(shape, embeddings, output, warm_start.scales_of(on.states))
    size = sum(parameter.numel() for parameter in head.parameters()) / 1e6
    say(f"head: {size:.1f} M parameters, {len(on.id_map)} ids, states of layers {', '.join(map(str, shape.layers))}")
    if not heads.begins(head, settings, say) and options.fit_rows:
        inverse = invert(on.id_map, on.target.manifest.target.vocab_size)
        share = warm_start.fit(head, on.states, inverse, options.fit_rows)
        say(f"next state fitted by least squares: R squared {share:.2f}")
    return head


def _rows(reference: str, id_map: NDArray[np.int32]) -> tuple[torch.Tensor, torch.Tensor]:
    """The target's embeddings and output rows of the head's ids; for UNKNOWN the mean of all others."""
    source = source_of(reference)
    model: Any = convert.load(source, Weights("f32"), convert.read_config(source))
    unknown = torch.from_numpy(id_map == UNKNOWN)
    ids = torch.from_numpy(np.where(id_map == UNKNOWN, 0, id_map).astype(np.int64))
    found = []
    for part in (model.get_input_embeddings(), model.get_output_embeddings()):
        rows = part.weight[ids].detach().float().clone()
        if unknown.any():
            rare = torch.ones(len(part.weight), dtype=torch.bool)
            rare[ids[~unknown]] = False
            rows[unknown] = part.weight[rare].detach().float().mean(0)
        found.append(rows)
    return found[0], found[1]
