"""A ready ONNX model on ONNX Runtime, as another tool exported it: the graph is not changed.

There are two kinds. Those of onnxruntime-genai's model builder have an attention that writes new keys and values into
the tensor of the earlier ones; how many there are it takes from the length of the mask, so rolling back is a shorter
mask. Those of optimum return earlier and new rows together in another tensor; rolling back copies the rows that are
left. Both return logits of every row.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from edgespec import files
from edgespec.backends.engine_model import LONGEST_PAD, Forward, GrowingCache, fingerprint
from edgespec.backends.onnx import providers, ready_graph
from edgespec.backends.onnx.bound_cache import FIRST_ROWS, GROWTH, BoundCache
from edgespec.backends.onnx.ready_graph import AGAIN, present_of
from edgespec.backends.onnx.session import SessionModel, inputs_of
from edgespec.errors import BackendError, foreign, wrap_errors
from edgespec.types import Numerics, Step, Tree

_MOST_LOGITS_BYTES = 64 << 20
"""of a forward: with a vocabulary of 150,000 tokens that is 64 rows"""
_CHUNKS = (256, 64, 32, 16)
_LEAST_ROWS = 576
"""of rotary tables, without those of pads: exact widths and costs are measured behind up to 529 rows"""
_MORE_ROWS = 256
"""by which mask and positions grow beyond what is asked for"""

_Tensors = dict[str, NDArray[np.float32]]


class JoinedCache(GrowingCache):
    """Two pieces of memory for each tensor: a forward reads one and writes earlier and new rows to the other.

    shapes: heads and size of a head, by the name of the input.
    """

    def __init__(self, shapes: dict[str, tuple[int, int]], binding: Any, capacity: int) -> None:
        super().__init__(capacity)
        self._shapes = shapes
        self._binding = binding
        self._room = 0  # rows
        self._state: tuple[_Tensors, _Tensors, int] = ({}, {}, 0)  # held, spare, rows that are held
        self._written = 0  # rows, by the last forward

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensors in self._state[:2] for tensor in tensors.values())

    def reserve(self, rows: int) -> None:
        most = self.capacity + LONGEST_PAD
        assert rows <= most, "a forward past the context"
        if rows <= self._room:
            return
        room = min(most, max(rows, FIRST_ROWS, int(self._room * GROWTH)))
        held, _, count = self._state
        with wrap_errors(BackendError, "no memory for the KV cache", hint="use a smaller --context-length"):
            new, spare = (
                {name: np.empty(heads * room * size, np.float32) for name, (heads, size) in self._shapes.items()}
                for _ in range(2)
            )
        for name in held:
            self._rows(new, name, count)[...] = self._rows(held, name, count)
        self._state, self._room = (new, spare, count), room

    def bind(self, past: int, n: int) -> None:
        """For a forward of n rows behind ``past``: where it reads, and where it writes."""
        held, spare, count = self._state
        if count != past:  # the rows that are left have to lie one behind the other
            for name in self._shapes:
                self._rows(spare, name, past)[...] = self._rows(held, name, count)[:, :, :past]
            self._state = held, spare, count = spare, held, past
        with wrap_errors(BackendError, "cannot set up a forward"):
            for name in self._shapes:
                for bind, port, tensors, rows in (
                    (self._binding.bind_input, name, held, past),
                    (self._binding.bind_output, present_of(name), spare, past + n),
                ):
                    view = self._rows(tensors, name, rows)
                    bind(port, "cpu", 0, np.float32, view.shape, tensors[name].ctypes.data)
        self._written = past + n

    def append(self, tokens: Sequence[int], *, branched: bool = False) -> None:
        held, spare, _ = self._state
        self._state = spare, held, self._written  # before the books: what they name is in both
        super().append(tokens, branched=branched)

    def _rows(self, tensors: _Tensors, name: str, rows: int) -> NDArray[np.float32]:
        heads, size = self._shapes[name]
        return tensors[name][: heads * rows * size].reshape(1, heads, rows, size)

    def _move(self, source: int, target: int) -> None:
        held, _, count = self._state
        for name in held:
            rows = self._rows(held, name, count)
            rows[:, :, target] = rows[:, :, source]


class ReadyModel(SessionModel):
    """See ``protocols.Model``. Not thread-safe; one text at a time.

    path: a stranger's .onnx file, which is checked first. numerics: None is exact where attention keeps its place in
    memory; elsewhere its kernels see another length in every forward. layers: whose hidden states it returns (see
    ``types.Hidden``). cpu: its name, for the fingerprint. device: of ``providers``.
    """

    cache: BoundCache | JoinedCache

    def __init__(
        self,
        path: Path,
        numerics: Numerics | None,
        *,
        capacity: int,
        layers: tuple[int, ...] = (),
        threads: int | None = None,
        cpu: str = "",
        device: str = providers.CPU,
    ) -> None:
        graph = ready_graph.read(path)
        rows = _MOST_LOGITS_BYTES // (4 * graph.vocab_size)
        chunk = next((chunk for chunk in _CHUNKS if chunk <= rows), _CHUNKS[-1])
        kind: Numerics = numerics or ("exact" if graph.shared else "fast")
        super().__init__(path, kind, chunk, layers=layers, threads=threads, hint=AGAIN, device=device)
        if graph.positions is not None:
            longest = graph.positions - LONGEST_PAD  # pads have positions, too
            capacity = min(capacity, longest)
            if longest < _LEAST_ROWS:
                allowed = f"{_LEAST_ROWS + LONGEST_PAD} or more"
                raise BackendError(f"positions in the tables of {path}", got=graph.positions, allowed=allowed)
        if graph.shared:
            memory = providers.PROVIDERS[device.split(".")[0]].memory
            self.cache = BoundCache(self.session, self._binding, capacity, graph.shapes, memory)
        else:
            self.cache = JoinedCache(graph.shapes, self._binding, capacity)
        of = [file for file in (path, graph.data) if file is not None]
        self.weights_bytes = sum(file.stat().st_size for file in of)
        with foreign(BackendError, f"cannot load {path}", hint=AGAIN):
            identity = [files.sha256(file) for file in of]
        elsewhere = [device] if device != providers.CPU else []
        kept = ["ready", onnxruntime.__version__, *identity, cpu, self.threads, *layers, *elsewhere]
        self.fingerprint = fingerprint(kept)
        self._inputs = inputs_of(self.session, self._binding)
        self._last_position = capacity - 1
        self._counted = {
            name: np.empty(0, np.int64) for name in ("attention_mask", "position_ids") if name in graph.inputs
        }
        self._first = 0  # of the last forward's rows, the first that was to get logits

    def _set_inputs(self, tokens: Sequence[int], past: int, rows: Sequence[int], tree: Tree | None) -> None:
        assert tree is None, "this model takes no trees"
        n = len(tokens)
        self.cache.reserve(past + n)
        self._inputs.set("input_ids", (1, n), tokens)
        self._count_to(past + n)
        for name, numbers in self._counted.items():
            part = numbers[: past + n] if name == "attention_mask" else numbers[past : past + n]
            with wrap_errors(BackendError, "cannot set up a forward"):
                self._binding.bind_input(name, "cpu", 0, np.int64, (1, len(part)), part.ctypes.data)
        if isinstance(self.cache, JoinedCache):
            self.cache.bind(past, n)
        self._reserve_outputs(n, n)
        self._first = rows[0] if rows else 0

    def _count_to(self, rows: int) -> None:
        """Have a mask and positions of so many rows. Pads behind the context share its last position."""
        for name, numbers in self._counted.items():
            if len(numbers) < rows:
                with wrap_errors(BackendError, "no memory for the context", hint="use a smaller --context-length"):
                    more = np.arange(rows + _MORE_ROWS, dtype=np.int64)  # else 32 bits, by numpy 1 on Windows
                    is_mask = name == "attention_mask"
                    self._counted[name] = np.ones_like(more) if is_mask else np.minimum(more, self._last_position)

    def _step(self, forward: Forward) -> Step:
        logits = self._logits.array[self._first : self._first + forward.num_logits]
        return Step(logits, self._hidden(forward), forward.width, forward.prompt_rows)
