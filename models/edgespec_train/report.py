"""What a drafter is worth by category, as papers measure it: the table and JSON line of ``edgespec train evaluate``.

MBSU is the speed that acceptance and the cost of drafting allow where memory decides (FastDraft, arXiv 2411.11055). A
measured speed far below it says that time goes elsewhere.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from edgespec import Pipeline, console
from edgespec.bench import prompts as bench_prompts
from edgespec.bench.prompts import Prompt
from edgespec.bench.report import show
from edgespec.drafters.first_match import FirstMatch
from edgespec.errors import SettingError
from edgespec.sampling_params import SamplingParams
from edgespec_train.corpus import SOURCES
from edgespec_train.evaluate import (
    LENGTHS,
    GeneratedText,
    Rounds,
    Timed,
    generate_texts,
    merged,
    replay,
    states_of,
    timed,
)
from edgespec_train.recorded import held_out_texts, texts_in
from edgespec_train.weights_read import cost_in_bytes

POOR = 0.6
"""measured speed over MBSU, below which something other than memory takes the time"""
ALL = "all"


@dataclass(frozen=True)
class Figures:
    """Of one category at one k. Costs and speeds: None if nothing was timed.

    tokens_per_forward, speed_up: at k; over plain decoding. block_efficiency, speed_up_by_length: at every k that was
    evaluated. cost: c of ``Rounds.mbsu``, in bytes and in time.
    """

    texts: int
    k: int
    acceptance_rate: float
    by_position: list[float]
    tokens_per_forward: float
    block_efficiency: dict[int, float]
    cost_in_bytes: float
    cost_in_time: float | None
    mbsu: float
    mbsu_in_time: float | None
    speed_up: float | None
    speed_up_by_length: dict[int, float]

    @property
    def over_mbsu(self) -> float | None:
        """Measured speed over MBSU in bytes."""
        return None if self.speed_up is None else self.speed_up / self.mbsu


def evaluate_pair(
    pipeline: Pipeline,
    prompts: Path | None,
    *,
    new_tokens: int,
    temperature: float,
    timed: int,
    k: int = 4,
    seed: int = 1,
    per_category: int | None = None,
    recorded: Path | None = None,
    held_out: Path | None = None,
) -> dict[str, Figures]:
    """Print a table with a line for each category, and one line of JSON; returns what is in them.

    k: of the columns that show one. timed: texts of each category that are also decoded with the target in the loop,
    for the speed-up. per_category: prompts of each category to take. recorded: a file that keeps the target's texts.
    held_out: a corpus, whose greedy texts that are not trained on take the place of generated ones.
    """
    sampling = SamplingParams(temperature=temperature, seed=seed if temperature else None)
    require_drafter(pipeline)
    asked = bench_prompts.read(prompts, per_category)
    texts = texts_to_judge(pipeline, asked, sampling, new_tokens, recorded=recorded, held_out=held_out)
    found = figures(pipeline, texts, sampling, k, timed_texts=timed)
    columns = ["category", "texts", "accepted", "at 1, 2, ...", "tokens per forward", "MBSU", "by time"]
    columns += ["speed-up", "over MBSU", "speed-up, k = 1 ... 8"]
    rows = [
        (
            *(name, f.texts, f.acceptance_rate, _list(f.by_position), f.tokens_per_forward, f.mbsu),
            *(_or_dash(f.mbsu_in_time), _or_dash(f.speed_up), marked(f), _list(f.speed_up_by_length.values())),
        )
        for name, f in found.items()
    ]
    drawn = f"T {temperature:g}" if temperature else "greedy"
    costs = f"c {found[ALL].cost_in_bytes:.3f} by bytes, {_or_dash(found[ALL].cost_in_time)} by time"
    title = f"{pipeline.drafter.name} for {pipeline.bundle.name}, {drawn}, k = {k}, {costs}"
    content = {name: asdict(f) | {"over_mbsu": f.over_mbsu} for name, f in found.items()}
    show(title, columns, rows, {"temperature": temperature, "new_tokens": new_tokens, "categories": _rounded(content)})
    if any((f.over_mbsu or 1) < POOR for f in found.values()):
        print(f"! less than {POOR:g} of MBSU: something else than weights takes the time", file=sys.stderr)
    return found


def require_drafter(pipeline: Pipeline) -> None:
    if pipeline.drafter.name == "none":
        raise SettingError("nothing to evaluate: the pair has no drafter", hint="name one with --draft")


def alone(pipeline: Pipeline) -> None:
    """Leave a pipeline its model or head, without the lookups that ``load`` puts beside one."""
    if isinstance(pipeline.drafter, FirstMatch) and pipeline.drafter.last is not None:
        pipeline.drafter = FirstMatch([], pipeline.drafter.last)


def texts_to_judge(
    pipeline: Pipeline,
    prompts: Sequence[Prompt],
    sampling: SamplingParams,
    new_tokens: int,
    *,
    recorded: Path | None = None,
    held_out: Path | None = None,
) -> list[GeneratedText]:
    """What the target answers, or wrote before. Raises SettingError if that is nothing."""
    source: Iterable[GeneratedText]
    if held_out is not None:
        source = _fitting(held_out_texts(held_out, SOURCES), pipeline)
    elif recorded is not None:
        source = texts_in(recorded, pipeline, prompts, sampling, new_tokens)
    else:
        source = generate_texts(pipeline, prompts, sampling, new_tokens)
    texts: list[GeneratedText] = []
    for text in source:
        texts.append(text)
        print(f"\r{len(texts)} texts by the target", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    if not texts and held_out is not None:
        raise SettingError("the corpus has no greedy texts that are not trained on", got=str(held_out))
    if not texts:
        raise SettingError("no prompt leaves room for an answer", got=new_tokens, hint="fewer --new-tokens")
    return texts


def figures(
    pipeline: Pipeline,
    texts: Sequence[GeneratedText],
    sampling: SamplingParams,
    k: int,
    *,
    timed_texts: int,
    lengths: Collection[int] = LENGTHS,
) -> dict[str, Figures]:
    """By category, and of all. The rounds are replayed, or those of the real loop if the target takes part in
    drafting.

    timed_texts: of each category that are timed. lengths: every k to evaluate, k among them.
    """
    assert k in lengths
    drafter = pipeline.drafter
    categories = list(dict.fromkeys(text.category for text in texts))
    few = [text for name in categories for text in [t for t in texts if t.category == name][:timed_texts]]
    found: dict[int, dict[str, Rounds]] = {n: {} for n in lengths}
    times: dict[int, dict[str, Timed]] = {}
    if drafter.needs.extra:
        lengths, times = (k,), {k: timed(pipeline, texts, sampling, k)}
        found[k] = {name: Rounds(k, part.rounds) for name, part in times[k].items()}
    else:
        states = lru_cache(maxsize=1)(lambda text: states_of(pipeline.target, text, drafter.needs.layers))
        for text in texts:  # one after the other: their states take room
            for n in lengths:
                own = replay(drafter, [text], sampling, n, pipeline.target.vocab_size, pipeline.stop_ids, states)
                for name, rounds in own.items():
                    found[n].setdefault(name, Rounds(n)).rounds.extend(rounds.rounds)
        times = {n: timed(pipeline, few, sampling, n) for n in lengths} if few else {}
    bytes_read = cost_in_bytes(pipeline, k)
    return {
        name: _figures(
            {n: found[n][name] if name != ALL else merged(found[n].values(), n) for n in lengths},
            {n: _of(times[n], name) for n in times},
            *(k, bytes_read, sum(name in (t.category, ALL) for t in texts)),
        )
        for name in (*categories, ALL)
    }


def marked(figures: Figures) -> str:
    """Measured speed over MBSU, with a mark where it is poor; "-" if nothing was timed."""
    share = figures.over_mbsu
    return "-" if share is None else f"{share:.2f}{' !' if share < POOR else ''}"


def _figures(parts: dict[int, Rounds], times: dict[int, Timed], k: int, cost: float, texts: int) -> Figures:
    part, clock = parts[k], times.get(k)
    return Figures(
        texts=texts,
        k=k,
        acceptance_rate=part.acceptance_rate,
        by_position=part.by_position,
        tokens_per_forward=part.block_efficiency,
        block_efficiency={n: part.block_efficiency for n, part in parts.items()},
        cost_in_bytes=cost,
        cost_in_time=clock.cost if clock else None,
        mbsu=part.mbsu(cost),
        mbsu_in_time=part.mbsu(clock.cost) if clock else None,
        speed_up=clock.speed_up if clock else None,
        speed_up_by_length={n: times[n].speed_up for n in times},
    )


def _of(times: dict[str, Timed], name: str) -> Timed:
    if name != ALL:
        return times[name]
    parts = times.values()
    return Timed([r for part in parts for r in part.ratios], [c for part in parts for c in part.costs])


def _fitting(texts: Iterable[GeneratedText], pipeline: Pipeline) -> Iterable[GeneratedText]:
    """Those that fit the context. Raises SettingError for ids that the target does not have."""
    for text in texts:
        whole = (*text.prompt, *text.tokens)
        if max(whole) >= pipeline.target.vocab_size:
            allowed = f"0 to {pipeline.target.vocab_size - 1}"
            raise SettingError("the corpus is another target's: token id", got=max(whole), allowed=allowed)
        if len(whole) + max(LENGTHS) < pipeline.target.cache.capacity:
            yield text


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return round(value, 3) if isinstance(value, float) else value


def _or_dash(value: float | None) -> str:
    return "-" if value is None else console.figure(value)


def _list(values: Iterable[float]) -> str:
    return " ".join(f"{value:.2f}" for value in values)
