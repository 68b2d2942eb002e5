"""The loop of training: it learns, resumes, and refuses a checkpoint of another run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgespec.errors import SettingError

pytest.importorskip("optimum.intel", reason="training needs the train extra")
pytest.importorskip("accelerate", reason="training needs the train extra")

import torch

from edgespec_train.corpus import shards
from edgespec_train.corpus.batches import Texts
from edgespec_train.corpus.texts import TargetTexts
from edgespec_train.draft_model import Shape, build, choose_vocabulary, initialise_from
from edgespec_train.judging import Judged, ahead, tokens_a_forward
from edgespec_train.trainer import Point, Recipe, agreement, block_efficiency, train
from tests import test_train
from tests.test_train import VOCAB, texts_of

target_folder, target, corpus = test_train.target_folder, test_train.target, test_train.corpus
torch_target = test_train.torch_target


def trainable(torch_target: Any, corpus: Path) -> tuple[Any, Texts, Texts]:
    id_map = choose_vocabulary(TargetTexts(shards.shard_paths(corpus)).token_counts(VOCAB), 200, always=[1])
    shape = Shape((0,))
    draft: Any = build(torch_target.config, shape, 200, seed=0)
    initialise_from(draft, torch_target, shape, id_map)
    return draft, *texts_of(corpus, id_map).split(0.2)


RECIPE = Recipe(steps=8, tokens_per_batch=512, learning_rate=1e-3, warmup=2, evaluate_every=2)


def test_training_brings_a_draft_closer_to_the_target(torch_target: Any, corpus: Path, tmp_path: Path) -> None:
    id_map = np.arange(VOCAB, dtype=np.int32)
    texts = texts_of(corpus, id_map)
    draft: Any = build(torch_target.config, Shape((0,)), VOCAB, seed=1)
    before = np.concatenate(agreement(draft, texts, texts.texts)).mean()
    recipe = dataclasses.replace(RECIPE, steps=80, evaluate_every=80, learning_rate=5e-3)
    (point,) = train(draft, texts, texts, recipe, tmp_path, say=lambda point: None)
    after = np.concatenate(agreement(draft, texts, texts.texts)).mean()
    assert before < 0.02
    assert after > before + 0.03
    assert point.tokens > texts.answer_tokens


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(torch_target: Any, corpus: Path, tmp_path: Path) -> None:
    whole, texts, held_out = trainable(torch_target, corpus)
    expected = train(whole, texts, held_out, RECIPE, tmp_path / "whole", say=lambda point: None)

    def stop_at_four(point: Point) -> None:
        if point.step == 4:
            raise KeyboardInterrupt

    stopped, texts, held_out = trainable(torch_target, corpus)
    with pytest.raises(KeyboardInterrupt):  # after the checkpoint of step 2, before that of step 4
        train(stopped, texts, held_out, RECIPE, tmp_path / "cut", say=stop_at_four)
    resumed, texts, held_out = trainable(torch_target, corpus)
    curve = train(resumed, texts, held_out, RECIPE, tmp_path / "cut", say=lambda point: None)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=0, atol=0, msg=name)
    assert [(p.step, p.tokens, p.agreement) for p in curve] == [(p.step, p.tokens, p.agreement) for p in expected]


def test_a_checkpoint_of_another_run_is_refused(torch_target: Any, corpus: Path, tmp_path: Path) -> None:
    draft, texts, held_out = trainable(torch_target, corpus)
    train(draft, texts, held_out, dataclasses.replace(RECIPE, steps=2), tmp_path, say=lambda point: None)
    with pytest.raises(SettingError, match="another recipe"):
        train(draft, texts, held_out, RECIPE, tmp_path, say=lambda point: None)
    with pytest.raises(SettingError, match="another vocabulary"):
        train(
            *(draft, texts, held_out, dataclasses.replace(RECIPE, steps=2), tmp_path),
            say=lambda point: None,
            same={"vocabulary": "other ids, as many"},
        )


def test_a_checkpoint_survives_a_failure_to_write_the_next(
    torch_target: Any, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draft, texts, held_out = trainable(torch_target, corpus)

    def full(self: Any, folder: str) -> None:
        Path(folder).mkdir()
        raise RuntimeError("No space left on device")

    def fill_the_disk(point: Point) -> None:
        if point.step == 4:
            monkeypatch.setattr("accelerate.Accelerator.save_state", full)

    with pytest.raises(SettingError, match="cannot write a checkpoint"):
        train(draft, texts, held_out, RECIPE, tmp_path, say=fill_the_disk)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
    monkeypatch.undo()
    (tmp_path / "checkpoint").replace(tmp_path / "checkpoint.old")  # as if killed between the two renames
    draft, texts, held_out = trainable(torch_target, corpus)
    curve = train(draft, texts, held_out, RECIPE, tmp_path, say=lambda point: None)
    assert [point.step for point in curve] == [2, 4, 6, 8]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_every_text_is_in_one_part_and_every_epoch_has_all(torch_target: Any, corpus: Path) -> None:
    texts = texts_of(corpus, np.arange(VOCAB, dtype=np.int32))
    rest, held_out = texts.split(0.3)
    assert sorted(rest.texts + held_out.texts) == sorted(texts.texts)
    assert rest.texts and held_out.texts
    prompts = [{bytes(texts.prompt(text)) for text in part.texts} for part in (rest, held_out)]
    assert not prompts[0] & prompts[1], "answers to one prompt on both sides"
    for epoch in (0, 1):
        batches = texts.epoch(0, epoch, 600)
        assert sorted(text for batch in batches for text in batch) == sorted(texts.texts)
    assert texts.epoch(0, 0, 600) == texts.epoch(0, 0, 600) != texts.epoch(0, 1, 600)
    ahead = texts.batches(0, 600)
    for _ in range(len(batches) + 3):
        next(ahead)
    assert next(texts.batches(0, 600, first=len(batches) + 3)) == next(ahead)


def test_block_efficiency_counts_rounds() -> None:
    bits = np.array([False, True, True, False, True, False, False])
    assert block_efficiency([bits], 1) == 6 / 4
    assert block_efficiency([bits], 4) == 6 / 3
    assert block_efficiency([np.ones(11, bool)], 4) == 10 / 2


def test_judging_counts_rounds_that_begin_where_the_one_before_ended() -> None:
    """A draft whose second token is right only behind a right first one: each line is another round."""
    right = np.array([[1, 1, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0], [0, 0, 0]], bool)
    judged = Judged.of([right])
    assert tokens_a_forward([right], 3) == 5 / 2  # rounds at 0 (two right) and 3 (one right)
    assert tokens_a_forward([right], 1) == 5 / 3
    assert judged.by_position == (0.4, 0.5, 0.0)
    assert judged.agreement == 0.4
    assert Judged.of([right], agreement=0.7).agreement == 0.7
    assert Judged.of([]).block_efficiency == 1.0
    bits = np.array([False, True, True, False, True])
    np.testing.assert_array_equal(ahead(bits, 2), [[1, 1], [1, 0], [0, 1], [1, 0]])


def test_a_damaged_checkpoint_is_one_line(torch_target: Any, corpus: Path, tmp_path: Path) -> None:
    draft, texts, held_out = trainable(torch_target, corpus)
    recipe = dataclasses.replace(RECIPE, steps=2)
    train(draft, texts, held_out, recipe, tmp_path, say=lambda point: None)
    state = tmp_path / "checkpoint" / "state.json"
    good = state.read_text(encoding="utf-8")
    for content, message in (
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ('{"curve": [{"step": 2}]}', "made with another"),
    ):
        state.write_text(content, encoding="utf-8")
        with pytest.raises(SettingError, match=message):
            train(draft, texts, held_out, recipe, tmp_path, say=lambda point: None)
    state.write_text(json.dumps(json.loads(good) | {"curve": [{"step": 2}]}), encoding="utf-8")
    with pytest.raises(SettingError, match="learning curve in .* is damaged"):
        train(draft, texts, held_out, recipe, tmp_path, say=lambda point: None)
    state.write_text(good, encoding="utf-8")
    weights = next(path for path in state.parent.iterdir() if path.suffix in (".safetensors", ".bin"))
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(SettingError, match="is damaged.*Delete it to begin again"):
        train(draft, texts, held_out, recipe, tmp_path, say=lambda point: None)
