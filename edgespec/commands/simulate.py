"""``edgespec simulate``: which plan to take on a laptop that is not here, from figures of its chip."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgespec import console
from edgespec.commands import screen
from edgespec.errors import SettingError

if TYPE_CHECKING:
    from edgespec.bench.simulation import Compared
    from edgespec.simulate.cases import Checked
    from edgespec.simulate.figures import Unsimulated
    from edgespec.simulate.plans import Plan, Simulation

_SHOWN = 8
"""placements in the table"""
_DRAWN = 5
"""lines of the picture"""
_DRAWN_TOKENS = 30


@click.command(name="simulate")
@click.option("--chip", metavar="NAME", help="A chip; without one, all chips and pairs are listed.")
@click.option("--pair", metavar="NAME", default="qwen2.5-coder-1.5b", show_default=True, help="Target and draft.")
@click.option("--acceptance", type=float, metavar="P", help="Chance of a drafted token; default: the pair's own.")
@click.option("--context", type=int, metavar="N", default=512, show_default=True, help="Tokens of context.")
@click.option("--prefer", type=click.Choice(["speed", "battery"]), default="speed", show_default=True)
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE", help="Draw speed-up over k: .svg, .png, .pdf.")
@click.option(
    "--timeline",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Draw the plan's first rounds: .svg, .png, .pdf.",
)
@click.option("--check", is_flag=True, help="Compare with published cases, and with runs of --model on this machine.")
@click.option("--model", "-m", metavar="REF", default="default", show_default=True, help="For --check.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    chip: str | None,
    pair: str,
    acceptance: float | None,
    context: int,
    prefer: str,
    plot: Path | None,
    timeline: Path | None,
    check: bool,
    model: str,
    as_json: bool,
) -> None:
    """Simulate a pair on a laptop chip: which device runs what, by which schedule, how many tokens to draft.

    Nothing is measured, unless --check is given: the figures are published or assumed, and docs/simulator.md names the
    source of each.

    \b
    edgespec simulate --chip lunar-lake
    edgespec simulate --chip lunar-lake --acceptance 0.6 --plot speed.svg --timeline rounds.svg
    edgespec simulate --check
    """
    _require(acceptance is None or 0 <= acceptance <= 1, "acceptance", acceptance, "0 to 1")
    _require(0 <= context <= 1_000_000, "context", context, "0 to 1,000,000 tokens")
    for picture in filter(None, (plot, timeline)):
        from edgespec.bench.plot import require_plot

        require_plot(picture)
    if check:
        if chip or plot or timeline:
            raise SettingError("--check takes all published cases and this machine", hint="leave chip and pictures out")
        _check(model, as_json)
    elif chip is None:
        if plot or timeline:
            raise SettingError("a picture is of one chip", hint="name it: --chip lunar-lake")
        _list(pair, as_json)
    else:
        simulation = _simulation(chip, pair, acceptance, context)
        plans = simulation.plans()
        best = _best(plans, prefer)
        if plot:
            _draw_speed_up(simulation, plans, plot)
        if timeline:
            _draw_timeline(simulation, best, timeline)
        _show(simulation, plans, best, prefer, as_json)


def _require(holds: bool, setting: str, got: object, allowed: str) -> None:
    if not holds:
        raise SettingError(setting, got=got, allowed=allowed, setting=setting)


def _simulation(chip: str, pair: str, acceptance: float | None, context: int) -> Simulation:
    from edgespec.simulate.figures import figures
    from edgespec.simulate.plans import Simulation

    known = figures()
    known.chip(chip)
    chance = known.pair(pair).acceptance.value if acceptance is None else acceptance
    return Simulation(known, chip.strip().lower(), pair.strip().lower(), chance, context)


def _best(plans: list[Plan], prefer: str) -> Plan:
    from edgespec.simulate.plans import least_energy

    return least_energy(plans) if prefer == "battery" else max(plans, key=lambda plan: plan.tok_per_s)


def _list(pair: str, as_json: bool) -> None:
    from rich.table import Table

    from edgespec.simulate.figures import figures

    known = figures()
    known.pair(pair)
    if as_json:
        titles = {name: chip.title for name, chip in known.chips.items()}
        screen.write(json.dumps({"chips": titles, "pairs": list(known.pairs)}) + "\n")
        return
    chips = Table("chip", "is", "devices", title="Chips", title_justify="left")
    for name, chip in known.chips.items():
        console.row(chips, name, chip.title, ", ".join(chip.devices))
    pairs = Table("pair", "target", "draft", "acceptance", title="Pairs", title_justify="left")
    for name, each in known.pairs.items():
        console.row(pairs, name, each.target, each.draft, f"{each.acceptance.value:.2f} ({each.acceptance.basis})")
    console.show(chips, pairs)


def _show(simulation: Simulation, plans: list[Plan], best: Plan, prefer: str, as_json: bool) -> None:
    from rich.table import Table

    from edgespec.simulate.plans import best_of_each_place

    ranked = best_of_each_place(plans)
    if as_json:
        asked = {"chip": simulation.chip_name, "pair": simulation.pair_name}
        how = {"acceptance": simulation.acceptance, "context": simulation.context, "prefer": prefer}
        screen.write(json.dumps(asked | how | {"best": asdict(best), "plans": [asdict(plan) for plan in plans]}) + "\n")
        return
    title = (
        f"{simulation.pair_name} on {simulation.chip.title}: {simulation.context} tokens of context, "
        f"{simulation.acceptance:.0%} of drafted tokens right"
    )
    table = Table(
        "target on", "draft on", "schedule", "k", "tok/s", "speed-up", "tokens a forward", "J a token",
        title=title, title_justify="left",
    )  # fmt: skip
    for plan in ranked[:_SHOWN]:
        schedule = plan.schedule if plan.draft else "plain"
        cells = (plan.target, plan.draft or "-", schedule, str(plan.k or "-"), f"{plan.tok_per_s:.1f}")
        console.row(table, *cells, f"{plan.speed_up:.2f}", f"{plan.block_efficiency:.2f}", f"{plan.joules:.2f}")
    console.show(table, f"Take: {words(best)}, by simulation. Its figures are published or assumed, not measured here.")


def words(plan: Plan) -> str:
    """A plan in a sentence."""
    if plan.draft is None:
        return f"no draft model, target on {plan.target}: {plan.tok_per_s:.1f} tokens a second"
    return (
        f"target on {plan.target}, draft on {plan.draft}, {plan.schedule}, k {plan.k}: {plan.tok_per_s:.1f} tokens a "
        f"second, {plan.speed_up:.2f} times the fastest plain decoding"
    )


def _draw_speed_up(simulation: Simulation, plans: list[Plan], path: Path) -> None:
    from edgespec.bench.plot import plot_lines
    from edgespec.simulate.plans import best_of_each_place

    drawn = [plan for plan in best_of_each_place(plans) if plan.draft][:_DRAWN]
    lines: Mapping[str, dict[int, float]] = {
        f"{best.target} + {best.draft}, {best.schedule}": {p.k: p.speed_up for p in plans if p.place == best.place}
        for best in drawn
    }
    title = f"{simulation.pair_name} on {simulation.chip_name}, simulated"
    plot_lines(title, "k", "speed-up over plain decoding", lines, path)


def _draw_timeline(simulation: Simulation, plan: Plan, path: Path) -> None:
    from edgespec.bench.plot import plot_timelines

    rows: dict[str, list[tuple[float, float]]] = {}
    for job in simulation.run(plan, _DRAWN_TOKENS).timeline.jobs:
        if job.end_s is not None:
            kind = "draft" if job.label == "draft" else "target"
            rows.setdefault(f"{job.device}, {kind}", []).append((job.begin_s, job.end_s))
    title = f"{simulation.pair_name} on {simulation.chip_name}: {plan.schedule}, k {plan.k}, simulated"
    plot_timelines(title, rows, path)


def _check(model: str, as_json: bool) -> None:
    from edgespec.bench.simulation import compare_on_each_engine
    from edgespec.simulate.cases import check_cases
    from edgespec.simulate.figures import figures

    published, left_out = check_cases(figures()), figures().unsimulated
    if not as_json:
        _show_cases(published, left_out)
    here = compare_on_each_engine(model)
    if not as_json:
        _show_runs(model, here)
        return
    found: dict[str, Any] = {
        "published": [
            {"case": one.case.name, "what": one.what, "published": one.published, "simulated": one.simulated,
             "holds": one.holds, "fitted": one.case.fitted, "miss": one.case.miss} for one in published
        ],
        "not_simulated": {case.name: case.why for case in left_out},
        "here": [run.as_dict() for run in here],
    }  # fmt: skip
    screen.write(json.dumps(found, ensure_ascii=False) + "\n")


def _show_cases(published: Sequence[Checked], left_out: Sequence[Unsimulated]) -> None:
    from rich.table import Table

    from edgespec.simulate.cases import WITHIN

    table = Table(
        "case", "of", "published", "simulated", "off", "", title=f"Published cases, within {WITHIN:.0%}",
        title_justify="left",
    )  # fmt: skip
    for one in published:
        verdict = "holds" if one.holds else f"missed: {one.case.miss or 'not known why'}"
        verdict = f"{verdict} (fitted to it)" if one.case.fitted else verdict
        figures = console.figure(one.published), console.figure(one.simulated), f"{one.off:+.0%}"
        console.row(table, one.case.name, one.what, *figures, verdict)
    for case in left_out:
        console.row(table, case.name, "", "", "", "", f"not simulated: {case.why}")
    console.show(table)


def _show_runs(model: str, here: Sequence[Compared]) -> None:
    from rich.table import Table

    from edgespec.bench.simulation import WITHIN

    table = Table(
        "engine", "schedule", "drafts", "k", "accepted", "measured, tok/s", "simulated, tok/s", "speed-up off", "",
        title=f"Runs of {model} on this machine, within {WITHIN:.0%}", title_justify="left",
    )  # fmt: skip
    for run in here:
        how = run.engine, run.schedule, run.drafter, str(run.k or "-")
        cells = (*how, f"{run.acceptance_rate:.0%}", f"{run.measured:.1f}")
        verdict = "the pace" if run.holds is None else "holds" if run.holds else "missed"
        console.row(table, *cells, f"{run.simulated:.1f}", f"{run.off:+.0%}", verdict)
    console.show(table)
