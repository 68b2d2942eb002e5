"""The planner: each plan is loaded and timed beside the first one, and the fastest is taken.

A plan reads a prompt and writes two answers, as engines are compared (``engine_trial``). Both plans take turns, so a
machine that is slow for a while is so for both: what counts is the ratio. All write the same text, so that all drafts
are right as often. A plan that cannot be loaded stays in the table, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf
from statistics import median
from time import perf_counter, time
from typing import cast

from edgespec import cache
from edgespec.backends.cores import available_cores
from edgespec.engine_trial import EDIT, LONGEST_EDIT, LONGEST_PROMPT, PROMPT, Following
from edgespec.errors import BackendError, EdgespecError, SettingError
from edgespec.load_options import LoadOptions
from edgespec.machine import energy, measurement_store, schedule_choice
from edgespec.machine.engine_comparison import Pace
from edgespec.machine.other_programs import BUSY_CORES, Others, busy
from edgespec.machine.plans import Plan
from edgespec.machine.schedule_choice import Schedules
from edgespec.pipeline import Pipeline
from edgespec.protocols import Model
from edgespec.types import Prefer

Open = Callable[[Plan], Pipeline]
Say = Callable[[str], None]

_TURNS = 3
"""An odd number, for the median: one disturbed turn decides nothing."""
_CONFIRMING = 7
"""of the plan that would take the first one's place: three were wrong by a quarter on a noisy machine"""
_NEAR = 1.1
"""of the best plan's time: by three turns, another one of these may be the best"""
_WRITTEN = 32
"""tokens of the free text"""
_LEAST_GAIN = 0.98
"""Of the first plan's time: two measurements of one plan differ by as much."""
_LEAST_OVERLAP = 0.05
"""A draft step of so small a share of a forward leaves nothing to overlap."""
_SLOWEST_ON_BATTERY = 1.5
"""times as long as the fastest plan may take, to save energy"""
_FAR_BEHIND = 2.0
"""times as long as the best plan so far: a place whose simplest plan took that is left"""
_ROOM = 2
"""Memory that another plan takes, in sizes of its target's weights"""
_LOOK_S, _AGAIN_S = 0.2, 24 * 3600
"""how long to look for other programs, and when to measure again what they disturbed"""


@dataclass(frozen=True)
class Row:
    """ratio: time of this plan's use over the first plan's. joules: of a token. why: it is not taken, or not tried."""

    plan: Plan
    pace: Pace | None = None
    ratio: float | None = None
    joules: float | None = None
    why: str = ""


@dataclass(frozen=True)
class PlanTable:
    """rows: the plan that is taken first, then the others. metered: joules were read from the CPU's counter, and are
    modelled otherwise. other_cores: what other programs used meanwhile."""

    model: str
    prefer: Prefer
    rows: tuple[Row, ...]
    metered: bool = False
    other_cores: float = 0.0

    def __post_init__(self) -> None:
        if not self.rows or self.rows[0].pace is None or not 0 <= self.other_cores < inf:
            raise ValueError("no plan that runs")

    @property
    def taken(self) -> Plan:
        return self.rows[0].plan


def plan(
    key: str, model: str, plans: Sequence[Plan], open_plan: Open, say: Say, *, prefer: Prefer, again: bool = False
) -> PlanTable:
    """The table of these plans: the stored one, or measured now. Raises the last plan's error if none runs.

    key: a fingerprint of all that it depends on. again: measure even so.
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
        rows, metered = measure(plans, open_plan, say)
        order = confirmed(rows, open_plan, say, prefer)
        return PlanTable(model, prefer, tuple(order), metered, others.cores())

    return measurement_store.remembered(file, known, find)


def measure(
    plans: Sequence[Plan], open_plan: Open, say: Say, turns: int = _TURNS, *, all_of_them: bool = False
) -> tuple[list[Row], bool]:
    """Rows in the order of the plans, and whether their energy was metered. Raises the last error if no plan runs.

    all_of_them: those too of which it is known before that they will not be taken.
    """
    first: _Runner | None = None
    rows: list[Row] = []
    failed: EdgespecError | None = None
    for candidate in plans:
        say(f"trying {candidate}")
        if first is not None and (reason := _not_tried(candidate, first, rows, all_of_them)):
            rows.append(Row(candidate, why=f"not tried: {reason}"))
            continue
        try:
            runner = _Runner(candidate, open_plan(candidate), first.written if first is not None else ())
            rows.append(Row(candidate, ratio=1.0) if first is None else _beside(first, runner, turns))
        except EdgespecError as error:
            failed = error
            rows.append(Row(candidate, why=f"does not run: {error}"))
            continue
        if first is None:
            first = runner
        else:
            _remember_schedules(first, runner, rows[-1])
        del runner
    if first is None:
        raise failed or SettingError("these options leave no plan", hint="leave some of them out")
    best = min(first.turns or [first.turn()], key=lambda pace: pace.use_s)
    own = Row(first.plan, best, 1.0, first.joules)
    return [own if row.plan == first.plan else row for row in rows], first.metered


def confirmed(rows: Sequence[Row], open_plan: Open, say: Say, prefer: Prefer) -> list[Row]:
    """The rows as ``ranked``. A plan takes the first one's place only if it is the best by more turns, too. For
    speed, those that are near it are timed by as many."""
    first = next(row.plan for row in rows if row.ratio is not None)
    timed, sure = list(rows), {first}
    while (best := ranked(timed, prefer)[0]).plan != first:
        near = _NEAR * _ratio(best) if prefer == "speed" else 0.0
        ran = [row for row in timed if row.ratio is not None and row.plan not in sure]
        rivals = [row.plan for row in ran if row.plan == best.plan or _ratio(row) <= near]
        if not rivals:
            break
        sure.update(rivals)
        again, _ = measure([first, *rivals], open_plan, say, _CONFIRMING, all_of_them=True)
        known = {row.plan: row for row in again[1:]}
        timed = [known.get(row.plan, row) for row in timed]
    return ranked(timed, prefer)


def ranked(rows: Sequence[Row], prefer: Prefer) -> list[Row]:
    """The plan to take first; the others by their time, and last those that do not run. Each says why.

    A plan that is within noise of the first one does not take its place.
    """
    ran = [row for row in rows if row.ratio is not None]
    first = ran[0]
    best = min(ran, key=_ratio)
    if _ratio(best) > _LEAST_GAIN:
        best = first
    reason = "the fastest" if best is not first else "no other is faster"
    if prefer == "battery" and all(row.joules is not None for row in ran):
        quick = [row for row in ran if _ratio(row) <= _SLOWEST_ON_BATTERY * _ratio(best)]
        best, reason = min(quick, key=lambda row: cast("float", row.joules)), "takes least energy"
    others = sorted((row for row in ran if row is not best), key=_ratio)
    told = [replace(row, why=_compared(row, best)) for row in others]
    return [replace(best, why=reason), *told, *(row for row in rows if row.ratio is None)]


def _ratio(row: Row) -> float:
    assert row.ratio is not None
    return row.ratio


def _compared(row: Row, best: Row) -> str:
    gap = _ratio(row) / _ratio(best) - 1
    return f"{gap:.0%} slower" if gap >= 0.005 else f"{-gap:.0%} faster, but costs more" if gap < -0.02 else "as fast"


class _Runner:
    """A loaded plan. text: what it writes; empty: what it likes, which is ``written`` then."""

    def __init__(self, plan: Plan, pipeline: Pipeline, text: Sequence[int] = ()) -> None:
        self.plan, self.pipeline = plan, pipeline
        self.prompt = pipeline.tokenizer.encode(PROMPT, raw=True)[:LONGEST_PROMPT]
        self.edit = pipeline.tokenizer.encode(EDIT)[:LONGEST_EDIT]
        self.target = pipeline.target
        self.turns: list[Pace] = []
        self.joules: float | None = None
        self.metered = False
        self.written = list(text)
        if not self.written:
            self.written, _ = self._write([], _WRITTEN)
        self.turn()  # sets things up, and learns what drafts are worth
        self.turns.clear()

    def turn(self) -> Pace:
        """Read the prompt, write both answers."""
        self.target.cache.reset()
        began = perf_counter()
        self.target.prefill(self.prompt[:-1])
        read_s = (perf_counter() - began) / (len(self.prompt) - 1)
        before = energy.read_joules()
        _, write_s = self._write(self.written, len(self.written))
        _, copy_s = self._write(self.edit, len(self.edit))
        used = energy.joules_between(before, energy.read_joules())
        if used is not None:
            self.metered, self.joules = True, used / (len(self.written) + len(self.edit))
        self.turns.append(Pace(read_s, write_s, copy_s))
        return self.turns[-1]

    def _write(self, text: Sequence[int], tokens: int) -> tuple[list[int], float]:
        """An answer to the prompt that begins with ``text``, and the seconds of a token."""
        self.pipeline.forget()
        self.target.prefill(self.prompt[:-1])
        self.pipeline.target = cast("Model", Following(self.target, [*self.prompt, *text]))
        try:
            result = self.pipeline.generate(self.prompt, max_new_tokens=tokens, ignore_eos=True)
        finally:
            self.pipeline.target = self.target
        stats = result.stats
        if not self.metered:
            drafts_on = self.plan.draft_model.device if self.plan.draft_model else None
            self.joules = energy.modelled_joules(stats, self.plan.target.device, drafts_on) / stats.decoded
        return result.token_ids, stats.decode_s / stats.decoded


def _beside(first: _Runner, other: _Runner, turns: int) -> Row:
    ratios = []
    for _ in range(turns):
        first_s = first.turn().use_s
        ratios.append(other.turn().use_s / first_s)
    best = min(other.turns, key=lambda pace: pace.use_s)
    return Row(other.plan, best, median(ratios), other.joules)


def _not_tried(candidate: Plan, first: _Runner, rows: Sequence[Row], all_of_them: bool) -> str | None:
    """A reason that is known before anything is loaded."""
    if all_of_them:
        return _no_room(first)
    return _no_room(first) or _slow_place(candidate, rows) or _nothing_to_overlap(candidate, first)


def _no_room(first: _Runner) -> str | None:
    """Two plans are loaded at once."""
    import psutil

    need = _ROOM * (first.pipeline.bundle.manifest.target.weights_bytes or 0)
    free = psutil.virtual_memory().available
    return f"{need / 1e9:.1f} GB of memory needed, {free / 1e9:.1f} GB free" if free < need else None


def _slow_place(candidate: Plan, rows: Sequence[Row]) -> str | None:
    """Where another plan of the same target was far behind, no draft makes up for it."""
    ran = [row for row in rows if row.ratio is not None]
    there = [_ratio(row) for row in ran if row.plan.target == candidate.target]
    behind = min(there) / min(map(_ratio, ran)) if there else 1.0
    return f"another plan of {candidate.target} took {behind:.1f} times as long" if behind > _FAR_BEHIND else None


def _nothing_to_overlap(candidate: Plan, first: _Runner) -> str | None:
    """On the first plan's places its measured costs tell."""
    arbiter = first.pipeline.arbiter
    same = replace(candidate, schedule=first.plan.schedule) == first.plan
    if candidate.schedule != "overlapped" or not same or arbiter is None or arbiter.draft_s is None:
        return None
    length = len(first.prompt)
    share = arbiter.draft_s.seconds(1, length) / arbiter.target_s.seconds(1, length)
    return f"a draft step is {share:.2f} of a forward, too little to overlap" if share <= _LEAST_OVERLAP else None


def _remember_schedules(first: _Runner, other: _Runner, row: Row) -> None:
    """For loads that name no plan: a load as the first plan asks which schedule was faster."""
    model = first.pipeline.draft_model
    same = replace(other.plan, schedule=first.plan.schedule) == first.plan
    if same and other.plan.schedule == "overlapped" and model is not None and row.ratio:
        mine = min(turn.use_s for turn in first.turns)
        schedule_choice.remember(first.target, model, Schedules(mine, mine * row.ratio))


@dataclass(frozen=True)
class Verified:
    """share: speed of the plan that was taken over that of the fastest, 1 if it is the fastest. The other figures:
    how many plans were timed, and by how many pairs of turns each."""

    share: float
    fastest: Plan
    timed: int
    pairs: int


def verify(taken: Plan, others: Sequence[Plan], open_plan: Open, say: Say, pairs: int) -> Verified:
    """Time all of these again, each in turns with the plan that was taken. Raises BackendError if that does not run."""
    rows, _ = measure([taken, *others], open_plan, say, pairs, all_of_them=True)
    if rows[0].ratio is None:
        raise BackendError(f"the plan that was taken {rows[0].why}", hint="measure again: --again")
    ran = [row for row in rows if row.ratio is not None]
    fastest = min(ran, key=_ratio)
    return Verified(_ratio(fastest), fastest.plan, len(ran), pairs)


def key_of(model: object, options: LoadOptions) -> str:
    """Of a model and the options that restrict its plans, on this machine with its engines and drivers."""
    from edgespec.backends.engine_model import fingerprint
    from edgespec.backends.openvino.runtime import core, cpu_name
    from edgespec.machine import engine_choice
    from edgespec.machine.devices import devices

    engines = core().get_versions("CPU")["CPU"].build_number, *engine_choice.packages().items()
    drivers = [(device.name, device.full_name, device.driver) for device in devices()]
    versions = [cache.VERSIONS[kind] for kind in ("onnx_form", "forward_times", "plans")]
    asked = replace(options, progress=False)
    return fingerprint([*versions, *engines, *drivers, cpu_name(), available_cores(), model, asked])
