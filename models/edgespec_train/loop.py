"""The loop that all recipes train by: a schedule, checkpoints, a learning curve, and a stop where a loss is no number.

A recipe is a ``Task``: a module, batches by number, a loss, and a judgement on held-out text.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from accelerate import Accelerator

from edgespec.errors import SettingError, foreign
from edgespec_train import checkpoint
from edgespec_train.judging import Judged

B = TypeVar("B")
_GO_ON = "step {step} is kept: go on from it with another --seed, and a lower --learning-rate"
_FREE = ("seed", "learning_rate")
"""what may be another where a run goes on behind a loss that was no number: the same batch would have it again"""


@dataclass(frozen=True)
class Schedule:
    """How long and how fast.

    tokens_per_batch: of one process, prompts and padding included. learning_rate: at its peak, after ``warmup`` steps;
    it falls along a cosine to ``floor`` times that.
    """

    steps: int
    tokens_per_batch: int = 3072
    learning_rate: float = 2e-3
    warmup: int = 40
    floor: float = 0.02
    weight_decay: float = 0.01
    seed: int = 0
    evaluate_every: int = 200


@dataclass(frozen=True)
class Point:
    """One point of the learning curve. tokens: places trained on. agreement, block_efficiency, by_position: see
    ``Judged``."""

    step: int
    tokens: int
    seconds: float
    loss: float
    agreement: float
    block_efficiency: float
    by_position: tuple[float, ...] = ()

    def __str__(self) -> str:
        places = f", by position {' '.join(f'{p:.2f}' for p in self.by_position)}" if self.by_position else ""
        return (
            f"step {self.step}, {self.tokens / 1e6:.2f} M tokens, {self.seconds:.0f} s: loss {self.loss:.3f}, "
            f"agreement {self.agreement:.3f}, block efficiency {self.block_efficiency:.2f}{places}"
        )


class Diverged(SettingError):
    """The loss or its gradient is no number. The weights are those after ``step`` steps, which were good.

    kept: they are finite, and in the checkpoint.
    """

    def __init__(self, step: int, loss: float, hint: str = "", *, kept: bool = False) -> None:
        self.step, self.kept = step, kept
        again = "train again in another folder with a lower --learning-rate"
        hint = (hint or _GO_ON) if kept else again
        super().__init__(
            f"training stopped at step {step + 1}: its loss or gradient is no finite number",
            got=f"loss {loss:.3g}",
            hint=hint.format(step=step),
        )


class Task(Protocol[B]):
    """What a recipe is to the loop.

    module: what is trained and kept in checkpoints; parameters that need no gradient stay as they are.
    if_diverged: what to do then, if the weights are kept; "" for the usual. "{step}" is the last good step.
    """

    module: torch.nn.Module
    if_diverged: str

    def batches(self, first: int) -> Iterator[B]:
        """Batches without end, from number ``first`` on: a function of the seed and their number alone."""

    def loss(self, module: torch.nn.Module, batch: B, device: torch.device) -> tuple[torch.Tensor, int]:
        """Of ``module``, which is ``self.module`` or a wrapper of it; and how many places it is the mean of."""

    def judge(self) -> Judged:
        """On text that is not trained on."""


def run(
    task: Task[B],
    schedule: Schedule,
    folder: Path,
    *,
    say: Callable[[Point], None],
    same: dict[str, Any] | None = None,
    advance: Callable[[int, list[Point]], None] = lambda step, curve: None,
    accelerator: Accelerator | None = None,
) -> list[Point]:
    """Train in place and return the learning curve. Goes on from ``folder``'s checkpoint if there is one.

    same: what must be equal to go on besides the schedule; JSON. Raises SettingError if the checkpoint's is another,
    and Diverged.
    """
    accelerator = accelerator or Accelerator()
    accelerator.free_memory()  # of an earlier stage: a checkpoint numbers what was prepared
    model, optimizer = accelerator.prepare(task.module, _optimizer(task.module, schedule))
    identity = {"recipe": asdict(schedule), "processes": accelerator.num_processes} | (same or {})
    identity = json.loads(json.dumps(identity))
    curve, at = _resumed(accelerator, folder, identity)
    step, seen, before, running = at.step, at.tokens, at.seconds, at.loss
    began, workers = time.perf_counter(), accelerator.num_processes

    def save(diverged: bool = False) -> None:
        state = {"curve": [asdict(point) for point in curve], "diverged": diverged}
        seconds = round(before + time.perf_counter() - began, 1)
        at = asdict(_At(step, seen, seconds, running))
        checkpoint.save(accelerator, folder, identity | state | {"at": at})

    # Batch number step * workers + rank: the order does not depend on where the run was interrupted.
    planned = task.batches(step * workers)
    for batch in itertools.islice(planned, accelerator.process_index, (schedule.steps - step) * workers, workers):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(schedule, step)
        loss, places = task.loss(model, batch, accelerator.device)
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(
            model.parameters(), 1.0
        )  # not finite either if the loss is not, in any process
        if norm is not None and not math.isfinite(norm):
            kept = step > 0 and all(bool(p.isfinite().all()) for p in task.module.parameters())
            if kept:
                save(diverged=True)
            raise Diverged(step, loss.item(), task.if_diverged, kept=kept)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        seen += places * workers
        running = loss.item() if math.isnan(running) else 0.95 * running + 0.05 * loss.item()
        advance(step, curve)
        if step % schedule.evaluate_every == 0 or step == schedule.steps:
            judged = task.judge()
            seconds = before + time.perf_counter() - began
            curve.append(Point(step, seen, round(seconds, 1), running, **asdict(judged)))
            say(curve[-1])
            save()
    return curve


@dataclass(frozen=True)
class _At:
    """Where a run is. loss: its mean over the last steps."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    loss: float = float("nan")


def _resumed(accelerator: Accelerator, folder: Path, identity: dict[str, Any]) -> tuple[list[Point], _At]:
    """The learning curve of the checkpoint, and where it ends: behind its last point if the loss was no number."""
    state = checkpoint.resume(accelerator, folder, identity, free=_FREE)
    with foreign(SettingError, f"the learning curve in {folder} is damaged", hint="delete the checkpoint there"):
        points = state.get("curve", [])
        curve = [Point(**point | {"by_position": tuple(point.get("by_position", ()))}) for point in points]
        last = {name: getattr(curve[-1], name) for name in _At.__dataclass_fields__} if curve else {}
        return curve, _At(**state.get("at", last))


def learning_rate(schedule: Schedule, step: int) -> float:
    if step < schedule.warmup:
        return schedule.learning_rate * (step + 1) / schedule.warmup
    done = (step - schedule.warmup) / max(1, schedule.steps - schedule.warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return schedule.learning_rate * (schedule.floor + (1 - schedule.floor) * cosine)


def _optimizer(module: torch.nn.Module, schedule: Schedule) -> torch.optim.Optimizer:
    trained = [p for p in module.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": schedule.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=schedule.learning_rate, betas=(0.9, 0.95))
