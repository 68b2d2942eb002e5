"""Plain against speculative decoding on the prompts shipped beside this file: same tokens, how much less time?"""

from __future__ import annotations

from collections import defaultdict
from statistics import median

from edgespec.bench.prompts import Prompt, encode, read
from edgespec.bench.report import show
from edgespec.drafters.base import NoDrafter
from edgespec.pipeline import Generation, Pipeline


def bench_speed(pipeline: Pipeline, *, new_tokens: int = 96, pairs: int = 3) -> None:
    """Per prompt: plain and speculative in turns, ``pairs`` times; the ratio is the median of the pairs' ratios."""
    ratios: dict[str, list[float]] = defaultdict(list)
    efficiency: dict[str, list[float]] = defaultdict(list)
    acceptance: dict[str, list[float]] = defaultdict(list)
    same = total = 0
    for prompt in read():
        kind = prompt.category
        pair_ratios = []
        for _ in range(pairs):
            plain = _run(pipeline, prompt, new_tokens, speculative=False)
            drafted = _run(pipeline, prompt, new_tokens, speculative=True)
            pair_ratios.append(plain.stats.decode_s / drafted.stats.decode_s)
        ratios[kind].append(median(pair_ratios))
        efficiency[kind].append(drafted.stats.block_efficiency or 1.0)
        acceptance[kind].append(drafted.stats.acceptance_rate or 0.0)
        same += plain.token_ids == drafted.token_ids
        total += 1
    rows = []
    figures = {}
    for kind, values in ratios.items():
        mean = sum(values) / len(values)
        be = sum(efficiency[kind]) / len(values)
        rate = sum(acceptance[kind]) / len(values)
        rows.append((kind, mean, be, rate))
        figures[kind] = {"speed_up": mean, "block_efficiency": be, "acceptance_rate": rate}
    show(
        f"speed, {pipeline.drafter.name} drafts against none",
        ["prompts", "speed-up of decoding", "tokens per forward", "drafts accepted"],
        rows,
        figures | {"same_tokens": f"{same} of {total}", "new_tokens": new_tokens, "pairs": pairs},
    )


def _run(pipeline: Pipeline, prompt: Prompt, new_tokens: int, *, speculative: bool) -> Generation:
    drafter = None if speculative else NoDrafter()
    pipeline.drafter.reset()  # the prompt was answered in another turn: nobody may remember it
    return pipeline.generate(encode(pipeline, prompt), max_new_tokens=new_tokens, drafter=drafter)
