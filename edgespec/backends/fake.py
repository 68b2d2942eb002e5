"""A model that is a function, with a virtual clock: for tests, documentation, and schedules without hardware.

It keeps its text in physical rows and computes logits from the rows a forward may see, so a wrong crop, a wrong
keep or a wrong tree gives wrong tokens, as it would with real keys and values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from edgespec.backends.kv_blocks import Block, BlockCopies
from edgespec.backends.kv_rows import may_defer
from edgespec.errors import ContextFull
from edgespec.protocols import Capabilities, Observe, Progress, common_prefix
from edgespec.types import Logits, Step, Tree, behind

_LONGEST_PAD = 16
Table = Callable[[tuple[int, ...]], Logits]
"""The visible text of a row, its own token last -> logits ``(vocab,)``."""
State = Callable[[int, tuple[int, ...]], NDArray[np.float32]]
"""A layer, and the visible text of a row -> hidden state ``(d,)``."""


class VirtualClock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class FakeCache(BlockCopies):
    """Physical rows that hold their token; rejected rows stay, as they do in memory."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self.physical = [-1] * (capacity + _LONGEST_PAD)

    @property
    def nbytes(self) -> int:
        return 8 * self.capacity

    def reserve(self, rows: int) -> None:
        return

    def copy_block(self, index: int) -> Block:
        begin = index * self.block_rows
        return [np.array(self.physical[begin : begin + self.block_rows])]

    def _put_block(self, index: int, block: Block) -> None:
        begin = index * self.block_rows
        self.physical[begin : begin + len(block[0])] = block[0].tolist()

    def _move(self, source: int, target: int) -> None:
        self.physical[target] = self.physical[source]


class FakeModel:
    """``table`` says what the model thinks; ``forward_s(width)`` what a forward costs on ``clock``.

    leaves: rows of a prompt that a prefill defers, at most. layers: whose hidden states it returns. state: these, of a
    layer behind a text.
    """

    def __init__(
        self,
        table: Table,
        vocab_size: int,
        *,
        capacity: int = 512,
        tree: bool = True,
        min_width: int = 1,
        max_width: int = 64,
        forward_s: Callable[[int], float] = lambda width: 1.0,
        clock: VirtualClock | None = None,
        leaves: int = 0,
        layers: tuple[int, ...] = (),
        state: State | None = None,
    ) -> None:
        self.table = table
        self.state = state or hidden_state
        self.vocab_size = vocab_size
        self.cache = FakeCache(capacity)
        self.capabilities = Capabilities(
            tree=tree,
            hidden=layers,
            max_width=max_width,
            asynchronous=True,
            numerics="exact",
            compute_precision="f32",
            device="fake",
            backend="fake",
            min_width=min_width,
        )
        self.clock = clock or VirtualClock()
        self.leaves = leaves
        self.forward_s = forward_s
        self.widths: list[int] = []  # of every forward, for tests that count work
        self._progress: Progress | None = None
        self._pending: tuple[Step, float, tuple[int, ...], bool] | None = None

    @property
    def free_width(self) -> int:
        return self.capabilities.max_width - len(self.cache.deferred)

    def prefill(
        self,
        tokens: Sequence[int],
        *,
        reserve: int | None = None,
        progress: Progress | None = None,
        observe: Observe | None = None,
    ) -> int:
        if len(tokens) > self.cache.capacity:
            most = self.cache.capacity
            got = f"{len(tokens)} tokens"
            raise ContextFull("prompt does not fit", tokens=len(tokens), capacity=most, got=got, allowed=most)
        self.cache.drop_unverified_tree()
        reused = common_prefix(self.cache.tokens, tokens)
        self.cache.crop(reused)
        self._progress = progress
        widest = self.capabilities.max_width
        for begin in range(reused, len(tokens), widest):
            if len(tokens) - begin <= min(may_defer(widest, reserve), self.leaves):
                self.cache.defer(tokens[begin:])
                break
            chunk = tokens[begin : begin + widest]
            step = self.forward(chunk, num_logits=0)
            if observe and step.hidden:
                observe(begin, chunk, step.hidden)
            if progress:
                progress(self.cache.length, len(tokens))
        return reused

    def forward(
        self, tokens: Sequence[int], tree: Tree | None = None, *, num_logits: int | None = None, width: int = 1
    ) -> Step:
        self.start(tokens, tree, num_logits=num_logits, width=width)
        return self.wait()

    def start(
        self, tokens: Sequence[int], tree: Tree | None = None, *, num_logits: int | None = None, width: int = 1
    ) -> None:
        self._pending = None  # one that was begun and never waited for is dropped
        self.cache.drop_unverified_tree()
        own, prompt_rows = tuple(tokens), len(self.cache.deferred)
        if prompt_rows:
            num_logits = len(tokens) if num_logits is None else num_logits
            tokens, tree = [*self.cache.deferred, *tokens], behind(prompt_rows, tree)
        assert 1 <= len(tokens) <= self.capabilities.max_width
        begin = self.cache.length
        assert begin + len(tokens) <= self.cache.capacity, "a forward past the context"
        self.cache.physical[begin : begin + len(tokens)] = list(tokens)
        past = tuple(self.cache.physical[:begin])
        seen: list[tuple[int, ...]] = []
        for row, token in enumerate(tokens):
            above = past if row == 0 else seen[row - 1 if tree is None else tree[row - 1]]
            seen.append((*above, token))
        rows = seen[len(seen) - (len(seen) if num_logits is None else num_logits) :]
        logits = np.array([self.table(text) for text in rows], np.float32).reshape(len(rows), self.vocab_size)
        width = max(width, len(tokens), self.capabilities.min_width)
        assert width <= len(tokens) + _LONGEST_PAD
        self.cache.physical[begin + len(tokens) : begin + width] = [-1] * (width - len(tokens))
        self.widths.append(width)
        done_s = self.clock.now_s + self.forward_s(width)
        hidden = {layer: np.array([self.state(layer, text) for text in seen]) for layer in self.capabilities.hidden}
        step = Step(logits, hidden, width, prompt_rows)
        self._pending = step, done_s, own, tree is not None

    def ready(self) -> bool:
        assert self._pending
        return self.clock.now_s >= self._pending[1]

    def wait(self) -> Step:
        assert self._pending
        step, done_s, tokens, branched = self._pending
        self._pending = None
        self.clock.now_s = max(self.clock.now_s, done_s)
        self.cache.append(tokens, branched=branched)
        if step.prompt_rows and self._progress:
            done = self.cache.length - len(tokens)
            self._progress(done, done)
        return step


def hidden_state(layer: int, text: tuple[int, ...]) -> NDArray[np.float32]:
    """``(4,)`` What the fake model's layer thinks behind a text."""
    seed = hash((layer, *text)) & (1 << 63) - 1  # a list of so many seeds would take most of the time of a forward
    return np.random.default_rng(seed).standard_normal(4, np.float32)


def random_table(vocab_size: int, seed: int, *, order: int = 2, scale: float = 3.0) -> Table:
    """A random Markov model: logits are a function of the last ``order`` tokens. They are shared: do not write them."""

    @lru_cache(maxsize=1 << 15 if order < 8 else 0)  # long states hardly come twice
    def after(state: tuple[int, ...]) -> Logits:
        random = np.random.default_rng([seed, *(t + 1 for t in state)])
        logits: Logits = (random.standard_normal(vocab_size) * scale).astype(np.float32)
        logits.flags.writeable = False
        return logits

    return lambda text: after(text[-order:])
