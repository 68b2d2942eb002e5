"""A causal language model on ONNX Runtime, from the graph that ``backends.onnx.graph`` writes. See ``providers`` for
the devices; what is said of kernels is said of those on the CPU.

Where the CPU has no dot products of 8-bit numbers (VNNI), these kernels multiply integers all the same, and OpenVINO's
turn the weights into floating point: a forward of one token takes half the time (docs/log/engines.md).

The attention writes its keys and values into the tensors it reads the earlier ones from: past and present are bound
to the same memory. Rolling back is a smaller ``seqlens_k``.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime import OrtValue

from edgespec import cache, files
from edgespec.backends.cores import available_cores, kind_of, kinds
from edgespec.backends.engine_model import LONGEST_PAD, Forward, LayeredCache, PaddedModel, fingerprint
from edgespec.backends.input_buffers import Inputs
from edgespec.backends.kv_blocks import Block, BlockCopies
from edgespec.backends.layer_states import NoSuchLayer, require_width
from edgespec.backends.onnx import hidden_states, providers
from edgespec.backends.onnx.graph import MODEL_FILE, WEIGHTS_FILE
from edgespec.backends.onnx.output_rows import OutputRows
from edgespec.backends.onnx.tables import RotaryTables
from edgespec.errors import BackendError, foreign, wrap_errors
from edgespec.protocols import Capabilities
from edgespec.types import Hidden, Numerics, Step, Tree

_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
"""setting of the engine: where the weights are of a graph that is given as bytes"""
_KINDS = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}
FIRST_ROWS, GROWTH = 256, 1.25
"""rows of a cache at first, and by how much it grows: each time all of it is copied"""
_LARGE_BYTES, _LARGE_CHUNK = 500 << 20, 128
"""Weights from which on 128 rows are read as fast, a row, as 256 are: measured with 1.5 billion parameters. The
search for exact widths takes half as long then."""
SPARE_ROWS = 1
"""exact numerics give the attention two rows at least: one alone takes another kernel. No one reads the second's key"""


class BoundCache(BlockCopies, LayeredCache):
    """A tensor ``(1, heads, rows, size)`` for the keys and one for the values of each layer.

    shapes: heads and size of a head by the name of the input, if the session does not know them. memory: where the
    tensors are, as ONNX Runtime names it.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        binding: Any,
        capacity: int,
        shapes: dict[str, tuple[int, int]] | None = None,
        memory: str = "cpu",
    ) -> None:
        super().__init__(capacity)
        self._binding = binding
        self._memory = memory
        inputs = {port.name: port.shape for port in session.get_inputs() if port.name.startswith("past_key_values.")}
        self._shapes = shapes or {name: (shape[1], shape[3]) for name, shape in inputs.items()}
        self._tensors: dict[str, NDArray[np.float32]] = {}
        self._values: dict[str, OrtValue] = {}  # the same, where the device has memory of its own
        self.rows = 0

    @property
    def nbytes(self) -> int:
        shapes = [array.shape for array in list(self._tensors.values())]
        shapes += [tuple(value.shape()) for value in list(self._values.values())]
        return sum(4 * prod(shape) for shape in shapes)

    def reserve(self, rows: int) -> None:
        """The engine writes where it is told to: never run a forward without this."""
        most = self.capacity + LONGEST_PAD
        assert rows <= most + SPARE_ROWS, "a forward past the context"
        if rows <= self.rows:
            return
        self._grow(min(most + SPARE_ROWS, max(rows, FIRST_ROWS, int(self.rows * GROWTH))))

    def _grow_layers(self, rows: int) -> None:
        """One layer at a time: the peak is one layer's copy, not a second cache. Its keys and values have one size."""
        with wrap_errors(BackendError, "no memory for the KV cache", hint="use a smaller --context-length"):
            for _, names in groupby(self._shapes, lambda name: name.rpartition(".")[0]):
                new: dict[str, NDArray[np.float32]] = {}
                for name in names:
                    heads, size = self._shapes[name]
                    new[name] = self._allocate((1, heads, rows, size), self._held(name))
                if self._memory == "cpu":
                    self._tensors |= new
                else:
                    self._values |= {
                        name: OrtValue.ortvalue_from_numpy(array, self._memory, 0) for name, array in new.items()
                    }
                for name in new:
                    self._bind(name)
        self.rows = rows

    def _bind(self, name: str) -> None:
        """The engine reads and writes what is held."""
        shape: Sequence[int]
        if self._memory == "cpu":
            shape, place = self._tensors[name].shape, self._tensors[name].ctypes.data
        else:
            shape, place = self._values[name].shape(), self._values[name].data_ptr()
        bound = (self._memory, 0, np.float32, shape, place)
        self._binding.bind_input(name, *bound)
        self._binding.bind_output(name.replace("past_key_values", "present"), *bound)

    def _put_back(self) -> bool:
        """All that is held, each layer in the size that it has: the engine takes layers of two sizes."""
        with wrap_errors(BackendError, "cannot put the KV cache back"):
            for name in self._shapes if self.rows else ():
                self._bind(name)
        return self.rows > 0

    def _let_go(self) -> None:
        self._tensors.clear()
        self._values.clear()
        self.rows = 0

    def _held(self, name: str) -> NDArray[np.float32] | None:
        value = self._values.get(name)
        return self._tensors.get(name) if value is None else value.numpy()

    def _allocate(self, shape: tuple[int, ...], old: NDArray[np.float32] | None) -> NDArray[np.float32]:
        new = np.zeros(shape, np.float32)  # zeros: a row nobody wrote must not be a NaN
        if old is not None:
            new[:, :, : self.length] = old[:, :, : self.length]
        return new

    def repeat(self, length: int) -> bool:
        return self.can_copy and self._repeat(length)

    @property
    def can_copy(self) -> bool:
        return self._memory == "cpu"

    def copy_block(self, index: int) -> Block:
        begin = index * self.block_rows
        return [tensor[:, :, begin : begin + self.block_rows].copy() for tensor in self._tensors.values()]

    def _put_block(self, index: int, block: Block) -> None:
        begin = index * self.block_rows
        for tensor, held in zip(self._tensors.values(), block, strict=True):
            rows = min(held.shape[2], self.rows - begin)  # the end of a text: the rest of its block means nothing
            tensor[:, :, begin : begin + rows] = held[:, :, :rows]

    def _move(self, source: int, target: int) -> None:
        for tensor in self._tensors.values():
            tensor[:, :, target] = tensor[:, :, source]


class SessionModel(PaddedModel):
    """What models on ONNX Runtime do alike: a session, a thread to run it beside, places for its outputs.

    path: of a graph with an output ``logits``. layers: whose hidden states it returns too. hint: what to do if the
    engine does not take it. device: of ``providers``, which the installed package has.
    """

    def __init__(
        self,
        path: Path,
        numerics: Numerics,
        prefill_chunk: int,
        *,
        layers: Sequence[int] = (),
        threads: int | None = None,
        hint: str,
        device: str = providers.CPU,
    ) -> None:
        super().__init__(numerics, prefill_chunk)
        self._device = device
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what fails is raised, too
        # Threads that wait for work keep a core busy. Between two forwards it is the other model's turn.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        # Unasked, the engine takes as many, and ties each to a core: a tenth slower.
        options.intra_op_num_threads = self.threads = threads or options.intra_op_num_threads or available_cores()
        if kind := kind_of(device):
            # Each thread but the caller's is tied to a core of this kind. Processors are counted from 1.
            own = kinds()[kind][:threads]
            options.intra_op_num_threads = self.threads = len(own)
            if own[1:]:
                affinities = ";".join(str(processor + 1) for processor in own[1:])
                options.add_session_config_entry("session.intra_op_thread_affinities", affinities)
        with foreign(BackendError, f"cannot load {path}", hint=hint):
            with foreign(NoSuchLayer, f"no hidden states were found in {path}"):
                states = hidden_states.values_of(path, layers) if layers else None
            graph: str | bytes = str(path)
            if states:
                graph = hidden_states.with_outputs(path, states.names.values())
                options.add_session_config_entry(_WEIGHTS_FOLDER, str(path.parent))
            providers.tune(options, device)
            self.session = onnxruntime.InferenceSession(graph, options, providers=providers.session_providers(device))
            providers.require_taken(self.session, device)
            self._binding = self.session.io_binding()
        columns = {port.name: port.shape[-1] for port in self.session.get_outputs() if port.shape}
        self.vocab_size = int(columns["logits"])
        self._logits = OutputRows(self._binding, "logits", self.vocab_size)
        self._states: dict[int, OutputRows] = {}
        if states:
            require_width({layer: columns.get(name) for layer, name in states.names.items()}, states.columns)
            for layer, name in states.names.items():
                self._states[layer] = OutputRows(self._binding, name, states.columns)
        self.state_sizes = dict.fromkeys(states.names, states.columns) if states else {}
        self._thread: ThreadPoolExecutor | None = None
        self._running: Future[None] | None = None

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            tree=False,
            hidden=tuple(self._states),
            min_width=self.min_width,
            max_width=self.max_width,
            asynchronous=True,
            numerics=self.numerics,
            compute_precision="f32",
            device=self._device,
            backend="onnxruntime",
        )

    def ready(self) -> bool:
        return self._running is None or self._running.done()

    def _infer(self) -> None:
        self.session.run_with_iobinding(self._binding)

    def _start(self) -> None:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "onnxruntime")
        self._running = self._thread.submit(self._infer)

    def _wait(self) -> None:
        if self._thread is not None:
            # Behind everything that was begun, also what an interrupted ``start`` has no name for.
            self._thread.submit(int).result()
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def _reserve_outputs(self, logit_rows: int, rows: int) -> None:
        self._logits.reserve(logit_rows)
        for states in self._states.values():
            states.reserve(rows)

    def _hidden(self, forward: Forward) -> Hidden:
        """Of the rows that are no pads. Views."""
        rows = forward.prompt_rows + len(forward.tokens)
        return {layer: states.array[:rows] for layer, states in self._states.items()}


class OnnxRuntimeModel(SessionModel):
    """See ``protocols.Model``. Not thread-safe; one text at a time.

    folder: what ``onnx.graph.write_onnx`` wrote. layers: whose hidden states it returns (see ``types.Hidden``). cpu:
    its name, for the fingerprint. data: files with its weights. hint: what to do if the engine does not take it.
    device: of ``providers``.
    """

    cache: BoundCache

    def __init__(
        self,
        folder: Path,
        numerics: Numerics,
        *,
        capacity: int,
        layers: tuple[int, ...] = (),
        threads: int | None = None,
        cpu: str = "",
        file: str = MODEL_FILE,
        data: Sequence[Path] = (),
        hint: str = "delete that folder; it is made again",
        device: str = providers.CPU,
    ) -> None:
        path = folder / file
        weights = data or (folder / WEIGHTS_FILE,)
        with foreign(BackendError, f"cannot load {path}", hint=hint):
            self.weights_bytes = sum(held.stat().st_size for held in weights)
        chunk = _LARGE_CHUNK if self.weights_bytes > _LARGE_BYTES else 256
        chunk = chunk if numerics == "exact" else 512
        super().__init__(path, numerics, chunk, layers=layers, threads=threads, hint=hint, device=device)
        self.folder = folder
        with foreign(BackendError, f"cannot load {path}", hint=hint):
            self._rotary = RotaryTables(folder, self.session, self._binding)
            contents = [files.sha256(held) for held in (path, *weights)]
        identity = (cache.VERSIONS["onnx_form"], onnxruntime.__version__, *contents, cpu)
        elsewhere = [device] if device != providers.CPU else []
        self.fingerprint = fingerprint([*identity, self.threads, *layers, *elsewhere])
        memory = providers.PROVIDERS[device.split(".")[0]].memory
        self.cache = BoundCache(self.session, self._binding, capacity, memory=memory)
        self._inputs = inputs_of(self.session, self._binding)
        self._width_given = -1  # that ``attention_rows`` and ``own_rows`` hold
        self.least_attended = 1 + SPARE_ROWS if numerics == "exact" else 1
        """rows that the attention is given at least"""

    def _set_inputs(self, tokens: Sequence[int], past: int, rows: Sequence[int], tree: Tree | None) -> None:
        assert tree is None, "this model takes no trees"
        n = len(tokens)
        attended = max(n, self.least_attended)
        total = past + attended
        self.cache.reserve(total)
        self._rotary.reserve(total, self.cache.capacity + LONGEST_PAD + SPARE_ROWS)
        self._inputs.set("input_ids", (1, n), tokens)
        self._inputs.set("logits_rows", (len(rows),), rows)
        self._inputs.set("seqlens_k", (1,), total - 1)
        self._inputs.set("total_sequence_length", (), total)
        if self._width_given != n:
            self._width_given = -1
            self._inputs.set("attention_rows", (attended,), np.minimum(np.arange(attended), n - 1))
            self._inputs.set("own_rows", (n,), np.arange(n))
            self._width_given = n
        self._reserve_outputs(len(rows), n)

    def _step(self, forward: Forward) -> Step:
        logits = self._logits.array[: forward.num_logits]
        return Step(logits, self._hidden(forward), forward.width, forward.prompt_rows)


def inputs_of(session: onnxruntime.InferenceSession, binding: Any) -> Inputs[OrtValue]:
    """All but the KV cache, which is in floating point."""
    kinds = {port.name: _KINDS[port.type] for port in session.get_inputs() if port.type in _KINDS}
    return Inputs(kinds, OrtValue.ortvalue_from_numpy, binding.bind_ortvalue_input)
