"""A block drafter (DFlash, DSpark, arXiv 2607.05147): one inference drafts a block of tokens from the target's states.

The graph reads a window of the target's hidden states and the last token, and chooses the whole block: each token of
its own logits, plus what a low-rank Markov head says of the token before. In sampling it is given the noise to choose
with. Where penalties, truncation or a constraint choose another token than the graph did, the draft ends with that
token, since what follows was computed behind the graph's own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from edgespec.drafters.state_window import StateWindow
from edgespec.drafters.token_choice import TokenChoice
from edgespec.errors import BackendError, IncompatiblePair, foreign
from edgespec.protocols import StaticGraph, StepwiseDrafter
from edgespec.sampling_params import SamplingParams
from edgespec.types import Allowed, Draft, Hidden, Logits, Needs


class Block(StepwiseDrafter):
    """Drafts up to a block a round.

    graph: inputs ``states`` ``(window, layers, d)``, newest row last; ``count`` ``(1,)`` how many of the rows exist;
        ``token`` ``(1,)`` the head's id of the last token, m for those without one; ``noise`` ``(k, m)`` added to the
        logits that it chooses by. Outputs ``logits`` ``(k, m)``, its choice ``tokens`` ``(k,)``; others are not read:
        graphs of old have ``scores``, which tell less than a token's probability does.
    ids: ``(m,)`` target id of each of the head's ids. layers: of the target, in the order of ``states``.
    vocab_size: number of the target's logits. blocked: target ids never to propose.
    """

    longest: int

    def __init__(
        self,
        graph: StaticGraph,
        ids: NDArray[np.int32],
        layers: tuple[int, ...],
        *,
        vocab_size: int,
        blocked: Collection[int] = (),
        name: str = "block",
    ) -> None:
        self.name = name
        self.needs = Needs(layers)
        self._graph = graph
        states = graph.inputs.get("states", ())
        self.longest = graph.outputs.get("tokens", (0,))[0]
        k, m = self.longest, len(ids)
        inputs = {"states": states, "count": (1,), "token": (1,), "noise": (k, m)}
        outputs = {"logits": (k, m), "tokens": (k,)}
        known = len(states) == 3 and states[1] == len(layers) and graph.inputs == inputs
        if not known or not outputs.items() <= graph.outputs.items():
            got = f"{dict(graph.inputs)} and {dict(graph.outputs)} for {len(layers)} layers and {m} ids"
            raise IncompatiblePair(f"draft {name} is no graph of a block drafter", got=got)
        self.hidden_size: int = states[2]
        self._window = StateWindow(layers, length=states[0], width=states[2])
        self._choice = TokenChoice(ids, vocab_size, blocked=blocked, name=name)
        self._ids = ids
        self._own = np.full(vocab_size, m, np.int32)
        own = np.flatnonzero(ids >= 0)
        self._own[ids[own]] = own

    def begin(self, context: Sequence[int], params: SamplingParams, *, read: bool = True) -> None:
        self._choice.begin(params)
        self._window.begin(context, params)

    def read(self, context: Sequence[int]) -> None:
        return  # the target reads for it

    def observe(self, start: int, tokens: Sequence[int], hidden: Hidden) -> None:
        self._window.observe(start, tokens, hidden)

    def unread_tokens(self, length: int) -> int:
        return int(bool(self._window.count(length)))

    def propose_while(
        self,
        context: Sequence[int],
        k: int,
        go_on: Callable[[Sequence[float]], bool],
        allowed: Allowed | None = None,
    ) -> Draft:
        count = self._window.count(len(context))
        if not count or k <= 0:
            return Draft()
        found = self._graph.run(
            {
                "states": self._window.rows,
                "count": np.array([count], np.int32),
                "token": self._own[[context[-1]]],
                "noise": self._choice.noise(len(context), self.longest),
            }
        )
        with foreign(BackendError, f"draft {self.name} chose what is none of its ids", hint="train the draft again"):
            chosen = self._ids[found["tokens"]].tolist()

        def step(drafted: Sequence[int]) -> Logits | None:
            place = len(drafted)
            if place == self.longest or list(drafted) != chosen[:place]:
                return None
            logits: Logits = found["logits"][place]
            return logits

        return self._choice.draft(step, context, k, go_on, allowed, runners_up=self.alternatives)

    def reset(self) -> None:
        self._window.reset()
