"""What ``--explain`` says is what the books say."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from edgespec.adaptive.calibration import ForwardTimes
from edgespec.adaptive.forward_cost import ForwardCost
from edgespec.explain import explain
from edgespec.pipeline import Pipeline
from edgespec.stats import Guessed, Stats, accepted_by_place
from edgespec.types import Round


def round_of(drafter: str, proposed: int, accepted: int, reason: str = "", expected: float | None = None) -> Round:
    return Round(drafter, proposed, proposed, accepted, accepted + 1, 0.002, 0.010, 0.001, expected, reason)


ROUNDS = [
    round_of("model", 3, 3, expected=2.0),
    round_of("model", 3, 1, expected=2.0),
    round_of("model", 2, 0, expected=1.0),
    round_of("ngram", 4, 4, expected=3.0),
    round_of("auto", 0, 0, reason="nothing to copy"),
]


def test_it_says_who_drafted_what_came_of_it_and_why_not() -> None:
    text = "\n".join(explain(Stats(prompt_tokens=7, prefill_s=0.5, rounds=ROUNDS), plain_s=0.010))
    assert "13 tokens in 5 forwards of the target: 2.60 tokens each, 5.0 ms a token" in text
    assert "this was 2.00 times as fast" in text
    assert (
        "model drafted in 3 of 5: 2.7 tokens at a time, 50% accepted (of those reached, by place: 67% 50% 100%)" in text
    )
    assert "ngram drafted in 1 of 5" in text
    assert "1 round without a draft: nothing to copy (1)." in text
    assert "It expected 8 drafted tokens to be accepted, and 8 were." in text
    assert "the target 77%, drafting 15%, the rest 8%" in text
    assert "The prompt was read in 0.50 s (7 tokens)." in text
    slow = "\n".join(explain(Stats(rounds=ROUNDS), plain_s=0.0025))
    assert "2.00 times slower" in slow
    assert explain(Stats(), None) == ["Nothing was decoded."]


def test_a_first_round_that_reads_the_prompt_is_no_time_of_decoding() -> None:
    reads = replace(ROUNDS[0], target_s=0.3, read=6)
    text = "\n".join(explain(Stats(prompt_tokens=7, prefill_s=0.5, rounds=[reads, *ROUNDS[1:]]), plain_s=0.010))
    assert "13 tokens in 5 forwards of the target: 2.60 tokens each, 5.8 ms a token" in text  # 4 x 13 ms, 9 tokens
    assert "10.0 ms to verify" in text and "the target 77%" in text
    assert "(so few tokens say little)" in text
    assert "The prompt was read in 0.80 s (7 tokens), part of it with the first round, which" in text
    short = "\n".join(explain(Stats(prompt_tokens=7, rounds=[reads]), plain_s=0.010))
    assert "4 tokens in 1 forward of the target: 4.00 tokens each." in short and "Time:" not in short


def test_a_place_that_was_not_reached_does_not_count() -> None:
    assert accepted_by_place(ROUNDS) == [3 / 4, 2 / 3, 1.0, 1.0]
    assert accepted_by_place(ROUNDS[-1:]) == []


def test_a_short_text_on_a_busy_machine_is_not_compared_with_an_idle_one() -> None:
    """What was learned of the costs follows slowly, or not at all for a fixed number of tokens. Forwards take twice as
    long here, but for one that was disturbed more, and the first, which reads the prompt. So does a plain step."""
    costs = ForwardCost(ForwardTimes((1, 4), 0, 100, (0.010, 0.016), (0.020, 0.026)))
    took = Round("model", 3, 3, 1, 2, 0.0, 0.034, 0.001, width=4)
    rounds = [replace(took, target_s=0.9, read=6), took, replace(took, target_s=0.9), took]
    stats = Stats(prompt_tokens=6, rounds=rounds)
    pair: Any = SimpleNamespace(target_s=costs)
    expected = Pipeline.expected_plain_s(pair, stats)
    half = costs.seconds(1, 6 + 4)
    assert costs.seconds(4, 8) == pytest.approx(0.0168) and half == pytest.approx(0.011)
    assert expected == pytest.approx(0.011 * 0.034 / 0.0168 + 0.001)
    beside = replace(stats, guessed=Guessed())
    assert Pipeline.expected_plain_s(pair, beside) == half + 0.001, "there the draft slows the target"
    assert Pipeline.expected_plain_s(pair, Stats(rounds=rounds[:1])) == costs.seconds(1, 1) + 0.001
    assert Pipeline.expected_plain_s(pair, Stats()) is None
