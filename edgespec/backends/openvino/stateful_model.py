"""A causal language model whose cache is inside the engine, as states: on GPU, or on CPU if asked for.

Rolling back is a shorter list of rows (``engine_states``). Its graph is made in memory from any IR with states
(``stateful_graph``). Numerics are fast only: attention over states sums in another order at other widths, and where
rows that went lie between those that stay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgespec.backends import mapped_weights
from edgespec.backends.engine_model import Forward
from edgespec.backends.openvino.engine_states import EngineStates
from edgespec.backends.openvino.graph import LOGITS_ROWS, hidden_name
from edgespec.backends.openvino.paged import ancestor_mask, fingerprint_of, inputs_of
from edgespec.backends.openvino.request_model import RequestModel
from edgespec.backends.openvino.runtime import ov
from edgespec.backends.openvino.settings import Settings, reported
from edgespec.backends.openvino.stateful_graph import BIAS, HIDDEN, PAST_LEN, stateful_graph
from edgespec.errors import BackendError, foreign, wrap_errors
from edgespec.protocols import Capabilities
from edgespec.types import Step, Tree, tree_depths

_PACKING_FORWARDS = 4
"""the first forwards pack the weights, as in ``paged``"""
_INPUTS = {"input_ids", "attention_mask", "position_ids", "beam_idx", BIAS, PAST_LEN, LOGITS_ROWS}


class OpenVINOStatefulModel(RequestModel):
    """See ``protocols.Model``. Not thread-safe; one text at a time.

    masked: False lets the engine cut its states to the text (see ``stateful_graph``). Graphs with windows are always
    so.
    """

    cache: EngineStates

    def __init__(
        self,
        core: ov.Core,
        xml: Path,
        device: str,
        settings: Settings,
        *,
        capacity: int,
        layers: tuple[int, ...] = (),
        cache_dir: Path | None = None,
        masked: bool = True,
    ) -> None:
        assert settings.numerics == "fast", "exactness is not known to hold over states"
        super().__init__(settings.numerics, settings.prefill_chunk)
        properties = dict(settings.properties)
        if cache_dir is not None:
            properties["CACHE_DIR"] = str(cache_dir)
        graph, masked = stateful_graph(core, xml, layers, rows=capacity, masked=masked)
        bytes_per_row = _bytes_per_row(graph)
        hint = "see: edgespec doctor" if device.startswith("CPU") else "use --device CPU, or see: edgespec doctor"
        with wrap_errors(BackendError, f"cannot compile {xml.name} for {device}", hint=hint):
            self.compiled = core.compile_model(graph, device, properties)
            self._request = self.compiled.create_infer_request()
        self._weights = xml.with_suffix(".bin")
        self._packing = _PACKING_FORWARDS
        mapped_weights.release(self._weights)
        self.weights_bytes = self._weights.stat().st_size
        self._layers = layers
        self._device = device
        with foreign(BackendError, f"cannot run {xml.name}: not a causal language model", hint="export it again"):
            self._compute_precision = reported(self.compiled)["INFERENCE_PRECISION_HINT"]
            form = f"{'masked' if masked else 'cut'} states, heads repeated both ways"
            self.fingerprint = fingerprint_of(core, self.compiled, xml, device, layers, form)
            names = {name for port in self.compiled.inputs for name in port.get_names()}
            if unknown := sorted(names - _INPUTS):
                raise ValueError(f"it takes {unknown[0]}")
            self._inputs = inputs_of(self.compiled, self._request)
            outputs = [port.get_names() for port in self.compiled.outputs]
            self._logits = next(index for index, names in enumerate(outputs) if "logits" in names)
            self.vocab_size = self.compiled.output("logits").partial_shape[-1].get_length()
            states = {layer: self.compiled.output(hidden_name(layer)) for layer in layers}
            self.state_sizes = {layer: port.partial_shape[-1].get_length() for layer, port in states.items()}
        self.cache = EngineStates(self._request, capacity, masked=masked, bytes_per_row=bytes_per_row)

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            tree=self.cache.masked,
            hidden=self._layers,
            min_width=self.min_width,
            max_width=self.max_width,
            asynchronous=True,
            numerics=self.numerics,
            compute_precision=self._compute_precision,
            device=self._device,
        )

    def _infer(self) -> None:
        self._or_forget(super()._infer)

    def _start(self) -> None:
        self._or_forget(super()._start)

    def _wait(self) -> None:
        self._or_forget(super()._wait)

    def _or_forget(self, run: Callable[[], None]) -> None:
        try:
            run()
        except Exception:
            self.cache.forget()
            raise

    def _set_inputs(self, tokens: Sequence[int], past: int, rows: Sequence[int], tree: Tree | None) -> None:
        n = len(tokens)
        places = self.cache.places
        first = self.cache.begin(n)
        positions = np.arange(past, past + n)
        if tree is not None:
            assert self.cache.masked, "trees need a mask of their own"
            depths = tree_depths(tree)
            positions[: len(depths)] = past + np.array(depths)
        self._inputs.set("input_ids", (1, n), [tokens])
        self._inputs.set("position_ids", (1, n), positions)
        self._inputs.set("attention_mask", (1, past + n), 1)
        self._inputs.set("beam_idx", (1,), 0)
        self._inputs.set(PAST_LEN, (1,), past)
        self._inputs.set(LOGITS_ROWS, (len(rows),), rows)
        if self.cache.masked:
            self._inputs.set(BIAS, (1, 1, n, first + n), attention_bias(places, first, n, tree))

    def _step(self, forward: Forward) -> Step:
        if self._packing:
            self._packing -= 1
            mapped_weights.release(self._weights)
        logits = self._request.get_output_tensor(self._logits).data[0, : forward.num_logits]  # (1, rows, vocab), a view
        rows = forward.prompt_rows + len(forward.tokens)
        hidden = {layer: self._request.get_tensor(hidden_name(layer)).data[0, :rows] for layer in self._layers}
        return Step(logits, hidden, forward.width, forward.prompt_rows)


def attention_bias(places: NDArray[np.int64], first: int, n: int, tree: Tree | None) -> NDArray[np.float32]:
    """What n rows see: the text, which is at ``places`` among ``first`` rows, and of themselves those above them.

    >>> (attention_bias(np.array([0, 2]), 3, 2, None) == 0).astype(int).tolist()
    [[1, 0, 1, 1, 0], [1, 0, 1, 1, 1]]
    """
    bias = np.full((n, first + n), HIDDEN, np.float32)
    bias[:, places] = 0
    own = np.tri(n, dtype=bool) if tree is None else ancestor_mask(tree, n).astype(bool)
    bias[:, first:][own] = 0
    return bias


def _bytes_per_row(graph: ov.Model) -> int:
    """Of all states, as they leave the engine. It may keep them shorter."""
    total = 0
    for node in graph.get_ordered_ops():
        if node.get_type_name() == "ReadValue":
            shape, kind = node.output(0).get_partial_shape(), node.output(0).get_element_type()
            sizes: list[Any] = [shape[axis].get_length() for axis in (1, 3) if shape[axis].is_static]
            total += int(np.prod(sizes, initial=1)) * int(kind.size)
    return total
