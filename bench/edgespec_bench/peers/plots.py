"""The pictures of the report. They need matplotlib, which comes with the extra ``bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgespec_bench.peers.measure import TTFT_TOKENS, Results
from edgespec_bench.peers.summary import ALL, lines, seconds


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
    for name, paint in (("decoding", _decoding), ("first-token", _first_token)):
        figure, axes = pyplot.subplots(figsize=(9, 5))
        paint(results, axes)
        figure.tight_layout()
        path = folder / f"{name}.svg"
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)
        made.append(path)
    return made


def _decoding(results: Results, axes: Any) -> None:
    found = [line for line in lines(results) if line.to_plain is not None]
    names = list(dict.fromkeys(line.name for line in found))[::-1]
    categories = [c for c in dict.fromkeys(line.category for line in found) if c != ALL] or [ALL]
    height = 0.8 / len(categories)
    for index, category in enumerate(categories):
        values = {line.name: line.to_plain or 0.0 for line in found if line.category == category}
        places = [place - index * height for place in range(len(names))]
        axes.barh(places, [values.get(name, 0.0) for name in names], height, label=category)
    axes.set_yticks([place - 0.4 + height / 2 for place in range(len(names))], names)
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xlabel("decoding speed over edgespec plain")
    axes.legend()


def _first_token(results: Results, axes: Any) -> None:
    drawn = False
    for name, measured in results.measured.items():
        points = [(n, s) for n in TTFT_TOKENS if (s := seconds(measured, str(n))) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", label=name)
            drawn = True
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("tokens of prompt")
    axes.set_ylabel("seconds to the first token")
    if drawn:
        axes.legend(fontsize="small")
