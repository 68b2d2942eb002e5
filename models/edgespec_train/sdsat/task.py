"""How placeholders learn behind a frozen target, and what they are worth: a ``loop.Task``.

The target's own distribution at each place is known, since it reads the real tokens anyway. So the loss needs no stored
log-probabilities.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from edgespec.errors import SettingError
from edgespec_train.corpus import SOURCES
from edgespec_train.corpus.texts import TargetTexts, TextId
from edgespec_train.judging import Judged
from edgespec_train.loop import Schedule
from edgespec_train.sdsat.placeholders import Placeholders, read
from edgespec_train.sdsat.places import Groups, Placing, answer_places, choose, groups_of

MOST_TOKENS = 13
"""placeholders that a shared embedding may be asked for when decoding, as in the paper's scripts"""
_EVALUATED_AT_ONCE, _JUDGED = 4, 1000
"""texts; places that are judged in the end, if there are so many"""
_ROWS_AT_ONCE = 256
"""of logits: a vocabulary of 152,000 takes 0.6 MB a row"""


@dataclass(frozen=True)
class Recipe:
    """What is trained, and on what.

    count: placeholders behind a token. separate: each has an embedding of its own, else they share one. rank, groups:
    of the adapters; rank 0 for none. placing, share: see ``places``. decay: weight of a placeholder's loss over that of
    the one before it. judged: of so many places of a held-out text one is.
    """

    count: int = 5
    separate: bool = False
    rank: int = 16
    groups: tuple[str, ...] = ("qkv", "o", "gate_up", "down")
    placing: Placing = "random"
    share: float = 0.2
    loss: Literal["kd", "ce"] = "kd"
    decay: float = 0.8
    judged: int = 9


class Guesses:
    """A ``loop.Task``: placeholders guess what the target says behind the tokens that it has not seen yet.

    target: a decoder of transformers; it is frozen. bf16: compute in that type.
    """

    if_diverged = ""

    def __init__(
        self,
        target: Any,
        placeholders: Placeholders,
        texts: TargetTexts,
        held_out: TargetTexts,
        recipe: Recipe,
        schedule: Schedule,
        *,
        bf16: bool = False,
    ) -> None:
        for parameter in target.parameters():
            parameter.requires_grad_(False)
        self.module: torch.nn.Module = placeholders
        self._target, self._recipe, self._schedule, self._bf16 = target, recipe, schedule, bf16
        self._texts, self._held_out = texts, held_out
        greedy = [text for text in held_out.texts if held_out.temperature(text) == 0] or held_out.texts
        self._judged = sorted(greedy, key=held_out.length)

    def batches(self, first: int) -> Iterator[Groups]:
        seed, recipe = self._schedule.seed, self._recipe
        planned = self._texts.batches(seed, self._schedule.tokens_per_batch, first)
        for number, chosen in enumerate(planned, first):
            random = np.random.default_rng((seed, number))
            yield groups_of(self._texts, chosen, choose(self._texts, chosen, recipe.placing, recipe.share, random))

    def loss(self, module: torch.nn.Module, batch: Groups, device: torch.device) -> tuple[torch.Tensor, int]:
        """Mean over the placeholders whose answer the text tells, and their number.

        kd: cross-entropy against the target's distribution there. ce: against the token that stands there.
        """
        groups, count = batch.to(device), self._recipe.count
        head = self._target.get_output_embeddings()
        told, rows = groups.told(count), groups.teachers(count)
        line = torch.arange(len(rows), device=device)[:, None, None].expand_as(rows)[told]
        weight = (self._recipe.decay ** torch.arange(count, device=device)).expand_as(rows)[told]
        behind = rows[told] + 1
        labels = groups.tokens[line, behind.clamp(max=groups.tokens.shape[1] - 1)]
        if self._recipe.loss == "ce":
            weight = weight * (behind < groups.ends[line])

        def losses(guess: torch.Tensor, wrote: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
            with torch.autocast(device.type, torch.bfloat16, enabled=self._bf16):
                logprobs = functional.log_softmax(head(guess).float(), -1)
                if self._recipe.loss == "ce":
                    return -logprobs.gather(1, label[:, None])[:, 0]
                with torch.no_grad():
                    says = functional.softmax(head(wrote).float(), -1)
                return -(says * logprobs).sum(-1)

        with torch.autocast(device.type, torch.bfloat16, enabled=self._bf16):
            hidden, cache = read(self._target, groups.tokens)
            guesses = module(self._target, cache, groups.anchors, count)[told]
        parts = zip(*(rows.split(_ROWS_AT_ONCE) for rows in (guesses, hidden[line, rows[told]], labels)), strict=True)
        # Logits of all rows would fill the memory, so they are made again for the gradient.
        each = torch.cat([checkpoint(losses, *part, use_reentrant=False) for part in parts])
        return (each * weight).sum() / weight.sum().clamp(min=1e-9), len(each)

    def judge(self) -> Judged:
        """On held-out texts that the target wrote greedily: what it says itself is the measure.

        Block efficiency is that of one-forward rounds."""
        right = right_guesses(self._target, self.module, self._held_out, self._judged, self._recipe)
        return replace(Judged.of(right), block_efficiency=worth(right)["one_forward"])


Parts = list[tuple[NDArray[np.bool_], NDArray[np.bool_]]]


def right_guesses(
    target: Any, placeholders: torch.nn.Module, texts: TargetTexts, chosen: Sequence[TextId], recipe: Recipe
) -> list[NDArray[np.bool_]]:
    """Of each text ``(places, count)``: whether each placeholder guesses what the target says there."""
    return _covered(_guessed(target, placeholders, texts, chosen, recipe), recipe.count)


@torch.no_grad()
def _guessed(
    target: Any, placeholders: torch.nn.Module, texts: TargetTexts, chosen: Sequence[TextId], recipe: Recipe
) -> Parts:
    """Of each text twice ``(places, count)``: which guesses are right, and of which the text tells that."""
    head, device = target.get_output_embeddings(), next(target.parameters()).device
    found: Parts = []
    for begin in range(0, len(chosen), _EVALUATED_AT_ONCE):
        some = chosen[begin : begin + _EVALUATED_AT_ONCE]
        places = [answer_places(texts, text)[:: recipe.judged] for text in some]
        groups = groups_of(texts, some, places).to(device)
        hidden, cache = read(target, groups.tokens)
        said = likeliest(head, hidden)
        guessed = likeliest(head, placeholders(target, cache, groups.anchors, recipe.count))
        wanted = said.gather(1, groups.teachers(recipe.count).flatten(1)).view_as(guessed)
        told = groups.told(recipe.count)
        found += zip(((guessed == wanted) & told).cpu().numpy(), told.cpu().numpy(), strict=True)
    return found


def likeliest(head: Any, hidden: torch.Tensor) -> torch.Tensor:
    """The id with the largest logit of each row. Logits are made of a few rows at a time."""
    rows = torch.split(hidden.flatten(0, -2), _ROWS_AT_ONCE)
    return torch.cat([head(some).argmax(-1) for some in rows]).view(hidden.shape[:-1])


def _covered(parts: Parts, count: int) -> list[NDArray[np.bool_]]:
    """Of each text the places behind which it tells so many tokens."""
    return [right[told[:, count - 1], :count] for right, told in parts]


def allowed_guesses(recipe: Recipe) -> int:
    return recipe.count if recipe.separate else MOST_TOKENS


def require_long_answers(texts: TargetTexts, chosen: Sequence[TextId], recipe: Recipe) -> None:
    """Raises SettingError if no text tells whether as many guesses as are allowed are right."""
    longest = max((len(answer_places(texts, text)) for text in chosen), default=0)
    if longest < allowed_guesses(recipe):
        raise SettingError(
            "held-out answers are too short to find the best number of guesses: tokens of the longest",
            got=longest,
            allowed=f"{allowed_guesses(recipe)} or more",
            hint="a corpus of longer answers (--new-tokens)",
        )


def figures(
    target: Any, placeholders: torch.nn.Module, texts: TargetTexts, chosen: Sequence[TextId], recipe: Recipe
) -> dict[str, Any]:
    """What held-out texts say in the end.

    ``worth`` at the numbers that the bundle allows, over the ``k_places`` behind which a text goes on so far. And
    ``tokens_a_forward`` at every number up to ``MOST_TOKENS``, of all and of each source of prompts, over ``places``.
    Separate placeholders repeat their last one behind their own number there, so that all recipes are judged on one
    set. Raises SettingError if there are no ``k_places``.
    """
    require_long_answers(texts, chosen, recipe)
    possible = sum(len(answer_places(texts, text)) for text in chosen)
    finely = replace(recipe, count=MOST_TOKENS, judged=max(1, possible // _JUDGED))
    parts = _guessed(target, placeholders, texts, chosen, finely)
    within, right = _covered(parts, allowed_guesses(recipe)), _covered(parts, MOST_TOKENS)
    found: dict[str, Any] = worth(within) | {"k_places": sum(map(len, within)), "places": sum(map(len, right))}
    found |= {"by_number": _rounded(right) if found["places"] else {}, "by_source": {}}
    for number, name in enumerate(SOURCES):
        own = [part for text, part in zip(chosen, right, strict=True) if texts.source(text) == number]
        if sum(map(len, own)):
            found["by_source"][name] = {"places": sum(map(len, own)), **_rounded(own)}
    return found


def _rounded(right: Sequence[NDArray[np.bool_]]) -> dict[str, list[float]]:
    return {name: [round(n, 3) for n in tokens] for name, tokens in tokens_a_forward(right).items()}


def tokens_a_forward(right: Sequence[NDArray[np.bool_]]) -> dict[str, list[float]]:
    """Of each scheme, at 0, 1, 2, ... guesses: tokens a forward of the target.

    two_step: a forward drafts, the next one verifies. one_forward: each does both; what it drafts is of use only if it
    accepts its whole draft, else the next one begins anew.

    >>> tokens_a_forward([np.array([[True], [False]])])
    {'two_step': [1.0, 1.25], 'one_forward': [1.0, 1.3333333333333333]}
    """
    runs = [np.logical_and.accumulate(text, axis=1) for text in right if len(text)]
    accepted = np.concatenate(runs).mean(0) if runs else np.zeros(1)  # by number: share with so many right
    expected = np.cumsum(accepted)
    schemes = {"two_step": 1 + expected / 2, "one_forward": 1 + expected / (2 - accepted)}
    return {name: [1.0, *tokens.tolist()] for name, tokens in schemes.items()}


def worth(right: Sequence[NDArray[np.bool_]]) -> dict[str, float]:
    """The best of ``tokens_a_forward``, and at which number of guesses, at least one.

    >>> worth([np.array([[True], [False]])])
    {'two_step': 1.25, 'two_step_k': 1, 'one_forward': 1.3333333333333333, 'one_forward_k': 1}
    """
    found: dict[str, float] = {}
    for name, tokens in tokens_a_forward(right).items():
        best = 1 + int(np.argmax(tokens[1:]))
        found |= {name: tokens[best], f"{name}_k": best}
    return found
