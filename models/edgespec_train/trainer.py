"""FastDraft (arXiv 2411.11055): train a small draft for a target, on text the target wrote.

The draft is judged by acceptance on held-out text, never by perplexity.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from transformers import PreTrainedModel

from edgespec.errors import SettingError
from edgespec_train.corpus.batches import Batch, TextId, Texts
from edgespec_train.losses import Loss, loss_of

_EVALUATED_AT_ONCE = 16
CHECKPOINT = "checkpoint"


@dataclass(frozen=True)
class Recipe:
    """How to train.

    tokens_per_batch: of one process, prompts and padding included. learning_rate: at its peak, after ``warmup`` steps;
    it falls along a cosine to ``floor`` times that.
    """

    steps: int
    tokens_per_batch: int = 3072
    learning_rate: float = 2e-3
    warmup: int = 40
    floor: float = 0.02
    weight_decay: float = 0.01
    loss: Loss = "kd"
    seed: int = 0
    evaluate_every: int = 200


class Trained(Protocol):
    """What training reads: ``Texts``, or ``corpus.plain.Windows``."""

    def batches(self, seed: int, tokens_per_batch: int, first: int = 0) -> Iterator[list[TextId]]: ...

    def batch(self, texts: Sequence[TextId]) -> Batch: ...


@dataclass(frozen=True)
class Point:
    """One point of the learning curve. agreement: share of held-out tokens, greedily written by the target, that are
    the draft's first choice too. block_efficiency: what that is worth at k = 4."""

    step: int
    tokens: int
    seconds: float
    loss: float
    agreement: float
    block_efficiency: float


class Diverged(SettingError):
    """The loss or its gradient is no number. The weights are those after ``step`` steps, which were good."""

    def __init__(self, step: int, loss: float) -> None:
        self.step = step
        super().__init__(
            f"training stopped at step {step + 1}: its loss or gradient is no finite number",
            got=f"loss {loss:.3g}",
            hint=f"the draft of step {step} is kept: go on from it with --from-draft WORK/draft -o ANOTHER and a lower "
            "--learning-rate",
        )


class Rows(torch.nn.Module):
    """The draft's logits at some rows only: the head never sees the prompt. Padding is behind, so causal attention
    needs no mask."""

    def __init__(self, draft: Any) -> None:
        super().__init__()
        self.draft = draft

    def forward(self, tokens: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.draft.get_output_embeddings()(hidden_states(self.draft, tokens)[rows])
        return logits


def hidden_states(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    """``(b * n, d)`` what goes into the output head. tokens: ``(b, n)``."""
    hidden: torch.Tensor = model.model(input_ids=tokens, use_cache=False).last_hidden_state
    return hidden.flatten(0, 1)


def train(
    draft: PreTrainedModel,
    texts: Trained,
    held_out: Texts,
    recipe: Recipe,
    folder: Path,
    *,
    say: Callable[[Point], None],
    same: dict[str, Any] | None = None,
    advance: Callable[[int, list[Point]], None] = lambda step, curve: None,
    accelerator: Accelerator | None = None,
) -> list[Point]:
    """Train in place and return the learning curve. Goes on from ``folder``'s checkpoint if there is one.

    same: what must be equal to go on besides the recipe; JSON. Raises SettingError if the checkpoint's is another.
    """
    accelerator = accelerator or Accelerator()
    greedy = [text for text in held_out.texts if held_out.temperature(text) == 0]
    model, optimizer = accelerator.prepare(Rows(draft), _optimizer(draft, recipe))
    identity = {"recipe": asdict(recipe), "processes": accelerator.num_processes} | (same or {})
    identity = json.loads(json.dumps(identity))
    curve = _resume(accelerator, folder, identity)
    step, seen = (curve[-1].step, curve[-1].tokens) if curve else (0, 0)
    before = curve[-1].seconds if curve else 0.0
    began, running = time.perf_counter(), curve[-1].loss if curve else float("nan")
    workers = accelerator.num_processes
    # Batch number step * workers + rank: the order does not depend on where the run was interrupted.
    planned = texts.batches(recipe.seed, recipe.tokens_per_batch, step * workers)
    for ids in itertools.islice(planned, accelerator.process_index, (recipe.steps - step) * workers, workers):
        batch = texts.batch(ids).to(accelerator.device)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, step)
        loss = loss_of(model(batch.tokens, batch.rows), batch, recipe.loss)
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(
            model.parameters(), 1.0
        )  # not finite either if the loss is not, in any process
        if norm is not None and not math.isfinite(norm):
            raise Diverged(step, loss.item())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        seen += len(batch.rows) * workers
        running = loss.item() if math.isnan(running) else 0.95 * running + 0.05 * loss.item()
        advance(step, curve)
        if step % recipe.evaluate_every == 0 or step == recipe.steps:
            bits = agreement(draft, held_out, greedy)
            share = float(np.concatenate(bits).mean()) if bits else 0.0
            seconds = before + time.perf_counter() - began
            curve.append(Point(step, seen, round(seconds, 1), running, share, block_efficiency(bits, 4)))
            say(curve[-1])
            _save(accelerator, folder, identity, curve)
    return curve


def learning_rate(recipe: Recipe, step: int) -> float:
    if step < recipe.warmup:
        return recipe.learning_rate * (step + 1) / recipe.warmup
    done = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return recipe.learning_rate * (recipe.floor + (1 - recipe.floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


@torch.no_grad()
def agreement(draft: PreTrainedModel, texts: Texts, chosen: Sequence[TextId]) -> list[NDArray[np.bool_]]:
    """For each text: at which answer tokens the draft's first choice is the target's token."""
    found: list[NDArray[np.bool_]] = []
    rows = Rows(draft)
    device = next(draft.parameters()).device
    by_length = sorted(chosen, key=texts.length)
    for begin in range(0, len(by_length), _EVALUATED_AT_ONCE):
        some = by_length[begin : begin + _EVALUATED_AT_ONCE]
        batch = texts.batch(some).to(device)
        agrees = ((rows(batch.tokens, batch.rows).argmax(-1) == batch.labels) & batch.readable).cpu().numpy()
        spans = [texts.span(text) for text in some]
        found += np.split(agrees, np.cumsum([last - first for first, last in spans])[:-1])
    return found


def block_efficiency(texts: Sequence[NDArray[np.bool_]], k: int) -> float:
    """Tokens per forward of the target if it drafts k greedily: a round ends at the first place of disagreement.

    >>> block_efficiency([np.array([True, True, True, False, True, True])], k=2)
    1.6666666666666667
    """
    forwards = tokens = 0
    for agrees in texts:
        place = 1  # a first round that drafts nothing, as if the prompt had just been read
        while place < len(agrees):
            run = 0
            while run < k and place + run < len(agrees) and agrees[place + run]:
                run += 1
            place += run + 1
            forwards += 1
        tokens += len(agrees) - 1
    return tokens / forwards if forwards else 1.0


def _optimizer(draft: PreTrainedModel, recipe: Recipe) -> torch.optim.Optimizer:
    matrices = [p for p in draft.parameters() if p.ndim > 1]
    vectors = [p for p in draft.parameters() if p.ndim < 2]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95))


def _save(accelerator: Accelerator, folder: Path, identity: dict[str, Any], curve: list[Point]) -> None:
    """Replace the checkpoint: whole or not at all."""
    accelerator.wait_for_everyone()
    if not accelerator.is_main_process:
        return
    for leftover in folder.glob(f"{CHECKPOINT}.*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)
    current, old, new = (folder / f"{CHECKPOINT}{end}" for end in ("", ".old", f".{os.getpid()}.tmp"))
    try:
        accelerator.save_state(str(new))
        state = identity | {"curve": [asdict(point) for point in curve]}
        (new / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")
        if current.exists():
            shutil.rmtree(old, ignore_errors=True)
            current.replace(old)
        new.replace(current)
    except Exception as error:  # safetensors and torch have their own for a full disk
        shutil.rmtree(new, ignore_errors=True)
        raise SettingError(f"cannot write a checkpoint to {folder}: {error}", hint="is the disk full?") from error
    shutil.rmtree(old, ignore_errors=True)


def has_checkpoint(folder: Path) -> bool:
    return _checkpoint(folder) is not None


def _checkpoint(folder: Path) -> Path | None:
    """The newest whole one: a run may have been killed between putting the old one aside and the new one in place."""
    return next((path for name in (CHECKPOINT, f"{CHECKPOINT}.old") if (path := folder / name).is_dir()), None)


def _resume(accelerator: Accelerator, folder: Path, identity: dict[str, Any]) -> list[Point]:
    saved = _checkpoint(folder)
    if saved is None:
        return []
    try:
        state = json.loads((saved / "state.json").read_text(encoding="utf-8"))
        curve = [Point(**point) for point in state.pop("curve")]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SettingError(f"{saved} is damaged: {error}", hint="delete it to begin again") from error
    for name, value in identity.items():
        if state.get(name) != value:
            raise SettingError(
                f"cannot go on from {saved}: it was made with another {name}",
                got=value,
                allowed=state.get(name),
                hint="use the same settings, or another folder",
            )
    accelerator.load_state(str(saved))
    return curve
