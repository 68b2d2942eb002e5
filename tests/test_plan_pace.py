"""The figures of a plan agree with its ratio, whatever the machine's speed was in its turns."""

from dataclasses import asdict

import pytest

from edgespec.machine.engine_comparison import Pace
from edgespec.machine.plans import Place, Plan
from edgespec.plan_rows import Row, at_one_pace

PLANS = Plan(Place("CPU", "openvino"), draft="ngram"), Plan(Place("CPU", "onnxruntime"), draft="ngram")
PACE = Pace(0.003, 0.012, 0.009)


def test_a_slower_plan_shows_slower_figures() -> None:
    """Its turns were in a faster hour."""
    taken, slower = Row(PLANS[0], PACE, 0.8), Row(PLANS[1], PACE.times(0.7), 1.2)
    shown = at_one_pace([taken, slower])
    assert shown[0] == taken
    assert shown[1].pace is not None
    assert asdict(shown[1].pace) == pytest.approx(asdict(PACE.times(1.5)))


def test_a_plan_without_figures_stays() -> None:
    not_tried = Row(PLANS[1], why="not tried: it is far")
    assert at_one_pace([Row(PLANS[0], PACE, 1.0), not_tried])[1] is not_tried
