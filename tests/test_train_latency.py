"""``edgespec train latency``: draft steps of random weights beside steps of the target."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("optimum.intel", reason="training needs the train extra")

from transformers import AutoConfig

from edgespec import load
from edgespec_train.latency import SmallDraft, sweep
from tests import test_train
from tests.test_train import run

target_folder, target = test_train.target_folder, test_train.target


def test_a_recurrent_head_costs_less_with_fewer_bits_fewer_ids_narrow_rows_and_a_shorter_chain(target: Path) -> None:
    found = run("train", "latency", "-m", target, "--recipe", "redrafter", "--rounds", "3")
    assert found.exit_code == 0, found.output
    shapes = json.loads(found.output.splitlines()[-1])["shapes"]
    assert all(value > 0 for figures in shapes.values() for value in figures)
    megabytes, by_bytes = ({name: figures[column] for name, figures in shapes.items()} for column in (0, 3))
    full, trimmed, narrow = (f"a chain of 3, {part}" for part in ("512 ids", "256 ids", "512 ids, rank 32"))
    assert by_bytes[f"{full}, int4"] < by_bytes[f"{full}, int8"]
    for bits in ("int4", "int8"):
        assert by_bytes[f"{trimmed}, {bits}"] < by_bytes[f"{full}, {bits}"]
        assert by_bytes[f"{narrow}, {bits}"] < by_bytes[f"{full}, {bits}"]
    longer, beams = "a chain of 5, 512 ids, int8", "3 beams of 4, 512 ids, int8"
    assert by_bytes[f"{full}, int8"] < by_bytes[beams] < by_bytes[longer]
    assert megabytes[f"{full}, int8"] == pytest.approx(megabytes[longer], abs=0.01)  # each matrix is there once


def test_a_small_draft_is_timed_beside_its_target(target: Path, target_folder: Path) -> None:
    config = AutoConfig.from_pretrained(target_folder)
    drafts = [SmallDraft(config, 1, 512), SmallDraft(config, 3, 512)]
    one, three = sweep(drafts, load(str(target), draft="none"), rounds=3)
    assert one.step_ms > 0 and one.ratio > 0
    assert one.ratio_in_bytes < three.ratio_in_bytes and one.megabytes < three.megabytes
