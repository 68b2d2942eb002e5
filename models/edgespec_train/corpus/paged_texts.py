"""The target on OpenVINO's paged graph, many texts a forward: its best tokens at chosen rows, and its hidden states.

The graph itself finds the best tokens and the log-sum-exp over all of them: no row of full logits leaves the engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgespec.backends.openvino.graph import LOGITS_ROWS, hidden_name, paged_graph
from edgespec.backends.openvino.runtime import ops, ov
from edgespec.backends.openvino.settings import Settings
from edgespec.bundle import Bundle
from edgespec.errors import BackendError, SettingError, wrap_errors
from edgespec.hub.resolve import model_path

TOP = 16
"""log-probabilities kept for each token"""
SAMPLED = 32
"""number of best tokens that one is drawn from"""
BLOCK = 32
"""rows of keys and values that lie together"""
_OUTPUTS = ("best", "ids", "total")


@dataclass(frozen=True)
class Fed:
    """New tokens of one text. past: rows that its cache holds. block: the first of the text's blocks in the cache."""

    tokens: Sequence[int] | NDArray[np.integer]
    past: int
    block: int

    @property
    def blocks(self) -> int:
        return blocks_for(self.past + len(self.tokens))


@dataclass(frozen=True)
class Read:
    """What the target says, r rows of it. Valid until the next forward.

    ids, logprobs: ``(r, SAMPLED)`` the best tokens, best first, at T = 1. hidden: of each layer ``(tokens, d)``, of
    all tokens that were fed.
    """

    ids: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    hidden: Sequence[NDArray[np.float32]]

    def states(self) -> NDArray[np.float16]:
        """``(tokens, layers, d)`` the hidden states, in 16 bits: see ``require_finite``."""
        with np.errstate(over="ignore"):  # what becomes infinite is refused
            return np.stack(self.hidden, 1).astype(np.float16)


def require_finite(states: NDArray[np.float16], layers: Sequence[int], what: str) -> None:
    """Raises BackendError for ``(tokens, layers, d)`` states that 16 bits cannot hold. what: was read."""
    for place, layer in enumerate(layers):
        if not np.isfinite(states[:, place]).all():
            raise BackendError(
                f"hidden states of layer {layer} are no finite numbers in 16 bits",
                got=what,
                hint="choose another layer: --layers",
            )


def blocks_for(rows: int) -> int:
    return -(-rows // BLOCK)


def graph_of(target: Bundle) -> Path:
    """The target's graph. Raises SettingError for a target without one that OpenVINO changes."""
    path = model_path(target, target.manifest.target)
    require_ir(target, path)
    return path


def require_ir(target: Bundle, path: Path) -> None:
    if path.suffix != ".xml":
        what = "a target that is trained for is an OpenVINO IR"
        hint = "export it with --format both or openvino, or name its bundle, its GGUF file or its checkpoint"
        raise SettingError(what, got=f"{path.name} of {target.name}", allowed="an .xml file", hint=hint)


class PagedTexts:
    """Keys and values of ``blocks`` blocks, which the caller gives to texts. layers: whose hidden states it returns."""

    def __init__(self, xml: Path, blocks: int, layers: Sequence[int] = ()) -> None:
        self._layers = tuple(layers)
        core = ov.Core()
        model = _with_top(paged_graph(core, xml, self._layers))
        with wrap_errors(BackendError, "cannot make room for the texts", hint="fewer or shorter texts at a time"):
            # A draft learns the target as it runs by default: in f32 on every CPU.
            compiled = core.compile_model(model, "CPU", Settings.make("CPU", "exact").properties)
            self._request = compiled.create_infer_request()
            self._ports = {port.get_any_name(): port for port in compiled.inputs}
            for name, port in self._ports.items():
                if "_cache." in name:
                    shape = [blocks, *(d.get_length() for d in list(port.partial_shape)[1:])]
                    cache = ov.Tensor(port.element_type, ov.Shape(shape))
                    cache.data[:] = 0
                    self._request.set_tensor(port, cache)
        names = [hidden_name(layer) for layer in self._layers[:1]]
        self.hidden_size = sum(compiled.output(name).get_partial_shape()[-1].get_length() for name in names)

    def read(self, fed: Sequence[Fed], rows: Sequence[int] | NDArray[np.integer]) -> Read:
        """One forward. rows: of all fed tokens, those that say what comes next."""
        counts = np.array([len(part.tokens) for part in fed])
        past = np.array([part.past for part in fed])
        blocks = np.array([part.blocks for part in fed])
        self._set("input_ids", np.concatenate([part.tokens for part in fed]), np.int64)
        positions = [np.arange(p, p + n) for p, n in zip(past, counts, strict=True)]
        self._set("position_ids", np.concatenate(positions), np.int64)
        self._set("past_lens", past, np.int32)
        self._set("subsequence_begins", np.concatenate([[0], np.cumsum(counts)]), np.int32)
        own = [np.arange(part.block, part.block + n) for part, n in zip(fed, blocks, strict=True)]
        self._set("block_indices", np.concatenate(own), np.int32)
        self._set("block_indices_begins", np.concatenate([[0], np.cumsum(blocks)]), np.int32)
        self._set("max_context_len", np.array((past + counts).max()), np.int32)
        self._set("qq_bias", np.zeros(0), np.uint8)
        self._set("qq_bias_begins", np.zeros(len(fed) + 1), np.int32)
        self._set(LOGITS_ROWS, rows, np.int64)
        with wrap_errors(BackendError, "the target cannot read the texts"):
            self._request.infer(share_outputs=True, decode_strings=False)
        best, ids, total = (self._request.get_tensor(name).data for name in _OUTPUTS)
        best, ids = best.reshape(-1, best.shape[-1]), ids.reshape(-1, ids.shape[-1])
        hidden = [self._request.get_tensor(hidden_name(layer)).data[:, 0] for layer in self._layers]
        return Read(ids, best - total.reshape(-1, 1), hidden)

    def _set(self, name: str, values: object, dtype: type[np.generic]) -> None:
        if name in self._ports:
            self._request.set_tensor(self._ports[name], ov.Tensor(np.array(values, dtype)))


def _with_top(model: ov.Model) -> ov.Model:
    """Put the best logits, their ids and the log-sum-exp over all in the place of the logits."""
    result = model.output("logits").get_node()
    logits = result.input_value(0)
    vocab_size = logits.get_partial_shape()[-1].get_length()
    last = ops.constant(np.array([-1]))
    count = ops.constant(np.int64(min(SAMPLED, vocab_size)))
    best = ops.topk(logits, count, -1, "max", "value", index_element_type="i32")
    highest = ops.reduce_max(logits, last, True)
    total = ops.add(ops.log(ops.reduce_sum(ops.exp(ops.subtract(logits, highest)), last, True)), highest)
    results = [ops.result(output) for output in (best.output(0), best.output(1), total)]
    for result_, name in zip(results, _OUTPUTS, strict=True):
        result_.output(0).get_tensor().set_names({name})
    model.add_results(results)
    model.remove_result(result)
    return model
