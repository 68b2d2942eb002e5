"""``edgespec train evaluate``: the worth of a draft. Per category: acceptance, block efficiency, speed-up.

The target generates its texts once. Then the real loop and the real drafter run over them, with a replay in the
target's place that costs no forward. Greedy rounds are those of the target itself. So are sampled rounds, since both
sides draw with the same keyed noise. Speed-up is measured with the target: plain and speculative decoding in turns.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median

import numpy as np

from edgespec import Pipeline
from edgespec.backends.fake import FakeModel
from edgespec.bench.prompts import Prompt, encode
from edgespec.decode.policy import FixedLength, Plain
from edgespec.decode.speculative import speculative
from edgespec.protocols import Drafter
from edgespec.sampling_params import SamplingParams
from edgespec.stats import Stats
from edgespec.types import Logits, Round

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
        shares = []
        for place in range(self.k):
            reached = [r for r in self.rounds if r.accepted >= place and r.proposed > place]
            shares.append(sum(r.accepted > place for r in reached) / len(reached) if reached else 0.0)
        return shares

    def mbsu(self, cost: float) -> float:
        """Memory-bound speed-up (FastDraft, arXiv 2411.11055): block efficiency over 1 + k c. cost: c, bytes of the
        draft over bytes of the target."""
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


def replay(
    drafter: Drafter,
    texts: Iterable[GeneratedText],
    sampling: SamplingParams,
    k: int,
    vocab_size: int,
    stop: Collection[int] = (),
) -> dict[str, Rounds]:
    """Per category, the rounds that ``drafter`` would have had with the target that generated these texts.

    stop: tokens that end a text. The loop drafts beyond them, since it does not know the end.
    """
    found: dict[str, Rounds] = {}
    for text in texts:
        whole = (*text.prompt, *text.tokens)
        room = k + 1 if text.tokens[-1] in stop else 0
        target = FakeModel(_recorded(whole, vocab_size), vocab_size, capacity=len(whole) + room, max_width=512)
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


def speed_up(
    pipeline: Pipeline, texts: Sequence[GeneratedText], sampling: SamplingParams, k: int, *, pairs: int = 1
) -> dict[str, float]:
    """Per category: median over texts and pairs of plain over speculative decode time per token."""
    ratios: dict[str, list[float]] = {}
    for number, text in enumerate(texts):
        for pair in range(pairs):
            seconds = {}
            for drafted in (False, True) if (number + pair) % 2 else (True, False):
                pipeline.forget()  # drafters must not copy the same text of an earlier run
                pipeline.target.prefill(text.prompt[:-1])  # every round only decodes
                run = pipeline.generate(
                    text.prompt,
                    max_new_tokens=len(text.tokens),
                    sampling=sampling,
                    policy=pipeline.fixed_length(k) if drafted else Plain(),
                )
                seconds[drafted] = run.stats.decode_s / run.stats.decoded
            ratios.setdefault(text.category, []).append(seconds[False] / seconds[True])
    return {category: median(values) for category, values in ratios.items()}


def _recorded(whole: tuple[int, ...], vocab_size: int) -> Callable[[tuple[int, ...]], Logits]:
    """A target that always says the next token of one text. ``-inf`` elsewhere: no noise changes the choice."""

    def table(text: tuple[int, ...]) -> Logits:
        row = np.full(vocab_size, -np.inf, np.float32)
        row[whole[len(text)] if len(text) < len(whole) else 0] = 0.0
        return row

    return table


def merged(parts: Iterable[Rounds], k: int) -> Rounds:
    return Rounds(k, [round_ for part in parts for round_ in part.rounds])
