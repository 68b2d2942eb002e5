"""Coupled against rejection sampling on the prompts shipped beside this file: drafts accepted, and what it is worth.

The two write different texts, so nothing is compared token by token: counts are summed over all prompts, and times are
per token.
"""

from __future__ import annotations

from statistics import median
from typing import get_args

from edgespec.bench.prompts import encode, read, read_before
from edgespec.bench.report import show
from edgespec.errors import SettingError
from edgespec.pipeline import Pipeline
from edgespec.sampling_params import SamplingParams
from edgespec.stats import Stats
from edgespec.types import Verification

TEMPERATURES = (0.3, 0.7, 1.0)


def bench_verify(pipeline: Pipeline, *, new_tokens: int = 96, pairs: int = 1) -> None:
    """Per temperature and prompt: both rules in turns, ``pairs`` times, each pair with a seed of its own."""
    if pipeline.drafter.name == "none":
        raise SettingError("there is nothing to verify", hint="name a draft (--draft)")
    rules: tuple[Verification, ...] = get_args(Verification)
    rows, figures = [], {}
    for temperature in TEMPERATURES:
        all_runs: dict[str, list[Stats]] = {rule: [] for rule in rules}
        speed_ups = []
        for number, prompt in enumerate(read()):
            for seed in range(pairs):
                seconds = {}
                for rule in rules if (number + seed) % 2 else reversed(rules):
                    stats = pipeline.generate(
                        read_before(pipeline, encode(pipeline, prompt)),
                        max_new_tokens=new_tokens,
                        sampling=SamplingParams(temperature=temperature, verification=rule, seed=seed),
                    ).stats
                    all_runs[rule].append(stats)
                    seconds[rule] = stats.decode_s / stats.decoded
                speed_ups.append(seconds["coupled"] / seconds["rejection"])
        summed = {rule: _sum(all_runs[rule]) for rule in rules}
        speed_up = median(speed_ups)
        figures[str(temperature)] = summed | {"rejection_over_coupled": speed_up}
        for rule in rules:
            ratio = speed_up if rule == "rejection" else ""
            rows.append((f"{temperature:g}", rule, *summed[rule].values(), ratio))
    show(
        f"verify, {pipeline.drafter.name} drafts",
        [
            "temperature",
            "rule",
            "drafts accepted",
            "tokens per forward",
            "tokens a second",
            "speed, rejection / coupled",
        ],
        rows,
        {"temperatures": figures, "new_tokens": new_tokens, "pairs": pairs},
    )


def _sum(runs: list[Stats]) -> dict[str, float]:
    """Over all rounds of all runs."""
    committed = sum(stats.committed for stats in runs)
    return {
        "acceptance_rate": sum(stats.accepted for stats in runs) / max(1, sum(stats.proposed for stats in runs)),
        "block_efficiency": committed / sum(len(stats.rounds) for stats in runs),
        "tok_per_s": sum(stats.decoded for stats in runs) / sum(stats.decode_s for stats in runs),
    }
