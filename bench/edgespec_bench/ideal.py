"""How much of its time does a speculative run lose, against the same forwards run at their best?

    ideal = the seconds inside the engine of the very forwards of the run, run again by a bare loop, those of a kind in
            a row: each behind another of the same model and shape, in its own place of the context

So no host time, no change of width, no caches that the other model has emptied. Rounds, drafts and widths (padding
included) are the run's: whether they were well chosen is another question (``edgespec bench drafters``).

    measured speed-up = plain / run          ideal speed-up = plain / ideal          measured / ideal = ideal / run

What is lost, 1 - ideal / run, comes in four parts that add up:

    host    seconds of the rounds outside the engine
    change  what forwards took longer than when run again, where the model's forward before had another shape
    cold    the same, where the other model ran in between and the shape was the same
    other   the same for all other forwards: the machine's mood between the run and its repetition
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Literal, Protocol

Cause = Literal["steady", "change", "cold"]


@dataclass(frozen=True)
class Call:
    """One forward: of which model, its rows with padding, rows that got logits, rows of context, seconds in the
    engine; and whether it belongs to a round in which a draft model was tried though not expected to pay."""

    model: str
    width: int
    wanted: int
    past: int
    engine_s: float
    trial: bool = False

    @property
    def kind(self) -> tuple[str, int, int]:
        """Forwards of a kind need no new preparation."""
        return self.model, self.width, self.wanted


@dataclass
class Parts:
    """Seconds of some runs, and where they went; adds up over runs."""

    run_s: float = 0.0
    ideal_s: float = 0.0
    host_s: float = 0.0
    width_switch_s: float = 0.0
    cache_refill_s: float = 0.0
    other_s: float = 0.0

    def add(self, more: Parts) -> None:
        for name, value in vars(more).items():
            setattr(self, name, getattr(self, name) + value)

    @property
    def shares(self) -> dict[str, float]:
        """Of the run's time."""
        return {name.removesuffix("_s"): value / self.run_s for name, value in vars(self).items() if name != "run_s"}


class Bare(Protocol):
    """What is needed of a bare loop to run forwards again."""

    infer_s: float

    def forward(self, tokens: list[int], past: int, wanted: int) -> Any: ...


@contextmanager
def watched(models: Mapping[str, Any], trial: Callable[[], bool]) -> Iterator[list[Call]]:
    """The forwards of these models (``OpenVINOPagedModel``) with logits, as they come, while the block runs. Prefill
    is none of them, but for an end of the prompt that is read with the first round."""
    calls: list[Call] = []
    with ExitStack() as stack:
        for name, model in models.items():
            stack.enter_context(_watched(name, model, trial, calls))
        yield calls


@contextmanager
def _watched(name: str, model: Any, trial: Callable[[], bool], calls: list[Call]) -> Iterator[None]:
    forward = model.forward

    def watching(tokens: Sequence[int], tree: Any = None, *, num_logits: int | None = None, width: int = 1) -> Any:
        past, before = model.cache.length, model.infer_s
        step = forward(tokens, tree, num_logits=num_logits, width=width)
        if num_logits != 0:
            calls.append(Call(name, model.last_width, model.last_wanted, past, model.infer_s - before, trial()))
        return step

    model.forward = watching
    try:
        yield
    finally:
        del model.forward


def causes(calls: Sequence[Call]) -> list[Cause]:
    """Why each forward may have taken longer than need be. A model's first one stands behind a prefill.

    >>> narrow, wide, draft = Call("target", 2, 2, 0, 0), Call("target", 4, 4, 0, 0), Call("draft", 1, 1, 0, 0)
    >>> causes([narrow, narrow, wide, draft, wide, draft])
    ['change', 'steady', 'change', 'change', 'cold', 'cold']
    """
    before: dict[str, tuple[str, int, int]] = {}
    found: list[Cause] = []
    last = ""
    for call in calls:
        if before.get(call.model) != call.kind:
            found.append("change")
        else:
            found.append("steady" if last == call.model else "cold")
        before[call.model], last = call.kind, call.model
    return found


def again(calls: Sequence[Call], bare: Mapping[str, Bare]) -> tuple[list[float], float]:
    """Run forwards again, kind by kind. Returns the engine's seconds of each, and the bare loops' own seconds in all.

    The first of each kind is run twice, and counts the second time.
    """
    seconds = [0.0] * len(calls)
    own_s = 0.0
    kind = None
    for index in sorted(range(len(calls)), key=lambda i: (calls[i].kind, calls[i].past)):
        call = calls[index]
        loop = bare[call.model]
        if call.kind != kind:
            kind = call.kind
            loop.forward([0] * call.width, call.past, call.wanted)
        before, began = loop.infer_s, perf_counter()
        loop.forward([0] * call.width, call.past, call.wanted)
        own_s += perf_counter() - began
        seconds[index] = loop.infer_s - before
    return seconds, own_s


def parts(run_s: float, calls: Sequence[Call], again_s: Sequence[float]) -> Parts:
    """Where the seconds of a run went. again_s: of each of its forwards, run again."""
    lost = {"steady": 0.0, "change": 0.0, "cold": 0.0}
    for call, cause, best_s in zip(calls, causes(calls), again_s, strict=True):
        lost[cause] += call.engine_s - best_s
    return Parts(
        run_s=run_s,
        ideal_s=sum(again_s),
        host_s=run_s - sum(call.engine_s for call in calls),
        width_switch_s=lost["change"],
        cache_refill_s=lost["cold"],
        other_s=lost["steady"],
    )
