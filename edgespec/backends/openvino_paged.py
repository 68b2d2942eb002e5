"""A causal language model on OpenVINO's PagedAttention graph: CPU, and GPU through the same code.

Rolling back is ``past_lens = smaller``. A tree is an ancestor mask (``qq_bias``). Everything a round sends to the
engine is a few small arrays.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from edgespec.backends.base import Capabilities, Progress, common_prefix
from edgespec.backends.openvino_blocks import LONGEST_PAD, PagedCache
from edgespec.backends.openvino_exact import ExactWidths
from edgespec.backends.openvino_graph import GRAPH_VERSION, HIDDEN, LOGITS_ROWS, Settings, paged_graph
from edgespec.engine import ov
from edgespec.errors import BackendError, ContextFull, mapped
from edgespec.types import Step, Tree, tree_depths

_PAD = 0  # any token id: the row of a pad is never read and never kept


@dataclass(frozen=True, slots=True)
class _Forward:
    """A forward whose inputs are set: what to book when it is done, and how many rows of logits were asked for."""

    past: int
    tokens: tuple[int, ...]
    branched: bool
    num_logits: int


class OpenVINOPagedModel:
    """See ``backends.base.Model``. Not thread-safe; one text at a time."""

    def __init__(
        self,
        core: ov.Core,
        xml: Path,
        device: str,
        settings: Settings,
        *,
        capacity: int,
        hidden: bool = False,
        cache_dir: Path | None = None,
    ) -> None:
        properties = dict(settings.properties)
        if cache_dir is not None:
            properties["CACHE_DIR"] = str(cache_dir)
        graph = paged_graph(core, xml, hidden=hidden)
        with mapped(BackendError, f"cannot compile {xml.name} for {device}", hint="see: edgespec doctor"):
            self.compiled = core.compile_model(graph, device, properties)
            self._request = self.compiled.create_infer_request()
        self.weights_bytes = xml.with_suffix(".bin").stat().st_size
        self._settings = settings
        self._hidden = hidden
        self.fingerprint = _fingerprint(core, self.compiled, xml, device)
        """of model, engine, device and settings: what a measurement of this model depends on"""
        self._ports = {port.get_any_name(): port for port in self.compiled.inputs}
        self.cache = PagedCache(core, self.compiled, self._request, device, capacity)
        self.vocab_size = self.compiled.output("logits").partial_shape[-1].get_length()
        self._device = device
        self.infer_s = 0.0
        """seconds spent inside the engine since construction"""
        self.last_width = 0
        """rows of the last forward, padding included"""
        self.width: Callable[[int, int], int] | None = None
        self._pending: _Forward | None = None
        self._started_s = 0.0
        self._given: dict[str, object] = {}  # key of what each input of the engine holds

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            # A row with gaps before it in its window sums in another order: 1e-3 off, so not exact.
            tree=self.cache.rows_can_move and self._settings.numerics != "exact",
            hidden=self._hidden,
            max_width=self._settings.prefill_chunk,
            asynchronous=True,
            numerics=self._settings.numerics,
            device=self._device,
        )

    @property
    def min_width(self) -> int:
        """Forwards of fewer tokens are padded to this."""
        return self._settings.min_width

    def set_exact_widths(self, widths: ExactWidths) -> None:
        """Keep every forward in the range that is one function; see ``openvino_exact``."""
        self._settings = replace(self._settings, min_width=widths.least, prefill_chunk=widths.most)

    def prefill(self, tokens: Sequence[int], progress: Progress | None = None) -> int:
        if len(tokens) > self.cache.capacity:
            raise ContextFull(
                "prompt is longer than the context", got=f"{len(tokens)} tokens", allowed=f"{self.cache.capacity}"
            )
        self._drain()
        self.cache.settle()
        reused = common_prefix(self.cache.tokens, tokens)
        self.cache.crop(reused)
        self.cache.ensure(min(len(tokens) + self.cache.rows_per_block, self.cache.capacity))
        chunk = self._settings.prefill_chunk
        for begin in range(reused, len(tokens), chunk):
            self.forward(tokens[begin : begin + chunk], num_logits=0)
            if progress:
                progress(self.cache.length, len(tokens))
        return reused

    def forward(self, tokens: Sequence[int], tree: Tree | None = None, num_logits: int | None = None) -> Step:
        forward = self._feed(tokens, tree, num_logits)
        began = perf_counter()
        with mapped(BackendError, "inference failed"):
            self._request.infer(share_outputs=True, decode_strings=False)  # else it copies all logits
        self.infer_s += perf_counter() - began
        return self._result(forward)

    def start(self, tokens: Sequence[int], tree: Tree | None = None, num_logits: int | None = None) -> None:
        self._pending = self._feed(tokens, tree, num_logits)
        self._started_s = perf_counter()
        with mapped(BackendError, "inference failed"):
            self._request.start_async()

    def ready(self) -> bool:
        return bool(self._request.wait_for(0))

    def wait(self) -> Step:
        assert self._pending is not None, "wait without start"
        forward = self._pending
        self._drain()
        self.infer_s += perf_counter() - self._started_s
        return self._result(forward)

    def _drain(self) -> None:
        """Let a forward that was begun come to its end. An interrupted ``wait`` leaves one; its rows are not booked."""
        if self._pending is None:
            return
        try:
            with mapped(BackendError, "inference failed"):
                self._request.wait()
        except BackendError:
            self._pending = None
            raise
        self._pending = None

    def _feed(self, tokens: Sequence[int], tree: Tree | None, num_logits: int | None) -> _Forward:
        """Write the inputs of a forward over ``n`` rows, pad included, behind ``past`` rows."""
        self._drain()
        assert 1 <= len(tokens) <= self._settings.prefill_chunk
        self.cache.settle()
        past, real = self.cache.length, len(tokens)
        n = max(real, self._settings.min_width)
        if self.width is not None and num_logits != 0:
            n = max(real, min(self.width(n, past), self.cache.capacity + LONGEST_PAD - past))
        assert past + real <= self.cache.capacity, "a forward past the context"
        self.cache.ensure(past + n)
        self.last_width = n
        blocks = -(-(past + n) // self.cache.rows_per_block)

        input_ids = np.full(n, _PAD, np.int64)
        input_ids[:real] = tokens
        positions = np.arange(past, past + n, dtype=np.int64)
        if tree is not None:
            positions[:real] = past + np.array(tree_depths(tree))
        mask_size = n * n if tree else 0
        self._set("qq_bias", (tree, mask_size), lambda: ancestor_mask(tree or (), n).reshape(-1)[:mask_size])
        self._set("qq_bias_begins", mask_size, lambda: np.array([0, mask_size], np.int32))
        self._set("input_ids", input_ids.tobytes(), lambda: input_ids)
        self._set("position_ids", positions.tobytes(), lambda: positions)
        self._set("max_context_len", past + n, lambda: np.array(past + n, np.int32))
        self._set("past_lens", past, lambda: np.array([past], np.int32))
        self._set("subsequence_begins", n, lambda: np.array([0, n], np.int32))
        self._set("block_indices", blocks, lambda: np.arange(blocks, dtype=np.int32))
        self._set("block_indices_begins", blocks, lambda: np.array([0, blocks], np.int32))
        first = 0 if num_logits is None else real - num_logits
        # The output head is a matrix product too: it gets as many rows as the rest, or none.
        rows = [*range(first, real), *[real - 1] * (self._settings.min_width - real + first)] if first < real else []
        self._set(LOGITS_ROWS, tuple(rows), lambda: np.array(rows, np.int64))
        return _Forward(past, tuple(tokens), branched=tree is not None, num_logits=real - first)

    def _result(self, forward: _Forward) -> Step:
        assert self.cache.length == forward.past, "the cache was changed while a forward ran"
        self.cache.append(forward.tokens, branched=forward.branched)
        logits = self._request.get_tensor("logits").data  # (rows, 1, vocab), a view
        hidden = self._request.get_tensor(HIDDEN).data if self._hidden else None
        return Step(logits[: forward.num_logits, 0], hidden[: forward.num_logits, 0] if hidden is not None else None)

    def _set(self, name: str, key: object, make: Callable[[], np.ndarray[Any, Any]]) -> None:
        """Give the engine an input, unless the one of this ``key`` is the one it has."""
        if name in self._ports and (name not in self._given or self._given[name] != key):
            self._given.pop(name, None)  # an interrupted set leaves nothing to rely on
            self._request.set_tensor(self._ports[name], ov.Tensor(make()))
            self._given[name] = key


def _fingerprint(core: ov.Core, compiled: ov.CompiledModel, xml: Path, device: str) -> str:
    weights = xml.with_suffix(".bin").stat()
    names = ("INFERENCE_NUM_THREADS", "INFERENCE_PRECISION_HINT", "KV_CACHE_PRECISION")
    identity = [
        GRAPH_VERSION,
        xml.stat().st_size,
        weights.st_size,
        weights.st_mtime_ns,
        core.get_property(device, "FULL_DEVICE_NAME"),
        core.get_versions(device)[device].build_number,
        *(str(compiled.get_property(name)) for name in names if name in compiled.get_property("SUPPORTED_PROPERTIES")),
    ]
    return hashlib.sha256(repr(identity).encode()).hexdigest()[:24]


def ancestor_mask(tree: Tree, n: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """``mask[i, j]`` = 1 where row i may see row j: itself and its ancestors. Rows past the tree see only themselves.

    >>> ancestor_mask((0, 0, 1), 4).tolist()
    [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 0, 1]]
    """
    mask = np.eye(n, dtype=np.uint8)
    for row, parent in enumerate(tree, 1):
        mask[row] |= mask[parent]
    return mask
