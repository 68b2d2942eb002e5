"""A causal language model on ONNX Runtime, from the graph that ``backends.onnx.graph`` writes. See ``providers`` for
the devices; what is said of kernels is said of those on the CPU.

Where the CPU has no dot products of 8-bit numbers (VNNI), these kernels multiply integers all the same, and OpenVINO's
turn the weights into floating point: a forward of one token takes half the time (docs/log/engines.md).

Keys and values are in a ``BoundCache``. Rolling back is a smaller ``seqlens_k``.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnxruntime import OrtValue

from edgespec import cache, files
from edgespec.backends.cores import available_cores, kind_of, kinds
from edgespec.backends.engine_model import LONGEST_PAD, Forward, PaddedModel, fingerprint
from edgespec.backends.input_buffers import Inputs
from edgespec.backends.layer_states import NoSuchLayer, require_width
from edgespec.backends.onnx import hidden_states, providers
from edgespec.backends.onnx.bound_cache import SPARE_ROWS, BoundCache
from edgespec.backends.onnx.graph import MODEL_FILE, WEIGHTS_FILE
from edgespec.backends.onnx.output_rows import OutputRows
from edgespec.backends.onnx.tables import RotaryTables
from edgespec.errors import BackendError, foreign
from edgespec.protocols import Capabilities
from edgespec.types import Hidden, Numerics, Step, Tree

_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
"""setting of the engine: where the weights are of a graph that is given as bytes"""
_KINDS = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}
_LARGE_BYTES, _LARGE_CHUNK = 500 << 20, 128
"""Weights from which on 128 rows are read as fast, a row, as 256 are: measured with 1.5 billion parameters. The
search for exact widths takes half as long then."""


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
