"""``edgespec train evaluate``: the worth of a draft. Per category: acceptance, block efficiency, speed-up.

The target generates its texts once. Then the real loop and the real drafter run over them, with a replay in the
target's place that costs no forward. Greedy rounds are those of the target itself. So are sampled rounds, since both
sides draw with the same keyed noise. Speed-up is measured with the target: plain and speculative decoding in turns.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

import numpy as np
from numpy.typing import NDArray

from edgespec import Pipeline
from edgespec.backends.fake import FakeModel
from edgespec.bench.prompts import Prompt, encode
from edgespec.decode.policy import FixedLength, Plain
from edgespec.decode.speculative import speculative
from edgespec.protocols import Drafter, Model
from edgespec.sampling_params import SamplingParams
from edgespec.stats import Stats, accepted_by_place
from edgespec.types import Hidden, Logits, Round

LENGTHS = tuple(range(1, 9))
"""every k that is evaluated"""


@dataclass(frozen=True)
class GeneratedText:
    """Token ids of a prompt and of the target's answer."""

    category: str
    prompt: tuple[int, ...]
    tokens: tuple[int, ...]


@dataclass
class Rounds:
    """The rounds of some texts at one k."""

    k: int
    rounds: list[Round] = field(default_factory=list)

    @property
    def block_efficiency(self) -> float:
        """Mean tokens per forward of the target."""
        return sum(r.committed for r in self.rounds) / max(1, len(self.rounds))

    @property
    def acceptance_rate(self) -> float:
        """Accepted over proposed tokens."""
        return sum(r.accepted for r in self.rounds) / max(1, sum(r.proposed for r in self.rounds))

    @property
    def by_position(self) -> list[float]:
        """Of the rounds whose proposals 1 to i-1 were accepted and that had an i-th: share that accepted it."""
        return (accepted_by_place(self.rounds) + [0.0] * self.k)[: self.k]

    def mbsu(self, cost: float) -> float:
        """Memory-bound speed-up (FastDraft, arXiv 2411.11055): block efficiency over 1 + k c. cost: c, what drafting a
        token costs over a step of the target, in bytes that are read or in time."""
        return self.block_efficiency / (1 + self.k * cost)


def generate_texts(
    pipeline: Pipeline, prompts: Iterable[Prompt], sampling: SamplingParams, new_tokens: int
) -> Iterator[GeneratedText]:
    """Generate the target's texts by plain decoding. Prompts that leave no room in the context are skipped."""
    for prompt in prompts:
        ids = tuple(encode(pipeline, prompt))
        if len(ids) + new_tokens > pipeline.target.cache.capacity:
            continue
        text = pipeline.generate(ids, max_new_tokens=new_tokens, sampling=sampling, policy=Plain())
        yield GeneratedText(prompt.category, ids, tuple(text.token_ids))


def states_of(target: Model, text: GeneratedText, layers: Collection[int]) -> dict[int, NDArray[np.float32]]:
    """Of each layer ``(n, d)``: what the target thinks at every token of prompt and answer. Leaves the text in its
    cache."""
    whole = [*text.prompt, *text.tokens]
    rows: dict[int, list[NDArray[np.float32]]] = {layer: [] for layer in layers}

    def keep(start: int, tokens: Sequence[int], hidden: Hidden) -> None:
        for layer, kept in rows.items():
            kept.append(hidden[layer].copy())

    target.cache.crop(0)  # rows that are there already would not be told of
    target.prefill(whole[:-1], observe=keep)
    keep(0, whole, target.forward(whole[-1:], num_logits=0).hidden)  # with the rows that the prefill left to it
    found = {layer: np.concatenate(kept) for layer, kept in rows.items()}
    assert all(len(states) == len(whole) for states in found.values())
    return found


def replay(
    drafter: Drafter,
    texts: Iterable[GeneratedText],
    sampling: SamplingParams,
    k: int,
    vocab_size: int,
    stop: Collection[int] = (),
    states: Callable[[GeneratedText], Mapping[int, NDArray[np.float32]]] | None = None,
) -> dict[str, Rounds]:
    """Per category, the rounds that ``drafter`` would have had with the target that generated these texts.

    stop: tokens that end a text. The loop drafts beyond them, since it does not know the end. states: ``states_of`` a
    text, for a drafter that reads them.
    """
    found: dict[str, Rounds] = {}
    for text in texts:
        whole = (*text.prompt, *text.tokens)
        room = k + 1 if text.tokens[-1] in stop else 0
        hidden = states(text) if states and drafter.needs.layers else {}
        target = FakeModel(
            *(_recorded(whole, vocab_size), vocab_size),
            capacity=len(whole) + room,
            max_width=512,
            layers=tuple(hidden),
            state=_recorded_state(hidden),
        )
        drafter.reset()  # drafters must not copy the same text of another k
        stats = Stats()
        context = list(text.prompt)
        budget = len(text.tokens) + room
        policy = FixedLength(drafter, k)
        loop = speculative(target, policy, context, sampling, stop=stop, budget=budget, stats=stats)
        for _ in loop:
            pass
        assert tuple(context) == whole, "a replay that writes another text"
        found.setdefault(text.category, Rounds(k)).rounds.extend(stats.rounds)
    return found


@dataclass
class Timed:
    """Texts that were decoded with the target in the loop, plainly and with drafts, in turns.

    ratios: plain over speculative decode time per token. costs: seconds to draft a token, over a plain step.
    """

    ratios: list[float] = field(default_factory=list)
    costs: list[float] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)

    @property
    def speed_up(self) -> float:
        return median(self.ratios)

    @property
    def cost(self) -> float:
        return median(self.costs) if self.costs else 0.0


def timed(
    pipeline: Pipeline, texts: Sequence[GeneratedText], sampling: SamplingParams, k: int, *, pairs: int = 1
) -> dict[str, Timed]:
    """Per category; the order of plain and speculative alternates."""
    found: dict[str, Timed] = {}
    for number, text in enumerate(texts):
        for pair in range(pairs):
            runs: dict[bool, Stats] = {}
            for drafted in (False, True) if (number + pair) % 2 else (True, False):
                pipeline.forget()  # drafters must not copy the same text of an earlier run
                pipeline.target.cache.crop(0)  # every round only decodes, and drafters hear of all states
                pipeline.target.prefill(text.prompt[:-1], observe=pipeline.drafter.observe)
                runs[drafted] = pipeline.generate(
                    text.prompt,
                    max_new_tokens=len(text.tokens),
                    sampling=sampling,
                    policy=pipeline.fixed_length(k) if drafted else Plain(),
                ).stats
            step = runs[False].decode_s / runs[False].decoded
            part = found.setdefault(text.category, Timed())
            part.ratios.append(step / (runs[True].decode_s / runs[True].decoded))
            drafting = [r for r in runs[True].rounds if r.proposed]
            if drafting:
                part.costs.append(sum(r.draft_s for r in drafting) / sum(r.proposed for r in drafting) / step)
            part.rounds += runs[True].rounds
    return found


def _recorded(whole: tuple[int, ...], vocab_size: int) -> Callable[[tuple[int, ...]], Logits]:
    """A target that always says the next token of one text. ``-inf`` elsewhere: no noise changes the choice."""

    def table(text: tuple[int, ...]) -> Logits:
        row = np.full(vocab_size, -np.inf, np.float32)
        row[whole[len(text)] if len(text) < len(whole) else 0] = 0.0
        return row

    return table


def _recorded_state(
    states: Mapping[int, NDArray[np.float32]],
) -> Callable[[int, tuple[int, ...]], NDArray[np.float32]]:
    """Of a row that is rejected, or behind the end, it does not matter what it is."""

    def state(layer: int, text: tuple[int, ...]) -> NDArray[np.float32]:
        rows = states[layer]
        found: NDArray[np.float32] = rows[min(len(text), len(rows)) - 1]
        return found

    return state


def merged(parts: Iterable[Rounds], k: int) -> Rounds:
    return Rounds(k, [round_ for part in parts for round_ in part.rounds])
