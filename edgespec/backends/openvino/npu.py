"""A causal language model on an NPU, through the plugin's own path for language models (see ``npu_settings``).

The plugin keeps the rows, each at its own place, and tells what to do from what it is given:

    several tokens from position 0 on      a new prompt: read in chunks; what was held is forgotten
    any other                              a forward behind the rows before its first position; later rows are forgotten
    rows to keep, then the tokens behind   a prompt that goes on (the state ``npuw_stored_tokens_state``)

Three things are not in its documentation. A forward has to mask the rows that it forgets, or they are read. A prompt's
rows reach the graph of forwards with the first of these, which must begin where the prompt ends. And a prompt can only
go on after a forward, from a whole number of chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from edgespec.backends.engine_model import Forward, GrowingCache, fingerprint
from edgespec.backends.input_buffers import Inputs
from edgespec.backends.layer_states import NoSuchLayer
from edgespec.backends.openvino import npu_blobs
from edgespec.backends.openvino import windows as attention_windows
from edgespec.backends.openvino.npu_graph import read_for_npu
from edgespec.backends.openvino.npu_rules import require_weights
from edgespec.backends.openvino.npu_settings import Windows, on_cpu
from edgespec.backends.openvino.request_model import RequestModel
from edgespec.backends.openvino.runtime import ov
from edgespec.errors import BackendError, foreign, wrap_errors
from edgespec.exact_devices import require_exact
from edgespec.protocols import Capabilities, Observe
from edgespec.types import Numerics, Step, Tree

_STEPS_OF_A_CHUNK = 4
"""How many forwards a chunk of a prompt is taken to cost. It computes more, and reads the weights as often."""
_CONTINUES = "NPUW_LLM_CONTINUOUS_PREFILL_SUPPORTED"
_SEVERAL_LENGTHS = "NPUW_LLM_GENERATE_PYRAMID"
_ALIKE = 0.95
"""Correlation of logits that agree, at least. Those of 16 bits are closer by far; those behind wrong rows were off by
more than half of their size."""
_ANY = 0
"""any token id: its row is never read"""
_HALF = 2
"""bytes of a number in the cache"""


class PluginCache(GrowingCache):
    """Rows inside the plugin, which has room for all of them from the start. row_bytes: of one row of all layers."""

    def __init__(self, capacity: int, held: int, row_bytes: int) -> None:
        super().__init__(capacity)
        self._held, self._row_bytes = held, row_bytes

    @property
    def nbytes(self) -> int:
        return self._held * self._row_bytes

    def reserve(self, rows: int) -> None:
        return

    def _move(self, source: int, target: int) -> None:
        raise AssertionError("trees need rows that can move")


class OpenVINONPUModel(RequestModel):
    """See ``protocols.Model``. Not thread-safe; one text at a time. Every forward has the width of its graph.

    graph: of ``xml`` (``read_for_npu``), checked (``require_graph``). compiled: from it, with the properties of
    ``windows``.
    """

    cache: PluginCache

    def __init__(
        self, core: ov.Core, xml: Path, graph: ov.Model, compiled: Any, windows: Windows, capacity: int
    ) -> None:
        super().__init__("fast", windows.forward)
        self.min_width = windows.forward
        self._few = (windows.forward,)
        self._windows = windows
        with foreign(BackendError, f"cannot run {xml} on an NPU", hint="use --device CPU"):
            self._request = compiled.create_infer_request()
            self.vocab_size = compiled.output("logits").partial_shape[-1].get_length()
            self._state = self._request.query_state()[0]
            self.continues = bool(compiled.get_property(_CONTINUES))
            if compiled.get_property(_SEVERAL_LENGTHS):
                raise ValueError("its masks have several lengths, and ours would be written past their end")
            kinds = {port.get_any_name(): port.element_type.to_dtype() for port in compiled.inputs}
            row_bytes = _row_bytes(graph)
        request = self._request
        self._inputs: Inputs[ov.Tensor] = Inputs(
            kinds, lambda array: ov.Tensor(array, shared_memory=True), request.set_tensor
        )
        self._inputs.set("beam_idx", (1,), 0)
        self.cache = PluginCache(min(capacity, windows.prompt), 2 * windows.past, row_bytes)
        self.weights_bytes = xml.with_suffix(".bin").stat().st_size
        self.state_sizes = {}
        self.fingerprint = fingerprint([npu_blobs.name_of(core, xml, windows.properties()), self.continues])
        self._unsettled = 0
        """rows of a prompt that the graph of forwards has not yet"""
        self._chunked = 0
        """rows that were read as a prompt, from the start"""
        self._first = 0  # row of the forward that is the first to get logits
        self._given = 0  # rows of the forward

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            tree=False,
            hidden=(),
            min_width=self.min_width,
            max_width=self.max_width,
            asynchronous=True,
            numerics=self.numerics,
            compute_precision="f32" if on_cpu() else "f16",
            device="NPU",
        )

    def _infer(self) -> None:
        self._kept(super()._infer)

    def _start(self) -> None:
        self._kept(super()._start)

    def _wait(self) -> None:
        self._kept(super()._wait)

    def _kept(self, run: Callable[[], object]) -> None:
        """Run. If it fails, nobody knows what the plugin still holds: the next text is read from its start."""
        try:
            run()
        except BaseException:
            self.cache.reset()
            with suppress(RuntimeError):
                self._state.reset()
            self._unsettled = self._chunked = 0
            raise

    def _set_inputs(self, tokens: Sequence[int], past: int, rows: Sequence[int], tree: Tree | None) -> None:
        assert tree is None, "this model takes no trees"
        if past != self._unsettled and past:
            self._settle()
        self._first, self._given = rows[0] if rows else len(tokens), len(tokens)
        self._tell(tokens, past)
        self._unsettled, self._chunked = (0, min(self._chunked, past)) if past else (len(tokens), len(tokens))

    def _settle(self) -> None:
        """Take the rows of a prompt to the graph of forwards, by a forward behind them."""
        if self._unsettled:
            self._tell([_ANY], self._unsettled)
            with wrap_errors(BackendError, "inference failed"):
                self._kept(self._request.infer)
            self._unsettled = 0

    def _tell(self, tokens: Sequence[int], past: int) -> None:
        """Of a forward. At 0 it is a prompt."""
        n, room = len(tokens), self._windows.past if past else 0
        mask = np.zeros(room + n, np.int64)
        mask[:past] = mask[room:] = 1
        self._give(tokens, past, mask)

    def _give(self, tokens: Sequence[int], past: int, mask: Any) -> None:
        n = len(tokens)
        self._inputs.set("input_ids", (1, n), tokens)
        self._inputs.set("position_ids", (1, n), np.arange(past, past + n))
        self._inputs.set("attention_mask", (1, len(mask)), mask)

    def _read(self, tokens: Sequence[int], begin: int, reserve: int | None, observe: Observe | None) -> None:
        """As a prompt if that costs less than in forwards."""
        chunk, end = self._windows.chunk, min(len(tokens), self._windows.prompt)
        keep = min(begin, self._chunked) // chunk * chunk if self.continues else 0
        forwards, chunks = -(-(end - begin) // self.max_width), -(-(end - keep) // chunk)
        if end > 1 and begin < end and (begin == 0 or forwards > chunks * _STEPS_OF_A_CHUNK):
            began = perf_counter()
            with wrap_errors(BackendError, "inference failed"):
                self._kept(lambda: self._read_prompt(tokens[:end], begin if keep else 0))
            self.infer_s += perf_counter() - began
            self.cache.append(tokens[begin:end])
            if self._progress:
                self._progress(self.cache.length, len(tokens))
            begin = end
        super()._read(tokens, begin, None, observe)

    def _read_prompt(self, tokens: Sequence[int], held: int) -> None:
        """held: how many rows of it are here, of which the plugin says how many it keeps."""
        keep = 0
        if held:
            self._settle()
            self._state.state = ov.Tensor(np.array([held], np.int64))
            keep = int(self._state.state.data[0])
        self._give(tokens[keep:], keep, np.ones(len(tokens), np.int64))
        self._request.infer()
        self._unsettled = self._chunked = len(tokens)

    def _step(self, forward: Forward) -> Step:
        """The plugin aligns the rows of a forward, and the last ones of a prompt, with the end of its logits."""
        rows = self._request.get_tensor("logits").data[0]
        begin = len(rows) - self._given + self._first
        logits = rows[begin : begin + forward.num_logits]
        return Step(logits, {}, forward.width, forward.prompt_rows)


def open_npu(
    core: ov.Core,
    xml: Path,
    device: str,
    *,
    numerics: Numerics | None,
    capacity: int,
    layers: Sequence[int],
    is_draft: bool,
    say: Callable[[str], None],
) -> OpenVINONPUModel:
    """Check a model, compile it (once), open it. Raises SettingError, DeviceError, BackendError."""
    if not is_draft:
        require_exact(numerics, device)
    windows = Windows.of(capacity)
    graph = read_for_npu(core, xml)
    require_graph(graph, xml, layers)
    if capacity > windows.prompt:
        say(f"the context on {device} is {windows.prompt} tokens: its graphs have fixed shapes")
    compiled = npu_blobs.compiled(core, xml, graph, windows.properties(), say)
    model = OpenVINONPUModel(core, xml, graph, compiled, windows, capacity)
    _require_agreement(model, xml)
    return model


def _require_agreement(model: OpenVINONPUModel, xml: Path) -> None:
    """Raises BackendError unless a row has the same logits as the end of a prompt and behind one: the plugin hands the
    rows from one graph to the other, and does so wrongly for states whose names it does not know."""
    text = [(31 * i + i * i) % min(200, model.vocab_size) for i in range(model.max_width)]
    whole = model.forward(text).logits[-1].copy()
    model.cache.reset()
    model.prefill(text[:4])
    with np.errstate(invalid="ignore"):  # wrong ones may be all zero
        alike = float(np.corrcoef(whole, model.forward(text[4:]).logits[-1])[0, 1])
    model.cache.reset()
    if not alike > _ALIKE:
        what = f"the NPU plugin does not run {xml} right: a forward disagrees with a prompt"
        raise BackendError(what, got=f"correlation {alike:.2f}", allowed=f"above {_ALIKE}", hint="use --device CPU")


def require_graph(graph: ov.Model, xml: Path, layers: Sequence[int] = ()) -> None:
    """Raises an EdgespecError for what an NPU does not take."""
    if layers:
        raise NoSuchLayer(
            "an NPU returns no hidden states", got=f"layers {list(layers)}", hint="draft with lookups or a draft model"
        )
    require_weights(graph, xml)
    if attention_windows.named(graph):
        raise BackendError(
            f"rejected tokens cannot be taken back on an NPU in {xml.parent.name}",
            got="attention with a window",
            allowed="attention to all tokens",
            hint="use --device CPU",
        )


def _row_bytes(graph: ov.Model) -> int:
    """Of one row of keys and values, by the states ``(batch, heads, rows, size)``."""
    states = [node for node in graph.get_ordered_ops() if node.get_type_name() == "ReadValue"]
    shapes = [node.get_output_partial_shape(0) for node in states]
    return sum(_HALF * shape[1].get_length() * shape[3].get_length() for shape in shapes)
