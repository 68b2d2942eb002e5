"""An output's memory, which the engine writes to: bound once for each number of rows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnxruntime import OrtValue

from edgespec.errors import BackendError, wrap_errors

_FIRST_ROWS = 16


class OutputRows:
    """An output ``(1, rows, columns)`` f32. It is a view, valid until the next forward."""

    def __init__(self, binding: Any, name: str, columns: int) -> None:
        self._binding, self._name, self._columns = binding, name, columns
        self.array: NDArray[np.float32] = np.empty((_FIRST_ROWS, columns), np.float32)
        self._values: dict[int, OrtValue] = {}  # its first so many rows, as the engine calls them
        self._rows = -1  # that the engine writes

    def reserve(self, rows: int) -> None:
        """Have the engine write so many rows. It writes where it is told to: no forward without this."""
        if rows == self._rows:
            return
        self._rows = -1
        if len(self.array) < rows:
            self._values.clear()
            self.array = np.empty((rows, self._columns), np.float32)
        with wrap_errors(BackendError, "cannot set up a forward"):
            if rows not in self._values:
                self._values[rows] = OrtValue.ortvalue_from_numpy(self.array[None, :rows])
            self._binding.bind_ortvalue_output(self._name, self._values[rows])
        self._rows = rows
