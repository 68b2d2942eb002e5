"""A bare loop over the same compiled graph: the ceiling our loop is held against.

The least Python that drives the graph: write the inputs, infer, argmax.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from edgespec.backends.openvino.graph import LOGITS_ROWS
from edgespec.backends.openvino.paged import OpenVINOPagedModel, inputs_of
from edgespec.backends.openvino.runtime import ov
from edgespec.errors import SettingError
from edgespec.protocols import Model

if TYPE_CHECKING:
    from edgespec.backends.onnx.session import SessionModel

BARE_ROWS = 1024


def bare_loop(model: Model, width: int = 1, rows: int = BARE_ROWS, *, alone: bool = False) -> BareLoop:
    """See ``BareLoop``; for this model's engine. alone: the attention gets no second row, whatever the numerics."""
    return _ON_ENGINE[model.capabilities.backend](model, width, rows, alone=alone)


class BareLoop(ABC):
    """Plain decoding with ``width`` rows a forward (1, or the least that exact numerics runs).

    rows: of cache, allocated at once. infer_s: seconds inside the engine since construction.
    """

    def __init__(self, width: int, rows: int) -> None:
        self._width = width
        self.rows = rows + width
        self.infer_s = 0.0

    def run(self, prompt: list[int], new_tokens: int) -> tuple[list[int], float]:
        """Greedy tokens, and the seconds of the decode."""
        self.forward(prompt[:-1], 0, 0)
        width, tokens = self._width, [prompt[-1]]
        began = perf_counter()
        for step in range(new_tokens):
            logits = self.forward([tokens[-1]] + [0] * (width - 1), len(prompt) - 1 + step, width)
            tokens.append(int(logits[0].argmax()))
        return tokens[1:], perf_counter() - began

    @abstractmethod
    def forward(self, tokens: list[int], past: int, wanted: int) -> np.ndarray:
        """Logits of the first ``wanted`` rows, ``(wanted, vocab)``. Rows before ``past`` are whatever they are."""


class _OnOpenVINO(BareLoop):
    def __init__(self, model: OpenVINOPagedModel, width: int, rows: int, *, alone: bool) -> None:
        super().__init__(width, rows)
        self._request = model.compiled.create_infer_request()
        per_block = model.cache.rows_per_block
        for port in model.compiled.inputs:
            if "_cache." in port.get_any_name():
                shape = [-(-self.rows // per_block), *(d.get_length() for d in list(port.partial_shape)[1:])]
                tensor = ov.Tensor(port.element_type, ov.Shape(shape))
                tensor.data[:] = 0
                self._request.set_tensor(port, tensor)
        self._per_block = per_block
        self._inputs = inputs_of(model.compiled, self._request)
        self._inputs.set("qq_bias", (0,), ())
        self._inputs.set("qq_bias_begins", (2,), 0)

    def forward(self, tokens: list[int], past: int, wanted: int) -> np.ndarray:
        n = len(tokens)
        assert past + n <= self.rows, "a forward past the rows of this loop: the engine would not check"
        blocks = -(-(past + n) // self._per_block)
        self._inputs.set("input_ids", (n,), tokens)
        self._inputs.set("position_ids", (n,), np.arange(past, past + n))
        self._inputs.set("max_context_len", (), past + n)
        self._inputs.set("past_lens", (1,), past)
        self._inputs.set("subsequence_begins", (2,), (0, n))
        self._inputs.set("block_indices", (blocks,), np.arange(blocks))
        self._inputs.set("block_indices_begins", (2,), (0, blocks))
        self._inputs.set(LOGITS_ROWS, (wanted,), np.arange(wanted))
        began = perf_counter()
        self._request.infer(share_outputs=True, decode_strings=False)
        self.infer_s += perf_counter() - began
        logits: np.ndarray = self._request.get_tensor("logits").data[:, 0]
        return logits


class _OnONNXRuntime(BareLoop):
    def __init__(self, model: SessionModel, width: int, rows: int, *, alone: bool) -> None:
        from edgespec.backends.onnx.bound_cache import SPARE_ROWS
        from edgespec.backends.onnx.session import OnnxRuntimeModel
        from edgespec.backends.onnx.session import inputs_of as of_onnx_runtime
        from edgespec.backends.onnx.tables import RotaryTables

        if not isinstance(model, OnnxRuntimeModel):
            raise SettingError(
                "there is no bare loop for a graph that another tool wrote",
                got="a ready ONNX model",
                allowed="models that edgespec writes as ONNX, and those on OpenVINO",
                hint="measure it with: edgespec bench speed",
            )
        super().__init__(width, rows)
        self._session, self._vocab_size = model.session, model.vocab_size
        self._least_attended = 1 if alone else model.least_attended
        self._binding = self._session.io_binding()
        self._inputs = of_onnx_runtime(self._session, self._binding)
        self._logits: np.ndarray | None = None
        self._tensors = []
        self._rotary = RotaryTables(model.folder, self._session, self._binding)
        self._rotary.reserve(self.rows + SPARE_ROWS, self.rows + SPARE_ROWS)
        for port in self._session.get_inputs():
            if port.name.startswith("past_key_values."):
                tensor = np.zeros((1, port.shape[1], self.rows + SPARE_ROWS, port.shape[3]), np.float32)
                bound = ("cpu", 0, np.float32, tensor.shape, tensor.ctypes.data)
                self._binding.bind_input(port.name, *bound)
                self._binding.bind_output(port.name.replace("past_key_values", "present"), *bound)
                self._tensors.append(tensor)

    def forward(self, tokens: list[int], past: int, wanted: int) -> np.ndarray:
        n = len(tokens)
        attended = max(n, self._least_attended)
        assert past + n <= self.rows, "a forward past the rows of this loop: the engine would not check"
        self._inputs.set("input_ids", (1, n), tokens)
        self._inputs.set("logits_rows", (wanted,), np.arange(wanted))
        self._inputs.set("attention_rows", (attended,), np.minimum(np.arange(attended), n - 1))
        self._inputs.set("own_rows", (n,), np.arange(n))
        self._inputs.set("seqlens_k", (1,), past + attended - 1)
        self._inputs.set("total_sequence_length", (), past + attended)
        if self._logits is None or wanted != len(self._logits):
            self._logits = np.empty((wanted, self._vocab_size), np.float32)
            shape = (1, *self._logits.shape)
            self._binding.bind_output("logits", "cpu", 0, np.float32, shape, self._logits.ctypes.data)
        began = perf_counter()
        self._session.run_with_iobinding(self._binding)
        self.infer_s += perf_counter() - began
        return self._logits


_ON_ENGINE: dict[str, Callable[..., BareLoop]] = {"openvino": _OnOpenVINO, "onnxruntime": _OnONNXRuntime}
"""by ``Capabilities.backend``"""
