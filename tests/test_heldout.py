"""The arbiter on texts that none of its constants was chosen by: as good as the best drafter of each category."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

import edgespec_bench
from edgespec.cli import cli
from edgespec.errors import SettingError
from edgespec_bench.recording import Recording, at_costs_of, read, save
from edgespec_bench.replay import AUTO, FIRST, PLAIN, compare, gain

RECORDINGS = Path(edgespec_bench.__file__).parents[1] / "recordings"
HELDOUT = RECORDINGS / "heldout.gz"
CATEGORIES = {"chat", "code", "edit"}


@pytest.fixture(scope="module")
def heldout() -> Recording:
    return read(HELDOUT)


@pytest.mark.parametrize(
    "costs", ["smollm2-openvino", "smollm2-onnxruntime", "dear-draft-openvino", "dear-draft-onnxruntime"]
)
def test_every_category_of_held_out_texts_reaches_98_hundredths_of_the_best_single_drafter(
    heldout: Recording, costs: str
) -> None:
    """The best of plain and of each drafter at the best of seven lengths, which is known only afterwards."""
    found = compare(at_costs_of(heldout, read(RECORDINGS / f"{costs}.gz")))
    assert set(found) == {*CATEGORIES, FIRST}
    gains = {category: gain(found[category]) for category in CATEGORIES}
    assert min(gains.values()) >= 0.98, gains
    assert all(found[category][AUTO] > found[category][PLAIN] for category in CATEGORIES), found


def test_held_out_texts_are_none_of_those_that_constants_were_chosen_by(heldout: Recording) -> None:
    """By length alone, since every recording numbers its tokens anew."""
    for file in RECORDINGS.glob("*.gz"):
        if file != HELDOUT:
            known = {(len(text.prompt), len(text.written)) for text in read(file).texts}
            assert sum((len(text.prompt), len(text.written)) in known for text in heldout.texts) <= 1, file


def test_a_recording_is_replayed_at_the_costs_of_another(heldout: Recording) -> None:
    costs = read(RECORDINGS / "dear-draft-onnxruntime.gz")
    mixed = at_costs_of(heldout, costs)
    assert mixed.texts == heldout.texts
    assert replace(mixed, texts=costs.texts, model=costs.model) == costs


def test_costs_without_a_draft_model_are_refused_for_texts_with_one(heldout: Recording) -> None:
    with pytest.raises(SettingError, match="with and without one"):
        at_costs_of(heldout, replace(heldout, draft=None))


def test_the_command_takes_costs_from_another_file(heldout: Recording, tmp_path: Path) -> None:
    texts, costs = tmp_path / "texts.gz", RECORDINGS / "smollm2-onnxruntime.gz"
    save(replace(heldout, texts=heldout.texts[:1]), texts)
    result = CliRunner().invoke(cli, ["bench", "replay", str(texts), "--costs", str(costs)])
    assert result.exit_code == 0, result.output
    assert "onnxruntime" in result.stdout.splitlines()[-1]
