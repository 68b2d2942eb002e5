"""Plans that take given seconds, and pipelines that do nothing: for the tests of the planner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from edgespec import plan_verify, planner
from edgespec.load_options import LoadOptions
from edgespec.machine.engine_comparison import Pace
from edgespec.machine.plans import Place, Plan
from edgespec.plan_rows import Row
from edgespec.plan_trial import WHOLE, Length, Runner

AUTO = LoadOptions(device="auto")
CPU, CPU_ORT, GPU = Place("CPU", "openvino"), Place("CPU", "onnxruntime"), Place("GPU", "openvino")
OV, ORT = Plan(CPU, CPU), Plan(CPU_ORT, CPU_ORT)
OVERLAPPED = replace(OV, schedule="overlapped")
LOOKUPS = Plan(CPU, draft="ngram")


def row(plan: Plan, ratio: float, joules: float = 1.0) -> Row:
    return Row(plan, Pace(0.001, 0.01 * ratio, 0.005 * ratio), ratio, joules)


class Scripted(Runner):
    """A plan whose uses take given seconds: the same ones always, or one after another."""

    seconds: dict[Plan, float | list[float]] = {}  # noqa: RUF012
    made: list[tuple[Plan, list[int], Length]] = []  # noqa: RUF012
    turned: list[Plan] = []  # noqa: RUF012

    def __init__(self, plan: Plan, pipeline: Any, text: Sequence[int] = (), length: Length = WHOLE) -> None:
        self.plan, self.pipeline, self.length = plan, pipeline, length
        self.written, self.edit = [*text] or [1] * 32, [1] * 40
        self.turns: list[Pace] = []
        self.joules, self.metered, self.target, self.prompt = 1.0, False, pipeline.target, [1, 2]
        Scripted.made.append((plan, list(text), length))
        given = self.seconds[plan]
        first = given if isinstance(given, float) else given[0]
        self.warm_up = Pace(first, first, first)

    def turn(self) -> Pace:
        given = self.seconds[self.plan]
        seconds = given if isinstance(given, float) else given[len(self.turns)]
        self.turns.append(Pace(seconds, seconds, seconds))
        Scripted.turned.append(self.plan)
        return self.turns[-1]


def cost(seconds: float) -> Any:
    return SimpleNamespace(seconds=lambda width, context: seconds)


def fake_pipeline(draft_s: float = 0.3, weights: int = 0) -> Any:
    manifest = SimpleNamespace(target=SimpleNamespace(weights_bytes=weights))
    arbiter = SimpleNamespace(target_s=cost(1.0), draft_s=cost(draft_s))
    return SimpleNamespace(bundle=SimpleNamespace(manifest=manifest), arbiter=arbiter, target=None, draft_model=None)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> type[Scripted]:
    for module in (planner, plan_verify):
        monkeypatch.setattr(module, "Runner", Scripted)
    Scripted.made, Scripted.turned = [], []
    Scripted.seconds = {OV: 1.0, OVERLAPPED: 0.5, LOOKUPS: 2.0, ORT: 3.0}
    return Scripted


def opened(plan: Plan) -> Any:
    return fake_pipeline()


def quiet(what: str) -> None:
    pass


def made() -> list[Plan]:
    return [plan for plan, _, _ in Scripted.made]
