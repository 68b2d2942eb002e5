"""How every measurement is printed: a table on stdout, one JSON line last."""

from __future__ import annotations

import json
from collections.abc import Sequence
from statistics import median
from typing import Any

from edgespec import console
from edgespec.machine.devices import machine


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], figures: dict[str, Any]) -> None:
    """Print the table and then ``figures`` with the machine they were measured on as one line of JSON."""
    show_table(title, columns, rows)
    print(json.dumps({"bench": title} | figures | {"machine": machine()}, ensure_ascii=False))


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print one table of a measurement that has several."""
    from rich.table import Table

    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    console.show(table)


def paired_ratio(left: Sequence[float], right: Sequence[float]) -> float:
    """Median of left[i] / right[i]: the machine's mood cancels within a pair."""
    return median(a / b for a, b in zip(left, right, strict=True))


def _cell(value: object) -> str:
    return console.figure(value) if isinstance(value, float) else str(value)
