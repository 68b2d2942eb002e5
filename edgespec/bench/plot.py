"""Plain against speculative decoding as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from edgespec.bench.speed import Speed
from edgespec.errors import SettingError, wrap_errors


def require_plot(path: Path) -> None:
    """Raises SettingError before anything is measured: no library, no folder, or no such kind of picture."""
    if find_spec("matplotlib") is None:
        raise SettingError("a plot needs matplotlib", hint="install it: pip install matplotlib")
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise SettingError("plot", got=str(path), allowed="a file that ends in .png, .svg or .pdf")
    if not path.parent.is_dir():
        raise SettingError("no such folder for the plot", got=str(path.parent))


def plot(title: str, speeds: Mapping[str, Speed], path: Path) -> None:
    """Tokens a second of both, by category; over each pair of bars the speed-up. Raises SettingError."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    places = range(len(speeds))
    plain = [speed.plain_tok_per_s for speed in speeds.values()]
    drafted = [speed.plain_tok_per_s * speed.speed_up for speed in speeds.values()]
    axes.bar([place - 0.2 for place in places], plain, 0.4, label="plain", color="tab:grey")
    bars = axes.bar([place + 0.2 for place in places], drafted, 0.4, label="speculative", color="tab:blue")
    axes.bar_label(bars, [f"{speed.speed_up:.2f}x" for speed in speeds.values()])
    axes.set_xticks(list(places), list(speeds))
    axes.set(title=title, ylabel="tokens a second, decoding")
    axes.legend()
    with wrap_errors(SettingError, f"cannot write the plot {path}"):
        figure.savefig(path, dpi=120)
