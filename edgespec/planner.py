"""The planner: each plan is loaded and timed beside the first one, and the fastest is taken.

A plan reads a prompt and writes two answers (``plan_trial``). Plans take turns, so a machine that is slow for a while
is so for all: what counts is the ratio. All write the same text, so that all drafts are right as often. First each plan
takes some turns, and is left as soon as it is clearly slower than another. Those that are near the best are timed
together then, in more turns. A plan that cannot be loaded stays in the table, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median
from time import time

from edgespec import cache
from edgespec.backends.cores import available_cores
from edgespec.errors import EdgespecError, SettingError
from edgespec.load_options import LoadOptions
from edgespec.machine import measurement_store, schedule_choice
from edgespec.machine.other_programs import BUSY_CORES, Others, busy
from edgespec.machine.plans import Plan
from edgespec.machine.schedule_choice import Schedules
from edgespec.pipeline import Pipeline
from edgespec.plan_race import in_rounds
from edgespec.plan_rows import SLOWEST_ON_BATTERY, PlanTable, Row, at_one_pace, ranked, ratio_of
from edgespec.plan_trial import Runner, is_behind, ratio_in_turns
from edgespec.types import Prefer

Open = Callable[[Plan], Pipeline]
Say = Callable[[str], None]

_TURNS = 3
"""An odd number, for the median: one disturbed turn decides nothing."""
_NEAR = 1.15
"""of the best plan's time: by three turns, another one of these may be the best"""
_TURN_S, _LONG_TURN_S = 1.0, 2.5
"""How long a turn takes while there are many plans, and when it decides. Answers are repeated until then; if one takes
longer, it is cut while there are many plans."""
_LEAST_OVERLAP = 0.05
"""A draft step of so small a share of a forward leaves nothing to overlap."""
_FAR_BEHIND = 1.5
"""Times as long as the same kind of plan elsewhere took: a target whose plans all did is left. From kind to kind these
ratios of two engines differed by a tenth (docs/log/devices.md), so a half is not made up for. The same holds for
overlapped plans, beside the synchronous one with the same models."""
_ROOM = 2
"""Memory that another plan takes, in sizes of its target's weights"""
_LOOK_S, _AGAIN_S = 0.2, 24 * 3600
"""how long to look for other programs, and when to measure again what they disturbed"""


def plan(
    key: str,
    model: str,
    plans: Sequence[Plan],
    open_plan: Open,
    load: Open,
    run: Open,
    say: Say,
    *,
    prefer: Prefer,
    again: bool = False,
) -> PlanTable:
    """The table of these plans: the stored one, or measured now. Raises the last plan's error if none runs.

    key: a fingerprint of all that it depends on. open_plan: to be left soon, so without long measurements. load: as
    a run does, whose measured costs decide what is drafted. run: of the plan that is taken, last of all. again: measure
    even so.
    """
    file = measurement_store.file_of(f"plans-{cache.VERSIONS['plans']}-{prefer}", key)

    def known() -> PlanTable | None:
        found = measurement_store.read(file, PlanTable)
        if found is None or again:
            return None
        stands = found.other_cores <= BUSY_CORES or time() - file.stat().st_mtime < _AGAIN_S or busy(_LOOK_S)
        return found if stands and found.taken in plans else None

    def find() -> PlanTable:
        others = Others()
        rows, first = measure(plans, open_plan, say, prefer)
        metered, text = first.metered, first.written
        del first  # its memory
        order = at_one_pace(loadable(confirmed(rows, text, load, say, prefer), run, say, prefer))
        return PlanTable(model, prefer, tuple(order), metered, others.cores(), tuple(text))

    # It may have been called otherwise when it was measured.
    return replace(measurement_store.remembered(file, known, find), model=model)


def measure(plans: Sequence[Plan], open_plan: Open, say: Say, prefer: Prefer = "speed") -> tuple[list[Row], Runner]:
    """Rows in the order of the plans, and one that runs, at work. Raises the last error if none does.

    Each is timed beside the first one, until another is faster for sure: then beside that.
    """
    base: Runner | None = None
    found: dict[Plan, Row] = {}
    failed: EdgespecError | None = None
    for candidate in _by_target(plans):
        say(f"trying {candidate}")
        rows = list(found.values())
        if base is not None and (reason := _not_tried(candidate, base, rows)):
            found[candidate] = Row(candidate, why=f"not tried: {reason}")
            continue
        try:
            if base is None:
                base = Runner(candidate, open_plan(candidate))
                base.length = base.length_within(_TURN_S)
                found[candidate] = Row(candidate, base.best, 1.0, base.joules)
                continue
            other = Runner(candidate, open_plan(candidate), base.written, base.length)
        except EdgespecError as error:
            failed = error
            found[candidate] = Row(candidate, why=f"does not run: {error}")
            continue
        ratios = _beside(base, other, prefer)
        over_first = ratio_of(found[base.plan])
        found[candidate] = Row(candidate, other.best, median(ratios) * over_first, other.joules)
        found[base.plan] = replace(found[base.plan], pace=base.best, joules=base.joules)
        if is_behind([1 / ratio for ratio in ratios]):
            base = other
        del other
    if base is None:
        raise failed or SettingError("these options leave no plan", hint="leave some of them out")
    rows = [found[plan] for plan in plans]
    first_ratio = next(row.ratio for row in rows if row.ratio is not None)
    return [row if row.ratio is None else replace(row, ratio=row.ratio / first_ratio) for row in rows], base


def _by_target(plans: Sequence[Plan]) -> list[Plan]:
    """The first plan of each target comes first: it may show that the others of that target need not be tried."""
    firsts = {plan.target: plan for plan in reversed(plans)}.values()
    return [plan for plan in plans if plan in firsts] + [plan for plan in plans if plan not in firsts]


def confirmed(rows: Sequence[Row], text: Sequence[int], open_plan: Open, say: Say, prefer: Prefer) -> list[Row]:
    """The rows as ``ranked``. A plan takes the first one's place only if it is the best by more turns, too. For
    speed, those that are near it are timed with it."""
    first = next(row.plan for row in rows if row.ratio is not None)
    timed, sure = list(rows), {first}
    while True:
        best = ranked(timed, prefer)[0]
        near = _NEAR * ratio_of(best) if prefer == "speed" else 0.0
        ran = [row for row in timed if row.ratio is not None and row.plan not in sure]
        rivals = [row.plan for row in ran if row.plan == best.plan or ratio_of(row) <= near]
        if not rivals:
            return ranked(timed, prefer)
        sure.update(rivals)
        known = {row.plan: row for row in together(first, rivals, text, open_plan, say)}
        timed = [known.get(row.plan, row) for row in timed]


def loadable(rows: Sequence[Row], load: Open, say: Say, prefer: Prefer) -> list[Row]:
    """The rows, the first of which a run can load. What such a load measures once is measured here."""
    say(f"loading {rows[0].plan}")
    try:
        load(rows[0].plan)
        return list(rows)
    except EdgespecError as error:
        rest = rows[1:]
        if all(row.ratio is None for row in rest):
            raise
        failed = Row(rows[0].plan, why=f"does not run: {error}")
    return [*loadable(ranked(rest, prefer), load, say, prefer), failed]


def _beside(base: Runner, other: Runner, prefer: Prefer) -> list[float]:
    """Ratios of the other one's time to that of ``base``, turn by turn, until one of them is faster for sure."""
    slack = 1.0 if prefer == "speed" else SLOWEST_ON_BATTERY
    ratios = [ratio_in_turns(base, other, 0)]
    while len(ratios) < _TURNS and not is_behind(ratios, slack) and not is_behind([1 / ratio for ratio in ratios]):
        ratios.append(ratio_in_turns(base, other, len(ratios)))
    return ratios


def together(first: Plan, rivals: Sequence[Plan], text: Sequence[int], open_plan: Open, say: Say) -> list[Row]:
    """Rows of plans that are timed in rounds of a turn each, all of them or as many as there is memory for."""
    rows: list[Row] = []
    left = list(rivals)
    say(f"timing {first}")
    base = in_long_turns(first, open_plan, text)
    while left:
        runners: list[Runner] = []
        while left and not (full := no_room(base)):
            say(f"timing {left[0]}")
            try:
                runners.append(Runner(left[0], open_plan(left[0]), text, base.length))
            except EdgespecError as error:
                rows.append(Row(left[0], why=f"does not run: {error}"))
            del left[0]
        if left and not runners:
            return rows + [Row(plan, why=f"not timed again: {full}") for plan in left]
        rows += _in_group(base, runners)
    return rows


def _in_group(base: Runner, runners: Sequence[Runner]) -> list[Row]:
    """Nothing holds the runners afterwards: the next group needs their memory."""
    ratios = in_rounds(base, runners) if runners else {}
    for runner, ratio in ratios.items():
        _remember_schedules(base, runner, ratio)
    return [Row(runner.plan, runner.best, ratio, runner.joules) for runner, ratio in ratios.items()]


def in_long_turns(plan: Plan, open_plan: Open, text: Sequence[int]) -> Runner:
    """Whose turns are long enough to decide."""
    runner = Runner(plan, open_plan(plan), text)
    runner.length = runner.length_within(_LONG_TURN_S, least_share=1.0)
    return runner


def _not_tried(candidate: Plan, first: Runner, rows: Sequence[Row]) -> str | None:
    """A reason that is known before anything is loaded."""
    return no_room(first) or _slow_place(candidate, rows) or _nothing_to_overlap(candidate, first)


def no_room(first: Runner) -> str | None:
    """Two plans are loaded at once."""
    import psutil

    need = _ROOM * (first.pipeline.bundle.manifest.target.weights_bytes or 0)
    free = psutil.virtual_memory().available
    return f"{need / 1e9:.1f} GB of memory needed, {free / 1e9:.1f} GB free" if free < need else None


def _slow_place(candidate: Plan, rows: Sequence[Row]) -> str | None:
    """Where plans of the same target were far behind those of their kind elsewhere, no draft makes up for it.
    Overlapped, a target has fewer cores, whatever drafts beside it on that device."""
    ran = {row.plan: ratio_of(row) for row in rows if row.ratio is not None}
    best: dict[object, float] = {}
    for plan, ratio in ran.items():
        best[_kind(plan)] = min(ratio, best.get(_kind(plan), ratio))
    there = [plan for plan in ran if plan.target == candidate.target]
    behind = {"": [ran[plan] / best[_kind(plan)] for plan in there], "overlapped ": []}
    for plan in there:
        same = replace(plan, schedule="synchronous")
        if same in ran and same != plan and _overlaps_on(plan) == _overlaps_on(candidate):
            behind["overlapped "].append(ran[plan] / ran[same])
    for kind, times in behind.items():
        if min(times, default=0.0) > _FAR_BEHIND:
            return f"another {kind}plan of {candidate.target} took {min(times):.1f} times as long"
    return None


def _kind(plan: Plan) -> tuple[object, ...]:
    """What plans of two targets have in common, so that their times tell which target is faster."""
    return plan.schedule, plan.draft, plan.draft_model is None, plan.draft_model == plan.target


def _overlaps_on(plan: Plan) -> str | None:
    """The draft's device, which decides what cores the target has."""
    return plan.draft_model.device if plan.draft_model and plan.schedule == "overlapped" else None


def _nothing_to_overlap(candidate: Plan, first: Runner) -> str | None:
    """On the first plan's places its measured costs tell."""
    arbiter = first.pipeline.arbiter
    same = replace(candidate, schedule=first.plan.schedule) == first.plan
    if candidate.schedule != "overlapped" or not same or arbiter is None or arbiter.draft_s is None:
        return None
    length = len(first.prompt)
    share = arbiter.draft_s.seconds(1, length) / arbiter.target_s.seconds(1, length)
    return f"a draft step is {share:.2f} of a forward, too little to overlap" if share <= _LEAST_OVERLAP else None


def _remember_schedules(base: Runner, other: Runner, ratio: float) -> None:
    """For loads that name no plan: a load as the base asks which schedule was faster. It is kept for good, so it takes
    many turns of plans with measured costs."""
    model = base.pipeline.draft_model
    same = replace(other.plan, schedule=base.plan.schedule) == base.plan
    if same and other.plan.schedule == "overlapped" and model is not None:
        schedule_choice.remember(base.target, model, Schedules(base.best.use_s, base.best.use_s * ratio))


def key_of(contents: object, options: LoadOptions) -> str:
    """Of a pair and the options that restrict its plans, on this machine with its engines and drivers. contents: of
    ``Bundle``."""
    from edgespec.backends.engine_model import fingerprint
    from edgespec.backends.openvino.runtime import core, cpu_name
    from edgespec.machine import engine_choice
    from edgespec.machine.devices import devices

    engines = core().get_versions("CPU")["CPU"].build_number, *engine_choice.packages().items()
    drivers = [(device.name, device.full_name, device.driver) for device in devices()]
    versions = [cache.VERSIONS[kind] for kind in ("onnx_form", "forward_times", "plans")]
    asked = replace(options, progress=False)
    return fingerprint([*versions, *engines, *drivers, cpu_name(), available_cores(), contents, asked])
