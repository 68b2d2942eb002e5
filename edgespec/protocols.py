"""The contracts of models, drafters, policies and constraints: what each call changes, and when it may come."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from edgespec.sampling_params import SamplingParams
from edgespec.types import Allowed, Draft, Hidden, Needs, Numerics, Round, Step, Tree, Verdict

Progress = Callable[[int, int], None]
"""Called with (tokens done, all tokens) after each chunk of a prefill. An exception from it stops the prefill."""

Observe = Callable[[int, Sequence[int], Hidden], None]
"""Called with (position of the first row, tokens, hidden states) for rows that a model has computed and keeps."""


class KVCache(Protocol):
    """The keys and values of one text, one row per token. Only the owning model appends rows."""

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
        """Forget all rows from ``length`` on. ``length`` is absolute, and calling twice changes nothing more. The cost
        does not grow with the context."""

    def keep(self, path: Sequence[int]) -> None:
        """Keep these rows of the last forward, and forget its others. ``path`` begins at row 0 (see ``Verdict``)."""

    def reset(self) -> None:
        """Forget all rows. The memory is kept for the next text."""

    def repeat(self, length: int) -> bool:
        """Become so long by copies of the rows that are held, to time forwards behind many rows without reading them.
        False: this cache cannot."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a model can do."""

    tree: bool
    """branched drafts keep what ``numerics`` promises"""
    hidden: tuple[int, ...]
    """layers whose states a forward returns (see ``types.Hidden``)"""
    min_width: int
    """a forward of fewer tokens is padded to this many"""
    max_width: int
    """most tokens in one forward"""
    asynchronous: bool
    numerics: Numerics
    compute_precision: str
    """type of the activations, by its short name: f32, f16, bf16"""
    device: str
    backend: str = "openvino"


class Model(Protocol):
    """A model on a device. One thread uses it. ``forward`` is ``start`` + ``wait``."""

    @property
    def cache(self) -> KVCache: ...

    @property
    def capabilities(self) -> Capabilities: ...

    @property
    def vocab_size(self) -> int:
        """Number of logits."""

    @property
    def free_width(self) -> int:
        """Most tokens of the next forward. The deferred end of a prompt is not counted."""

    def prefill(
        self,
        tokens: Sequence[int],
        *,
        reserve: int | None = None,
        progress: Progress | None = None,
        observe: Observe | None = None,
    ) -> int:
        """Make the cache hold exactly ``tokens``. Only what follows the longest prefix already held is computed.

        reserve: the next forward will have up to this many tokens. If there is room beside them, the end of the prompt
            is deferred. That forward then runs it in front of its own tokens, which saves a forward. None: defer
            nothing.
        observe: called with the hidden states of the tokens computed here, if the model returns them. The ``Step`` of
            the next forward has those of the deferred tokens.
        Returns the number of rows reused. Raises ContextFull if the tokens do not fit. If ``progress`` stops a prefill,
        the cache keeps the rows computed so far.
        """

    def forward(
        self, tokens: Sequence[int], tree: Tree | None = None, *, num_logits: int | None = None, width: int = 1
    ) -> Step:
        """Append the deferred tokens and ``tokens``. Returns logits for the last ``num_logits`` of ``tokens``, by
        default for all.

        width: run at least this many rows. The rest is padding, which leaves no trace.

        With ``tree`` (parents of rows 1.., see ``types.Tree``), a row sees only the cache and its own ancestors. Then
        ``cache.keep`` must come before the next forward. The rows of ``tree`` and ``keep`` are counted within
        ``tokens``.
        """

    def start(
        self, tokens: Sequence[int], tree: Tree | None = None, *, num_logits: int | None = None, width: int = 1
    ) -> None:
        """Begin a forward and return at once. The forward is dropped if another call comes before ``wait``."""

    def ready(self) -> bool:
        """Whether ``wait`` would return at once."""

    def wait(self) -> Step:
        """The result of the forward that ``start`` began."""


class StaticGraph(Protocol):
    """A graph whose shapes are fixed and which keeps nothing from run to run, such as a drafting head. One thread uses
    it."""

    @property
    def inputs(self) -> Mapping[str, tuple[int, ...]]:
        """Name and shape of each input."""

    @property
    def outputs(self) -> Mapping[str, tuple[int, ...]]:
        """Name and shape of each output."""

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        """Compute all outputs from all inputs. An array is converted to the input's type; floats are not taken for
        integers. The outputs are views of the engine's buffers, valid until the next run."""


class Drafter(Protocol):
    """Proposes tokens to follow the context. It owns its state and catches up by itself. One thread uses it.

    The order of calls is ``begin``, then rounds of ``propose`` and ``commit``. A generation may end after any of them.
    A subclass must define ``name`` and ``propose``. It may override the other methods.
    """

    name: str
    uses_history: bool = False
    """whether its proposals depend on the texts of earlier generations"""
    needs: Needs = Needs()
    """what it needs from the target"""
    model: Model | None = None
    """the model whose forwards make its proposals"""

    def begin(self, context: Sequence[int], params: SamplingParams) -> None:
        """A new generation starts from ``context``. State of an earlier generation may be reused."""
        return

    @abstractmethod
    def propose(self, context: Sequence[int], k: int, allowed: Allowed | None = None) -> Draft:
        """At most k tokens to follow ``context``: fewer or none if there are no better ones. Never made-up tokens.

        context: the committed tokens, and under a constraint the forced tokens after them.
        allowed: what the constraint allows after ``context`` and some drafted tokens. A drafter that chooses among
            tokens must choose among the allowed ones. Forbidden tokens are cut from the proposals of other drafters.
        """

    def commit(self, context: Sequence[int], draft: Draft, verdict: Verdict, step: Step) -> None:
        """The round is over: ``context`` now ends with ``verdict.tokens``.

        draft: what the target verified. Where several drafters take turns, it may be another drafter's. Row 0 of
            ``step.logits`` follows the token before ``verdict.tokens``, and row 1 + i follows ``draft.rows[i]``.
        """
        return

    def observe(self, start: int, tokens: Sequence[int], hidden: Hidden) -> None:
        """The target has read ``tokens`` and keeps them. ``hidden`` has at least the layers that this drafter
        ``needs``.

        start: position of the first token. Called for the parts of a prompt before ``begin``, and for each round after
            ``commit``. There is no call for a prefix that the target already held, so keep the states you have. Copy
            what you keep.
        """
        return

    def reset(self) -> None:
        """Forget every text."""
        return


class StepwiseDrafter(Drafter, Protocol):
    """A drafter that spends time on its drafts, and that can be stopped after any token. A model spends it on every
    token, a head on the first."""

    longest: int | None = None
    """most tokens of a draft; None: as many as are asked for"""
    alternatives: bool = False
    """The target verifies trees: return a tree, or a chain with runners-up where a text is not drawn."""

    def begin(self, context: Sequence[int], params: SamplingParams, *, read: bool = True) -> None:
        """Like ``Drafter.begin``. read: read the context now, and not only when a proposal is asked for."""

    def read(self, context: Sequence[int]) -> None:
        """Read the context except its last token. A proposal begins with that one."""

    def propose(self, context: Sequence[int], k: int, allowed: Allowed | None = None) -> Draft:
        return self.propose_while(context, k, lambda scores: True, allowed)

    def propose_while(
        self,
        context: Sequence[int],
        k: int,
        go_on: Callable[[Sequence[float]], bool],
        allowed: Allowed | None = None,
    ) -> Draft:
        """Like ``propose``, but ``go_on`` decides before each further step whether to take it. It gets the scores so
        far. A step drafts one token, and the tokens that a constraint forces after it."""

    def unread_tokens(self, length: int) -> int:
        """How many tokens of a context of this length it has not read yet, at least 1. 0 if it cannot take a step: the
        context leaves no room, or the target's states are missing."""


@runtime_checkable
class HeadDrafter(StepwiseDrafter, Protocol):
    """A drafter that is one graph, and reads the target's hidden states: a draft is one call."""

    hidden_size: int
    """numbers of a state that the graph was made for"""


class Constraint(Protocol):
    """Which tokens may be written in one generation. It starts with an empty text, and ignores the prompt."""

    def allowed(self, ahead: Sequence[int]) -> NDArray[np.bool_]:
        """``(vocab,)`` The tokens that may follow the committed text and then ``ahead``: a pure function of both.

        ahead: tokens that are allowed, each at its place. After a stop token everything is allowed, since nobody reads
            it. In a dead end nothing is allowed. Raises SettingError if the committed text is itself a dead end.
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
    """Decides each round who drafts, how far, and at which width the target runs. The loop asks nobody else. One thread
    uses it.

    The order of calls is ``begin``, then rounds of ``draft``, ``width``, ``commit``, ``observe``, ``update``. A
    generation may end after any of them.
    """

    @property
    def name(self) -> str:
        """The name of its drafters. A round gets this name if its draft names no drafter."""

    @property
    def longest(self) -> int:
        """Most rows of a draft. The first forward keeps this many rows free of the prompt."""

    def begin(self, context: Sequence[int], params: SamplingParams) -> None:
        """A new generation starts from ``context``."""

    def draft(self, context: Sequence[int], limit: int, forced: int = 0, allowed: Allowed | None = None) -> Draft:
        """At most ``limit`` rows to follow ``context``. ``limit`` is the room that budget and context leave.

        forced: how many tokens at the end of ``context`` are not committed yet. A constraint allows no others, so they
            are certain to be accepted. They are verified in front of the draft.
        allowed: see ``Drafter.propose``.
        """

    def width(self, tokens: int, context_length: int) -> int:
        """The width of the target's forward over ``tokens`` tokens. It is at least ``tokens``; the rest is padding. The
        call changes no state: ``Round.width`` says which width ran."""

    def commit(self, context: Sequence[int], draft: Draft, verdict: Verdict, step: Step) -> None:
        """The tokens of a round were added to ``context``: see ``Drafter.commit``."""

    def observe(self, start: int, tokens: Sequence[int], hidden: Hidden) -> None:
        """The target has read ``tokens`` and keeps them: see ``Drafter.observe``. Also called during the prefill."""

    def update(self, round_: Round) -> None:
        """The same round's counts and times."""


class WidthPolicy(Protocol):
    """Decides the width of forwards, where a change of width costs time (see ``adaptive.forward_cost``)."""

    def begin(self) -> None:
        """A new text begins."""

    def width(self, tokens: int, context_length: int) -> int:
        """See ``Policy.width``."""

    def update(self, tokens: int, context_length: int, width: int, seconds: float | None) -> None:
        """A forward of ``tokens`` tokens ran at ``width``. seconds: how long it took; None if it did other work too."""
