"""The data types of one speculative round: Draft -> Step -> Verdict -> Round. Frozen dataclasses over numpy."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]
"""Unnormalised log-probabilities, ``(vocab,)`` or ``(rows, vocab)``."""

Backend = Literal["openvino", "onnxruntime"]
"""The engine that runs a model."""

KVPath = Literal["paged", "stateful"]
"""Where OpenVINO keeps keys and values. paged: in blocks of memory that belong to edgespec. stateful: in states inside
the engine."""

GGUFWeights = Literal["faithful", "int4"]
"""What a GGUF file is converted to: its own numbers, or 4 bits over 128 for speed."""

Numerics = Literal["exact", "fast"]
"""exact: a token's logits do not depend on how many tokens shared its forward. fast: the engine's own choice."""

Verification = Literal["coupled", "rejection"]
"""How sampled tokens are verified. coupled: the target draws its own token, with noise that the drafter shares.
rejection: a token that the draft drew is accepted with probability min(1, target / draft)."""

Schedule = Literal["synchronous", "overlapped"]
"""synchronous: the draft is written, then the target verifies it. overlapped: the draft goes on meanwhile."""

Prefer = Literal["speed", "battery"]
"""What the planner chooses by."""

DraftKind = Literal["deterministic", "sampled"]
"""deterministic: the tokens are a function of the context, and perhaps of the noise that the target will draw with. The
target draws its own token and compares, which is right for any draft. sampled: the tokens are drawn from known
distributions, with noise of their own."""

Tree = tuple[int, ...]
"""Parents of the rows of one forward: row 0 is the root, ``tree[i - 1]`` is the parent row of row i.

A chain of three is ``(0, 1, 2)``: the parent of row 1 is row 0, of row 2 row 1, of row 3 row 2.
"""


Allowed = Callable[[Sequence[int]], NDArray[np.bool_]]
"""Drafted tokens -> the tokens that may follow them, ``(vocab,)``. A constraint gives this function to a drafter."""


@dataclass(frozen=True, slots=True, eq=False)
class Distribution:
    """Probabilities of some tokens. All other tokens have probability 0.

    ids: ``(m,)`` token ids, no id twice. probs: ``(m,)`` float64, none negative, sum 1.

    >>> Distribution(np.array([3, 7]), np.array([0.25, 0.75])).of(7)
    0.75
    """

    ids: NDArray[np.integer]
    probs: NDArray[np.float64]

    def of(self, token: int) -> float:
        """Probability of one token."""
        return float(self.probs[self.ids == token].sum())


Hidden = Mapping[int, NDArray[np.float32]]
"""Hidden states of some rows, ``(rows, d)`` for each layer. Layers have the numbers of ``hidden_states`` in
transformers: 0 is the embeddings, i is the output of the i-th decoder layer. The last one is taken after the final
norm."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What a drafter needs from the target. It is known before weights are loaded, and the target is compiled for it.

    layers: the layers whose hidden states it reads (see ``Hidden``). extra: most rows of ``Draft.extra``. trees: it
    drafts trees; where numerics is fast, the target keeps keys that can move then.
    """

    layers: tuple[int, ...] = ()
    extra: int = 0
    trees: bool = False

    def __or__(self, other: Needs) -> Needs:
        """What two drafters need together.

        >>> Needs((2, 9)) | Needs((2, 4), extra=3)
        Needs(layers=(2, 4, 9), extra=3, trees=False)
        """
        layers = tuple(sorted({*self.layers, *other.layers}))
        return Needs(layers, max(self.extra, other.extra), self.trees or other.trees)


@dataclass(frozen=True, slots=True)
class DraftNote:
    """Facts about a draft, for the statistics.

    by: the drafter, where several drafters share the rounds. expected: number of tokens that were expected to be
        accepted.
    reason: why the draft is empty.
    forced: how many of the first tokens a constraint forced. No drafter proposed them (see ``decode.forced_tokens``).
    cut: how many proposed tokens the constraint forbids. They are not in the draft.
    """

    by: str = ""
    expected: float | None = None
    reason: str = ""
    forced: int = 0
    cut: int = 0


@dataclass(frozen=True, slots=True)
class Draft:
    """The tokens that a drafter proposes after the last committed token.

    tokens: n token ids, parents before children.
    tree: None for a chain, else the parent row of each token (see ``Tree``).
    kind: see ``DraftKind``. It alone decides how a draft may be verified.
    probs: for each token of a sampled draft, the drafter's distribution after the token's parent. Penalties and
        truncation are applied. All siblings have the same one. They are drawn from it in their order, without
        replacement: each from what the earlier siblings leave. Whether a token is proposed must not depend on which
        token was drawn. Empty for a deterministic draft.
    scores: how sure the drafter is of each token, 0..1 on a scale of its own; () if it gives no scores.
    alternatives: for each token of a chain, the runner-up and its score, where a tree could hold both; () if not asked
        for.
    extra: inputs that run as a chain after the last token, such as adaptive tokens (SDSAT, arXiv 2403.18647). They are
        never verified and never kept. ``Drafter.commit`` gets their logits, after those of the tokens.
    """

    tokens: tuple[int, ...] = ()
    tree: Tree | None = None
    kind: DraftKind = "deterministic"
    probs: tuple[Distribution, ...] = ()
    scores: tuple[float, ...] = ()
    alternatives: tuple[tuple[int, float], ...] = ()
    extra: tuple[int, ...] = ()
    note: DraftNote = DraftNote()

    def __post_init__(self) -> None:
        assert len(self.probs) == (len(self.tokens) if self.kind == "sampled" else 0), "one distribution a drawn token"

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def parents(self) -> Tree:
        """The parent row of each token, for chains too."""
        return tuple(range(len(self.tokens))) if self.tree is None else self.tree

    def noted(self, **changes: Any) -> Draft:
        """The same draft with another note."""
        return replace(self, note=replace(self.note, **changes))

    @property
    def rows(self) -> tuple[int, ...]:
        """The tokens of the draft's rows in the target's forward, after row 0."""
        return self.tokens + self.extra

    @property
    def tree_of_rows(self) -> Tree | None:
        """Like ``tree``, but for all ``rows``.

        >>> Draft((4, 5, 6), tree=(0, 0, 1), extra=(9, 9)).tree_of_rows
        (0, 0, 1, 3, 4)
        """
        if self.tree is None or not self.extra:
            return self.tree
        return (*self.tree, *range(len(self), len(self) + len(self.extra)))

    def within(self, allowed: Allowed | None) -> Draft:
        """Cuts a chain before its first token that is not allowed. A tree stays as it is.

        >>> Draft((4, 5, 6)).within(lambda drafted: np.arange(9) < 6).tokens
        (4, 5)
        """
        if allowed is None or self.tree is not None:
            return self
        n = 0
        while n < len(self) and allowed(self.tokens[:n])[self.tokens[n]]:
            n += 1
        return replace(self, tokens=self.tokens[:n], scores=self.scores[:n], alternatives=self.alternatives[:n])


@dataclass(frozen=True, slots=True)
class Step:
    """Result of one forward over n tokens.

    logits: ``(n, vocab)`` float32, row i predicts the token after input i. A view of the engine's buffer, valid until
        the model's next forward.
    hidden: states of the ``prompt_rows`` and the n tokens, if the model was compiled to return them. Also a view.
    width: rows of the forward, padding included.
    prompt_rows: rows at the end of a prompt that this forward ran in front of the n tokens.
    """

    logits: Logits
    hidden: Hidden = field(default_factory=lambda: MappingProxyType({}))
    width: int = 0
    prompt_rows: int = 0

    def kept(self, context: Sequence[int], verdict: Verdict) -> tuple[int, Sequence[int], Hidden]:
        """The position of the first row that is kept; then the tokens and the hidden states of all kept rows.

        context: the committed tokens, those of the verdict included.
        """
        rows = [*range(self.prompt_rows), *(self.prompt_rows + row for row in verdict.path)]
        start = len(context) - len(verdict.tokens) - 1 - self.prompt_rows
        return start, context[start : start + len(rows)], {layer: states[rows] for layer, states in self.hidden.items()}


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of verifying a draft.

    accepted: how many draft tokens are accepted.
    tokens: the committed tokens: the accepted ones, then the correction or the bonus token.
    path: rows of the forward to keep: row 0 (the last committed token), then the accepted draft rows.

    >>> Verdict(accepted=2, tokens=(7, 8, 9), path=(0, 1, 2)).until(stop={8}, budget=10)
    Verdict(accepted=2, tokens=(7, 8), path=(0, 1))
    """

    accepted: int
    tokens: tuple[int, ...]
    path: tuple[int, ...]

    def until(self, stop: Collection[int], budget: int) -> Verdict:
        """Cut after the first stop token and to at most ``budget`` tokens."""
        length = min(budget, len(self.tokens))
        for index, token in enumerate(self.tokens[:length]):
            if token in stop:
                length = index + 1
                break
        if length == len(self.tokens):
            return self
        return Verdict(min(self.accepted, length), self.tokens[:length], self.path[:length])


@dataclass(frozen=True, slots=True)
class Round:
    """The record of one round: counts in tokens, times in seconds.

    proposed: tokens from the drafter. evaluated: those of them that were in the target's forward.
    accepted: those of them that the target agreed with.
    forced: tokens in the forward that came from a constraint. committed: tokens that the round added to the context.
    read: tokens of the prompt that were in the forward. If there are any, the round's time is not of decoding alone.
    width: rows of the forward, padding included. extra: rows of ``Draft.extra``.
    expected: number of tokens that were expected to be accepted; None if nothing was predicted.
    reason: why nothing was drafted. depth: longest path of a tree that was proposed; None: a chain, ``proposed`` long.
    """

    drafter: str
    proposed: int
    evaluated: int
    accepted: int
    committed: int
    draft_s: float
    target_s: float
    host_s: float
    expected: float | None = None
    reason: str = ""
    forced: int = 0
    read: int = 0
    width: int = 0
    extra: int = 0
    depth: int | None = None

    @classmethod
    def of(
        cls,
        drafter: str,
        draft: Draft,
        verdict: Verdict,
        step: Step,
        began: float,
        drafted: float,
        forwarded: float,
        ended: float,
    ) -> Round:
        """The record of a round, from its draft, verdict and step, and from four readings of one clock."""
        note = draft.note
        return cls(
            drafter=note.by or drafter,
            proposed=len(draft) - note.forced + note.cut,
            evaluated=len(draft) - note.forced,
            accepted=max(verdict.accepted - note.forced, 0),
            committed=len(verdict.tokens),
            draft_s=drafted - began,
            target_s=forwarded - drafted,
            host_s=ended - forwarded,
            forced=min(verdict.accepted, note.forced),
            expected=note.expected,
            reason=note.reason,
            read=step.prompt_rows,
            width=step.width,
            extra=len(draft.extra),
            depth=None if draft.tree is None else max(tree_depths(draft.tree)) - note.forced,
        )

    @property
    def tokens(self) -> int:
        """Tokens in the forward, without those of the prompt."""
        return 1 + self.forced + self.evaluated + self.extra

    @property
    def longest(self) -> int:
        """Most tokens that could have been accepted."""
        return self.proposed if self.depth is None else self.depth


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """How likely the target found a committed token, and its alternatives.

    top: the most likely tokens with their log probabilities, in this order, as many as were asked for.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


def tree_depths(tree: Sequence[int]) -> list[int]:
    """Depth of each row, the root included.

    >>> tree_depths((0, 0, 1))
    [0, 1, 1, 2]
    """
    depths = [0]
    for parent in tree:
        depths.append(depths[parent] + 1)
    return depths


def behind(rows: int, tree: Tree | None) -> Tree | None:
    """The tree of a forward whose first ``rows`` tokens are a chain before the root.

    >>> behind(2, (0, 0, 1))
    (0, 1, 2, 2, 3)
    """
    return tree and (*range(rows), *(rows + parent for parent in tree))
