"""How a drafter that has logits makes a draft of them: it chooses what the target would choose from the same logits.

In coupled sampling it draws with the noise of the drafted position, which the target will use too. For rejection it
draws with noise of its own, and returns the distributions (see ``sampling``). Penalties, biases and a constraint count
as they do for the target.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edgespec.errors import IncompatiblePair
from edgespec.sampling import DRAFT, adjust, distribution, draw, gumbel, uniform
from edgespec.sampling_params import SamplingParams
from edgespec.types import Allowed, Distribution, Draft, DraftKind, Logits


class TokenChoice:
    """Of one drafter.

    ids: ``(m,)`` target id of each of the drafter's logits; -1: no token. vocab_size: number of the target's logits.
    blocked: target ids never to propose: padding, and tokens that mean something else to the target.
    """

    def __init__(
        self, ids: NDArray[np.integer], vocab_size: int, *, blocked: Collection[int] = (), name: str = "draft"
    ) -> None:
        self._params = SamplingParams()
        columns = np.flatnonzero((ids >= 0) & ~np.isin(ids, list(blocked)))
        if not len(columns):
            raise IncompatiblePair(f"draft {name} has no token that it may propose")
        self._columns = columns if len(columns) < len(ids) else slice(None)
        self._all = ids
        self._ids = ids[columns]
        if len(np.unique(self._ids)) < len(columns):
            raise IncompatiblePair(f"draft {name} has two logits for one token", hint="its id_map names an id twice")
        self._row = np.full(vocab_size, -np.inf, np.float32)  # the draft's logits, at their target ids

    def begin(self, params: SamplingParams) -> None:
        """A new generation."""
        self._params = params

    def draft(
        self,
        step: Callable[[Sequence[int]], Logits | None],
        context: Sequence[int],
        k: int,
        go_on: Callable[[Sequence[float]], bool],
        allowed: Allowed | None = None,
        *,
        runners_up: bool = False,
    ) -> Draft:
        """At most k tokens (see ``StepwiseDrafter.propose_while``).

        step: the tokens drafted so far -> the drafter's logits after them, ``(m,)``; None: it knows no further.
        runners_up: return them too, if the text is greedy.

        A score is the draft's own probability of the token, before temperature and truncation. The score is 1 if the
        constraint allows no other token there.
        """
        tokens: list[int] = []
        scores: list[float] = []
        alternatives: list[tuple[int, float]] = []
        probs: list[Distribution] = []
        while (logits := step(tokens)) is not None:
            row = self._row_of(logits, context, tokens, allowed)
            if not np.isfinite(row.max()):  # none of its tokens is allowed here, or it gave no numbers
                break
            if self._params.rejects:
                given = distribution(row, self._params, self._ids)
                probs.append(given)
                token = draw(row, self._drawing(len(context)), len(context) + len(tokens), self._ids)
                # Not the drawn token's probability: whether it is proposed must not depend on which one it is.
                score = float(given.probs.max())
            else:
                token, score = self._choose(row, len(context) + len(tokens))
                if runners_up and self._params.greedy:
                    alternatives.append(self._runner_up(row, token))
            certain = self._certain([*tokens, token], k, allowed)
            tokens += [token, *certain]
            scores += [score, *(1.0 for _ in certain)]
            if self._params.rejects:
                probs += [Distribution(np.array([token]), np.ones(1)) for token in certain]
            if alternatives:
                alternatives += [(token, 0.0) for token in certain]
            if len(tokens) == k or not go_on(scores):
                break
        kind: DraftKind = "sampled" if self._params.rejects else "deterministic"
        return Draft(
            tuple(tokens), kind=kind, probs=tuple(probs), scores=tuple(scores), alternatives=tuple(alternatives)
        )

    def noise(self, committed: int, count: int) -> NDArray[np.float32]:
        """``(count, m)`` for a graph that chooses by itself: the largest sum of logit and noise is the token that
        ``draft`` chooses. That holds where no truncation, penalty or constraint has a say.

        committed: length of the context. count: tokens of a draft.
        """
        found = np.zeros((count, len(self._all)), np.float32)
        for token, bias in self._params.logit_bias.items():
            found[:, self._all == token] = bias
        if not self._params.greedy:
            params = self._drawing(committed)
            assert params.seed is not None
            for place in range(count):
                found[place] += params.temperature * gumbel(params.seed, committed + place, self._all)
        return found

    def _drawing(self, committed: int) -> SamplingParams:
        """With the seed to draw with: the target's, or for rejection one of its own in each round (see ``uniform``)."""
        if not self._params.rejects:
            return self._params
        assert self._params.seed is not None
        return replace(self._params, seed=int(uniform(self._params.seed, DRAFT, committed) * 2**52))

    def _certain(self, drafted: Sequence[int], k: int, allowed: Allowed | None) -> list[int]:
        """The tokens that must follow, since a constraint allows no other. They cost no step of their own."""
        run: list[int] = []
        while allowed is not None and len(drafted) + len(run) < k:
            found = np.flatnonzero(allowed([*drafted, *run]))
            if len(found) != 1:
                break
            run.append(int(found[0]))
        return run

    def _row_of(
        self, logits: Logits, context: Sequence[int], drafted: Sequence[int], allowed: Allowed | None
    ) -> Logits:
        """Logits of ``self._ids`` after ``context`` and ``drafted``. Penalties are applied, and forbidden tokens have
        ``-inf``.

        logits: ``(m,)``.
        """
        row: Logits = logits[self._columns]
        if allowed is not None:
            row = np.where(allowed(drafted)[self._ids], row, -np.inf)
        if self._params.repetition_penalty != 1.0 or self._params.logit_bias:
            self._row[self._ids] = row
            row = adjust(self._row, [*context, *drafted], self._params)[self._ids]
        return row

    def _choose(self, row: Logits, position: int) -> tuple[int, float]:
        """The target id to propose, and its score. row: see ``_row_of``."""
        top = row.max()
        mass = float(np.exp(row - top).sum())
        if self._params.greedy:
            return int(self._ids[row.argmax()]), 1 / mass
        token = draw(row, self._params, position, self._ids)
        return token, float(np.exp(row[np.flatnonzero(self._ids == token)[0]] - top)) / mass

    def _runner_up(self, row: Logits, token: int) -> tuple[int, float]:
        """The best token other than ``token``, and its score."""
        top = row.max()
        mass = float(np.exp(row - top).sum())
        best, second = np.argpartition(row, -2)[-2:][::-1] if len(row) > 1 else (0, 0)
        index = int(second if self._ids[best] == token else best)
        return int(self._ids[index]), float(np.exp(row[index] - top)) / mass
