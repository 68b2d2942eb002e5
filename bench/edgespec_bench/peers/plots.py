"""The pictures of the report. They need matplotlib, which comes with the extra ``bench``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgespec_bench.peers.measure import TTFT_TOKENS, Results
from edgespec_bench.peers.summary import ALL, lines, seconds

OWN, PEERS, TEXT = "#2f81f7", "#9199a3", "#768390"
"""of bars and words. TEXT has a contrast of 4 on white and on the dark pages of GitHub; there is no background"""


def draw(results: Results, folder: Path) -> list[Path]:
    """Write the pictures and return their paths: none without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return []
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "edgespec"  # equal results give equal files
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for name, title, values, best_first in _pictures(results):
        figure, axes = pyplot.subplots(figsize=(9, 0.8 + 0.28 * len(values)))
        _bars(axes, title, values, best_first)
        figure.tight_layout()
        path = folder / f"{name}.svg"
        figure.savefig(path, metadata={"Date": None}, transparent=True)
        pyplot.close(figure)
        made.append(path)
    return made


def _pictures(results: Results) -> Iterator[tuple[str, str, dict[str, float], bool]]:
    """Name, title, value of each runtime, and whether the largest is the best."""
    found = lines(results)
    for category in (ALL, *dict.fromkeys(line.category for line in found if line.category != ALL)):
        values = {line.name: line.tok_per_s for line in found if line.category == category}
        name, of = ("decoding", "all prompts") if category == ALL else (f"decoding-{category}", category)
        yield name, f"tokens a second, {of}", values, True
    longest = TTFT_TOKENS[-1]
    first_s = {name: seconds(measured, str(longest)) for name, measured in results.measured.items()}
    known_s = {name: value for name, value in first_s.items() if value is not None}
    yield "first-token", f"seconds to the first token, prompt of {longest:,} tokens", known_s, False


def _bars(axes: Any, title: str, values: dict[str, float], largest_first: bool) -> None:
    """Horizontal bars from best to worst, edgespec's in one colour, each with its value."""
    order = sorted(values, key=values.__getitem__, reverse=not largest_first)  # the last one is drawn at the top
    colours = [OWN if name.startswith("edgespec ") else PEERS for name in order]
    bars = axes.barh(order, [values[name] for name in order], 0.72, color=colours)
    axes.bar_label(bars, [f"{values[name]:.1f}" for name in order], padding=4, color=TEXT)
    axes.set_title(title, color=TEXT, loc="left")
    axes.tick_params(length=0, colors=TEXT)
    axes.set_xticks([])
    axes.margins(x=0.1, y=0.01)
    axes.spines[:].set_visible(False)
