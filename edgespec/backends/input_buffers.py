"""The small arrays that a forward sends to the engine. They are written where the engine reads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from edgespec.errors import BackendError, wrap_errors

Handle = TypeVar("Handle")


_KEPT = 64
"""arrays with their handles, arrays of earlier shapes included"""


class Inputs(Generic[Handle]):
    """An engine that was given an array goes on reading it. Numbers of the same shape are written over the old ones.
    The engine is given another array only when the shape changes, since that takes several times as long
    (docs/log/engines.md). ``set`` must not be called while a forward runs.

    kinds: by input, the type of its numbers. Names that are not in it are ignored.
    wrap: makes the engine's object for an array, without a copy.
    tell: gives the engine another array to read.
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
        self._read.pop(name, None)  # after an interruption here, nobody relies on what the engine reads
        if (name, shape) not in self._made:
            if len(self._made) >= _KEPT:
                self._made.clear()  # what the engine reads is kept by ``_read``
            array = np.empty(shape, self._kinds[name])
            with wrap_errors(BackendError, "cannot set up a forward"):
                self._made[name, shape] = array, self._wrap(array)
        array, handle = self._made[name, shape]
        array[...] = values
        with wrap_errors(BackendError, "cannot set up a forward"):
            self._tell(name, handle)
        self._read[name] = array
