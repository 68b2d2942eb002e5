"""The contracts between the loop, models, drafters and constraints: what each changes, and who may call when."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgespec.sampling_params import SamplingParams
from edgespec.types import Allowed, Draft, Hidden, Needs, Numerics, Round, Step, Tree, Verdict

Progress = Callable[[int, int], None]
"""Called with (tokens done, tokens in all) after each chunk of a prefill; an exception from it stops the prefill."""

Observe = Callable[[int, Sequence[int], Hidden], None]
"""Called with (position of the first, tokens, their hidden states) of rows that a model has computed and keeps."""


class KVCache(Protocol):
    """Rows of keys and values of one text. Only the owning model appends."""

    @property
    def tokens(self) -> Sequence[int]:
        """The token of each committed row, ``len(tokens) == length``."""

    @property
    def capacity(self) -> int:
        """Most rows this cache can ever hold."""

    @property
    def length(self) -> int:
        """Committed rows. Physical rows are private."""

    @property
    def nbytes(self) -> int:
        """Bytes allocated now."""

    def crop(self, length: int) -> None:
        """Forget all rows from ``length`` on. Absolute, idempotent, and its cost does not grow with the context."""

    def keep(self, path: Sequence[int]) -> None:
        """Of the last forward keep these rows, a path from its row 0 (see ``Verdict.path``), and forget the others."""

    def reset(self) -> None:
        """Forget everything; memory is kept for the next text."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a model can do."""

    tree: bool
    """branched drafts keep what ``numerics`` promises"""
    hidden: tuple[int, ...]
    """layers whose states a forward returns (see ``types.Hidden``)"""
    max_width: int
    """most tokens in one forward"""
    asynchronous: bool
    numerics: Numerics
    compute_precision: str
    """type of the activations, by its short name: f32, f16, bf16"""
    device: str
    backend: str = "openvino"


class Model(Protocol):
    """A model on a device. Used by one thread. ``forward`` is ``start`` + ``wait``."""

    @property
    def cache(self) -> KVCache: ...

    @property
    def capabilities(self) -> Capabilities: ...

    @property
    def vocab_size(self) -> int:
        """Number of logits."""

    @property
    def free_width(self) -> int:
        """Most tokens of the next forward. The end of a prompt that it runs in front is none of them."""

    def prefill(
        self,
        tokens: Sequence[int],
        *,
        reserve: int | None = None,
        progress: Progress | None = None,
        observe: Observe | None = None,
    ) -> int:
        """Make the cache hold exactly ``tokens``, computing only what follows the longest prefix it already holds.

        reserve: the next forward will have up to so many tokens. If there is room beside them, the end of the prompt
            is deferred: that forward runs it in front of its own tokens, which costs no forward more. None: defer none.
        observe: told of the hidden states of what is computed, if the model returns them; of what is deferred by the
            next forward's ``Step``.
        Returns the number of rows reused. Raises ContextFull if they do not fit. A prefill that is stopped by
        ``progress`` leaves the cache with the rows done so far.
        """

    def forward(
        self, tokens: Sequence[int], tree: Tree | None = None, *, num_logits: int | None = None, width: int = 1
    ) -> Step:
        """Append what was deferred and ``tokens``; return logits for the last ``num_logits`` of these (all by default).

        width: run at least so many rows; the rest is padding, and leaves no trace.

        With ``tree`` (parents of rows 1.., see ``types.Tree``) a row sees the cache and its own ancestors only; then
        ``cache.keep`` must follow before the next forward. Rows of ``tree`` and of ``keep`` are those of ``tokens``.
        """

    def start(
        self, tokens: Sequence[int], tree: Tree | None = None, *, num_logits: int | None = None, width: int = 1
    ) -> None:
        """Begin a forward and return at once. One that is not waited for before the next call is dropped."""

    def ready(self) -> bool:
        """Whether ``wait`` would return at once."""

    def wait(self) -> Step:
        """Result of the forward begun by ``start``."""


class Drafter(Protocol):
    """Proposes tokens to follow the context. Owns its own state and catches it up itself; used by one thread.

    A call order: ``begin``, then rounds of ``propose`` and ``commit``. A generation may end after any of them. A class
    that derives from this one writes ``name`` and ``propose``, and of the others those that it has a use for.
    """

    name: str
    uses_history: bool = False
    """what it proposes depends on the texts of earlier generations"""
    needs: Needs = Needs()
    """of the target"""
    model: Model | None = None
    """whose forwards its proposals take"""

    def begin(self, context: Sequence[int], params: SamplingParams) -> None:
        """A new generation starts from ``context``; what an earlier one left may be reused."""
        return

    @abstractmethod
    def propose(self, context: Sequence[int], k: int, allowed: Allowed | None = None) -> Draft:
        """At most k tokens to follow ``context``; fewer, or none, if it has nothing better. Never a made-up token.

        context: the committed tokens, and under a constraint the forced ones behind them.
        allowed: what the constraint allows after ``context`` and some drafted tokens. A drafter that chooses among
            tokens must choose among these; from others the forbidden ones are cut.
        """

    def commit(self, context: Sequence[int], draft: Draft, verdict: Verdict, step: Step) -> None:
        """The round is over: ``context`` now ends with ``verdict.tokens``.

        draft: what the target verified; another drafter's where several take turns. ``step.logits`` row 0 follows the
        token that stood before ``verdict.tokens``, row 1 + i follows ``draft.rows[i]``.
        """
        return

    def observe(self, start: int, tokens: Sequence[int], hidden: Hidden) -> None:
        """The target has read ``tokens``, and they stay: hidden states of the layers it ``needs``, or more.

        start: position of the first. Called for the parts of a prompt before ``begin``, and for each round after
        ``commit``; never for a prefix that the target knew already, so keep what you have. Copy what you keep.
        """
        return

    def reset(self) -> None:
        """Forget every text."""
        return


class StepwiseDrafter(Drafter, Protocol):
    """A drafter for which every token costs time, and which can be stopped after any."""

    model: Model

    def begin(self, context: Sequence[int], params: SamplingParams, *, read: bool = True) -> None:
        """As of any drafter. read: now, and not only when it is asked to propose."""

    def read(self, context: Sequence[int]) -> None:
        """All but the last token, which a proposal begins with."""

    def propose_while(
        self,
        context: Sequence[int],
        k: int,
        go_on: Callable[[Sequence[float]], bool],
        allowed: Allowed | None = None,
    ) -> Draft:
        """As ``propose``; before each further step ``go_on`` is asked with the scores so far whether to take it. A step
        gives one token, and those that a constraint makes certain behind it."""

    def unread_tokens(self, length: int) -> int:
        """Tokens of a context of this length that it has not read yet, one at least; 0 where that has no room for a
        step."""


class Constraint(Protocol):
    """What may be written, for one generation. It begins with no text; the prompt is not its concern."""

    def allowed(self, ahead: Sequence[int]) -> NDArray[np.bool_]:
        """``(vocab,)`` The tokens that may follow the committed text and then ``ahead``; a pure function of both.

        ahead: tokens that may stand where they stand. Behind a stop token everything is allowed: nobody reads it.
        Nothing is allowed in a dead end; where the committed text has come to one, SettingError is raised.
        """

    def commit(self, tokens: Sequence[int]) -> None:
        """``tokens`` were added to the text."""


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the longest common prefix.

    >>> common_prefix([1, 2, 3, 4], [1, 2, 9])
    2
    """
    shorter = min(len(left), len(right))
    if left[:shorter] == right[:shorter]:
        return shorter
    return next((i for i in range(shorter) if left[i] != right[i]), shorter)


class Policy(Protocol):
    """Who drafts, how far, and at which width the target runs: the one whom the loop asks. Used by one thread.

    A call order: ``begin``, then rounds of ``draft``, ``width``, ``commit``, ``observe``, ``update``. A generation may
    end after any of them.
    """

    @property
    def name(self) -> str:
        """Of its drafters; the drafter of a round whose draft names none."""

    @property
    def longest(self) -> int:
        """Rows of a draft, at most. So much of the first forward is kept free of the prompt."""

    def begin(self, context: Sequence[int], params: SamplingParams) -> None:
        """A new generation starts from ``context``."""

    def draft(self, context: Sequence[int], limit: int, forced: int = 0, allowed: Allowed | None = None) -> Draft:
        """At most ``limit`` rows to follow ``context``; what budget and context leave room for.

        forced: the last tokens of ``context`` that are not committed yet. A constraint allows no others, so they are
            accepted for certain; they are verified in front of the draft.
        allowed: as of ``Drafter.propose``.
        """

    def width(self, tokens: int, context_length: int) -> int:
        """How many rows to run the target's forward of ``tokens`` tokens with; as many at least, the rest is padding.
        Changes nothing: ``Round.width`` says what ran."""

    def commit(self, context: Sequence[int], draft: Draft, verdict: Verdict, step: Step) -> None:
        """The tokens of a round were added to ``context``: see ``Drafter.commit``."""

    def observe(self, start: int, tokens: Sequence[int], hidden: Hidden) -> None:
        """The target has read ``tokens``, and they stay: see ``Drafter.observe``. During the prefill, too."""

    def update(self, round_: Round) -> None:
        """The books of the same round: its counts and times."""


class WidthPolicy(Protocol):
    """At which width forwards run, where a change of width costs time (see ``adaptive.forward_cost``)."""

    def begin(self) -> None:
        """Another text."""

    def width(self, tokens: int, context_length: int) -> int:
        """As of ``Policy``."""

    def update(self, tokens: int, context_length: int, width: int, seconds: float | None) -> None:
        """A forward of ``tokens`` tokens ran at ``width``. seconds: what it took; None if it did other work too."""
