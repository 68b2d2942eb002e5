"""The learning curve as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgespec_train.trainer import Point


def plot(curve: Sequence[Point], path: Path) -> None:
    """Loss, and acceptance on held-out text, over training tokens."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    tokens = [point.tokens / 1e6 for point in curve]
    left = figure.add_subplot()
    left.plot(tokens, [point.loss for point in curve], color="tab:grey")
    left.set(xlabel="training tokens (millions)", ylabel="loss")
    right = left.twinx()
    right.plot(tokens, [point.block_efficiency for point in curve], color="tab:blue")
    right.set_ylabel("block efficiency at k = 4, held-out greedy text", color="tab:blue")
    figure.savefig(path, dpi=120)
