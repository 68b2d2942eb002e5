"""What a model is to the loop: rows in a cache, and forwards that add to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from edgespec.types import Hidden, Numerics, Step, Tree

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


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the longest common prefix.

    >>> common_prefix([1, 2, 3, 4], [1, 2, 9])
    2
    """
    shorter = min(len(left), len(right))
    if left[:shorter] == right[:shorter]:
        return shorter
    return next((i for i in range(shorter) if left[i] != right[i]), shorter)
