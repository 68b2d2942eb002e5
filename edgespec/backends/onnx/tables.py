"""Cosines and sines of the positions, for as many as are in use: a model may claim a million, and be asked for few.

The first rows are kept with a model's ONNX form. Further ones are computed when the context grows into them, from the
part of the IR that gives them, which is kept too. A row is a function of its position alone; a form for which it is not
(LongRoPE and dynamic NTK: another table for long texts) is refused when it is written.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgespec.backends.onnx.rotary import Rotary
from edgespec.backends.onnx.weights import unsupported
from edgespec.backends.openvino.settings import FULL_PRECISION
from edgespec.errors import BackendError, foreign

_ROWS_FILE, _PART_FILE = "rotary.npz", "rotary.xml"
_LONGEST = "longest"
_NAMES = ("cos.", "sin.")
_CHUNK = 4096
"""rows that are kept, and computed at a time"""

Table = NDArray[np.float32]
"""``(rows, size / 2)``"""


def write_tables(
    rotaries: Mapping[tuple[str, str], tuple[Rotary, int]], model: Any, folder: Path, longest: int
) -> None:
    """rotaries: of the IR ``model``, each with its size of a head, by the names of its two tables. longest: positions
    that the model was made for. Raises NoONNXForm."""
    from edgespec.backends.openvino.runtime import ov

    if not rotaries:
        return
    values = [value for rotary, _ in rotaries.values() for value in (rotary.cos, rotary.sin)]
    read = [model.input(name).get_node() for name in ("position_ids", "input_ids")]  # of the second its length only
    part = ov.Model(values, read, "rotary")
    compiled = _compiled(part)
    first = _computed(compiled, np.arange(min(longest, _CHUNK)))
    for others in ([0, 1], [0, 1, longest - 1]):
        for table, again in zip(first, _computed(compiled, np.array(others)), strict=True):
            if not np.allclose(table[:2], again[: len(table)][:2], rtol=0, atol=1e-4):
                raise unsupported("a rotary embedding that changes with the length of the text")
    names = [name for pair in rotaries for name in pair]
    sizes = [size for _, size in rotaries.values() for _ in range(2)]
    if [table.shape[1] for table in first] != sizes:
        raise unsupported("a rotary embedding of a part of each head")
    rows = {name: table[:, : size // 2] for name, table, size in zip(names, first, sizes, strict=True)}
    np.savez(folder / _ROWS_FILE, **{_LONGEST: np.array(longest)}, **rows)  # type: ignore[arg-type]
    ov.save_model(part, folder / _PART_FILE, compress_to_fp16=False)


class RotaryTables:
    """The tables of a model's ONNX form, bound to the inputs of a session; ``reserve`` makes them longer."""

    def __init__(self, folder: Path, session: Any, binding: Any) -> None:
        self._part = folder / _PART_FILE
        self._binding = binding
        self._tables: dict[str, Table] = {}
        self._longest = 1
        names = [port.name for port in session.get_inputs() if port.name.startswith(_NAMES)]
        if names:  # a model may do without
            sizes = {port.name: port.shape[1] for port in session.get_inputs() if port.name in names}
            self._longest, tables = _stored(folder / _ROWS_FILE, sizes)
            self._bind(tables)

    @property
    def rows(self) -> int:
        return min((len(table) for table in self._tables.values()), default=0)

    def reserve(self, rows: int, most: int) -> None:
        """Have ``rows`` rows, of at most ``most`` that may come: never run a forward without this."""
        if self._tables and rows > self.rows:
            with foreign(BackendError, f"no more positions from {self._part}", hint="use a smaller --context-length"):
                self._grow(max(rows, min(most, 1 << (rows - 1).bit_length())))

    def _grow(self, rows: int) -> None:
        from edgespec.backends.openvino.graph import refuse_programs
        from edgespec.backends.openvino.runtime import ov

        had = self.rows
        part = ov.Core().read_model(self._part)
        refuse_programs(part, self._part)
        compiled = _compiled(part)
        grown = {name: np.empty((rows, table.shape[1]), np.float32) for name, table in self._tables.items()}
        for name, table in self._tables.items():
            grown[name][:had] = table[:had]
        for begin in range(had, rows, _CHUNK):
            end = min(begin + _CHUNK, rows)
            positions = np.minimum(np.arange(begin, end), self._longest - 1)  # behind that there are pads only
            for table, found in zip(grown.values(), _computed(compiled, positions), strict=True):
                if found.shape[1] != 2 * table.shape[1]:
                    raise ValueError("it gives other tables")
                table[begin:end] = found[:, : table.shape[1]]
        self._bind(grown)

    def _bind(self, tables: dict[str, Table]) -> None:
        for name, table in tables.items():
            self._binding.bind_input(name, "cpu", 0, np.float32, table.shape, table.ctypes.data)
        self._tables = tables  # the session reads this memory


def _stored(path: Path, sizes: Mapping[str, int]) -> tuple[int, dict[str, Table]]:
    """The longest text, and the tables of these names with so many columns. The engine reads them by what their shapes
    say, and a bundle's are a stranger's. Raises ValueError."""
    most = _CHUNK * sum(4 * size for size in sizes.values()) + (1 << 16)
    with path.open("rb") as file:
        with zipfile.ZipFile(file) as archive:
            if sum(member.file_size for member in archive.infolist()) > most:
                raise ValueError(f"{path} is larger than {_CHUNK} rows")
        file.seek(0)
        with np.load(file, allow_pickle=False) as stored:
            longest = int(stored[_LONGEST])
            tables = {name: np.ascontiguousarray(stored[name]) for name in sizes}
    rows = {len(table) for table in tables.values() if table.ndim == 2}
    as_said = all(table.dtype == np.float32 and table.shape[1:] == (sizes[name],) for name, table in tables.items())
    if longest < 1 or rows != {min(longest, _CHUNK)} or not as_said:
        raise ValueError(f"{path} holds other tables than its graph reads")
    return longest, tables


def _compiled(part: Any) -> Any:
    from edgespec.backends.openvino.runtime import ov

    return ov.compile_model(part, "CPU", FULL_PRECISION)


def _computed(compiled: Any, positions: NDArray[Any]) -> Sequence[Table]:
    """``(positions, size)`` of each."""
    found = compiled([positions.astype(np.int64)] * 2)
    return [np.array(found[index]).reshape(len(positions), -1) for index in range(len(found))]
