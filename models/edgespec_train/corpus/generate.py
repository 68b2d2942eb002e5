"""Generate many texts at a time with the target, on OpenVINO's paged graph, with log-probabilities at each token.

Continuous batching: when a text ends, the next one takes its slot. The new prompt is prefilled in the same forward in
which the other texts decode. A prefix shared with the slot's earlier text is reused. Every generated token comes with
the target's ``TOP`` best log-probabilities (for distillation). The graph computes them: there is no second pass over
the finished text, and no row of full logits leaves the engine.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgespec.backends.openvino.graph import LOGITS_ROWS, paged_graph
from edgespec.backends.openvino.runtime import ops, ov
from edgespec.backends.openvino.settings import Settings
from edgespec.errors import BackendError, wrap_errors
from edgespec.protocols import common_prefix

TOP = 16
"""log-probabilities kept for each token"""
_SAMPLED = 32
"""number of best tokens that one is drawn from"""
_BLOCK = 32
_OUTPUTS = ("best", "ids", "total")


@dataclass(frozen=True)
class Job:
    """One text to generate. ``temperature`` 0 is greedy. ``key`` comes back with the result."""

    key: int
    prompt: tuple[int, ...]
    max_new_tokens: int
    temperature: float = 0.0
    seed: int = 0


@dataclass
class Generated:
    """A generated text: ``n`` tokens, the end token included if it came.

    top_ids, top_logprobs: ``(n, TOP)``, the target's best tokens at each of the n positions, T = 1.
    """

    job: Job
    tokens: list[int] = field(default_factory=list)
    top_ids: list[NDArray[np.int32]] = field(default_factory=list)
    top_logprobs: list[NDArray[np.float32]] = field(default_factory=list)


@dataclass
class _Slot:
    """A text in progress. ``pending``: tokens that the model has not read. ``length``: rows in its cache."""

    generated: Generated
    pending: list[int]
    random: np.random.Generator
    length: int

    @property
    def read(self) -> list[int]:
        """The token of each row."""
        return [*self.generated.job.prompt, *self.generated.tokens][: self.length]


class Generator:
    """Generates texts. slots: texts in progress at a time. max_length: most tokens of prompt and answer together."""

    def __init__(
        self, xml: Path, *, eos_token_ids: Sequence[int], slots: int = 64, max_length: int = 1024, hidden: bool = False
    ) -> None:
        self._eos = set(eos_token_ids)
        self._blocks = -(-max_length // _BLOCK)
        self.max_length = self._blocks * _BLOCK
        self._slots: list[_Slot | None] = [None] * slots
        self._rows: list[list[int]] = [[] for _ in range(slots)]  # tokens in the cache of an idle slot
        core = ov.Core()
        model = _with_top(paged_graph(core, xml))
        with wrap_errors(BackendError, "cannot make room for the texts", hint="fewer slots or shorter texts"):
            # A draft learns the target as it runs by default: in f32 on every CPU.
            compiled = core.compile_model(model, "CPU", Settings.make("CPU", "exact").properties)
            self._request = compiled.create_infer_request()
            self._ports = {port.get_any_name(): port for port in compiled.inputs}
            for name, port in self._ports.items():
                if "_cache." in name:
                    shape = [slots * self._blocks, *(d.get_length() for d in list(port.partial_shape)[1:])]
                    cache = ov.Tensor(port.element_type, ov.Shape(shape))
                    cache.data[:] = 0
                    self._request.set_tensor(port, cache)

    def generate(self, jobs: deque[Job], *, rows_per_forward: int = 512) -> Iterator[Generated]:
        """Take jobs from the left and yield each text when it ends, in no fixed order. Too long prompts are skipped.

        The caller may add jobs after each text. A job added at the left comes next, in the slot of that text. If its
        prompt continues the text, only the new tokens are read.
        """
        self._slots = [None] * len(self._slots)  # a caller may have abandoned earlier texts,
        self._rows = [[] for _ in self._slots]  # and no text may depend on earlier ones
        while True:
            for index, slot in enumerate(self._slots):
                while slot is None and jobs:
                    slot = self._slots[index] = self._start(jobs.popleft(), self._rows[index])
            if not any(self._slots):
                return
            for index in self._forward(rows_per_forward):
                finished = self._slots[index]
                assert finished is not None
                self._rows[index], self._slots[index] = finished.read, None
                before = len(jobs)
                yield finished.generated
                if len(jobs) > before:
                    self._slots[index] = self._start(jobs.popleft(), self._rows[index])

    def _start(self, job: Job, rows: list[int]) -> _Slot | None:
        """rows: tokens that the slot's cache holds."""
        if not 0 < len(job.prompt) < self.max_length - job.max_new_tokens:
            return None
        length = min(common_prefix(rows, list(job.prompt)), len(job.prompt) - 1)
        rows.clear()  # the new text overwrites them
        return _Slot(Generated(job), list(job.prompt[length:]), np.random.default_rng((job.seed, job.key)), length)

    def _forward(self, rows_left: int) -> list[int]:
        """Run the pending tokens of all texts, up to ``rows_left`` rows; returns the slots that finished."""
        fed: list[tuple[int, _Slot, list[int]]] = []
        rows_left = max(rows_left, len(self._slots))
        waiting = sum(slot is not None for slot in self._slots)
        for index, slot in enumerate(self._slots):
            if slot is None:
                continue
            waiting -= 1
            tokens = slot.pending[: max(rows_left - waiting, 1)]
            slot.pending = slot.pending[len(tokens) :]
            rows_left -= len(tokens)
            fed.append((index, slot, tokens))
        best, ids, total = self._infer(fed)
        finished: list[int] = []
        row = 0
        for index, slot, tokens in fed:
            slot.length += len(tokens)
            if slot.pending:
                continue
            logprobs = best[row] - total[row]
            generated = slot.generated
            token = int(ids[row, _choose(logprobs, generated.job.temperature, slot.random)])
            generated.tokens.append(token)
            generated.top_ids.append(ids[row, :TOP].copy())
            generated.top_logprobs.append(logprobs[:TOP].copy())
            slot.pending = [token]
            row += 1
            if token in self._eos or len(generated.tokens) == generated.job.max_new_tokens:
                finished.append(index)
        return finished

    def _infer(
        self, fed: list[tuple[int, _Slot, list[int]]]
    ) -> tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.float32]]:
        """Logits of the best ``_SAMPLED`` tokens, their ids, and the log-sum-exp over all tokens.

        There is one row for each text without pending tokens.
        """
        counts = np.array([len(tokens) for _, _, tokens in fed])
        past = np.array([slot.length for _, slot, _ in fed])
        blocks = -(-(past + counts) // _BLOCK)
        ends = np.cumsum(counts)
        self._set("input_ids", np.concatenate([tokens for _, _, tokens in fed]), np.int64)
        self._set(
            "position_ids", np.concatenate([np.arange(p, p + n) for p, n in zip(past, counts, strict=True)]), np.int64
        )
        self._set("past_lens", past, np.int32)
        self._set("subsequence_begins", np.concatenate([[0], ends]), np.int32)
        own = [np.arange(n) + index * self._blocks for (index, _, _), n in zip(fed, blocks, strict=True)]
        self._set("block_indices", np.concatenate(own), np.int32)
        self._set("block_indices_begins", np.concatenate([[0], np.cumsum(blocks)]), np.int32)
        self._set("max_context_len", np.array((past + counts).max()), np.int32)
        self._set("qq_bias", np.zeros(0), np.uint8)
        self._set("qq_bias_begins", np.zeros(len(fed) + 1), np.int32)
        self._set(
            LOGITS_ROWS, [end - 1 for end, (_, slot, _) in zip(ends, fed, strict=True) if not slot.pending], np.int64
        )
        self._request.infer(share_outputs=True, decode_strings=False)
        best, ids, total = (self._request.get_tensor(name).data for name in _OUTPUTS)
        return best.reshape(-1, best.shape[-1]), ids.reshape(-1, ids.shape[-1]), total.reshape(-1, 1)

    def _set(self, name: str, values: object, dtype: type[np.generic]) -> None:
        if name in self._ports:
            self._request.set_tensor(self._ports[name], ov.Tensor(np.array(values, dtype)))


def _choose(logprobs: NDArray[np.float32], temperature: float, random: np.random.Generator) -> int:
    """Index of the drawn token among the best ones (sorted), by the Gumbel-max trick."""
    if temperature == 0:
        return 0
    return int(np.argmax(logprobs / temperature + random.gumbel(size=len(logprobs))))


def _with_top(model: ov.Model) -> ov.Model:
    """Put the best logits, their ids and the log-sum-exp over all in the place of the logits."""
    result = model.output("logits").get_node()
    logits = result.input_value(0)
    vocab_size = logits.get_partial_shape()[-1].get_length()
    last = ops.constant(np.array([-1]))
    count = ops.constant(np.int64(min(_SAMPLED, vocab_size)))
    best = ops.topk(logits, count, -1, "max", "value", index_element_type="i32")
    highest = ops.reduce_max(logits, last, True)
    total = ops.add(ops.log(ops.reduce_sum(ops.exp(ops.subtract(logits, highest)), last, True)), highest)
    results = [ops.result(output) for output in (best.output(0), best.output(1), total)]
    for result_, name in zip(results, _OUTPUTS, strict=True):
        result_.output(0).get_tensor().set_names({name})
    model.add_results(results)
    model.remove_result(result)
    return model
