"""The simulator against runs on this machine: measured forwards and acceptance in, the speed-up by drafts out.

Forwards and draft steps are timed as the runs have them: behind each other, or beside each other under the overlapped
schedule, with the same threads. Plain decoding takes turns with the runs, and shows how fast the machine is then. So of
runs with drafts the speed-up over plain decoding is compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean, median
from typing import Any, cast, get_args

from edgespec.adaptive.draft_cost import DraftCost
from edgespec.adaptive.forward_cost import ForwardCost
from edgespec.backends.cores import available_cores
from edgespec.bench import beside
from edgespec.bench.prompts import encode, read, read_before
from edgespec.console import note
from edgespec.decode.overlapped import LEAST_CHANCE, LEAST_SHARE, MOST
from edgespec.decode.policy import FixedLength, Plain
from edgespec.errors import SettingError
from edgespec.generation import Generation
from edgespec.pipeline import Pipeline
from edgespec.protocols import HeadDrafter, StepwiseDrafter
from edgespec.sampling_params import SamplingParams
from edgespec.simulate.cases import chance_of
from edgespec.simulate.forwards import Forward
from edgespec.simulate.schedules import Guess, Placed, simulate
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


@dataclass(frozen=True)
class _Run:
    """A text behind a prompt."""

    prompt: Sequence[int]
    found: Generation


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
    model = arbiter.model
    lengths = sorted({min(k, model.longest or k) for k in ks}) if model is not None else []
    ways = {k: {"policy": FixedLength(model, k) if model and k else Plain()} for k in (0, *lengths)}
    alone, target, draft = _costs(pipeline, 1 + max(ways))
    runs = _runs(pipeline, new_tokens, ways)
    plain = _compared(pipeline, runs[0], "none", alone, None, "synchronous", k=0)
    found = [plain]
    for k in lengths:
        assert model is not None
        rounds = _rounds([run.found.stats for run in runs[k]])
        accepted = sum(r.accepted for r in rounds) / max(1, sum(r.proposed for r in rounds))
        chance = chance_of(accepted, k)
        one = _compared(pipeline, runs[k], model.name, target, draft, "synchronous", k=k, acceptance=chance)
        found.append(replace(one, plain=plain))
    return found


def _costs(pipeline: Pipeline, widest: int) -> tuple[Placed, Placed, Placed | None]:
    """The target alone, and target and draft in turns. A head reads the target's states, so its calibration stands in
    for what would be measured here."""
    arbiter = pipeline.arbiter
    assert arbiter is not None
    if arbiter.model is not None and not isinstance(arbiter.model, HeadDrafter):
        paces = beside.measure(pipeline.target, arbiter.model, _text(pipeline), range(1, 1 + widest), at_once=False)
        return (paces.alone, *paces.in_turns)
    target = Placed("target", _Costs(arbiter.target_s.fresh()))
    if arbiter.draft_s is None:
        return target, target, None
    fresh = arbiter.draft_s.fresh()
    return target, target, Placed("draft", _Costs(fresh), fresh.start_s)


def compare_overlapped(pipeline: Pipeline, *, new_tokens: int = 64) -> list[Compared]:
    """Plain decoding, and the overlapped schedule, each model on its own cores. Of a pipeline loaded for it. Empty
    if the draft is too slow for the two to be measured beside each other."""
    drafter = cast("StepwiseDrafter", pipeline.drafter)  # as this schedule has
    target_s = pipeline.target_s.fresh() if pipeline.target_s is not None else None
    widths = _widths(target_s, 1 + MOST)
    paces = beside.measure(pipeline.target, drafter, _text(pipeline), widths, at_once=True)
    if paces.at_once is None:
        note("no overlapped run is simulated: a step of the draft takes longer than most of a forward of the target")
        return []
    runs = _runs(pipeline, new_tokens, {0: {"policy": Plain()}, MOST: {}})
    plain = _compared(pipeline, runs[0], "none", paces.alone, None, "overlapped", k=0)
    guesses = [guess for run in runs[MOST] for guess in _guesses(drafter, run.prompt, run.found.token_ids)]
    found = _compared(
        pipeline, runs[MOST], drafter.name, *paces.at_once, "overlapped",
        k=MOST, guesses=guesses, tokens=len(guesses), bus_gb_per_s=paces.bus, more_s=paces.host_s,
        least_share=LEAST_SHARE, least_chance=LEAST_CHANCE, widths=target_s, switch_s=paces.switch_s,
    )  # fmt: skip
    return [plain, replace(found, plain=plain)]


def _widths(target_s: ForwardCost | None, widest: int) -> list[int]:
    """At which forwards of up to so many tokens run."""
    if target_s is None or not target_s.pins_width:
        return list(range(1, 1 + widest))
    enough = next((width for width in target_s.widths if width >= widest), target_s.widths[-1])
    return [width for width in target_s.widths if width <= enough]


def _guesses(drafter: StepwiseDrafter, prompt: Sequence[int], text: Sequence[int]) -> list[Guess]:
    """What the draft model guesses at each place of a greedy text, if all before it is the text."""
    found = []
    drafter.begin(prompt, SamplingParams())
    for place, token in enumerate(text):
        draft = drafter.propose([*prompt, *text[:place]], 1)
        right = draft.tokens[:1] == (token,)
        found.append(Guess(right, draft.scores[0] if draft.scores else 1.0))
    return found


def _compared(
    pipeline: Pipeline,
    runs: Sequence[_Run],
    drafter: str,
    target: Placed,
    draft: Placed | None,
    schedule: Schedule,
    *,
    k: int,
    tokens: int = _TOKENS,
    bus_gb_per_s: float = 1.0,
    more_s: float = 0.0,
    **how: Any,
) -> Compared:
    """more_s: of a round, what is neither in a model nor counted as the host's."""
    stats = [run.found.stats for run in runs]
    rounds = _rounds(stats)
    run = simulate(
        schedule,
        target,
        draft,
        k=k,
        context=round(mean(each.prompt_tokens + each.committed / 2 for each in stats)),
        tokens=tokens,
        bus_gb_per_s=bus_gb_per_s,
        host_s=median(round_.host_s for round_ in rounds) + more_s,
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


def _text(pipeline: Pipeline) -> list[int]:
    """A prompt to measure behind: of one of each category, the one of middle length."""
    prompts = sorted((encode(pipeline, prompt) for prompt in read(per_category=1)), key=len)
    return prompts[len(prompts) // 2]


def _runs(pipeline: Pipeline, new_tokens: int, ways: Mapping[int, Mapping[str, Any]]) -> dict[int, list[_Run]]:
    """Of one prompt of each category, each way in turns; of some turns the one that other programs disturbed least.
    ways: what ``generate`` is asked for."""
    best: dict[int, list[_Run]] = {way: [] for way in ways}
    for prompt in read(per_category=1):
        ids = encode(pipeline, prompt)
        found: dict[int, list[Generation]] = {way: [] for way in ways}
        for _ in range(_TURNS):
            for way, how in ways.items():
                found[way].append(pipeline.generate(read_before(pipeline, ids), max_new_tokens=new_tokens, **how))
        for way, each in found.items():
            best[way].append(_Run(ids, min(each, key=lambda one: one.stats.decode_s / one.stats.decoded)))
    return best
