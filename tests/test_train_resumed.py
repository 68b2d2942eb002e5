"""Runs that were killed, or whose loss was no number: every recipe goes on from its checkpoint."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgespec import bundle
from edgespec.errors import SettingError

pytest.importorskip("optimum.intel", reason="training needs the train extra")
pytest.importorskip("accelerate", reason="training needs the train extra")

import torch

from edgespec_train.block.head import BlockHead, Shape
from edgespec_train.block.training import Blocks
from edgespec_train.corpus.replay import Choice, replay
from edgespec_train.corpus.states import States
from edgespec_train.loop import Diverged, Point, Schedule, Task, run
from edgespec_train.redrafter.head import Head, HeadShape
from edgespec_train.redrafter.training import LookAhead
from edgespec_train.sdsat.placeholders import Placeholders
from edgespec_train.sdsat.task import Guesses, Recipe
from tests import test_train, test_train_ready_corpus
from tests.test_train import VOCAB

target_folder, target, corpus = test_train.target_folder, test_train.target, test_train.corpus
torch_target, bare = test_train.torch_target, test_train_ready_corpus.bare
LAYERS, WIDTH = (2, 3), 64
SCHEDULE = Schedule(steps=6, tokens_per_batch=256, learning_rate=1e-3, warmup=1, evaluate_every=2)
each_recipe = pytest.mark.parametrize("recipe", ["redrafter", "block", "sdsat"])


@pytest.fixture(scope="module")
def states(bare: Path, target: Path, tmp_path_factory: pytest.TempPathFactory) -> States:
    out, choice = tmp_path_factory.mktemp("states") / "states", Choice(longest=130, prompt_share=0.95)
    return States(replay(bare, bundle.read(target), out, lambda line: None, layers=LAYERS, choice=choice))


def task_of(recipe: str, states: States, target: Any, schedule: Schedule = SCHEDULE) -> Task[Any]:
    """Before its first step: each call gives the same weights."""
    torch.manual_seed(0)
    texts, held_out = states.split(0.3)
    ids = np.arange(VOCAB)
    if recipe == "redrafter":
        rows, shape = torch.randn(VOCAB, WIDTH), HeadShape(LAYERS, state=16, blocks=1, lookahead=2)
        head = Head(shape, rows, rows, torch.ones(len(LAYERS) * WIDTH))
        some: dict[str, Any] = {"tokens_per_batch": schedule.tokens_per_batch, "seed": schedule.seed}
        return LookAhead(head, texts, held_out, ids.astype(np.int32), VOCAB, **some)
    if recipe == "block":
        block = Shape(LAYERS, width=32, block=3, heads=4, intermediate=32, window=4, rank=8)
        return Blocks(BlockHead(block, WIDTH, VOCAB), texts, held_out, ids, positions=96, seed=schedule.seed)
    placeholders = Placeholders(target, 1, rank=2)
    return Guesses(target, placeholders, texts, held_out, Recipe(count=2, rank=2), schedule)


def quiet(point: Point) -> None:
    """Says nothing."""


def weights(task: Task[Any]) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in task.module.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@each_recipe
def test_a_killed_run_ends_where_an_uninterrupted_one_does(
    recipe: str, states: States, torch_target: Any, tmp_path: Path
) -> None:
    whole = task_of(recipe, states, torch_target)
    before = weights(whole)
    expected = run(whole, SCHEDULE, tmp_path / "whole", say=quiet)
    assert not same(before, weights(whole))

    def kill(step: int, curve: list[Point]) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):  # a step behind the checkpoint
        run(task_of(recipe, states, torch_target), SCHEDULE, tmp_path / "cut", say=quiet, advance=kill)
    resumed = task_of(recipe, states, torch_target)
    curve = run(resumed, SCHEDULE, tmp_path / "cut", say=quiet)
    assert same(weights(resumed), weights(whole))
    assert [dataclasses.replace(p, seconds=0) for p in curve] == [dataclasses.replace(p, seconds=0) for p in expected]


@each_recipe
def test_the_step_before_a_loss_that_is_no_number_is_kept_and_gone_on_from(
    recipe: str, states: States, torch_target: Any, tmp_path: Path
) -> None:
    """Though the curve has no point yet. Other batches follow, or the loss would be none again."""
    rare = dataclasses.replace(SCHEDULE, evaluate_every=50)
    task = task_of(recipe, states, torch_target)
    good, calls = task.loss, 0

    def spoilt(*given: Any) -> Any:
        nonlocal calls
        calls += 1
        loss, places = good(*given)
        return loss * (float("nan") if calls == 4 else 1), places

    task.loss = spoilt  # type: ignore[method-assign,assignment]
    with pytest.raises(Diverged, match=r"stopped at step 4: .*Step 3 is kept: go on from it with another --seed"):
        run(task, rare, tmp_path, say=quiet)
    left = weights(task)
    with pytest.raises(SettingError, match="made with another recipe"):
        run(task_of(recipe, states, torch_target), dataclasses.replace(rare, warmup=2), tmp_path, say=quiet)

    other = dataclasses.replace(rare, seed=1, learning_rate=5e-4)
    again = task_of(recipe, states, torch_target, other)
    loss, begun, steps = again.loss, [], []

    def watched(*given: Any) -> Any:
        begun.append(weights(again))
        return loss(*given)

    again.loss = watched  # type: ignore[method-assign,assignment]
    curve = run(again, other, tmp_path, say=quiet, advance=lambda step, curve: steps.append(step))
    assert same(begun[0], left) and steps == [4, 5, 6]
    assert [point.step for point in curve] == [6]
    state = json.loads((tmp_path / "checkpoint" / "state.json").read_text(encoding="utf-8"))
    assert state["recipe"]["seed"] == 1 and not state["diverged"]
    with pytest.raises(SettingError, match="made with another recipe"):
        run(task_of(recipe, states, torch_target), rare, tmp_path, say=quiet)


def test_a_checkpoint_with_other_weights_is_of_another_version(states: States, tmp_path: Path) -> None:
    """As those of block heads that had a confidence. A file that was cut is damaged."""
    older = task_of("block", states, None)
    older.module.confidence = torch.nn.Linear(4, 1)

    def kill(step: int, curve: list[Point]) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(older, SCHEDULE, tmp_path, say=quiet, advance=kill)
    with pytest.raises(
        SettingError, match=r"checkpoint was made by another version of edgespec: .*begin again"
    ) as caught:
        run(task_of("block", states, None), SCHEDULE, tmp_path, say=quiet)
    assert "\n" not in str(caught.value)
    [file] = (tmp_path / "checkpoint").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(SettingError, match="checkpoint is damaged: .*begin again"):
        run(task_of("block", states, None), SCHEDULE, tmp_path, say=quiet)
