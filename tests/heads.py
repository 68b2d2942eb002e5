"""The smallest drafting head: on a graph, and on a fake model whose states it holds against the text."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from edgespec.backends.fake import Table, VirtualClock, hidden_state
from edgespec.drafters.last_state import LastState
from edgespec.drafters.token_choice import TokenChoice
from edgespec.protocols import StaticGraph, StepwiseDrafter
from edgespec.sampling_params import SamplingParams
from edgespec.types import Allowed, Draft, Hidden, Logits, Needs


class Head(StepwiseDrafter):
    """Logits of the next tokens from one state and the last token, none of them knowing what was drafted before it.

    graph: ``state`` ``(1, d)`` and ``token`` ``(1,)`` -> ``logits`` ``(longest, ids)``.
    """

    def __init__(
        self, graph: StaticGraph, ids: NDArray[np.integer], layer: int, *, vocab_size: int, name: str = "head"
    ) -> None:
        self.graph = graph
        self._prepare(ids, layer, graph.outputs["logits"][0], vocab_size, name)

    def _prepare(self, ids: NDArray[np.integer], layer: int, longest: int, vocab_size: int, name: str) -> None:
        self.name, self.needs, self.longest, self.layer = name, Needs((layer,)), longest, layer
        self._states = LastState((layer,))
        self._choice = TokenChoice(ids, vocab_size, name=name)

    @property
    def hidden_size(self) -> int:
        return self.graph.inputs["state"][-1]

    def begin(self, context: Sequence[int], params: SamplingParams, *, read: bool = True) -> None:
        self._states.begin(context, params)
        self._choice.begin(params)

    def read(self, context: Sequence[int]) -> None:
        return

    def unread_tokens(self, length: int) -> int:
        return self._states.unread_tokens(length)

    def propose(self, context: Sequence[int], k: int, allowed: Allowed | None = None) -> Draft:
        return self.propose_while(context, k, lambda scores: True, allowed)

    def propose_while(
        self,
        context: Sequence[int],
        k: int,
        go_on: Callable[[Sequence[float]], bool],
        allowed: Allowed | None = None,
    ) -> Draft:
        states = self._states.after(context)
        if states is None or k == 0:
            return Draft()
        logits = self._logits(states[self.layer], context)  # (longest, ids)
        return self._choice.draft(
            lambda drafted: logits[len(drafted)] if len(drafted) < len(logits) else None, context, k, go_on, allowed
        )

    def observe(self, start: int, tokens: Sequence[int], hidden: Hidden) -> None:
        self._states.observe(start, tokens, hidden)

    def reset(self) -> None:
        self._states.reset()

    def _logits(self, state: NDArray[np.float32], context: Sequence[int]) -> Logits:
        return self.graph.run({"state": state[None], "token": np.array(context[-1:])})["logits"]


class FakeHead(Head):
    """On a fake model: says what ``table`` says along its own greedy path. Each call takes ``call_s`` on the clock."""

    def __init__(
        self,
        table: Table,
        vocab_size: int,
        *,
        longest: int = 4,
        layer: int = 1,
        call_s: float = 0.0,
        clock: VirtualClock | None = None,
    ) -> None:
        self._table, self.call_s, self._clock = table, call_s, clock or VirtualClock()
        self.calls = 0
        self._prepare(np.arange(vocab_size), layer, longest, vocab_size, "head")

    def _logits(self, state: NDArray[np.float32], context: Sequence[int]) -> Logits:
        assert np.array_equal(state, hidden_state(self.layer, tuple(context[:-1]))), "a state of another text"
        self.calls += 1
        self._clock.now_s += self.call_s
        text, rows = tuple(context), []
        for _ in range(self.longest or 0):
            rows.append(self._table(text))
            text = (*text, int(rows[-1].argmax()))
        return np.array(rows)
