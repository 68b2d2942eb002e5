"""ReDrafter (arXiv 2403.09919): a recurrent head on the target's hidden states. One inference drafts a whole round.

The graph has all steps in it, and chooses a token at each to read at the next. There are two kinds.

A *chain* gives its logits too. The tokens are chosen again from them here, since penalties, truncation and a constraint
are known here alone. Where that choice is another one than the graph's, the draft ends: the graph's later logits follow
another text. The graph gets the noise of the drafted positions, so it chooses alike in sampling. A chain is drawn from
known distributions where rejection asks for them.

*Beams* are the likeliest continuations. They share prefixes, so they are folded into one tree. The best beam alone is
the draft where the target verifies chains only. Both are functions of the context, and right under each rule of
verification.

There are two deviations from the paper. It accepts each beam with draws of its own, and keeps the best of them. That
changes the distribution: here a node's tokens are compared with one draw. And its graph runs once for each step.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from math import exp
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgespec.drafters.last_state import LastState
from edgespec.drafters.token_choice import TokenChoice
from edgespec.errors import BackendError, IncompatiblePair, foreign
from edgespec.protocols import StaticGraph, StepwiseDrafter
from edgespec.sampling_params import SamplingParams
from edgespec.types import Allowed, Draft, Hidden, Logits, Needs


class ReDrafter(StepwiseDrafter):
    """Proposes nothing while the target's states are not known (see ``LastState``).

    graph: inputs ``states`` (1, layers * d), ``token`` (1,) and ``noise`` (k, m); outputs ``logits`` (k, m) and
        ``tokens`` (k,) of a chain, or ``beams`` and ``scores`` (beams, k). See ``edgespec_train.redrafter.graph``.
    ids: ``(m,)`` target id of each id of the head; -1: the line that it reads for all other tokens.
    layers: whose states it reads. vocab_size: number of the target's logits. blocked: ids never to propose.
    """

    def __init__(
        self,
        graph: StaticGraph,
        ids: NDArray[np.integer],
        layers: Sequence[int],
        *,
        vocab_size: int,
        blocked: Collection[int] = (),
        name: str = "redrafter",
    ) -> None:
        self.name = name
        _check(graph, len(ids), len(layers), name)
        self.hidden_size = graph.inputs["states"][1] // len(layers)
        self.longest: int = graph.inputs["noise"][0]
        self._beams = "beams" in graph.outputs
        self.needs = Needs(tuple(layers), trees=self._beams)
        self._graph = graph
        self._choice = TokenChoice(ids, vocab_size, blocked=blocked, name=name)
        self._state = LastState(self.needs.layers)
        self._ids = ids
        self._row_of = {token: row for row, token in enumerate(ids.tolist())}
        self._unknown = self._row_of.get(-1, 0)
        self._never = {*blocked, -1}

    def begin(self, context: Sequence[int], params: SamplingParams, *, read: bool = True) -> None:
        self._choice.begin(params)
        self._state.begin(context, params)

    def read(self, context: Sequence[int]) -> None:
        """The target has read it."""

    def observe(self, start: int, tokens: Sequence[int], hidden: Hidden) -> None:
        self._state.observe(start, tokens, hidden)

    def unread_tokens(self, length: int) -> int:
        return self._state.unread_tokens(length)

    def reset(self) -> None:
        self._state.reset()

    def propose_while(
        self,
        context: Sequence[int],
        k: int,
        go_on: Callable[[Sequence[float]], bool],
        allowed: Allowed | None = None,
    ) -> Draft:
        """A tree is whole, of up to k tokens: it costs nothing to go on."""
        found = self._run(context, k)
        if found is None:
            return Draft()
        if self._beams:
            count = None if self.alternatives else 1
            beams, scores = (found[name][:count] for name in ("beams", "scores"))
            return fold(self._target_ids(beams), scores, k=k, without=self._never).draft
        logits, chosen = found["logits"], self._target_ids(found["tokens"]).tolist()

        def step(drafted: Sequence[int]) -> Logits | None:
            count = len(drafted)
            return logits[count] if count < len(chosen) and chosen[:count] == list(drafted) else None

        return self._choice.draft(step, context, k, go_on, allowed, runners_up=self.alternatives)

    def _target_ids(self, chosen: NDArray[Any]) -> NDArray[np.int32]:
        with foreign(BackendError, f"draft {self.name} chose what is none of its ids", hint="train the draft again"):
            found: NDArray[np.int32] = self._ids[chosen]
            return found

    def _run(self, context: Sequence[int], k: int) -> Mapping[str, NDArray[Any]] | None:
        """The graph's outputs; None if the states are missing."""
        states = self._state.after(context) if k > 0 else None
        if states is None:
            return None
        return self._graph.run(
            {
                "states": np.concatenate([states[layer] for layer in self.needs.layers])[None],
                "token": np.array([self._row_of.get(context[-1], self._unknown)], np.int32),
                "noise": self._choice.noise(len(context), self.longest),
            }
        )


class Folded(NamedTuple):
    """Beams as one tree. parents: see ``types.Tree``. scores: of each token after its parent."""

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    scores: tuple[float, ...]

    @property
    def draft(self) -> Draft:
        chain = self.parents == tuple(range(len(self.tokens)))
        return Draft(self.tokens, None if chain else self.parents, scores=self.scores)


def fold(
    beams: NDArray[np.integer] | Sequence[Sequence[int]],
    scores: NDArray[np.floating] | Sequence[Sequence[float]],
    *,
    k: int,
    without: Collection[int] = (),
) -> Folded:
    """The k likeliest nodes of the beams, a shared prefix once.

    beams, scores: ``(m, n)`` tokens, and the log-probability of each beam up to there. without: tokens that end a beam.

    >>> fold([[5, 6, 7], [5, 6, 8], [9, 6, 7]], [[-0.1, -0.2, -0.4], [-0.1, -0.2, -2.0], [-3.0, -3.5, -4.0]], k=5)[:2]
    ((5, 6, 7, 8, 9), (0, 1, 2, 2, 0))
    """
    nodes: dict[tuple[int, ...], tuple[float, float]] = {}  # path -> log-probabilities of the path, of its last token
    for beam, sums in zip(np.asarray(beams).tolist(), np.asarray(scores).tolist(), strict=True):
        above = 0.0
        for end in range(1, len(beam) + 1):
            if beam[end - 1] in without:
                break
            nodes.setdefault(tuple(beam[:end]), (sums[end - 1], sums[end - 1] - above))
            above = sums[end - 1]
    ranked = sorted(nodes, key=lambda path: (-nodes[path][0], len(path)))  # a parent is as likely at least
    rows: dict[tuple[int, ...], int] = {(): 0}
    for path in ranked:
        if len(rows) <= k and path[:-1] in rows:
            rows[path] = len(rows)
    kept = [path for path in rows if path]
    return Folded(
        tuple(path[-1] for path in kept),
        tuple(rows[path[:-1]] for path in kept),
        tuple(min(1.0, exp(min(0.0, nodes[path][1]))) for path in kept),
    )


def _check(graph: StaticGraph, ids: int, layers: int, name: str) -> None:
    """Raises IncompatiblePair for a graph that is no draft of this kind."""
    inputs, outputs = dict(graph.inputs), dict(graph.outputs)
    steps = inputs.get("noise", (0,))[0]
    width = inputs.get("states", (0,))[-1]
    wanted = {"states": (1, width), "token": (1,), "noise": (steps, ids)}
    chain = {"logits": (steps, ids), "tokens": (steps,)}
    beams = dict.fromkeys(("beams", "scores"), (outputs.get("beams", (0,))[0], steps))
    if inputs != wanted or outputs not in (chain, beams) or not layers or not width or width % layers:
        raise IncompatiblePair(
            f"draft {name} is no graph of a recurrent head with {ids} ids and states of {layers} layers",
            got=f"{_listed(inputs)} to {_listed(outputs)}",
            allowed=f"{_listed(wanted)} to {_listed(chain)} or {_listed(beams)}",
            hint="train or export it again",
        )


def _listed(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name}{list(shape)}" for name, shape in sorted(shapes.items()))
