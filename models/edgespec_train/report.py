"""What ``edgespec train evaluate`` prints."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from edgespec import Pipeline
from edgespec.bench import prompts as bench_prompts
from edgespec.bench.report import show
from edgespec.errors import SettingError
from edgespec.sampling_params import SamplingParams
from edgespec_train.evaluate import LENGTHS, Rounds, Written, merged, replay, speed_up, write


def evaluate_pair(
    pipeline: Pipeline,
    prompts: Path | None,
    *,
    new_tokens: int,
    temperature: float,
    timed: int,
    k: int = 4,
    seed: int = 1,
) -> None:
    """Print a table with a line for each category, and one line of JSON.

    k: of the columns that show one. timed: texts of each category that are also decoded with the target in the loop,
    for the speed-up.
    """
    assert k in LENGTHS
    sampling = SamplingParams(temperature=temperature, seed=seed if temperature else None)
    if pipeline.drafter.name == "none":
        raise SettingError("nothing to evaluate: the pair has no drafter", hint="name one with --draft")
    texts: list[Written] = []
    for text in write(pipeline, bench_prompts.read(prompts), sampling, new_tokens):
        texts.append(text)
        print(f"\r{len(texts)} texts written by the target", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    if not texts:
        raise SettingError("no prompt leaves room for an answer", got=new_tokens, hint="fewer --new-tokens")
    found = {
        n: replay(pipeline.drafter, texts, sampling, n, pipeline.target.vocab_size, pipeline.stop_ids) for n in LENGTHS
    }
    categories = list(found[k])
    few = [text for name in categories for text in [t for t in texts if t.category == name][:timed]]
    ratios = {n: speed_up(pipeline, few, sampling, n) for n in LENGTHS} if few else {}
    cost = _cost(pipeline)
    figures: dict[str, dict[str, Any]] = {}
    for name in (*categories, "all"):
        parts = {n: found[n][name] if name in found[n] else merged(found[n].values(), n) for n in LENGTHS}
        speeds = {n: ratios[n][name] for n in ratios if name in ratios[n]}
        figures[name] = {"texts": sum(name in (t.category, "all") for t in texts)} | _figures(parts, k, cost, speeds)
    columns = [
        "category",
        "texts",
        "accepted",
        "tokens per forward",
        "MBSU",
        "accepted at 1, 2, ...",
        "speed-up, k = 1 ... 8",
    ]
    rows = [
        (
            name,
            f["texts"],
            f["acceptance_rate"],
            f["block_efficiency"][k - 1],
            f["mbsu"],
            _list(f["by_position"]),
            _list(f["speed_up"]),
        )
        for name, f in figures.items()
    ]
    temperature_text = f"T {temperature:g}" if temperature else "greedy"
    title = f"{pipeline.drafter.name} for {pipeline.bundle.name}, {temperature_text}, k = {k}"
    show(title, columns, rows, {"k": k, "temperature": temperature, "new_tokens": new_tokens, "categories": figures})


def _figures(parts: dict[int, Rounds], k: int, cost: float, speeds: dict[int, float]) -> dict[str, Any]:
    part = parts[k]
    return {
        "acceptance_rate": round(part.acceptance_rate, 3),
        "by_position": [round(share, 3) for share in part.by_position],
        "mbsu": round(part.mbsu(cost), 3),
        "block_efficiency": [round(parts[n].block_efficiency, 3) for n in LENGTHS],
        "speed_up": [round(speed, 3) for speed in speeds.values()],
    }


def _cost(pipeline: Pipeline) -> float:
    """Bytes of the draft's weights over the target's; 0 for a drafter without a model."""
    sizes = [getattr(model, "weights_bytes", 0) for model in (pipeline.draft_model, pipeline.target)]
    return sizes[0] / sizes[1] if all(sizes) else 0.0


def _list(values: list[float]) -> str:
    return " ".join(f"{value:.2f}" for value in values)
