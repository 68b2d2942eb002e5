"""A small language model as the drafter (FastDraft, arXiv 2411.11055): its own cache, the target's token ids.

The draft's output vocabulary may be padded (more logits than ids) or trimmed (fewer logits, with a map to the ids).
When sampling, it draws with the noise of the position it drafts for, the same the target will use (see
decode.sampling).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from edgespec.backends.base import Model
from edgespec.decode.sampling import choose
from edgespec.errors import IncompatiblePair
from edgespec.types import Draft, Logits, SamplingParams, Step, Verdict


class SmallModel:
    """Drafts one token a forward. Its cache catches up from ``context[cache.length:]`` when a round begins.

    vocab_size: number of the target's logits.
    id_map: ``(draft_vocab,)`` target id of each draft logit, when the output vocabulary is trimmed.
    blocked: ids never to propose: padding, and tokens that mean something else to the target.
    readable: ids from here on are unknown to the draft's input; it reads token 0 in their place.
    """

    def __init__(
        self,
        model: Model,
        vocab_size: int,
        *,
        id_map: NDArray[np.int32] | None = None,
        blocked: Collection[int] = (),
        readable: int | None = None,
        name: str = "small_model",
    ) -> None:
        self.name = name
        self.model = model
        self._params = SamplingParams()
        self._readable = readable if readable is not None else vocab_size
        ids = id_map if id_map is not None else np.arange(min(model.vocab_size, vocab_size))
        self._columns = np.flatnonzero(~np.isin(ids, list(blocked)))
        self._ids = ids[self._columns]
        if not len(self._ids):
            raise IncompatiblePair(f"draft {name} has no token that it may propose")
        self._row = np.full(vocab_size, -np.inf, np.float32)  # the draft's logits, at their target ids
        self._plain = id_map is None and len(self._ids) == model.vocab_size == vocab_size

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
        text = list(context) if self._params.repetition_penalty != 1.0 else []
        tokens: list[int] = []
        while True:
            token = choose(self._target_logits(step.logits[-1]), text, self._params, len(context) + len(tokens))
            tokens.append(token)
            text.append(token)
            if len(tokens) == k:
                return Draft(tuple(tokens))
            step = self.model.forward([token])

    def commit(self, context: Sequence[int], verdict: Verdict, step: Step) -> None:
        """Forget the rows of rejected tokens: keep what was committed before the round and what it accepted."""
        before = len(context) - len(verdict.tokens)
        cache = self.model.cache
        cache.crop(min(cache.length, before + verdict.accepted, len(context) - 1))

    def reset(self) -> None:
        self.model.cache.reset()

    def _read(self, tokens: Sequence[int]) -> list[int]:
        return [token if token < self._readable else 0 for token in tokens]

    def _target_logits(self, logits: Logits) -> Logits:
        """``(draft_vocab,)`` -> ``(target_vocab,)``, minus infinity where the draft has nothing to say."""
        if self._plain:
            return logits
        self._row[self._ids] = logits[self._columns]
        return self._row
