"""A small language model as the drafter (FastDraft, arXiv 2411.11055). It has its own cache, and proposes target ids.

The draft's vocabulary may be padded (more logits than ids) or trimmed (fewer, with a map to the target's ids). Its
proposals are always ids of the target. In coupled sampling it draws with the noise of the drafted position, which the
target will use too. For rejection it draws with noise of its own, and returns the distributions (see sampling).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from edgespec.errors import IncompatiblePair
from edgespec.protocols import Model, StepwiseDrafter, common_prefix
from edgespec.sampling import DRAFT, adjust, distribution, draw, pick, uniform
from edgespec.sampling_params import SamplingParams
from edgespec.types import Allowed, Distribution, Draft, DraftKind, Logits, Step, Verdict


class SmallModel(StepwiseDrafter):
    """Drafts one token per forward. When a round begins, its cache catches up from ``context[cache.length:]``.

    vocab_size: number of the target's logits.
    id_map: ``(draft_vocab,)`` target id of each draft logit, when the output vocabulary is trimmed; -1: no token.
    blocked: target ids never to propose: padding, and tokens that mean something else to the target.
    reads: ``(vocab_size,)`` what the draft reads for each target id, where that is not the id itself.
    """

    def __init__(
        self,
        model: Model,
        vocab_size: int,
        *,
        id_map: NDArray[np.int32] | None = None,
        blocked: Collection[int] = (),
        reads: NDArray[np.integer] | None = None,
        name: str = "small_model",
    ) -> None:
        self.name = name
        self.alternatives = False
        """also return runners-up, for trees; greedy drafts only"""
        self.model = model
        self._params = SamplingParams()
        self._reads: list[int] | None = reads.tolist() if reads is not None else None
        ids = id_map if id_map is not None else np.arange(min(model.vocab_size, vocab_size))
        columns = np.flatnonzero((ids >= 0) & ~np.isin(ids, list(blocked)))
        if not len(columns):
            raise IncompatiblePair(f"draft {name} has no token that it may propose")
        self._columns = columns if len(columns) < model.vocab_size else slice(None)
        self._ids = ids[columns]
        if len(np.unique(self._ids)) < len(columns):
            raise IncompatiblePair(f"draft {name} has two logits for one token", hint="its id_map names an id twice")
        self._row = np.full(vocab_size, -np.inf, np.float32)  # the draft's logits, at their target ids

    def begin(self, context: Sequence[int], params: SamplingParams, *, read: bool = True) -> None:
        self._params = params
        cache = self.model.cache
        cache.crop(common_prefix(cache.tokens, self._read(context[:-1])))
        if read:
            self.read(context)

    def read(self, context: Sequence[int]) -> None:
        if len(context) <= self.model.cache.capacity:
            self.model.prefill(self._read(context[:-1]))

    def propose(self, context: Sequence[int], k: int, allowed: Allowed | None = None) -> Draft:
        return self.propose_while(context, k, lambda scores: True, allowed)

    def unread_tokens(self, length: int) -> int:
        cache = self.model.cache
        return length - min(cache.length, length - 1) if length <= cache.capacity else 0

    def propose_while(
        self,
        context: Sequence[int],
        k: int,
        go_on: Callable[[Sequence[float]], bool],
        allowed: Allowed | None = None,
    ) -> Draft:
        """A score is the draft's own probability of the token, before temperature and truncation. The score is 1 if the
        constraint allows no other token there."""
        k = min(k, self.model.cache.capacity - len(context) + 1)
        if k <= 0:
            return Draft()
        unread = list(context[self.model.cache.length :])
        tokens: list[int] = []
        scores: list[float] = []
        alternatives: list[tuple[int, float]] = []
        probs: list[Distribution] = []
        while True:
            if len(unread) > self.model.capabilities.max_width:
                self.model.prefill(self._read([*context, *tokens][:-1]))
                unread = unread[-1:]
            step = self.model.forward(self._read(unread), num_logits=1)
            row = self._row_of(step.logits[-1], context, tokens, allowed)
            top = row.max()
            if top == -np.inf:  # none of its tokens is allowed here
                break
            if self._params.rejects:
                assert self._params.seed is not None
                number = uniform(self._params.seed, DRAFT, len(context), len(context) + len(tokens))
                given = distribution(row, self._params, self._ids)
                probs.append(given)
                # Not the drawn token's probability: whether it is proposed must not depend on which one it is.
                token, score = pick(given, number), float(given.probs.max())
            else:
                token, score = self._choose(row, len(context) + len(tokens))
                if self.alternatives and self._params.greedy:
                    alternatives.append(self._runner_up(row, token))
            unread = [token, *self._certain([*tokens, token], k, allowed)]
            tokens += unread
            scores += [score, *(1.0 for _ in unread[1:])]
            if self._params.rejects:
                probs += [Distribution(np.array([token]), np.ones(1)) for token in unread[1:]]
            if alternatives:
                alternatives += [(token, 0.0) for token in unread[1:]]
            if len(tokens) == k or not go_on(scores):
                break
        kind: DraftKind = "sampled" if self._params.rejects else "deterministic"
        return Draft(
            tuple(tokens), kind=kind, probs=tuple(probs), scores=tuple(scores), alternatives=tuple(alternatives)
        )

    def commit(self, context: Sequence[int], draft: Draft, verdict: Verdict, step: Step) -> None:
        """Forget the rows of tokens that were not committed: its own rejected tokens, or all if another draft was
        verified."""
        cache = self.model.cache
        end = min(cache.length, len(context) - 1)
        before = min(end, len(context) - len(verdict.tokens))
        cache.crop(before + common_prefix(cache.tokens[before:end], self._read(context[before:end])))

    def reset(self) -> None:
        self.model.cache.reset()

    def _read(self, tokens: Sequence[int]) -> Sequence[int]:
        return tokens if self._reads is None else [self._reads[token] for token in tokens]

    def _certain(self, drafted: Sequence[int], k: int, allowed: Allowed | None) -> list[int]:
        """The tokens that must follow, since a constraint allows no other. They cost no forward of their own."""
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

        logits: ``(draft_vocab,)``.
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
