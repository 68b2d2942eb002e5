"""What does a forward cost more if it returns hidden states, too?

The same target is loaded without outputs, and with one set of them after the other. The forwards of two run in turns.
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
    plain = _read(load(()))
    rows: list[tuple[str, int, float]] = []
    figures: dict[str, dict[str, float]] = {}
    # At last the target without outputs again: how far those two differ is how little the other figures tell.
    for layers in (*sets, ()):
        name = ",".join(map(str, layers)) or "control"
        figures[name] = _ratios(plain, _read(load(layers)), pairs)  # which makes room for the next
        rows += [(name, int(width), ratio) for width, ratio in figures[name].items()]
    engine = plain.capabilities.backend
    columns = ["layers", "rows", "time over that without"]
    show(f"hidden states, {engine}", columns, rows, {"over_none": figures, "pairs": pairs})


def _read(model: Model) -> Model:
    model.prefill([0] * _CONTEXT)
    return model


def _ratios(plain: Model, other: Model, pairs: int) -> dict[str, float]:
    """Time of a forward over that of ``plain``, by width."""
    found = {}
    for width in _WIDTHS:
        plain_s, other_s = _in_turns((plain, other), width, pairs)
        found[str(width)] = paired_ratio(other_s, plain_s)
    return found


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
