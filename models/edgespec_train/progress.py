"""A progress bar on stderr with the acceptance so far; nothing where stderr is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from edgespec_train.trainer import Point


@contextmanager
def progress_bar(steps: int) -> Iterator[Callable[[int, list[Point]], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("training", total=steps)

        def advance(step: int, curve: list[Point]) -> None:
            last = f", block efficiency {curve[-1].block_efficiency:.2f}" if curve else ""
            bar.update(task, completed=step, description=f"training{last}")

        yield advance
