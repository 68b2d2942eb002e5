"""The table of ``edgespec doctor --plan``: every plan, its figures, and why it is taken or not."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from edgespec import console

if TYPE_CHECKING:
    from edgespec.plan_rows import PlanTable, Row
    from edgespec.plan_verify import Verified


def show(table: PlanTable, verified: Verified | None) -> None:
    """verified: if all were timed again."""
    from rich.table import Table

    energy = "J a token" if table.metered else "J a token, modelled"
    speeds = (f"{what}, tok/s" for what in ("reads", "writes", "copies"))
    columns = "plan", *speeds, "time over first", energy, "why"
    title = f"Plans for {table.model}, by {table.prefer}"
    shown = Table(*columns, title=title, title_justify="left")
    for row in table.rows:
        console.row(shown, str(row.plan), *_figures(row), row.why)
    auto = "--device auto" if table.prefer == "speed" else f"--device auto --prefer {table.prefer}"
    lines: list[Any] = [shown, f"Taken: {table.taken}. To run it: {auto}, or {_options(table)}"]
    if table.other_cores > 0.1:
        lines.append(f"Other programs took {table.other_cores:.1f} cores meanwhile.")
    if verified is not None:
        lines += _verdict(verified)
    console.show(*lines)


def _verdict(verified: Verified) -> list[str]:
    lines = [f"Not timed again: {plan}: {why}" for plan, why in verified.not_timed.items()]
    if verified.share is None:
        return ["The plan taken is not judged, since no other one was timed again.", *lines]
    turns = sorted(len(ratios) for ratios in verified.ratios.values())
    judged = (
        f"{len(verified.ratios)} plans timed again, each in {turns[0]} to {turns[-1]} pairs of turns with the one "
        f"taken, which has {verified.share:.2f} of the speed of the fastest (range of the sign test when it stopped: "
        f"{verified.low:.2f} to {verified.high:.2f}): {verified.fastest}."
    )
    return [judged, *lines]


def as_dict(table: PlanTable, verified: Verified | None) -> dict[str, Any]:
    """For JSON."""
    rows = [
        {
            "plan": str(row.plan),
            "target": asdict(row.plan.target),
            "draft_model": asdict(row.plan.draft_model) if row.plan.draft_model else None,
            "schedule": row.plan.schedule,
            "draft": row.plan.draft or "auto",
            "tok_per_s": None
            if row.pace is None
            else {"read": 1 / row.pace.read_s, "write": 1 / row.pace.write_s, "copy": 1 / row.pace.copy_s},
            "time_over_first": row.ratio,
            "joules_per_token": row.joules,
            "why": row.why,
        }
        for row in table.rows
    ]
    return {
        "model": table.model,
        "prefer": table.prefer,
        "energy": "metered" if table.metered else "modelled",
        "other_cores": table.other_cores,
        "verified": None
        if verified is None
        else {
            "share": verified.share,
            "low": verified.low,
            "high": verified.high,
            "fastest": None if verified.fastest is None else str(verified.fastest),
            "times_over_taken": {str(plan): ratios for plan, ratios in verified.ratios.items()},
            "not_timed": {str(plan): why for plan, why in verified.not_timed.items()},
        },
        "plans": rows,
    }


def _figures(row: Row) -> tuple[str, ...]:
    if row.pace is None or row.ratio is None:
        return ("-",) * 5
    speeds = (row.pace.read_s, row.pace.write_s, row.pace.copy_s)
    joules = "-" if row.joules is None else f"{row.joules:.2f}"
    return *(f"{1 / seconds:.1f}" for seconds in speeds), f"{row.ratio:.2f}", joules


def _options(table: PlanTable) -> str:
    plan = table.taken
    options = [f"--device {plan.target.device}", f"--backend {plan.target.backend}"]
    if plan.draft is not None:
        options.append(f"--draft {plan.draft}")
    if plan.draft_model is not None:
        if plan.draft_model.device != plan.target.device:
            options.append(f"--draft-device {plan.draft_model.device}")
        if plan.draft_model.backend != plan.target.backend:
            options.append(f"--draft-backend {plan.draft_model.backend}")
        options.append(f"--schedule {plan.schedule}")
    return " ".join(options)
