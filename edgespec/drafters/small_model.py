"""A small language model as the drafter (FastDraft, arXiv 2411.11055): its own cache, the target's token ids.

The draft's vocabulary may be padded (more logits than ids) or trimmed (fewer, with a map to the target's ids); what
it proposes are always the target's. When sampling, it draws with the noise of the position it drafts for, the same
the target will use (see decode.sampling).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from edgespec.backends.base import Model
from edgespec.decode.sampling import choose, draw
from edgespec.errors import IncompatiblePair
from edgespec.types import Draft, Logits, SamplingParams, Step, Verdict


class SmallModel:
    """Drafts one token a forward. Its cache catches up from ``context[cache.length:]`` when a round begins.

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
        self.model = model
        self._params = SamplingParams()
        self._reads: list[int] | None = reads.tolist() if reads is not None else None
        ids = id_map if id_map is not None else np.arange(min(model.vocab_size, vocab_size))
        columns = np.flatnonzero((ids >= 0) & ~np.isin(ids, list(blocked)))
        if not len(columns):
            raise IncompatiblePair(f"draft {name} has no token that it may propose")
        self._columns = columns if len(columns) < model.vocab_size else slice(None)
        self._ids = ids[columns]
        self._row = np.full(vocab_size, -np.inf, np.float32)  # the draft's logits, at their target ids

    def begin(self, context: Sequence[int], params: SamplingParams) -> None:
        self._params = params
        if len(context) <= self.model.cache.capacity:
            self.model.prefill(self._read(context[:-1]))

    def propose(self, context: Sequence[int], k: int) -> Draft:
        k = min(k, self.model.cache.capacity - len(context) + 1)
        if k <= 0:
            return Draft()
        pending = self._read(context[self.model.cache.length :])
        if len(pending) > self.model.capabilities.max_width:
            self.model.prefill(self._read(context[:-1]))
            pending = pending[-1:]
        step = self.model.forward(pending, num_logits=1)
        tokens: list[int] = []
        while True:
            tokens.append(self._choose(step.logits[-1], context, tokens))
            if len(tokens) == k:
                return Draft(tuple(tokens))
            step = self.model.forward(self._read(tokens[-1:]))

    def commit(self, context: Sequence[int], draft: Draft, verdict: Verdict, step: Step) -> None:
        """Forget the rows of rejected tokens: keep what was committed before the round and what it accepted."""
        before = len(context) - len(verdict.tokens)
        cache = self.model.cache
        cache.crop(min(cache.length, before + verdict.accepted, len(context) - 1))

    def reset(self) -> None:
        self.model.cache.reset()

    def _read(self, tokens: Sequence[int]) -> Sequence[int]:
        return tokens if self._reads is None else [self._reads[token] for token in tokens]

    def _choose(self, logits: Logits, context: Sequence[int], drafted: Sequence[int]) -> int:
        """The target id to propose after ``context`` and ``drafted``. logits: ``(draft_vocab,)``."""
        params, position = self._params, len(context) + len(drafted)
        known = logits[self._columns]
        if params.repetition_penalty == 1.0 and not params.logit_bias:
            best = int(known.argmax())
            return int(self._ids[best]) if params.greedy else draw(known, params, position, self._ids)
        self._row[self._ids] = known
        return choose(self._row, [*context, *drafted], params, position)
