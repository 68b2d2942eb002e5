"""Weights that an ONNX graph reads where they lie already: in the .bin of the IR beside it.

Codes of compressed weights are the same bytes in both. They are most of a model, so a bundle with both forms holds them
once. Steps and norms are small, and of another type there.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

_LEAST_BYTES = 1 << 12
"""of what is worth a look: smaller constants are a thousandth of a model"""


class SharedWeights:
    """The constants in the .bin of an IR, to be found by their bytes."""

    def __init__(self, xml: Path) -> None:
        self.file = xml.with_suffix(".bin")
        self._offsets: dict[int, list[int]] = defaultdict(list)  # by the number of bytes
        self._bytes: NDArray[np.uint8] = np.memmap(self.file, np.uint8, "r")
        for _, element in ElementTree.iterparse(xml):
            if element.tag == "data" and "offset" in element.attrib:
                size = int(element.attrib["size"])
                if size >= _LEAST_BYTES:
                    self._offsets[size].append(int(element.attrib["offset"]))
            element.clear()

    def find(self, array: NDArray[Any]) -> int | None:
        """Where in the file the bytes of an array of bytes lie, or None."""
        if array.dtype != np.uint8:  # others might lie where the processor cannot read them at once
            return None
        wanted = np.ascontiguousarray(array).reshape(-1)
        for offset in self._offsets.get(wanted.nbytes, ()):
            there = self._bytes[offset : offset + wanted.nbytes]
            if np.array_equal(there[:_LEAST_BYTES], wanted[:_LEAST_BYTES]) and np.array_equal(there, wanted):
                return offset
        return None
