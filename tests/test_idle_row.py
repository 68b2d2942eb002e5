"""A plain step is padded to the narrowest exact width, and a guess in a padding row costs no time: what did it earn?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from edgespec.backends.exact_widths import ExactWidths
from edgespec.backends.fake import FakeModel, VirtualClock, random_table
from edgespec.decode.policy import FixedLength, Plain
from edgespec.decode.speculative import speculative
from edgespec.explain import explain
from edgespec.generation import Generation
from edgespec.protocols import Drafter, Policy
from edgespec.sampling_params import SamplingParams
from edgespec.stats import IdleRow, Stats
from edgespec.types import Allowed, Draft, Round
from tests.conftest import load_ir, load_onnx

VOCAB = 16
TABLE = random_table(VOCAB, seed=3)


class EverySecond(Drafter):
    """Proposes what the model will say, and every second time something else behind its first token."""

    name = "oracle"

    def __init__(self, wrong_at: int) -> None:
        self._wrong_at = wrong_at
        self._asked = 0

    def propose(self, context: Sequence[int], k: int, allowed: Allowed | None = None) -> Draft:
        self._asked += 1
        text = list(context)
        for place in range(k):
            token = int(TABLE(tuple(text)).argmax())
            text.append((token + 1) % VOCAB if place == self._wrong_at and self._asked % 2 else token)
        return Draft(tuple(text[len(context) :]))


def decoded(policy: Policy, min_width: int, budget: int = 30) -> Stats:
    clock = VirtualClock()
    target = FakeModel(TABLE, VOCAB, clock=clock, min_width=min_width, forward_s=lambda width: 0.5)
    stats = Stats(clock=clock)
    for _ in speculative(target, policy, [1, 2, 3], SamplingParams(), stop=(), budget=budget, stats=stats):
        pass
    assert stats.plain_width == min_width
    return stats


def test_a_guess_in_the_second_row_is_counted() -> None:
    stats = decoded(FixedLength(EverySecond(wrong_at=0), k=1), min_width=2)
    # A miss commits one token and a hit two, in turns: 20 forwards for 30 tokens.
    assert stats.idle_row == IdleRow(forwards=20, accepted=10, share=0.5, tok_per_s=1.0)
    plain = decoded(Plain(), min_width=2)
    assert plain.idle_row == IdleRow(forwards=0, accepted=0, share=0.0, tok_per_s=0.0)
    faster = stats.decoded / stats.decode_s - plain.decoded / plain.decode_s
    assert stats.idle_row.tok_per_s == pytest.approx(faster), "that is what the guesses add"


def test_the_time_to_draft_is_taken_off() -> None:
    """Each guess took as long as a forward, and one of three was right: that is slower than without."""
    hit, miss = (Round("model", 1, 1, n, 1 + n, 1.0, 1.0, 0.0, width=2) for n in (1, 0))
    found = Stats(rounds=[hit, miss, miss], plain_width=2).idle_row
    assert found == IdleRow(forwards=3, accepted=1, share=1 / 3, tok_per_s=4 / 6 - 3 / 3)


def test_a_wider_draft_is_paid_for_and_does_not_count() -> None:
    stats = decoded(FixedLength(EverySecond(wrong_at=2), k=3), min_width=2)
    assert stats.accepted > 0
    assert stats.idle_row is not None and stats.idle_row.accepted <= 1, "the last round has room for one"


def test_three_idle_rows_hold_three_guesses() -> None:
    stats = decoded(FixedLength(EverySecond(wrong_at=1), k=3), min_width=4, budget=60)
    found = stats.idle_row
    assert found is not None and found.forwards == len(stats.rounds) and found.accepted == stats.accepted
    assert found.accepted > found.share * len(stats.rounds), "several in one forward"


def test_an_engine_says_how_wide_a_plain_step_is(tiny_fast_ir: Path) -> None:
    for model in (load_onnx(tiny_fast_ir, "exact"), load_ir(tiny_fast_ir)):
        model.set_exact_widths(ExactWidths(4, 64, 4))
        assert model.capabilities.min_width == model.forward([5]).width == 4


def test_without_padding_there_is_no_idle_row() -> None:
    stats = decoded(FixedLength(EverySecond(wrong_at=0), k=1), min_width=1)
    assert stats.idle_row is None
    assert not any("idle" in line for line in explain(stats, None))


def test_it_is_in_json_and_in_words() -> None:
    stats = decoded(FixedLength(EverySecond(wrong_at=0), k=1), min_width=2)
    made = Generation("m", "oracle", "exact", "f32", None, {}, "fake", None, stats=stats)
    assert made.as_dict()["idle_row"] == {"forwards": 20, "accepted": 10, "share": 0.5, "tok_per_s": 1.0}
    [line] = [line for line in explain(stats, None) if "idle" in line]
    assert line == (
        "A plain step has 2 rows here. What is idle of them carried a guess in 20 forwards: 10 tokens accepted, in 50% "
        "of all forwards, which adds 1.0 tokens a second."
    )
