"""The real loop under a policy against a recording, in virtual time: no model, no waiting, the same figure every time.

The target says what it wrote, the draft model what it said there, and every forward takes what was measured. Lookups,
caches, verification and the policy are the real ones. So a change of the arbiter is judged in seconds, by what it does
to each category, against plain decoding and against each drafter alone at the fixed k that is best for the category.

What a machine does beside that can be had too (``Trouble``). It is the same for every policy, so they stay comparable.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from math import exp

import numpy as np

from edgespec.adaptive.arbiter import Arbiter
from edgespec.adaptive.calibration import ForwardTimes
from edgespec.adaptive.forward_cost import ForwardCost
from edgespec.backends.fake import FakeModel, VirtualClock
from edgespec.bench.report import show
from edgespec.decode.policy import FixedLength, Plain
from edgespec.decode.speculative import speculative
from edgespec.drafters.ngram import NGram
from edgespec.drafters.small_model import SmallModel
from edgespec.drafters.text_pool import Pool
from edgespec.protocols import Drafter, Policy, common_prefix
from edgespec.sampling_params import SamplingParams
from edgespec.stats import Stats
from edgespec.types import Logits
from edgespec_bench.recording import Recorded, Recording

PLAIN, AUTO, FIRST = "plain", "auto", "first text"
_LENGTHS = (1, 2, 3, 4, 6, 8, 12)
_WIDEST = 64
"""tokens of a forward, in a prefill"""
_SLOW_STRETCH_TOKENS = 40
"""a machine that changes its speed is at half of it in every other stretch of so many tokens"""


@dataclass(frozen=True)
class Trouble:
    """What a machine does beside what was measured.

    noise: of each forward. wrong: of each width in the calibration. Both are standard deviations of the time's
    logarithm. slow: in every other stretch of a text the machine is half as fast.
    """

    noise: float = 0.0
    wrong: float = 0.0
    slow: bool = False


QUIET = Trouble()


class Player:
    """A recording on its own machine.

    seed: 0 keeps the order of the texts; others shuffle them, since what is learned of one decides how the next begins.
    """

    def __init__(self, recording: Recording, trouble: Trouble = QUIET, seed: int = 0) -> None:
        self._random = random.Random(seed)
        shuffled = self._random.sample(recording.texts, len(recording.texts))
        self.recording = replace(recording, texts=tuple(shuffled)) if seed else recording
        self.clock = VirtualClock()
        self._trouble = trouble
        self._believed = _misread(recording.target, trouble.wrong, self._random)
        self._text: Recorded = recording.texts[0]
        self._whole: tuple[int, ...] = ()
        self._vocab = 1 + max(
            max((*text.prompt, *text.written, *(token for chain in text.drafts for token in chain.tokens)))
            for text in recording.texts
        )
        self._room = max(len(text.prompt) + len(text.written) for text in recording.texts) + _WIDEST
        self._ran: FakeModel | None = None
        self.target = self._model(self._target_says, recording.target)
        self.draft: SmallModel | None = None
        if recording.draft is not None:
            self.draft = SmallModel(self._model(self._draft_says, recording.draft), self._vocab, name="model")

    def arbiter(self, lookups: Sequence[Drafter], *, model: bool = True) -> Arbiter:
        """With what was measured, and nothing learned."""
        draft, times = self.draft, self.recording.draft
        if not model or draft is None or times is None:
            return Arbiter(lookups, None, target_s=self._target_s())
        return Arbiter(lookups, draft, target_s=self._target_s(), draft_s=ForwardCost(times, pins_width=False))

    def alone(self) -> dict[str, list[Policy]]:
        """Each drafter at fixed lengths; a fixed length is padded to the width that pays."""
        fresh: dict[str, Callable[[], Drafter]] = {NGram.name: NGram, Pool.name: Pool}
        if (draft := self.draft) is not None:
            fresh[draft.name] = lambda: draft
        return {name: [FixedLength(make(), k, self._target_s()) for k in _LENGTHS] for name, make in fresh.items()}

    def policies(self, name: str) -> list[Policy]:
        """What goes by this name."""
        if name == AUTO:
            return [self.arbiter([NGram(), Pool()])]
        return [Plain()] if name == PLAIN else self.alone()[name]

    def play(self, policy: Policy) -> dict[str, float]:
        """Tokens a second by category, of the texts one after the other."""
        seconds: dict[str, float] = defaultdict(float)
        tokens: dict[str, int] = defaultdict(int)
        for text in self.recording.texts:
            stats = self._run(policy, text)
            for name in (text.category, *([FIRST] if text is self.recording.texts[0] else [])):
                seconds[name] += stats.decode_s
                tokens[name] += stats.decoded
        return {name: tokens[name] / seconds[name] for name in seconds}

    def _run(self, policy: Policy, text: Recorded) -> Stats:
        self._text, self._whole = text, text.prompt + text.written
        self.target.cache.reset()
        stats = Stats(clock=self._now)
        context = list(text.prompt)
        budget = len(text.written)
        for _ in speculative(self.target, policy, context, SamplingParams(), stop=(), budget=budget, stats=stats):
            pass
        assert tuple(context) == self._whole, "a replay that wrote another text"
        return stats

    def _now(self) -> float:
        """The loop looks at the clock four times a round, and takes its time between them."""
        self.clock.now_s += self.recording.host_s / 4
        return self.clock.now_s

    def _target_s(self) -> ForwardCost:
        return ForwardCost(self._believed, pins_width=self.recording.exact)

    def _model(self, says: Callable[[tuple[int, ...]], int | tuple[int, float]], times: ForwardTimes) -> FakeModel:
        """Knows what to say on the way of the text, and takes what was measured for a forward."""
        costs = ForwardCost(times, pins_width=False)
        last_width = 0

        def table(seen: tuple[int, ...]) -> Logits:
            said = says(seen)
            token, score = said if isinstance(said, tuple) else (said, 0.999)
            row = np.zeros(self._vocab, np.float32)
            score = min(max(score, 2 / self._vocab), 0.9999)
            row[token] = np.log(score * (self._vocab - 1) / (1 - score))  # of a softmax the share ``score``
            return row

        def forward_s(width: int) -> float:
            nonlocal last_width
            seconds = costs.seconds(width, model.cache.length)
            seconds += times.width_switch_s if width != last_width else 0.0
            seconds += times.cache_refill_s if self._ran is not model else 0.0
            last_width, self._ran = width, model
            return seconds * self._factor()

        model = FakeModel(
            table,
            self._vocab,
            capacity=self._room,
            max_width=_WIDEST,
            tree=False,
            forward_s=forward_s,
            clock=self.clock,
        )
        return model

    def _target_says(self, seen: tuple[int, ...]) -> int:
        n = len(seen)
        return self._whole[n] if n < len(self._whole) and seen == self._whole[:n] else 0

    def _draft_says(self, seen: tuple[int, ...]) -> tuple[int, float]:
        """Behind tokens that were drafted and not written, the chain of the last place on the way goes on."""
        place = min(common_prefix(seen, self._whole), len(self._whole) - 1)
        chain, ahead = self._text.drafts[place - len(self._text.prompt)], len(seen) - place
        return (chain.tokens[ahead], chain.scores[ahead]) if 0 <= ahead < len(chain.tokens) else (0, 0.0)

    def _factor(self) -> float:
        place = self.target.cache.length - len(self._text.prompt)
        slow = 2.0 if self._trouble.slow and place // _SLOW_STRETCH_TOKENS % 2 else 1.0
        return slow * exp(self._random.gauss(0.0, self._trouble.noise))


def _misread(times: ForwardTimes, wrong: float, random_: random.Random) -> ForwardTimes:
    """As a calibration may find it; more tokens never take less, it sees to that."""
    factors = [exp(random_.gauss(0.0, wrong)) for _ in times.widths]
    short, long = (
        tuple(accumulate((seconds * factor for seconds, factor in zip(measured, factors, strict=True)), max))
        for measured in (times.at_short_s, times.at_long_s)
    )
    return replace(times, at_short_s=short, at_long_s=long)


Speeds = dict[str, dict[str, float]]
"""category -> policy -> tokens a second"""


def compare(recording: Recording, trouble: Trouble = QUIET, *, seeds: int = 1) -> Speeds:
    """All policies, in the mean of some seeds; of fixed lengths the best one of each category."""
    found: Speeds = defaultdict(lambda: defaultdict(float))
    for seed in range(seeds):
        for name in [PLAIN, AUTO, *Player(recording).alone()]:
            player = Player(recording, trouble, seed)
            best: dict[str, float] = defaultdict(float)
            for policy in player.policies(name):
                for category, speed in player.play(policy).items():
                    best[category] = max(best[category], speed)
            for category, speed in best.items():
                found[category][name] += speed / seeds
    return found


def gain(speeds: Mapping[str, float]) -> float:
    """Of auto on the best of the others, which is known only afterwards."""
    return speeds[AUTO] / max(speed for name, speed in speeds.items() if name != AUTO)


def bench_replay(recording: Recording, trouble: Trouble, *, seeds: int) -> None:
    """Print a line for each category: speed-ups by policy, and auto by the best of the others."""
    found = compare(recording, trouble, seeds=seeds)
    names = list(found[FIRST])
    ratios = {
        category: {name: speed / speeds[PLAIN] for name, speed in speeds.items()} | {"auto / best": gain(speeds)}
        for category, speeds in found.items()
    }
    rows = [
        (category, found[category][PLAIN], *(of[name] for name in names[1:]), of["auto / best"])
        for category, of in ratios.items()
    ]
    columns = ["texts", "plain tok/s", *names[1:], "auto / best"]
    figures = {"categories": ratios, "seeds": seeds, "recorded_on": recording.machine} | asdict(trouble)
    show(f"replay of {recording.model}", columns, rows, figures)
