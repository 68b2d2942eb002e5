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
    # First and last the target without outputs: how far those two differ is how little the other figures tell.
    models = [(layers, load(layers)) for layers in ((), *sets, ())]
    for _, model in models:
        model.prefill([0] * _CONTEXT)
    rows: list[tuple[str, int, float]] = []
    figures: dict[str, dict[str, float]] = {}
    for width in _WIDTHS:
        seconds = _in_turns([model for _, model in models], width, pairs)
        plain_s = [(first + last) / 2 for first, last in zip(seconds[0], seconds[-1], strict=True)]
        for layers, own_s in zip(sets, seconds[1:-1], strict=True):
            name = ",".join(map(str, layers))
            rows.append((name, width, paired_ratio(own_s, plain_s)))
            figures.setdefault(name, {})[str(width)] = rows[-1][-1]
        rows.append(("none, last / first", width, paired_ratio(seconds[-1], seconds[0])))
        figures.setdefault("control", {})[str(width)] = rows[-1][-1]
    engine = models[0][1].capabilities.backend
    columns = ["layers", "rows", "time over that without"]
    show(f"hidden states, {engine}", columns, rows, {"over_none": figures, "pairs": pairs})


def _in_turns(models: Sequence[Model], width: int, turns: int) -> list[list[float]]:
    """Seconds of each model's turns. Every other one goes backwards, so that each model has been behind each other."""
    seconds: list[list[float]] = [[] for _ in models]
    for turn in range(turns + 1):
        for place in range(len(models)) if turn % 2 else reversed(range(len(models))):
            found_s = _forwards_s(models[place], width)
            if turn:  # the first one sets things up
                seconds[place].append(found_s)
    return seconds


def _forwards_s(model: Model, width: int) -> float:
    length = model.cache.length
    for forward in range(_TIMED + 1):
        if forward == 1:
            began = perf_counter()
        model.forward([0] * width)
        model.cache.crop(length)
    return perf_counter() - began
