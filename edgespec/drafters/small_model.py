"""A small language model as the drafter (FastDraft, arXiv 2411.11055). It has its own cache, and proposes target ids.

The draft's vocabulary may be padded (more logits than ids) or trimmed (fewer, with a map to the target's ids). Its
proposals are always ids of the target. How it chooses them of its logits: ``token_choice``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from edgespec.drafters.token_choice import TokenChoice
from edgespec.protocols import Model, StepwiseDrafter, common_prefix
from edgespec.sampling_params import SamplingParams
from edgespec.types import Allowed, Draft, Logits, Step, Verdict


class SmallModel(StepwiseDrafter):
    """Drafts one token per forward. When a round begins, its cache catches up from ``context[cache.length:]``.

    vocab_size: number of the target's logits.
    id_map: ``(draft_vocab,)`` target id of each draft logit, when the output vocabulary is trimmed; -1: no token.
    blocked: target ids never to propose: padding, and tokens that mean something else to the target.
    reads: ``(vocab_size,)`` what the draft reads for each target id, where that is not the id itself.
    """

    model: Model

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
        self._reads: list[int] | None = reads.tolist() if reads is not None else None
        ids = id_map if id_map is not None else np.arange(min(model.vocab_size, vocab_size))
        self._logits = slice(len(ids))
        self._choice = TokenChoice(ids, vocab_size, blocked=blocked, name=name)

    def begin(self, context: Sequence[int], params: SamplingParams, *, read: bool = True) -> None:
        self._choice.begin(params)
        cache = self.model.cache
        cache.crop(common_prefix(cache.tokens, self._read(context[:-1])))
        if read:
            self.read(context)

    def read(self, context: Sequence[int]) -> None:
        if len(context) <= self.model.cache.capacity:
            self.model.prefill(self._read(context[:-1]))

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
        k = min(k, self.model.cache.capacity - len(context) + 1)
        if k <= 0:
            return Draft()

        def step(drafted: Sequence[int]) -> Logits:
            held = self.model.cache.length
            unread = [*context[held:], *drafted[max(0, held - len(context)) :]]
            if len(unread) > self.model.capabilities.max_width:
                self.model.prefill(self._read([*context, *drafted][:-1]))
                unread = unread[-1:]
            logits: Logits = self.model.forward(self._read(unread), num_logits=1).logits[-1]
            return logits[self._logits]

        return self._choice.draft(step, context, k, go_on, allowed, runners_up=self.alternatives)

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
