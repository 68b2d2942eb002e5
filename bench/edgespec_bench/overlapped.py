"""The overlapped schedule (AMUSD, arXiv 2410.17375) against the synchronous one and plain decoding, in turns.

The synchronous loop runs twice: with the threads that the overlapped one gives each model, and with all cores for both.
It drafts with the same model alone, with each of some fixed lengths, of which the best counts. So the schedule is the
only difference. ``auto`` is what a user has without any of this: all drafters, all cores.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import mean, median
from typing import Any

from edgespec.bench.prompts import Prompt, encode, read_before
from edgespec.bench.report import show, show_table
from edgespec.decode.policy import Plain
from edgespec.errors import SettingError
from edgespec.generation import Generation
from edgespec.machine import energy, schedule_choice
from edgespec.machine.schedule_choice import Schedules
from edgespec.pipeline import Pipeline
from edgespec.stats import Stats

PAPER = {"code": (1.57, 1.27), "chat": (1.31, 1.23), "edit": (1.96, 1.37)}
"""over plain decoding and over the synchronous schedule: two GPUs, one model each, by the authors' HumanEval, MT-Bench
and RefactorChat"""


def bench_overlapped(
    beside: Pipeline,
    together: Pipeline | None,
    prompts: Sequence[Prompt],
    *,
    new_tokens: int = 64,
    pairs: int = 3,
    lengths: Sequence[int] = (1, 2, 4),
) -> dict[str, dict[str, float]]:
    """beside: a pair loaded for the overlapped schedule. together: the same for the synchronous one, with all cores.

    Prints the table, and returns its figures by category. Stores which schedule is faster, for the loads to come.
    """
    draft = beside.draft_model
    if beside.schedule != "overlapped" or draft is None:
        raise SettingError("to compare schedules: schedule", got=beside.schedule, allowed="overlapped")
    runs = _runs(beside, together, lengths)
    seen = _measured(runs, prompts, new_tokens, pairs)
    speeds = {kind: _speeds(found, lengths) for kind, found in seen.seconds.items()}
    names = list(dict.fromkeys(name for speed in speeds.values() for name in speed))
    joules = {name: mean(values) for name, values in seen.joules.items()}
    show_table(
        "each way to decode, tokens a second",
        ["", *seen.seconds, "J a token"],
        [
            (name, *(1 / mean(found[name]) for found in seen.seconds.values()), joules.get(name, "not readable"))
            for name in runs
        ],
    )
    figures: dict[str, Any] = dict(speeds)
    show(
        f"overlapped, {beside.drafter.name} drafts: how many times as fast as",
        ["prompts", *names, "paper: over plain", "paper: over synchronous"],
        [(kind, *speed.values(), *PAPER.get(kind, ("", ""))) for kind, speed in speeds.items()],
        figures
        | {"same_tokens": f"{seen.same} of {seen.total}", "guesses_kept": seen.kept, "guesses_stale": seen.stale}
        | {"joules_per_token": joules or None, "new_tokens": new_tokens, "pairs": pairs, "lengths": list(lengths)},
    )
    if together is not None and together.draft_model is not None:
        each_s = {name: mean(mean(found[name]) for found in seen.seconds.values()) for name in ("auto", "overlapped")}
        measured = Schedules(each_s["auto"], each_s["overlapped"])
        schedule_choice.remember(together.target, together.draft_model, measured)
    return speeds


_Run = Callable[[list[int], int], Generation]


@dataclass
class _Seen:
    """seconds: of a token, by category and way to decode: of each prompt the median of its pairs. joules: of a token,
    by way, if they can be read. same: of so many pairs, those whose texts with the threads of ``beside`` are alike."""

    seconds: dict[str, dict[str, list[float]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    joules: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    same: int = 0
    total: int = 0
    kept: int = 0
    stale: int = 0


def _measured(runs: dict[str, tuple[Pipeline, _Run]], prompts: Sequence[Prompt], new_tokens: int, pairs: int) -> _Seen:
    """All ways in turns."""
    seen, beside = _Seen(), runs["overlapped"][0]
    for prompt in prompts:
        found: dict[str, list[float]] = defaultdict(list)
        for _ in range(pairs):
            texts = []
            for name, (pipeline, run) in runs.items():
                ids = read_before(pipeline, encode(pipeline, prompt))
                before = energy.read_joules()
                result = run(ids, new_tokens)
                used = energy.joules_between(before, energy.read_joules())
                if used is not None:
                    seen.joules[name].append(used / result.stats.committed)
                found[name].append(_token_s(result.stats))
                if pipeline is beside:
                    texts.append(result.token_ids)
                if result.stats.guessed is not None:
                    seen.kept += result.stats.guessed.kept
                    seen.stale += result.stats.guessed.stale
            seen.same += all(text == texts[0] for text in texts)
            seen.total += 1
        for name, values in found.items():
            seen.seconds[prompt.category][name].append(median(values))
    return seen


def _token_s(stats: Stats) -> float:
    """Seconds of a token behind a prompt that the target has read. What the draft takes to read it counts too: by the
    synchronous schedule it does so before the first round, and by the overlapped one beside it."""
    return (stats.prefill_s + stats.decode_s) / stats.decoded


def _runs(beside: Pipeline, together: Pipeline | None, lengths: Sequence[int]) -> dict[str, tuple[Pipeline, _Run]]:
    """Of each way to decode: the pipeline and what it is asked for."""

    def of(pipeline: Pipeline, **options: Any) -> tuple[Pipeline, _Run]:
        return pipeline, lambda ids, tokens: pipeline.generate(ids, max_new_tokens=tokens, ignore_eos=True, **options)

    runs = {"plain": of(beside, policy=Plain())}
    model = beside.drafter
    runs |= {f"own cores {k}": of(beside, drafter=model, num_draft_tokens=k) for k in lengths}
    runs["overlapped"] = of(beside)
    if together is not None:
        runs["plain, all cores"] = of(together, policy=Plain())
        runs |= {f"all cores {k}": of(together, num_draft_tokens=k, drafter=_model_of(together)) for k in lengths}
        runs["auto"] = of(together)
    return runs


def _model_of(pipeline: Pipeline) -> Any:
    """The drafter with the draft model, without the lookups."""
    return getattr(pipeline.drafter, "last", pipeline.drafter)


def _speeds(found: dict[str, list[float]], lengths: Sequence[int]) -> dict[str, float]:
    """How many times as fast the overlapped schedule is, over each other way."""

    def over(*names: str) -> float:
        """Over the best of these in all prompts."""
        return max(mean(o / s for s, o in zip(found[name], found["overlapped"], strict=True)) for name in names)

    speeds = {
        "plain, its own cores": 1 / over("plain"),
        "synchronous, own cores each": 1 / over(*(f"own cores {k}" for k in lengths)),
    }
    if "auto" in found:
        speeds |= {
            "plain, all cores": 1 / over("plain, all cores"),
            "synchronous, all cores": 1 / over(*(f"all cores {k}" for k in lengths)),
            "auto, all cores": 1 / over("auto"),
        }
    return speeds
