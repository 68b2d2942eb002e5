"""The simulator against runs on this machine: measured forwards and acceptance in, the speed-up by drafts out.

Plain decoding shows how fast the machine is now, beside the time when its forwards were measured. So of runs with
drafts the speed-up over plain decoding is compared. Under the overlapped schedule both models share a memory bus. So
there it is measured what they take alone, and beside each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import mean, median
from typing import Any, cast, get_args

from edgespec.adaptive.draft_cost import DraftCost
from edgespec.adaptive.forward_cost import ForwardCost
from edgespec.backends.cores import available_cores
from edgespec.bench import beside
from edgespec.bench.prompts import Prompt, encode, read, read_before
from edgespec.decode.overlapped import LEAST_CHANCE, LEAST_SHARE, MOST
from edgespec.decode.policy import FixedLength, Plain
from edgespec.errors import SettingError
from edgespec.pipeline import Pipeline
from edgespec.protocols import StepwiseDrafter
from edgespec.simulate.cases import chance_of
from edgespec.simulate.forwards import Forward
from edgespec.simulate.schedules import Placed, simulate
from edgespec.stats import Stats
from edgespec.types import Backend, Round, Schedule

WITHIN = 0.10
"""of the measured speed-up"""
_TURNS = 3
_TOKENS = 2000
"""simulated"""


@dataclass(frozen=True)
class Compared:
    """Decoding with k drafted tokens a round, overlapped at most; k 0: without drafts. measured, simulated: tokens a
    second."""

    engine: str
    schedule: Schedule
    drafter: str
    k: int
    acceptance_rate: float
    measured: float
    simulated: float
    plain: Compared | None = None

    @property
    def off(self) -> float:
        """Share by which the simulated speed-up is too high, or too low if negative. Of plain decoding: the speed."""
        pace = self.plain.measured / self.plain.simulated if self.plain is not None else 1.0
        return self.simulated * pace / self.measured - 1

    @property
    def holds(self) -> bool | None:
        """None: of plain decoding, which gives the pace."""
        return None if self.plain is None else abs(self.off) <= WITHIN

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        names = ("engine", "schedule", "drafter", "k", "acceptance_rate", "measured", "simulated", "off", "holds")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class _Costs:
    """A model whose forwards were measured."""

    costs: ForwardCost | DraftCost

    def __call__(self, width: int, context: int) -> Forward:
        return Forward(self.costs.seconds(width, context))


def compare_on_each_engine(ref: str, ks: tuple[int, ...] = (1, 2, 3)) -> list[Compared]:
    """Loads the pair on one engine after another, for each schedule that it can take."""
    from edgespec.loading import load

    found = []
    for backend in get_args(Backend):
        pipeline = load(ref, backend=backend, schedule="synchronous", progress=True)
        found += compare_here(pipeline, ks)
        overlaps = pipeline.draft_model is not None and available_cores() > 1
        del pipeline  # two at once may not fit
        if overlaps:
            found += compare_overlapped(load(ref, backend=backend, schedule="overlapped", progress=True))
    return found


def compare_here(pipeline: Pipeline, ks: tuple[int, ...], *, new_tokens: int = 64) -> list[Compared]:
    """Plain decoding, and each number of drafted tokens, on one prompt of each category. Of a pipeline that knows its
    costs."""
    arbiter = pipeline.arbiter
    if arbiter is None:
        raise SettingError("the costs of this pair were not measured", hint="load it without -k, and with a draft")
    target_s, draft_s, model = arbiter.target_s.fresh(), arbiter.draft_s, arbiter.model
    target = Placed("target", _Costs(target_s))

    def compared(k: int) -> Compared:
        draft = None
        if k and model is not None and draft_s is not None:
            k, fresh = min(k, model.longest or k), draft_s.fresh()
            draft = Placed("draft", _Costs(fresh), fresh.start_s)
        runs = _runs(pipeline, new_tokens, policy=FixedLength(model, k) if draft and model else Plain())
        rounds = _rounds(runs)
        accepted = sum(r.accepted for r in rounds) / max(1, sum(r.proposed for r in rounds))
        acceptance = chance_of(accepted, k) if k else 0.0
        name = model.name if draft and model else "none"
        return _compared(pipeline, runs, name, target, draft, "synchronous", k=k, acceptance=acceptance)

    plain = compared(0)
    return [plain, *(replace(compared(k), plain=plain) for k in (ks if model is not None else ()))]


def compare_overlapped(pipeline: Pipeline, *, new_tokens: int = 64) -> list[Compared]:
    """Plain decoding, and the overlapped schedule, each model on its own cores. Of a pipeline loaded for it."""
    drafter = cast("StepwiseDrafter", pipeline.drafter)  # as this schedule has
    paces = beside.measure(pipeline.target, drafter, encode(pipeline, read(per_category=1)[0]), 1 + MOST)
    target, draft = Placed("target", paces.target), Placed("draft", paces.draft)
    runs = _runs(pipeline, new_tokens, policy=Plain())
    plain = _compared(pipeline, runs, "none", target, None, "overlapped", k=0, acceptance=0.0)
    runs = _runs(pipeline, new_tokens)
    rounds = _rounds(runs)
    accepted, missed = sum(r.accepted for r in rounds), sum(r.accepted < r.proposed for r in rounds)
    found = _compared(
        pipeline, runs, drafter.name, target, draft, "overlapped",
        k=MOST, acceptance=accepted / max(1, accepted + missed), bus_gb_per_s=paces.bus,
        least_share=LEAST_SHARE, least_chance=LEAST_CHANCE,
    )  # fmt: skip
    return [plain, replace(found, plain=plain)]


def _compared(
    pipeline: Pipeline,
    runs: Sequence[Stats],
    drafter: str,
    target: Placed,
    draft: Placed | None,
    schedule: Schedule,
    *,
    k: int,
    bus_gb_per_s: float = 1.0,
    **how: Any,
) -> Compared:
    rounds = _rounds(runs)
    run = simulate(
        schedule,
        target,
        draft,
        k=k,
        context=round(mean(stats.prompt_tokens + stats.committed / 2 for stats in runs)),
        tokens=_TOKENS,
        bus_gb_per_s=bus_gb_per_s,
        host_s=median(round_.host_s for round_ in rounds),
        **how,
    )
    proposed = sum(round_.proposed for round_ in rounds)
    seconds = sum(round_.draft_s + round_.target_s + round_.host_s for round_ in rounds)
    return Compared(
        pipeline.target.capabilities.backend,
        schedule,
        drafter,
        k,
        sum(round_.accepted for round_ in rounds) / proposed if proposed else 0.0,
        sum(round_.committed for round_ in rounds) / seconds,
        run.tok_per_s,
    )


def _rounds(runs: Sequence[Stats]) -> list[Round]:
    """But the first of each overlapped text, if it has more: in that one the draft model reads the prompt."""
    return [
        round_
        for stats in runs
        for round_ in stats.decoding[stats.schedule == "overlapped" and len(stats.decoding) > 1 :]
    ]


def _runs(pipeline: Pipeline, new_tokens: int, **how: Any) -> list[Stats]:
    """Of one prompt of each category. how: what ``generate`` is asked for."""
    return [_fastest(pipeline, prompt, new_tokens, **how) for prompt in read(per_category=1)]


def _fastest(pipeline: Pipeline, prompt: Prompt, new_tokens: int, **how: Any) -> Stats:
    """Of some runs, the one that other programs disturbed least."""
    runs = []
    for _ in range(_TURNS):
        ids = read_before(pipeline, encode(pipeline, prompt))
        runs.append(pipeline.generate(ids, max_new_tokens=new_tokens, **how).stats)
    return min(runs, key=lambda stats: stats.decode_s / stats.decoded)
