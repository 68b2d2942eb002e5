"""What a forward sends to the engine: a few small arrays, written where the engine reads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

Handle = TypeVar("Handle")


_KEPT = 64
"""arrays with their handles, those of other shapes than now included"""


class Inputs(Generic[Handle]):
    """An engine that was told of an array goes on reading it. So it is told of another one only when the shape is
    another, and numbers of the same shape are written over the old ones: telling takes several times as long
    (docs/log/engines.md). ``set`` must not be called while a forward runs.

    kinds: by input, the type of its numbers; names that are not in it are ignored.
    wrap: what the engine calls an array, which it must not copy.
    tell: from now on read this one.
    """

    def __init__(
        self,
        kinds: Mapping[str, DTypeLike],
        wrap: Callable[[NDArray[Any]], Handle],
        tell: Callable[[str, Handle], object],
    ) -> None:
        self._kinds = kinds
        self._wrap = wrap
        self._tell = tell
        self._made: dict[tuple[str, tuple[int, ...]], tuple[NDArray[Any], Handle]] = {}
        self._read: dict[str, NDArray[Any]] = {}

    def set(self, name: str, shape: tuple[int, ...], values: ArrayLike) -> None:
        array = self._read.get(name)
        if array is not None and array.shape == shape:
            array[...] = values
            return
        if name not in self._kinds:
            return
        self._read.pop(name, None)  # interrupted from here on, nobody relies on what the engine reads
        if (name, shape) not in self._made:
            if len(self._made) >= _KEPT:
                self._made.clear()  # what the engine reads is kept by ``_read``
            array = np.empty(shape, self._kinds[name])
            self._made[name, shape] = array, self._wrap(array)
        array, handle = self._made[name, shape]
        array[...] = values
        self._tell(name, handle)
        self._read[name] = array
