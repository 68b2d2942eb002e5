"""What does a forward cost more if it returns hidden states, too?

The same target is loaded without outputs and with each set of them. Their forwards run in turns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter

from edgespec.bench.report import paired_ratio, show
from edgespec.protocols import Model

_CONTEXT = 64
_WIDTHS = (1, 8)
_TIMED = 5
"""forwards of a turn; one before them finds out what the other models left in the caches"""


def bench_states(load: Callable[[tuple[int, ...]], Model], sets: Sequence[tuple[int, ...]], *, pairs: int) -> None:
    """load: the target that returns the states of some layers. sets: of layers. pairs: turns of each."""
    models = {layers: load(layers) for layers in ((), *sets)}
    for model in models.values():
        model.prefill([0] * _CONTEXT)
    rows: list[tuple[str, int, float, float]] = []
    figures: dict[str, dict[str, float]] = {}
    for width in _WIDTHS:
        seconds: dict[tuple[int, ...], list[float]] = {layers: [] for layers in models}
        for turn in range(pairs + 1):
            for layers, model in models.items():
                found_s = _forwards_s(model, width)
                if turn:  # the first one sets things up
                    seconds[layers].append(found_s)
        for layers in sets:
            name = ",".join(map(str, layers))
            ratio = paired_ratio(seconds[layers], seconds[()])
            spread = [own / plain for own, plain in zip(seconds[layers], seconds[()], strict=True)]
            rows.append((name, width, ratio, max(spread) - min(spread)))
            figures.setdefault(name, {})[str(width)] = ratio
    show(
        f"hidden states, {models[()].capabilities.backend}",
        ["layers", "rows", "time over that without", "range"],
        rows,
        {"over_none": figures, "pairs": pairs},
    )


def _forwards_s(model: Model, width: int) -> float:
    length = model.cache.length
    for forward in range(_TIMED + 1):
        if forward == 1:
            began = perf_counter()
        model.forward([0] * width)
        model.cache.crop(length)
    return perf_counter() - began
