"""Trains placeholders behind a frozen target. They are judged by acceptance on held-out text, as a draft is.

The target's own distribution at each place is known: it has read the real tokens. So the loss needs no stored
log-probabilities.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.nn import functional

from edgespec.errors import SettingError
from edgespec_train.corpus.batches import TextId, Texts
from edgespec_train.sdsat.placeholders import Placeholders, guess, read
from edgespec_train.sdsat.places import Groups, Placing, answer_places, choose, groups_of

CHECKPOINT = "checkpoint.pt"
_EVERY = 9
"""held-out text is judged at each so-manieth place"""
_EVALUATED_AT_ONCE = 4


@dataclass(frozen=True)
class Recipe:
    """How to train.

    count: placeholders behind a token. shared: one embedding for all. placing, share: see ``places``. decay: weight of
    a placeholder's loss over that of the one before it.
    """

    steps: int
    count: int = 5
    shared: bool = True
    rank: int = 16
    placing: Placing = "random"
    share: float = 0.2
    loss: Literal["kd", "ce"] = "kd"
    decay: float = 0.8
    tokens_per_batch: int = 768
    learning_rate: float = 2e-3
    warmup: int = 20
    floor: float = 0.05
    seed: int = 0
    precision: Literal["f32", "bf16"] = "bf16"
    evaluate_every: int = 100


@dataclass(frozen=True)
class Point:
    """One point of the learning curve. tokens: placeholders trained on so far.

    accepted: by length, the share of held-out places at which so many placeholders guess the target's own tokens.
    """

    step: int
    tokens: int
    seconds: float
    loss: float
    accepted: tuple[float, ...]

    @property
    def two_step(self) -> float:
        """Tokens a forward of the target, where a round is one forward that drafts and one that verifies."""
        return max(1 + sum(self.accepted[:k]) / 2 for k in range(len(self.accepted) + 1))

    @property
    def one_forward(self) -> float:
        """Tokens a forward of the target, where a forward verifies a draft and drafts behind it. What it drafts is of
        use only if it accepts the whole draft.

        >>> round(Point(0, 0, 0.0, 0.0, (0.5,)).one_forward, 2)
        1.33
        """
        found = 1.0
        for k in range(1, len(self.accepted) + 1):
            found = max(found, 1 + sum(self.accepted[:k]) / (2 - self.accepted[k - 1]))
        return found


def train(
    target: Any,
    placeholders: Placeholders,
    texts: Texts,
    held_out: Texts,
    recipe: Recipe,
    folder: Path,
    *,
    say: Callable[[Point], None],
    same: dict[str, Any],
    advance: Callable[[int, list[Point]], None] = lambda step, curve: None,
) -> list[Point]:
    """Train in place and return the learning curve. Goes on from ``folder``'s checkpoint if there is one.

    same: what must be equal to go on besides the recipe; JSON.
    """
    for parameter in target.parameters():
        parameter.requires_grad_(False)
    optimizer = torch.optim.AdamW(placeholders.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.95))
    identity = json.loads(json.dumps({"recipe": asdict(recipe)} | same))
    curve, step, seen, running, before = _resume(folder / CHECKPOINT, identity, placeholders, optimizer)
    greedy = [text for text in held_out.texts if held_out.temperature(text) == 0] or held_out.texts
    began = time.perf_counter()
    for chosen in islice(texts.batches(recipe.seed, recipe.tokens_per_batch, step), recipe.steps - step):
        random = np.random.default_rng((recipe.seed, step))
        groups = groups_of(texts, chosen, choose(texts, chosen, recipe.placing, recipe.share, random))
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.precision == "bf16"):
            loss, rows = loss_of(target, placeholders, groups, recipe)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(placeholders.parameters(), 1.0)
        if not math.isfinite(norm):
            what = f"training stopped at step {step + 1}: its loss or gradient is no finite number"
            _save(folder / CHECKPOINT, identity, placeholders, optimizer, curve, (step, seen, running, 0.0))
            hint = f"step {step} is kept in {CHECKPOINT}; a lower --learning-rate and another -o"
            raise SettingError(what, got=f"loss {loss.item():.3g}", hint=hint)
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(recipe, step)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        seen += rows
        running = loss.item() if math.isnan(running) else 0.95 * running + 0.05 * loss.item()
        advance(step, curve)
        if step % recipe.evaluate_every == 0 or step == recipe.steps:
            seconds = before + time.perf_counter() - began
            accepted = tuple(acceptance(target, placeholders, held_out, greedy, recipe.count))
            curve.append(Point(step, seen, round(seconds, 1), running, accepted))
            say(curve[-1])
            _save(folder / CHECKPOINT, identity, placeholders, optimizer, curve, (step, seen, running, seconds))
    return curve


def loss_of(target: Any, placeholders: Placeholders, groups: Groups, recipe: Recipe) -> tuple[torch.Tensor, int]:
    """Mean over the placeholders whose answer the text tells, and their number.

    kd: cross-entropy against the target's distribution there. ce: against the token that stands there.
    """
    count = recipe.count
    hidden, cache = read(target, groups.tokens)
    head = target.get_output_embeddings()
    told, rows = groups.told(count), groups.teachers(count)
    line = torch.arange(len(rows))[:, None, None].expand_as(rows)[told]
    weight = (recipe.decay ** torch.arange(count)).expand_as(rows)[told]
    logprobs = functional.log_softmax(head(guess(target, placeholders, cache, groups.anchors, count)[told]), -1)
    if recipe.loss == "kd":
        with torch.no_grad():
            wanted = functional.softmax(head(hidden[line, rows[told]]), -1)
        each = -(wanted * logprobs).sum(-1)
    else:
        behind = rows[told] + 1
        within = (behind < groups.ends[line]).float()
        labels = groups.tokens[line, behind.clamp(max=groups.tokens.shape[1] - 1)]
        each, weight = -logprobs.gather(1, labels[:, None])[:, 0], weight * within
    return (each * weight).sum() / weight.sum().clamp(min=1e-9), len(each)


@torch.no_grad()
def acceptance(
    target: Any, placeholders: Placeholders, texts: Texts, chosen: Sequence[TextId], count: int
) -> list[float]:
    """Share of places at which the first 1, 2, .. ``count`` placeholders guess what the target says there."""
    head = target.get_output_embeddings()
    right, places = np.zeros(count), 0
    by_length = sorted(chosen, key=texts.length)
    for begin in range(0, len(by_length), _EVALUATED_AT_ONCE):
        some = by_length[begin : begin + _EVALUATED_AT_ONCE]
        groups = groups_of(texts, some, [answer_places(texts, text)[::_EVERY] for text in some])
        hidden, cache = read(target, groups.tokens)
        said = head(hidden).argmax(-1)
        guessed = head(guess(target, placeholders, cache, groups.anchors, count)).argmax(-1)
        wanted = said.gather(1, groups.teachers(count).flatten(1)).view_as(guessed)
        whole = groups.told(count).all(-1)
        agrees = ((guessed == wanted).cumprod(-1).bool() & whole[:, :, None]).numpy()
        right += agrees.sum((0, 1))
        places += int(whole.sum())
    return [round(float(share), 4) for share in right / max(1, places)]


def _learning_rate(recipe: Recipe, step: int) -> float:
    if step < recipe.warmup:
        return recipe.learning_rate * (step + 1) / recipe.warmup
    done = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return recipe.learning_rate * (recipe.floor + (1 - recipe.floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def _save(
    file: Path,
    identity: dict[str, Any],
    placeholders: Placeholders,
    optimizer: torch.optim.Optimizer,
    curve: list[Point],
    state: tuple[int, int, float, float],
) -> None:
    """Replace the checkpoint: whole or not at all."""
    content = {
        "identity": json.dumps(identity),
        "placeholders": placeholders.state_dict(),
        "optimizer": optimizer.state_dict(),
        "curve": [asdict(point) for point in curve],
        "state": state,
    }
    temporary = file.with_suffix(".tmp")
    try:
        torch.save(content, temporary)
        temporary.replace(file)
    except (OSError, RuntimeError) as error:  # torch has its own for a full disk
        raise SettingError(f"cannot write a checkpoint to {file.parent}: {error}", hint="is the disk full?") from error
    finally:
        temporary.unlink(missing_ok=True)


def _resume(
    file: Path, identity: dict[str, Any], placeholders: Placeholders, optimizer: torch.optim.Optimizer
) -> tuple[list[Point], int, int, float, float]:
    if not file.is_file():
        return [], 0, 0, float("nan"), 0.0
    try:
        content = torch.load(file, weights_only=True)
        saved = json.loads(content["identity"])
        curve = [Point(**point | {"accepted": tuple(point["accepted"])}) for point in content["curve"]]
        step, seen, running, seconds = content["state"]
    except Exception as error:  # pickle, zip and torch have their own for a damaged file
        raise SettingError(f"{file} is damaged: {error}", hint="delete it to begin again") from error
    for name, value in identity.items():
        if saved.get(name) != value:
            raise SettingError(
                f"cannot go on from {file}: it was made with another {name}",
                got=value,
                allowed=saved.get(name),
                hint="use the same settings, or another folder",
            )
    placeholders.load_state_dict(content["placeholders"])
    optimizer.load_state_dict(content["optimizer"])
    return curve, step, seen, running, seconds
