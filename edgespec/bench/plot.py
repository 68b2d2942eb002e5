"""Measurements and simulations as pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgespec.errors import SettingError, wrap_errors
from edgespec.own_files import require_place

if TYPE_CHECKING:
    from edgespec.bench.speed import Speed


def require_plot(path: Path) -> None:
    """Raises SettingError before anything is measured: no library, no folder, or no such kind of picture."""
    if find_spec("matplotlib") is None:
        raise SettingError("a plot needs matplotlib", hint="install it: pip install matplotlib")
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise SettingError("plot", got=str(path), allowed="a file that ends in .png, .svg or .pdf")
    if not path.parent.is_dir():
        raise SettingError("no such folder for the plot", got=str(path.parent))
    require_place(path, "the plot")


def plot(title: str, speeds: Mapping[str, Speed], path: Path) -> None:
    """Tokens a second of both, by category; over each pair of bars the speed-up. Raises SettingError."""
    with _axes(title, path) as axes:
        places = range(len(speeds))
        plain = [speed.plain_tok_per_s for speed in speeds.values()]
        drafted = [speed.plain_tok_per_s * speed.speed_up for speed in speeds.values()]
        axes.bar([place - 0.2 for place in places], plain, 0.4, label="plain", color="tab:grey")
        bars = axes.bar([place + 0.2 for place in places], drafted, 0.4, label="speculative", color="tab:blue")
        axes.bar_label(bars, [f"{speed.speed_up:.2f}x" for speed in speeds.values()])
        axes.set_xticks(list(places), list(speeds))
        axes.set_ylabel("tokens a second, decoding")
        axes.legend()


def plot_lines(title: str, x: str, y: str, lines: Mapping[str, Mapping[int, float]], path: Path) -> None:
    """Lines by name, each of values by x; and a dashed line at 1. Raises SettingError."""
    with _axes(title, path) as axes:
        for name, values in lines.items():
            axes.plot(list(values), list(values.values()), marker="o", label=name)
        axes.axhline(1.0, color="tab:grey", linestyle="--")
        axes.set(xlabel=x, ylabel=y)
        axes.legend()


def plot_timelines(title: str, rows: Mapping[str, Sequence[tuple[float, float]]], path: Path) -> None:
    """When each row was busy: (begin, end) in seconds. Raises SettingError."""
    with _axes(title, path) as axes:
        for place, (name, spans) in enumerate(rows.items()):
            colour = "tab:orange" if name.endswith("draft") else "tab:blue"
            bars = [(1e3 * begin, 1e3 * (end - begin)) for begin, end in spans]
            axes.broken_barh(bars, (place - 0.4, 0.8), facecolors=colour, edgecolors="white")
        axes.set_yticks(range(len(rows)), list(rows))
        axes.invert_yaxis()
        axes.set_xlabel("ms")


@contextmanager
def _axes(title: str, path: Path) -> Iterator[Any]:
    """Axes to draw on; written to a file at the end."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title)
    yield axes
    with wrap_errors(SettingError, f"cannot write the plot {path}"):
        figure.savefig(path, dpi=120)
