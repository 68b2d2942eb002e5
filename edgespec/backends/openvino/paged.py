"""A causal language model on OpenVINO's PagedAttention graph: CPU, and GPU through the same code.

Rolling back is ``past_lens = smaller``. A tree is an ancestor mask (``qq_bias``). Everything a round sends to the
engine is a few small arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgespec import cache, files
from edgespec.backends import mapped_weights
from edgespec.backends.engine_model import Forward, fingerprint
from edgespec.backends.input_buffers import Inputs
from edgespec.backends.openvino import windows
from edgespec.backends.openvino.blocks import PagedCache
from edgespec.backends.openvino.graph import LOGITS_ROWS, hidden_name, paged_graph
from edgespec.backends.openvino.request_model import RequestModel
from edgespec.backends.openvino.runtime import ov
from edgespec.backends.openvino.settings import NUMERIC, Settings, reported
from edgespec.errors import BackendError, foreign, wrap_errors
from edgespec.protocols import Capabilities
from edgespec.types import Step, Tree, tree_depths

_PACKING_FORWARDS = 4
"""the first forwards pack the weights: of the layers, then of the head, which a prompt's chunks leave out"""


class OpenVINOPagedModel(RequestModel):
    """See ``protocols.Model``. Not thread-safe; one text at a time."""

    cache: PagedCache

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
    ) -> None:
        super().__init__(settings.numerics, settings.prefill_chunk)
        properties = dict(settings.properties)
        if cache_dir is not None:
            properties["CACHE_DIR"] = str(cache_dir)
        graph = paged_graph(core, xml, layers)
        with wrap_errors(BackendError, f"cannot compile {xml.name} for {device}", hint="see: edgespec doctor"):
            self._windows = windows.any_in(graph)
            self.compiled = core.compile_model(graph, device, properties)
            self._request = self.compiled.create_infer_request()
        self._weights = xml.with_suffix(".bin")
        self._packing = _PACKING_FORWARDS  # forwards to come that may read the file
        mapped_weights.release(self._weights)
        self.weights_bytes = self._weights.stat().st_size
        self._layers = layers
        self._blocks = -1  # how many ``block_indices`` holds
        self._branches: tuple[Tree, int] | None = None  # the tree and the rows that ``qq_bias`` holds; ((), 0) is none
        with foreign(BackendError, f"cannot run {xml.name}: not a causal language model", hint="export it again"):
            self._compute_precision = reported(self.compiled)["INFERENCE_PRECISION_HINT"]
            self.fingerprint = fingerprint_of(core, self.compiled, xml, device, layers)
            self._inputs = inputs_of(self.compiled, self._request)
            outputs = [port.get_names() for port in self.compiled.outputs]
            self._logits = next(index for index, names in enumerate(outputs) if "logits" in names)
            self.cache = PagedCache(core, self.compiled, self._request, device, capacity)
            self.vocab_size = self.compiled.output("logits").partial_shape[-1].get_length()
            states = {layer: self.compiled.output(hidden_name(layer)) for layer in layers}
            self.state_sizes = {layer: port.partial_shape[-1].get_length() for layer, port in states.items()}
        self._device = device

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            # A row with gaps before it sums in another order: 1e-3 off, so not exact. And where attention has a window,
            # the engine counts the rows in the gaps, so that ancestors fall out of it.
            tree=self.cache.rows_can_move and self.numerics != "exact" and not self._windows,
            hidden=self._layers,
            min_width=self.min_width,
            max_width=self.max_width,
            asynchronous=True,
            numerics=self.numerics,
            compute_precision=self._compute_precision,
            device=self._device,
        )

    def _set_inputs(self, tokens: Sequence[int], past: int, rows: Sequence[int], tree: Tree | None) -> None:
        n = len(tokens)
        blocks = -(-(past + n) // self.cache.rows_per_block)
        self._inputs.set("input_ids", (n,), tokens)
        self._inputs.set("max_context_len", (), past + n)
        self._inputs.set("past_lens", (1,), past)
        self._inputs.set(LOGITS_ROWS, (len(rows),), rows)
        positions = np.arange(past, past + n)
        if tree is not None:
            depths = tree_depths(tree)
            positions[: len(depths)] = past + np.array(depths)
        self._inputs.set("position_ids", (n,), positions)
        branches = (tree, n) if tree else ((), 0)
        if self._branches != branches:
            self._branches = None
            mask = ancestor_mask(*branches).reshape(-1)
            self._inputs.set("qq_bias", mask.shape, mask)
            self._inputs.set("qq_bias_begins", (2,), (0, len(mask)))
            self._branches = branches
        self._inputs.set("subsequence_begins", (2,), (0, n))
        if self._blocks != blocks:
            self._blocks = -1
            self._inputs.set("block_indices", (blocks,), np.arange(blocks))
            self._inputs.set("block_indices_begins", (2,), (0, blocks))
            self._blocks = blocks

    def _step(self, forward: Forward) -> Step:
        if self._packing:
            self._packing -= 1
            mapped_weights.release(self._weights)
        logits = self._request.get_output_tensor(self._logits).data[: forward.num_logits, 0]  # (rows, 1, vocab), a view
        rows = forward.prompt_rows + len(forward.tokens)
        hidden = {layer: self._request.get_tensor(hidden_name(layer)).data[:rows, 0] for layer in self._layers}
        return Step(logits, hidden, forward.width, forward.prompt_rows)


def inputs_of(compiled: ov.CompiledModel, request: ov.InferRequest) -> Inputs[ov.Tensor]:
    """All but the KV cache."""
    ports = {port.get_any_name(): port for port in compiled.inputs if "_cache." not in port.get_any_name()}
    return Inputs(
        {name: port.element_type.to_dtype() for name, port in ports.items()},
        lambda array: ov.Tensor(array, shared_memory=True),
        lambda name, tensor: request.set_tensor(ports[name], tensor),
    )


def _core_kind(compiled: ov.CompiledModel) -> list[str]:
    """Of a hybrid CPU, if it runs on one kind of its cores."""
    kind = reported(compiled, ("SCHEDULING_CORE_TYPE",)).get("SCHEDULING_CORE_TYPE", "")
    return [] if not kind or "ANY_CORE" in kind else [kind]


def fingerprint_of(
    core: ov.Core, compiled: ov.CompiledModel, xml: Path, device: str, layers: tuple[int, ...] = (), form: str = ""
) -> str:
    """Of a compiled IR (see ``PaddedModel.fingerprint``). form: of its graph, if it is not paged."""
    return fingerprint(
        [
            cache.VERSIONS["paged_graph"],
            files.sha256(xml),
            files.sha256(xml.with_suffix(".bin")),
            core.get_property(device, "FULL_DEVICE_NAME"),
            core.get_versions(device)[device].build_number,
            *reported(compiled, ("INFERENCE_NUM_THREADS", *NUMERIC)).values(),
            *_core_kind(compiled),
            *layers,
            *([form] if form else []),
        ]
    )


def ancestor_mask(tree: Tree, n: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """``mask[i, j]`` = 1 where row i may see row j: itself and its ancestors. Rows past the tree see only themselves.

    >>> ancestor_mask((0, 0, 1), 4).tolist()
    [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 0, 1]]
    """
    mask = np.eye(n, dtype=np.uint8)
    for row, parent in enumerate(tree, 1):
        mask[row] |= mask[parent]
    return mask
