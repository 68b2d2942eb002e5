"""Generate many texts at a time with the target, on OpenVINO's paged graph, with log-probabilities at each token.

Continuous batching: when a text ends, the next one takes its slot. The new prompt is prefilled in the same forward in
which the other texts decode. A prefix shared with the slot's earlier text is reused. Every generated token comes with
the target's ``TOP`` best log-probabilities (for distillation): there is no second pass over the finished text.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgespec.protocols import common_prefix
from edgespec_train.corpus.paged_texts import BLOCK, TOP, Fed, PagedTexts, blocks_for


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
    states: ``(tokens of prompt and answer, layers, d)``, if asked for.
    """

    job: Job
    tokens: list[int] = field(default_factory=list)
    top_ids: list[NDArray[np.int32]] = field(default_factory=list)
    top_logprobs: list[NDArray[np.float32]] = field(default_factory=list)
    states: NDArray[np.float16] | None = None


@dataclass
class _Slot:
    """A text in progress. ``pending``: tokens that the model has not read. ``length``: rows in its cache. ``states``:
    of these rows. ``ended``: it is whole, and only its last token's states are missing."""

    generated: Generated
    pending: list[int]
    random: np.random.Generator
    length: int
    states: list[NDArray[np.float16]]
    ended: bool = False

    @property
    def read(self) -> list[int]:
        """The token of each row."""
        return [*self.generated.job.prompt, *self.generated.tokens][: self.length]


class Generator:
    """Generates texts. slots: texts in progress at a time. max_length: most tokens of prompt and answer together.
    layers: whose states are kept of every token; the last token of a text is read for them alone."""

    def __init__(
        self,
        xml: Path,
        *,
        eos_token_ids: Sequence[int],
        slots: int = 64,
        max_length: int = 1024,
        layers: Sequence[int] = (),
    ) -> None:
        self._eos = set(eos_token_ids)
        self._blocks = blocks_for(max_length)
        self.max_length = self._blocks * BLOCK
        self._slots: list[_Slot | None] = [None] * slots
        self._rows: list[list[int]] = [[] for _ in range(slots)]  # tokens in the cache of an idle slot
        self._layers = tuple(layers)
        self._states: dict[int, NDArray[np.float16]] = {}  # of these tokens
        self._target = PagedTexts(xml, slots * self._blocks, self._layers)

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
                    slot = self._slots[index] = self._start(jobs.popleft(), index)
            if not any(self._slots):
                return
            for index in self._forward(rows_per_forward):
                finished = self._slots[index]
                assert finished is not None
                self._rows[index], self._slots[index] = finished.read, None
                if self._layers:
                    finished.generated.states = self._states[index] = np.concatenate(finished.states)
                before = len(jobs)
                yield finished.generated
                if len(jobs) > before:
                    self._slots[index] = self._start(jobs.popleft(), index)

    def _start(self, job: Job, index: int) -> _Slot | None:
        if not 0 < len(job.prompt) < self.max_length - job.max_new_tokens:
            return None
        rows = self._rows[index]
        length = min(common_prefix(rows, list(job.prompt)), len(job.prompt) - 1)
        rows.clear()  # the new text overwrites them
        before = self._states.pop(index, None)
        states = [] if before is None else [before[:length]]
        random = np.random.default_rng((job.seed, job.key))
        return _Slot(Generated(job), list(job.prompt[length:]), random, length, states)

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
        ends = np.cumsum([len(tokens) for _, _, tokens in fed])
        read = self._target.read(
            [Fed(tokens, slot.length, index * self._blocks) for index, slot, tokens in fed],
            [end - 1 for end, (_, slot, _) in zip(ends, fed, strict=True) if not slot.pending],
        )
        if self._layers:
            states = read.states()
            for end, (_, slot, tokens) in zip(ends, fed, strict=True):
                slot.states.append(states[end - len(tokens) : end])
        finished: list[int] = []
        row = 0
        for index, slot, tokens in fed:
            slot.length += len(tokens)
            if slot.pending:
                continue
            if slot.ended:
                finished.append(index)
                row += 1
                continue
            ids, logprobs = read.ids[row], read.logprobs[row]
            generated = slot.generated
            token = int(ids[_choose(logprobs, generated.job.temperature, slot.random)])
            generated.tokens.append(token)
            generated.top_ids.append(ids[:TOP].copy())
            generated.top_logprobs.append(logprobs[:TOP].copy())
            slot.pending = [token]
            row += 1
            if token in self._eos or len(generated.tokens) == generated.job.max_new_tokens:
                slot.ended = bool(self._layers)
                if not slot.ended:
                    finished.append(index)
        return finished


def _choose(logprobs: NDArray[np.float32], temperature: float, random: np.random.Generator) -> int:
    """Index of the drawn token among the best ones (sorted), by the Gumbel-max trick."""
    if temperature == 0:
        return 0
    return int(np.argmax(logprobs / temperature + random.gumbel(size=len(logprobs))))
