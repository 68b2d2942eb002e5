"""Training of a block head, judged by what rounds would accept on held-out text."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from edgespec.errors import SettingError
from edgespec_train.block.data import Batch, Batches
from edgespec_train.block.head import BlockHead
from edgespec_train.block.losses import Loss, distance
from edgespec_train.trainer import Diverged

CHECKPOINT = "checkpoint.pt"
_CONFIDENCE = 0.1
"""weight of the confidence's loss, whose gradient stays in the confidence"""


@dataclass(frozen=True)
class Recipe:
    """texts, anchors: of a batch. decay: position i weighs exp(-i / decay). learning_rate: at its peak, after
    ``warmup`` steps; it falls along a cosine to nothing."""

    steps: int
    texts: int = 16
    anchors: int = 16
    learning_rate: float = 5e-4
    warmup: int = 20
    loss: Loss = "kl"
    decay: float = 2.0
    precision: str = "f32"
    seed: int = 0
    evaluate_every: int = 100


@dataclass(frozen=True)
class Point:
    """One point of the learning curve. agreement: share of held-out tokens at which the head's first position chooses
    what the target likes best. by_position: on greedy texts, share of positions whose token is the text's, among those
    whose earlier positions are right. tokens_a_forward: on these at k = 3 and 5."""

    step: int
    anchors: int
    seconds: float
    loss: float
    agreement: float
    by_position: tuple[float, ...]
    tokens_a_forward: tuple[float, float]

    def __str__(self) -> str:
        places = " ".join(f"{share:.2f}" for share in self.by_position)
        return (
            f"step {self.step}, {self.anchors / 1e6:.3f} M anchors, {self.seconds:.0f} s: loss {self.loss:.3f}, agreement "
            f"{self.agreement:.3f}, by position {places}, {self.tokens_a_forward[0]:.2f} tokens a forward at k = 3"
        )


def train(
    head: BlockHead,
    batches: Batches,
    held_out: Sequence[Batch],
    recipe: Recipe,
    folder: Path,
    *,
    say: Callable[[Point], None],
    same: dict[str, Any] | None = None,
) -> list[Point]:
    """Train in place and return the learning curve. Goes on from ``folder``'s checkpoint if there is one.

    same: what must be equal to go on besides the recipe; JSON. Raises SettingError if the checkpoint's is another.
    """
    identity = json.loads(json.dumps({"recipe": asdict(recipe), "shape": asdict(head.shape)} | (same or {})))
    matrices = [p for p in head.parameters() if p.ndim > 1]
    vectors = [p for p in head.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}],
        lr=recipe.learning_rate,
        betas=(0.9, 0.95),
    )
    curve = _resume(head, optimizer, folder, identity)
    step, seen = (curve[-1].step, curve[-1].anchors) if curve else (0, 0)
    before, began = curve[-1].seconds if curve else 0.0, time.perf_counter()
    running = curve[-1].loss if curve else math.nan
    for batch in batches.planned(recipe.seed, recipe.texts, recipe.anchors, first=step):
        if step >= recipe.steps:
            break
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, step)
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.precision == "bf16"):
            loss = loss_of(head, batch, recipe)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        if not math.isfinite(norm):
            raise Diverged(step, loss.item())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        seen += int(batch.known[:, 1 : recipe.anchors + 1].sum())
        running = loss.item() if math.isnan(running) else 0.95 * running + 0.05 * loss.item()
        if step % recipe.evaluate_every == 0 or step == recipe.steps:
            with torch.autocast("cpu", torch.bfloat16, enabled=recipe.precision == "bf16"):
                found = judge(head, held_out)
            seconds = before + time.perf_counter() - began
            curve.append(Point(step, seen, round(seconds, 1), running, *found))
            say(curve[-1])
            _save(head, optimizer, folder, identity, curve)
    return curve


def learning_rate(recipe: Recipe, step: int) -> float:
    if step < recipe.warmup:
        return recipe.learning_rate * (step + 1) / recipe.warmup
    done = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return recipe.learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def loss_of(head: BlockHead, batch: Batch, recipe: Recipe) -> torch.Tensor:
    """Mean over the positions, weighted."""
    streams = _streams(head, batch)
    total, weights = streams.new_zeros((), dtype=torch.float32), 0.0
    anchors = streams.shape[1]
    for place in range(head.shape.block):
        rows, before = _at(streams, batch, place)
        known = batch.known[:, 1 + place : 1 + place + anchors].flatten()
        if not known.any():
            continue
        rows, before = rows[known], before[known]
        ids, probs = (
            t[:, 1 + place : 1 + place + anchors].flatten(0, 1)[known] for t in (batch.top_ids, batch.top_probs)
        )
        logits = head.logits(rows, before if place else None)
        weight = math.exp(-place / recipe.decay)
        total = total + weight * distance(logits, ids, probs, recipe.loss).mean()
        agrees = (logits.detach().argmax(-1) == ids[:, 0]) & (probs[:, 0] > 0)
        sure = head.sure(rows.detach(), before)
        total = total + weight * _CONFIDENCE * functional.binary_cross_entropy_with_logits(sure.float(), agrees.float())
        weights += weight
    return total / weights


@torch.no_grad()
def judge(head: BlockHead, held_out: Sequence[Batch]) -> tuple[float, tuple[float, ...], tuple[float, float]]:
    """See ``Point``: agreement, by position, tokens a forward."""
    first: list[NDArray[np.bool_]] = []
    runs: list[NDArray[np.bool_]] = []
    for batch in held_out:
        streams = _streams(head, batch)
        b, anchors = streams.shape[:2]
        rights = []
        for place in range(head.shape.block):
            rows, before = _at(streams, batch, place)
            chosen = head.logits(rows, before if place else None).argmax(-1).view(b, anchors)
            here = slice(1 + place, 1 + place + anchors)
            known = batch.known[:, here]
            if not place:
                best = (chosen == batch.top_ids[:, here, 0]) & (batch.top_probs[:, here, 0] > 0)
                first.append(best[known].numpy())
            rights.append((chosen == batch.tokens[:, here]) & known)
        whole = batch.known[:, head.shape.block : head.shape.block + anchors] & batch.greedy[:, None]
        runs.append(torch.stack(rights, -1).cummin(-1).values[whole].numpy())
    agreement = float(np.concatenate(first).mean())
    run = np.concatenate(runs)
    if not len(run):
        return agreement, (), (1.0, 1.0)
    reached = np.concatenate([[len(run)], run.sum(0)])
    by_position = tuple(round(float(reached[i + 1] / max(1, reached[i])), 3) for i in range(run.shape[1]))
    return agreement, by_position, (1 + float(run[:, :3].sum(1).mean()), 1 + float(run[:, :5].sum(1).mean()))


def _streams(head: BlockHead, batch: Batch) -> torch.Tensor:
    window, rows = head.shape.window, batch.states.shape[1]
    anchors = rows - window + 1
    last = range(window - 1, window - 1 + anchors)
    return head.streams(batch.states, last, batch.tokens[:, :anchors], batch.there)


def _at(streams: torch.Tensor, batch: Batch, place: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Streams of one position of all blocks, and the token before each."""
    anchors = streams.shape[1]
    return streams[:, :, place].flatten(0, 1), batch.tokens[:, place : place + anchors].flatten()


def has_checkpoint(folder: Path) -> bool:
    return (folder / CHECKPOINT).is_file()


def _save(
    head: BlockHead, optimizer: torch.optim.Optimizer, folder: Path, identity: dict[str, Any], curve: list[Point]
) -> None:
    """Replace the checkpoint: whole or not at all."""
    new = folder / f"{CHECKPOINT}.{os.getpid()}.tmp"
    state = {"identity": identity, "curve": [asdict(point) for point in curve]}
    try:
        torch.save(state | {"head": head.state_dict(), "optimizer": optimizer.state_dict()}, new)
        new.replace(folder / CHECKPOINT)
    except (OSError, RuntimeError) as error:  # torch has its own for a full disk
        new.unlink(missing_ok=True)
        raise SettingError(f"cannot write a checkpoint to {folder}: {error}", hint="is the disk full?") from error


def _resume(head: BlockHead, optimizer: torch.optim.Optimizer, folder: Path, identity: dict[str, Any]) -> list[Point]:
    path = folder / CHECKPOINT
    if not has_checkpoint(folder):
        return []
    try:
        state = torch.load(path, weights_only=True)
        curve = [Point(**point) for point in state["curve"]]
        found = state["identity"]
    except Exception as error:  # torch raises what it likes for a damaged file
        raise SettingError(f"{path} is damaged: {error}", hint="delete it to begin again") from error
    for name, value in identity.items():
        if found.get(name) != value:
            raise SettingError(
                f"cannot go on from {path}: it was made with another {name}",
                got=value,
                allowed=found.get(name),
                hint="use the same settings, or another folder",
            )
    head.load_state_dict(state["head"])
    optimizer.load_state_dict(state["optimizer"])
    return curve
