"""FastDraft (arXiv 2411.11055): train a small draft for a target, on text the target wrote.

The draft is judged by acceptance on held-out text, never by perplexity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from transformers import PreTrainedModel

from edgespec_train import loop
from edgespec_train.checkpoint import has_checkpoint
from edgespec_train.corpus.batches import Batch, Texts
from edgespec_train.corpus.texts import TextId
from edgespec_train.judging import ROUND, Judged, block_efficiency
from edgespec_train.loop import Diverged, Point, Schedule
from edgespec_train.losses import Loss, loss_of

__all__ = ["Diverged", "Point", "Recipe", "agreement", "block_efficiency", "has_checkpoint", "hidden_states", "train"]
_EVALUATED_AT_ONCE = 16


@dataclass(frozen=True)
class Recipe(Schedule):
    """How to train."""

    loss: Loss = "kd"


class Trained(Protocol):
    """What training reads: ``Texts``, or ``corpus.plain.Windows``."""

    def batches(self, seed: int, tokens_per_batch: int, first: int = 0) -> Iterator[list[TextId]]: ...

    def batch(self, texts: Sequence[TextId]) -> Batch: ...


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


class NextToken:
    """A ``loop.Task``: the draft says the next token, at each row of an answer."""

    if_diverged = (
        "the draft of step {step} is kept: go on from it with --from-draft WORK/draft -o ANOTHER and a lower "
        "--learning-rate"
    )

    def __init__(self, draft: PreTrainedModel, texts: Trained, held_out: Texts, recipe: Recipe) -> None:
        self.module: torch.nn.Module = Rows(draft)
        self._draft = draft
        self._texts, self._held_out, self._recipe = texts, held_out, recipe
        self._greedy = [text for text in held_out.texts if held_out.temperature(text) == 0]

    def batches(self, first: int) -> Iterator[list[TextId]]:
        return self._texts.batches(self._recipe.seed, self._recipe.tokens_per_batch, first)

    def loss(self, module: torch.nn.Module, batch: list[TextId], device: torch.device) -> tuple[torch.Tensor, int]:
        read = self._texts.batch(batch).to(device)
        return loss_of(module(read.tokens, read.rows), read, self._recipe.loss), len(read.rows)

    def judge(self) -> Judged:
        """agreement: with texts that the target wrote greedily."""
        agrees = agreement(self._draft, self._held_out, self._greedy)
        share = float(np.concatenate(agrees).mean()) if agrees else 0.0
        return Judged(share, block_efficiency(agrees, ROUND))


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
    """Train in place and return the learning curve; see ``loop.run``."""
    task = NextToken(draft, texts, held_out, recipe)
    return loop.run(task, recipe, folder, say=say, same=same, advance=advance, accelerator=accelerator)


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
