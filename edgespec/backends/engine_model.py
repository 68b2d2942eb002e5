"""What models do alike on every engine: prefill in chunks, pad a forward to its width, record its rows in the cache.

There are three reasons to pad a forward. Exact numerics needs a least number of rows. A width switch is expensive
(``Model.width``). Prompts should come in few widths (``widths``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from edgespec.backends.exact_widths import ExactWidths
from edgespec.backends.kv_rows import KVRows, may_defer
from edgespec.backends.widths import WIDEST_DRAFT, few_widths, width_of
from edgespec.errors import BackendError, ContextFull, wrap_errors
from edgespec.protocols import Capabilities, Observe, Progress, common_prefix
from edgespec.types import Numerics, Step, Tree, behind

_PAD = 0  # any token id: a pad row is never read and never kept
LONGEST_PAD = 64
"""rows: the largest distance between two of the few widths"""


class GrowingCache(KVRows):
    """Rows in memory of the engine, which is allocated as the rows come."""

    @abstractmethod
    def reserve(self, rows: int) -> None:
        """Have room for ``rows`` rows, at most LONGEST_PAD more than the capacity."""

    def _repeat(self, length: int) -> bool:
        """Of ``repeat``, for a cache whose rows can be copied to any place."""
        held = self.length
        self.reserve(length + LONGEST_PAD)
        for row in range(held, length):
            self._move(row % held, row)
        self.append([self.tokens[row % held] for row in range(held, length)])
        return True


class LayeredCache(GrowingCache):
    """One that grows layer by layer. If some have grown and there is no memory for the others, the text stays."""

    def _grow(self, size: int) -> None:
        try:
            self._grow_layers(size)
        except BaseException as error:
            kept = False
            try:
                with suppress(BackendError):
                    kept = isinstance(error, BackendError) and self._put_back()
            finally:
                if not kept:  # Ctrl-C, or the engine does not take it: begin again from nothing
                    self._let_go()
                    self.reset()
            raise

    @abstractmethod
    def _grow_layers(self, size: int) -> None:
        """Have room for ``size`` rows or blocks, as the subclass counts. Raises BackendError if there is no memory."""

    @abstractmethod
    def _put_back(self) -> bool:
        """Let the engine have all layers again, some of which were grown. False if there were none before. Raises
        BackendError for what the engine raises."""

    @abstractmethod
    def _let_go(self) -> None:
        """Hold no memory."""


@dataclass(frozen=True, slots=True)
class Forward:
    """A forward whose inputs are set: what to record when it is done, and how many rows of logits were asked for."""

    past: int
    tokens: tuple[int, ...]
    branched: bool
    num_logits: int
    width: int
    prompt_rows: int


class PaddedModel(ABC):
    """See ``protocols.Model``. Not thread-safe; one text at a time."""

    cache: GrowingCache
    vocab_size: int
    fingerprint: str
    """identifies model, engine, device and settings: all that a measurement of this model depends on"""
    weights_bytes: int
    state_sizes: dict[int, int]
    """numbers of a hidden state, for each layer whose states are returned"""

    def __init__(self, numerics: Numerics, prefill_chunk: int) -> None:
        self.numerics = numerics
        self.min_width = 1
        """forwards of fewer tokens are padded to this"""
        self.max_width = prefill_chunk
        self.width_step = 1
        """every width is a multiple of this"""
        self._few: tuple[int, ...] = () if numerics == "exact" else few_widths(1, prefill_chunk)
        """widths of forwards that read a prompt; () as long as it is not known which widths are exact"""
        self.infer_s = 0.0
        """seconds spent inside the engine since construction"""
        self.last_width = 0
        self.last_wanted = 0
        """width of the last forward, and how many of its rows got logits, padding included"""
        self._pending: Forward | None = None
        self._progress: Progress | None = None  # of a prefill whose end is deferred
        self._started_s = 0.0

    @property
    @abstractmethod
    def capabilities(self) -> Capabilities: ...

    def set_exact_widths(self, widths: ExactWidths) -> None:
        """Run every forward at one of the exact widths. See ``exact_widths``."""
        self.min_width, self.max_width, self.width_step = widths.least, widths.most, widths.step
        self._few = few_widths(widths.least, widths.most, widths.step)

    @property
    def free_width(self) -> int:
        return self.max_width - len(self.cache.deferred)

    def prefill(
        self,
        tokens: Sequence[int],
        *,
        reserve: int | None = None,
        progress: Progress | None = None,
        observe: Observe | None = None,
    ) -> int:
        if len(tokens) > self.cache.capacity:
            raise ContextFull(
                "prompt is longer than the context",
                tokens=len(tokens),
                capacity=self.cache.capacity,
                got=f"{len(tokens)} tokens",
                allowed=f"{self.cache.capacity}",
            )
        self._finish_pending()
        self.cache.drop_unverified_tree()
        reused = common_prefix(self.cache.tokens, tokens)
        self.cache.crop(reused)
        self.cache.reserve(len(tokens) + LONGEST_PAD)
        self._progress = progress
        self._read(tokens, reused, reserve, observe)
        return reused

    def _read(self, tokens: Sequence[int], reused: int, reserve: int | None, observe: Observe | None) -> None:
        """Compute the rows of ``tokens`` that follow those held, for ``prefill``."""
        for begin in range(reused, len(tokens), self.max_width):
            if len(tokens) - begin <= may_defer(self.max_width, reserve):
                self.cache.defer(tokens[begin:])
                break
            chunk = tokens[begin : begin + self.max_width]
            step = self.forward(chunk, num_logits=0)
            if observe and step.hidden:
                observe(begin, chunk, step.hidden)
            if self._progress:
                self._progress(self.cache.length, len(tokens))

    def forward(
        self, tokens: Sequence[int], tree: Tree | None = None, *, num_logits: int | None = None, width: int = 1
    ) -> Step:
        forward = self._prepare(tokens, tree, num_logits, width)
        began = perf_counter()
        with wrap_errors(BackendError, "inference failed"):
            self._infer()
        self.infer_s += perf_counter() - began
        return self._result(forward)

    def start(
        self, tokens: Sequence[int], tree: Tree | None = None, *, num_logits: int | None = None, width: int = 1
    ) -> None:
        self._pending = self._prepare(tokens, tree, num_logits, width)
        self._started_s = perf_counter()
        with wrap_errors(BackendError, "inference failed"):
            self._start()

    def wait(self) -> Step:
        assert self._pending is not None, "wait without start"
        forward = self._pending
        self._finish_pending()
        self.infer_s += perf_counter() - self._started_s
        return self._result(forward)

    @abstractmethod
    def ready(self) -> bool: ...

    @abstractmethod
    def _set_inputs(self, tokens: Sequence[int], past: int, rows: Sequence[int], tree: Tree | None) -> None:
        """Set the inputs of a forward after ``past`` rows. rows: the rows of ``tokens`` that get logits.

        Raises BackendError for what the engine raises, and MemoryError."""

    @abstractmethod
    def _infer(self) -> None: ...

    @abstractmethod
    def _start(self) -> None: ...

    @abstractmethod
    def _wait(self) -> None: ...

    @abstractmethod
    def _step(self, forward: Forward) -> Step:
        """A view of the logits of the first ``num_logits`` rows that got logits, and of hidden states if the model has
        them."""

    def _finish_pending(self) -> None:
        """Let an unfinished forward end. An interrupted ``wait`` leaves one. Its rows are not recorded in the cache."""
        if self._pending is None:
            return
        try:
            with wrap_errors(BackendError, "inference failed"):
                self._wait()
        except BackendError:
            self._pending = None
            raise
        self._pending = None

    def _prepare(self, tokens: Sequence[int], tree: Tree | None, num_logits: int | None, width: int) -> Forward:
        self._finish_pending()
        self.cache.drop_unverified_tree()
        prompt_rows = len(self.cache.deferred)
        if prompt_rows:
            num_logits = len(tokens) if num_logits is None else num_logits
            tokens, tree = [*self.cache.deferred, *tokens], behind(prompt_rows, tree)
        assert 1 <= len(tokens) <= self.max_width
        past, real = self.cache.length, len(tokens)
        assert past + real <= self.cache.capacity, "a forward past the context"
        first = 0 if num_logits is None else real - num_logits
        # A policy may ask for a pad, up to what a draft makes wide: other widths may not be exact.
        n = max(real, self.min_width, min(width, WIDEST_DRAFT))
        # The output head is a matrix product too: it gets as many rows as the rest, so that its width changes only
        # where that of the rest does, or none.
        wanted = width_of(max(n - first, self.min_width), False, self._few, self.width_step) if first < real else 0
        wide = width_of(n, first > 0, self._few, self.width_step)
        n = max(real, min(wide, self.cache.capacity + LONGEST_PAD - past))
        self.cache.reserve(past + n)
        self.last_width = n
        rows = [*range(first, real), *[real - 1] * (wanted - real + first)] if wanted else []
        self.last_wanted = wanted
        with wrap_errors(BackendError, "cannot set up a forward", known=(MemoryError,)):
            self._set_inputs([*tokens, *[_PAD] * (n - real)], past, rows, tree)
        own = tuple(tokens[prompt_rows:])
        return Forward(past, own, tree is not None, num_logits=real - first, width=n, prompt_rows=prompt_rows)

    def _result(self, forward: Forward) -> Step:
        unchanged = self.cache.length == forward.past and len(self.cache.deferred) == forward.prompt_rows
        assert unchanged, "the cache was changed while a forward ran"
        step = self._step(forward)
        if len(step.logits) < forward.num_logits:  # OpenVINO does so, without an error, where memory is short
            got = f"{len(step.logits)} of {forward.num_logits} rows"
            raise BackendError("inference failed: the engine returned no result", got=got, hint="is memory short?")
        self.cache.append(forward.tokens, branched=forward.branched)
        if forward.prompt_rows and self._progress:
            done = forward.past + forward.prompt_rows
            self._progress(done, done)
        return step


def fingerprint(identity: Sequence[Any]) -> str:
    """A short hash of everything that a measurement depends on."""
    import hashlib

    return hashlib.sha256(repr(identity).encode()).hexdigest()[:24]
