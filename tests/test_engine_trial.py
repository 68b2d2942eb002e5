"""Which engine is chosen: fake engines of known costs write an answer with the real loop, arbiter and drafters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgespec.backends.fake import FakeModel, Table, VirtualClock, random_table
from edgespec.drafters.ngram import NGram
from edgespec.drafters.small_model import SmallModel
from edgespec.engine_trial import Trial
from edgespec.machine import engine_comparison
from edgespec.machine.engine_comparison import Comparison, Engine, Pace
from edgespec.types import Backend, Step

VOCAB = 64
TABLE = random_table(VOCAB, seed=0)
PROMPT, EDIT = [5, 6, 7, 8, 9], [6, 7, 8]
FLAT: Callable[[int], float] = lambda width: 0.05  # noqa: E731


def engine(
    forward_s: Callable[[int], float] = FLAT,
    draft_s: float | None = None,
    *,
    table: Table = TABLE,
    draft_table: Table = TABLE,
    least: int = 1,
    step: int = 1,
) -> Trial:
    """Whose draft, if it has one, is always right."""
    clock = VirtualClock()

    def model(table: Table, seconds: Callable[[int], float]) -> FakeModel:
        return FakeModel(table, VOCAB, forward_s=seconds, clock=clock, tree=False)

    draft = None if draft_s is None else SmallModel(model(draft_table, lambda width: draft_s), VOCAB)
    target = model(table, forward_s)
    return Trial(target, [NGram()], draft, PROMPT, EDIT, least=least, step=step, clock=clock)


def compared(onnxruntime: Engine, openvino: Engine) -> Comparison:
    return engine_comparison.compare("m", "exact", {"onnxruntime": onnxruntime, "openvino": openvino})


@pytest.mark.parametrize(("dear", "chosen"), [("onnxruntime", "openvino"), ("openvino", "onnxruntime")])
def test_equal_plain_decoding_and_a_dearer_draft(dear: Backend, chosen: Backend) -> None:
    """0.3 and 0.6 of a step of the target."""
    draft_s = {"onnxruntime": 0.015, "openvino": 0.015, dear: 0.03}
    found = compared(*(engine(draft_s=draft_s[name]) for name in ("onnxruntime", "openvino")))
    assert found.faster == chosen and not found.tie
    assert found.paces[dear].write_s > 1.15 * found.paces[chosen].write_s


def test_equal_plain_decoding_and_dearer_rows() -> None:
    found = compared(engine(lambda width: 0.05 * width, 0.005), engine(FLAT, 0.005))
    assert found.faster == "openvino" and not found.tie
    assert found.paces["onnxruntime"].write_s == pytest.approx(0.05, rel=0.15), "it hardly drafts"


def test_copies_are_timed_apart() -> None:
    """The edit stands in the prompt, and the model would write something else. Rows that are free on one engine gain
    nothing in a free text without a draft, and more than half in an edit."""
    prompt = [*range(20, 60), 19]
    edit = prompt[:40]

    def copying(forward_s: Callable[[int], float]) -> Trial:
        clock = VirtualClock()
        target = FakeModel(TABLE, VOCAB, forward_s=forward_s, clock=clock, tree=False)
        return Trial(target, [NGram()], None, prompt, edit, clock=clock)

    found = compared(copying(lambda width: 0.05 * width), copying(FLAT))
    onnxruntime, openvino = found.paces["onnxruntime"], found.paces["openvino"]
    assert openvino.copy_s < 0.5 * openvino.write_s
    assert onnxruntime.copy_s > 0.9 * onnxruntime.write_s
    assert found.faster == "openvino"


def test_a_dear_draft_costs_an_engine_little() -> None:
    """The arbiter leaves it out, as in a run."""
    found = engine(FLAT, 0.02, draft_table=random_table(VOCAB, seed=1)).write([], 64, inf)[1]
    assert found == pytest.approx(0.05, rel=0.1)


def test_a_draft_of_fewer_ids_reads_none_that_it_lacks() -> None:
    """The prompt is of the target's ids. Engines end in an error for an id past a draft's embeddings."""

    class Narrow(FakeModel):
        def forward(self, tokens: Sequence[int], *given: Any, **named: Any) -> Step:
            assert max(tokens) < self.vocab_size
            return super().forward(tokens, *given, **named)

    clock, ids = VirtualClock(), np.array([0, 1, 2, -1], np.int32)
    target = FakeModel(TABLE, VOCAB, forward_s=FLAT, clock=clock, tree=False)
    narrow = Narrow(random_table(4, seed=0), 4, forward_s=FLAT, clock=clock, tree=False)
    trial = Trial(target, [], SmallModel(narrow, VOCAB, id_map=ids), PROMPT, EDIT, clock=clock)
    assert trial.write([], 8, inf)[1] > 0


def test_a_draft_with_hardly_any_context_is_timed() -> None:
    clock = VirtualClock()
    target = FakeModel(TABLE, VOCAB, forward_s=FLAT, clock=clock, tree=False)
    short = FakeModel(TABLE, VOCAB, forward_s=FLAT, clock=clock, tree=False, capacity=5)
    trial = Trial(target, [], SmallModel(short, VOCAB), PROMPT, EDIT, clock=clock)
    assert trial.write([], 8, inf)[1] > 0


def test_widths_are_those_of_exact_numerics() -> None:
    """A forward of two rows that is never run may be as fast as it likes."""
    seconds = lambda width: 0.01 if width % 4 else 0.05  # noqa: E731
    trial = engine(seconds, 0.005, least=4, step=4)
    assert trial._arbiter.target_s.seconds(2, 10) == pytest.approx(0.05)


def test_what_counts_is_reading_writing_and_copying() -> None:
    slow, fast = Scripted(1.0, 1.0), Scripted(1.03, 1.03)
    slow.read_s, fast.read_s = 0.2, 0.1
    found = compared(slow, fast)
    seconds = {name: pace.use_s for name, pace in found.paces.items()}
    assert seconds == pytest.approx({"onnxruntime": 500 * 0.2 + 200 * 1.0, "openvino": 500 * 0.1 + 200 * 1.03})
    assert found.faster == "openvino", "it writes more slowly"


def test_the_best_turn_of_each_part_counts() -> None:
    disturbed = Scripted(1.0, 3.0)
    pace = compared(disturbed, Scripted(1.4, 1.4)).paces["onnxruntime"]
    assert (pace.write_s, pace.copy_s) == (1.0, 1.0)


@pytest.mark.parametrize(("slower", "turns"), [(2.1, 1), (1.9, 2)])
def test_one_turn_is_enough_where_an_engine_is_clearly_ahead(slower: float, turns: int) -> None:
    engines, shares = {"onnxruntime": Scripted(1.0, 1.0), "openvino": Scripted(slower, slower)}, list[float]()
    found = engine_comparison.compare("m", "exact", engines, shares.append)
    assert (found.faster, found.tie) == ("onnxruntime", False)
    assert [len(each.turns) for each in engines.values()] == [2 - turns] * 2
    assert shares == [0.25, 0.5, *([0.75] if turns == 2 else []), 1.0], "its end is told once"


def test_one_disturbed_turn_chooses_no_engine() -> None:
    """Another program lengthened the first one by more than half."""
    found = compared(Scripted(1.6, 1.0, read_s=1e-6), Scripted(1.0, 1.0, read_s=2e-6))
    assert (found.faster, found.tie) == ("onnxruntime", True)


def test_one_turn_shows_no_noise() -> None:
    assert "noise" not in str(compared(Scripted(1.0), Scripted(3.0)))
    assert ", noise 4%" in str(compared(Scripted(1.0, 1.0), Scripted(1.3, 1.4)))


def test_the_line_names_the_engine_that_is_taken_first() -> None:
    line = str(compared(Scripted(0.05, 0.05), Scripted(0.04, 0.04)))
    assert line.startswith("500 tokens read, 100 written and 100 copied with drafts: openvino 8.0 s (")
    assert "25.0 and 25.0 tokens a second), onnxruntime 10.0 s (" in line


def test_a_prompt_is_read_at_its_second_time() -> None:
    """The first forward of a width sets things up."""
    seen: list[int] = []

    def forward_s(width: int) -> float:
        seen.append(width)
        return 0.05 if seen.count(width) > 1 else 9.0

    assert engine(forward_s).read() == pytest.approx(0.05 / (len(PROMPT) - 1))


def test_both_write_the_text_of_the_first() -> None:
    text, _ = engine(table=random_table(VOCAB, seed=3)).write([], 40, inf)
    other = engine(draft_s=0.01)
    assert other.write([], 40, inf)[0] != text
    assert other.write(text, 40, inf)[0] == text
    assert other.write(text[:20], 40, inf)[0][:20] == text[:20]


def test_a_text_that_is_followed_leaves_the_logits_of_the_engine_alone() -> None:
    """They are memory of the engine. Here they are shared by all forwards."""
    text, _ = engine(table=random_table(VOCAB, seed=3)).write([], 40, inf)
    trial = engine()
    own = trial.write([], 20, inf)[0]
    trial.write(text, 40, inf)
    assert trial.write([], 20, inf)[0] == own


def test_turns_do_not_remember_each_other() -> None:
    trial = engine(draft_s=0.01)
    text, seconds = trial.write([], 64, inf)
    again, seconds_again = trial.write(text, 64, inf)
    assert again == text and seconds_again == pytest.approx(seconds)


def test_the_time_is_bounded() -> None:
    written, _ = engine(lambda width: 0.5).write([], 64, 2.5)
    assert len(written) == 6


class Scripted:
    """An engine that takes as long as it is told to, turn by turn."""

    edit = EDIT

    def __init__(self, *write_s: float, read_s: float = 1e-6) -> None:
        self.turns, self.read_s = list(write_s), read_s

    def read(self) -> float:
        self.write_s = self.turns.pop(0)
        return self.read_s

    def write(self, text: Sequence[int], tokens: int, most_s: float) -> tuple[list[int], float]:
        return [1] * tokens, self.write_s


@pytest.mark.parametrize(
    ("onnxruntime", "openvino", "chosen", "tie"),
    [
        ((1.0, 1.0), (1.01, 1.01), "onnxruntime", True),  # steady, and within the least noise
        ((1.03, 1.03), (1.0, 1.0), "openvino", False),  # steady, and beyond it
        ((1.03, 1.23), (1.0, 1.0), "onnxruntime", True),  # by 3 %, and turns differ by 9
        ((1.33, 1.53), (1.0, 1.0), "openvino", False),  # by a third
        ((1.0, 2.0), (1.03, 2.06), "onnxruntime", False),  # both were slow in the same turn: that is no noise
    ],
)
def test_a_tie_is_what_was_measured_to_be_noise(
    onnxruntime: tuple[float, ...], openvino: tuple[float, ...], chosen: Backend, tie: bool
) -> None:
    found = compared(Scripted(*onnxruntime, read_s=1e-6), Scripted(*openvino, read_s=2e-6))
    assert (found.faster, found.tie) == (chosen, tie)
    assert ("reads faster" in str(found)) == tie


def test_a_tie_goes_to_the_engine_that_reads_faster() -> None:
    for read_s, chosen in (((0.010, 0.011), "onnxruntime"), ((0.011, 0.010), "openvino")):
        names = ("onnxruntime", "openvino")
        paces = {name: Pace(seconds, 0.2, 0.2) for name, seconds in zip(names, read_s, strict=True)}
        found = Comparison("m", "exact", paces)
        assert found.tie and found.faster == chosen
    assert Comparison("m", "exact", {}).faster == "openvino"


def test_results_of_another_way_to_measure_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGESPEC_CACHE", str(tmp_path))
    assert engine_comparison.file_of("key").name == "engines-3-key.json"
