"""FastDraft's stages before alignment, and its losses, on a target of a few hundred kilobytes."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgespec import bundle, load
from edgespec.errors import SettingError

pytest.importorskip("optimum.intel", reason="training needs the train extra")
pytest.importorskip("accelerate", reason="training needs the train extra")

import torch

from edgespec_train import pretrain
from edgespec_train.corpus import plain, shards
from edgespec_train.corpus.batches import Batch
from edgespec_train.corpus.plain import WINDOW, PlainPlan, Windows, plain_tokens
from edgespec_train.draft_model import Shape
from edgespec_train.losses import Loss, loss_of
from edgespec_train.pretrain import EarlierStages
from edgespec_train.stages import train_draft
from edgespec_train.trainer import Diverged, train
from tests import test_train
from tests.test_train import VOCAB, run
from tests.test_train_ready_corpus import settings_of

target_folder, target, corpus = test_train.target_folder, test_train.target, test_train.corpus
SAID = "the quick brown fox jumps over the lazy dog near the river bank"


@pytest.fixture(scope="module")
def bare(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards alone, without a manifest: they are anyone's."""
    folder = tmp_path_factory.mktemp("shards")
    for path in shards.shard_paths(corpus):
        shutil.copy(path, folder / path.name)
    return folder


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A user's folder: one program of 130 lines and a page of prose with a sentence of a benchmark in it."""
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "program.py").write_text("".join(f"value_{n} = {n} * {n}\n" for n in range(130)))
    page = [f"Paragraph {n} of the page says something about {n} rivers and their {n} bridges. " * 8 for n in range(40)]
    page[7] += SAID
    (folder / "page.txt").write_text("\n\n".join(page))
    return folder


def letters(text: str) -> list[int]:
    return [ord(letter) % 500 for letter in text]


def text_of(tokens: Any) -> str:
    return "".join(chr(token) for token in tokens)


# Plain text


def test_plain_text_is_the_users_own_first_and_ends_each_piece(own: Path, tmp_path: Path) -> None:
    tokens = plain_tokens(PlainPlan("text", 3000, (str(own),)), letters, tmp_path / "work", end=499)
    assert len(tokens) == 3000
    assert text_of(tokens).count("rivers") > 20
    assert "value_" not in text_of(tokens), "code in a stage of text"
    assert 2 <= (tokens == 499).sum() <= 10


def test_code_is_two_thirds_of_code_and_text(own: Path, tmp_path: Path) -> None:
    tokens = plain_tokens(PlainPlan("code and text", 3000, (str(own),)), letters, tmp_path / "work", end=499)
    pieces = text_of(tokens).split(chr(499))
    code = sum(len(piece) for piece in pieces if "value_" in piece)
    assert 0.5 < code / len(tokens) < 0.8
    assert any("rivers" in piece for piece in pieces)


def test_benchmarks_and_held_out_prompts_are_left_out(own: Path, tmp_path: Path) -> None:
    """Both are matched by ten words in a row."""
    benchmark = tmp_path / "bench.jsonl"
    benchmark.write_text(json.dumps({"text": SAID}))
    plans = PlainPlan("text", 20_000, (str(own),)), PlainPlan("text", 20_000, (str(own),), (str(benchmark),))
    found = [plain_tokens(plan, letters, tmp_path / str(number)) for number, plan in enumerate(plans)]
    assert ["lazy dog" in text_of(tokens) for tokens in found] == [True, False]
    unseen = plain_tokens(plans[0], letters, tmp_path / "unseen", unseen=[SAID.upper()])
    assert "lazy dog" not in text_of(unseen)


def test_plain_text_is_read_once(own: Path, tmp_path: Path) -> None:
    """A resumed run trains on the text of the first one, though the files have changed since; another plan reads."""
    plan = PlainPlan("text", 2000, (str(own),))
    first = plain_tokens(plan, letters, tmp_path / "work")
    (own / "page.txt").write_text("\n\n".join("other words entirely. " * 25 for _ in range(9)))
    np.testing.assert_array_equal(plain_tokens(plan, letters, tmp_path / "work"), first)
    assert "other words" in text_of(plain_tokens(dataclasses.replace(plan, tokens=1999), letters, tmp_path / "work"))
    (kept,) = (tmp_path / "work").glob(f"tokens-{plan.digest}*")
    kept.write_bytes(kept.read_bytes()[:100])
    with pytest.raises(SettingError, match="is damaged"):
        plain_tokens(plan, letters, tmp_path / "work")


def test_plain_text_is_read_again_for_other_ids_and_where_other_text_is_left_out(own: Path, tmp_path: Path) -> None:
    """Another tokenizer or end, other held-out prompts, or a benchmark of the same name with another line."""
    work, benchmark = tmp_path / "work", tmp_path / "bench.jsonl"
    benchmark.write_text(json.dumps({"text": "nothing of that"}))
    plan = PlainPlan("text", 20_000, (str(own),), (str(benchmark),))

    def read(**more: Any) -> str:
        return text_of(plain_tokens(plan, letters, work, **more))

    assert "lazy dog" in read() and "lazy dog" not in read(unseen=[SAID])
    assert read(end=499).count(chr(499)) > 5
    codes = plain_tokens(plan, lambda text: [7] * len(text), work, tokenizer="another")
    assert set(codes) == {7}
    benchmark.write_text(json.dumps({"text": SAID}))
    assert "lazy dog" not in read()


def test_too_little_text_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain, "_shuffled", lambda read, folders: iter(["few words"]))
    with pytest.raises(SettingError, match=f"more than {WINDOW}"):
        plain_tokens(PlainPlan("text", 1000), letters, tmp_path)


def test_windows_train_on_every_next_token_once_a_pass() -> None:
    tokens = np.arange(5 * (WINDOW + 1) + 9, dtype=np.int32) % VOCAB
    inverse, readable = np.arange(VOCAB) // 2, np.arange(VOCAB) % 2 == 0
    windows = Windows(tokens, inverse, readable)
    batches = windows.batches(3, 2 * WINDOW)
    one_pass = [next(batches) for _ in range(3)]
    assert sorted(window for batch in one_pass for _, window in batch) == [0, 1, 2, 3, 4]
    rest = [next(batches) for _ in range(3)]
    assert rest != one_pass, "every pass in the same order"
    resumed = windows.batches(3, 2 * WINDOW, first=4)
    assert [next(resumed), next(resumed)] == rest[1:]
    batch = windows.batch([(0, 3)])
    place = 3 * (WINDOW + 1)
    np.testing.assert_array_equal(batch.tokens[0], inverse[tokens[place : place + WINDOW]])
    np.testing.assert_array_equal(batch.labels, inverse[tokens[place + 1 : place + 1 + WINDOW]])
    np.testing.assert_array_equal(batch.readable, readable[tokens[place + 1 : place + 1 + WINDOW]])
    assert windows.steps(4 * 2 * WINDOW, 2 * WINDOW, 2) == 2


# Stages


def scratch(target: Path, folder: Path, bare: Path, own: Path, **changes: Any) -> Any:
    """Random weights, two steps of each earlier stage, three of alignment."""
    earlier = EarlierStages(4 * WINDOW, 4 * WINDOW, (str(own),))
    settings = settings_of(target, folder, bare, steps=3, tokens_per_batch=2 * WINDOW, **changes)
    return dataclasses.replace(settings, from_scratch=True, shape=Shape((0,), 16, 32, 2), earlier=earlier)


def weights(draft: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in draft.state_dict().items()}


def test_a_run_interrupted_in_any_stage_ends_as_an_uninterrupted_one(
    target_folder: Path, target: Path, bare: Path, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = scratch(target_folder, tmp_path / "whole", bare, own, evaluate_every=1)
    lines: list[str] = []
    expected = weights(train_draft(whole, bundle.read(target), lines.append)[0])
    told = [line.split(":")[0] for line in lines if "step" in line]
    assert told[:4] == ["pretrain"] * 2 + ["continue"] * 2
    assert len(told) == 7
    assert [line for line in lines if line.startswith("pretrain: 1024 tokens of text")]
    curves = json.loads((tmp_path / "whole" / "curve.json").read_text())
    assert [point["step"] for point in curves["pretrain"]] == [1, 2]
    assert [point["step"] for point in curves["curve"]] == [1, 2, 3]

    broken = scratch(target_folder, tmp_path / "broken", bare, own, evaluate_every=1)

    def stop_at(stage: str, step: int) -> None:
        """Control-C when a stage has its checkpoint of this step."""

        def stopping(*arguments: Any, say: Any, **options: Any) -> Any:
            def heard(point: Any) -> None:
                say(point)

            def advance(done: int, curve: Any) -> None:
                if arguments[4].name == stage and done == step:
                    raise KeyboardInterrupt

            return train(*arguments, say=heard, **options | {"advance": advance})

        monkeypatch.setattr(pretrain, "train", stopping)

    for stage in ("pretrain", "continue"):
        stop_at(stage, 2)
        with pytest.raises(KeyboardInterrupt):
            train_draft(broken, bundle.read(target), lambda line: None)
    monkeypatch.undo()
    found = weights(train_draft(broken, bundle.read(target), lambda line: None)[0])
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    monkeypatch.setattr(pretrain, "train", None)  # alignment has a checkpoint: earlier stages are not begun again
    again = weights(train_draft(broken, bundle.read(target), lambda line: None)[0])
    assert all(torch.equal(again[name], expected[name]) for name in expected)


def test_stages_change_the_draft_and_belong_to_the_run(
    target_folder: Path, target: Path, bare: Path, own: Path, tmp_path: Path
) -> None:
    settings = scratch(target_folder, tmp_path / "work", bare, own)
    with_stages = weights(train_draft(settings, bundle.read(target), lambda line: None)[0])
    without = dataclasses.replace(settings, folder=tmp_path / "other", earlier=EarlierStages())
    aligned = weights(train_draft(without, bundle.read(target), lambda line: None)[0])
    assert not all(torch.equal(with_stages[name], aligned[name]) for name in aligned)
    with pytest.raises(SettingError, match="made with another earlier_stages"):
        train_draft(dataclasses.replace(without, folder=settings.folder), bundle.read(target), lambda line: None)


def test_a_loss_that_is_no_number_in_an_earlier_stage_keeps_the_last_good_step(
    target_folder: Path, target: Path, bare: Path, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = scratch(target_folder, tmp_path / "work", bare, own)
    batch = Windows.batch
    calls: list[int] = []

    def poisoned(self: Windows, texts: Any) -> Batch:
        calls.append(1)
        found = batch(self, texts)
        if len(calls) == 4:
            return dataclasses.replace(found, readable=found.readable * float("nan"))
        return found

    monkeypatch.setattr(Windows, "batch", poisoned)
    with pytest.raises(Diverged, match="stopped at step 2"):
        train_draft(settings, bundle.read(target), lambda line: None)
    assert (settings.folder / "draft" / "id_map.npy").is_file()
    monkeypatch.undo()
    said: list[str] = []
    other = dataclasses.replace(settings, recipe=dataclasses.replace(settings.recipe, seed=1))
    train_draft(other, bundle.read(target), said.append)
    steps = [line.split(":")[0] for line in said if "step" in line]
    assert "continue" in steps and "pretrain" not in steps, "what ended before is not begun again"


def test_the_command_runs_all_stages(target_folder: Path, bare: Path, own: Path, tmp_path: Path) -> None:
    """--folder goes with ready shards if there is a stage that reads it."""
    command = ["train", "fastdraft", target_folder, "-o", tmp_path / "work", "--corpus", bare, "--folder", own]
    assert "made already; got --folder." in str(run(*command).exception)
    shape = ["--from-scratch", "--layers", 1, "--width", 16, "--heads", 2, "--intermediate", 32, "--vocabulary", 60]
    stages = ["--pretrain-tokens", 600, "--continue-tokens", 600, "--steps", 3, "--batch", 256, "--loss", "ce+tv"]
    shutil.copytree(test_train.exported_by_commands(target_folder), tmp_path / "work" / "target")
    result = run(*command, *shape, *stages)
    assert result.exit_code == 0, result.output
    assert "pretrain: step 2" in result.output
    assert "continue: step 2" in result.output
    made = bundle.read(tmp_path / "work" / "bundle").manifest
    assert made.measured["draft"]["recipe"]["pretrain_tokens"] == 600
    made_of = tmp_path / "work" / "bundle"
    plain, drafted = load(made_of, draft="none"), load(made_of, num_draft_tokens=3)
    found = drafted.generate([5, 6, 7, 8], max_new_tokens=16, ignore_eos=True, policy=drafted.fixed_length(3))
    assert found.token_ids == plain.generate([5, 6, 7, 8], max_new_tokens=16, ignore_eos=True).token_ids
    assert any(r.drafter == "fastdraft-1x16-60" and r.proposed for r in found.stats.rounds)


# Losses


def test_losses_are_those_of_the_definitions() -> None:
    """Two rows over three tokens; of the second row the target's second token is not the draft's."""
    batch = Batch(
        tokens=torch.zeros((1, 2), dtype=torch.int64),
        rows=torch.arange(2),
        labels=torch.tensor([0, 1]),
        readable=torch.tensor([True, False]),
        top_ids=torch.tensor([[0, 1], [2, 0]]),
        top_probs=torch.tensor([[0.7, 0.2], [0.5, 0.0]]),
    )
    draft = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])
    expected: dict[Loss, float] = {
        "ce": -np.log(0.5),
        "kd": -(0.7 * np.log(0.5) + 0.2 * np.log(0.3) + 0.5 * np.log(0.8)) / 1.4,
        "tv": (0.7 - 0.5) / 1.4,
    }
    expected["ce+kd"] = (expected["ce"] + expected["kd"]) / 2
    expected["ce+tv"] = (expected["ce"] + expected["tv"]) / 2
    for kind, value in expected.items():
        assert loss_of(draft.log(), batch, kind).item() == pytest.approx(value, rel=1e-5), kind
