"""Plain against speculative decoding on the prompts shipped beside this file: same tokens, how much less time?"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass
from statistics import mean, median
from typing import Any

from edgespec.bench.prompts import Prompt, encode, read, read_before
from edgespec.bench.report import show
from edgespec.decode.policy import Plain
from edgespec.generation import Generation
from edgespec.machine.progress_line import ProgressLine
from edgespec.pipeline import Pipeline


@dataclass(frozen=True)
class Speed:
    """Means over the prompts of a category. plain_tok_per_s: of decoding without drafts. idle_row_tok_per_s: what
    guesses in the rows add that a plain step is padded with (see ``stats.IdleRow``); 0 where it is not padded."""

    speed_up: float
    block_efficiency: float
    acceptance_rate: float
    plain_tok_per_s: float
    idle_row_tok_per_s: float


def bench_speed(
    pipeline: Pipeline, *, new_tokens: int = 96, pairs: int = 3, per_category: int | None = None
) -> dict[str, Speed]:
    """Per prompt: plain and speculative in turns, ``pairs`` times; the ratio is the median of the pairs' ratios.

    Prints the table, and returns its figures by category. per_category: take that many prompts of each only.
    """
    ratios: dict[str, list[float]] = defaultdict(list)
    efficiency: dict[str, list[float]] = defaultdict(list)
    acceptance: dict[str, list[float]] = defaultdict(list)
    plain_rates: dict[str, list[float]] = defaultdict(list)
    idle_rates: dict[str, list[float]] = defaultdict(list)
    same = 0
    prompts = read(per_category=per_category)
    those = f"{len(prompts)} prompt{'' if len(prompts) == 1 else 's'}"
    say, what = ProgressLine(True), f"plain and speculative decoding of {those}, {pairs} times each"
    say(what, 0.0)
    for number, prompt in enumerate(prompts):
        kind = prompt.category
        pair_ratios, rates = [], []
        for pair in range(pairs):
            plain = _run(pipeline, prompt, new_tokens, speculative=False)
            drafted = _run(pipeline, prompt, new_tokens, speculative=True)
            plain_s, drafted_s = (run.stats.decode_s / run.stats.decoded for run in (plain, drafted))
            pair_ratios.append(plain_s / drafted_s)
            rates.append(1 / plain_s)
            say(what, (number * pairs + pair + 1) / (len(prompts) * pairs))
        ratios[kind].append(median(pair_ratios))
        plain_rates[kind].append(median(rates))
        efficiency[kind].append(drafted.stats.block_efficiency or 1.0)
        idle = drafted.stats.idle_row
        idle_rates[kind].append(idle.tok_per_s if idle else 0.0)
        acceptance[kind].append(drafted.stats.acceptance_rate or 0.0)
        same += plain.token_ids == drafted.token_ids
    speeds = {
        kind: Speed(
            speed_up=mean(values),
            block_efficiency=mean(efficiency[kind]),
            acceptance_rate=mean(acceptance[kind]),
            plain_tok_per_s=mean(plain_rates[kind]),
            idle_row_tok_per_s=mean(idle_rates[kind]),
        )
        for kind, values in ratios.items()
    }
    rows = [(kind, *asdict(speed).values()) for kind, speed in speeds.items()]
    figures: dict[str, Any] = {kind: asdict(speed) for kind, speed in speeds.items()}
    show(
        f"speed, {pipeline.drafter.name} drafts against none",
        [
            "prompts",
            "speed-up of decoding",
            "tokens per forward",
            "drafts accepted",
            "plain, tokens a second",
            "of the idle row, tokens a second",
        ],
        rows,
        figures | {"same_tokens": f"{same} of {len(prompts)}", "new_tokens": new_tokens, "pairs": pairs},
    )
    return speeds


def _run(pipeline: Pipeline, prompt: Prompt, new_tokens: int, *, speculative: bool) -> Generation:
    ids = read_before(pipeline, encode(pipeline, prompt))
    return pipeline.generate(ids, max_new_tokens=new_tokens, policy=None if speculative else Plain())
