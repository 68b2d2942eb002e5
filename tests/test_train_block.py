"""Training of a block drafter: fitted, trained, judged, written as one graph, and loaded as a draft."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgespec import SamplingParams, bundle, load
from edgespec.errors import SettingError

pytest.importorskip("optimum.intel", reason="training needs the train extra")
pytest.importorskip("accelerate", reason="training needs the train extra")

import openvino as ov
import torch

from edgespec.backends.openvino.static_graph import OpenVINOStaticGraph
from edgespec.drafters.block import Block
from edgespec_export.settings import Weights
from edgespec_train import loop
from edgespec_train.block import graph, warm_start
from edgespec_train.block.head import BlockHead, Shape
from edgespec_train.block.losses import distance
from edgespec_train.block.training import Blocks, head_ids
from edgespec_train.corpus.replay import ALL, replay
from edgespec_train.corpus.states import States
from tests import test_train, test_train_ready_corpus
from tests.test_train import VOCAB, run

target_folder, target, corpus = test_train.target_folder, test_train.target, test_train.corpus
bare = test_train_ready_corpus.bare

SHAPE = Shape((1, 3), width=32, block=4, heads=4, intermediate=32, window=6, rank=8)
SCHEDULE = loop.Schedule(steps=6, learning_rate=1e-3, warmup=2, evaluate_every=3)
INVERSE = np.minimum(np.arange(VOCAB), VOCAB - 2)
SMALL = ["--layers", "1,3", "--width", 32, "--block", 4, "--heads", 4, "--intermediate", 32, "--window", 6]


@pytest.fixture(scope="module")
def folder(target: Path, bare: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("states") / "states"
    return replay(bare, bundle.read(target), out, lambda line: None, layers=(1, 3), choice=ALL)


@pytest.fixture(scope="module")
def texts(folder: Path) -> States:
    return States(folder, (1, 3))


def head_of(shape: Shape = SHAPE, seed: int = 0, spread: float = 0.2) -> BlockHead:
    """All ids but two, and nothing that is zero."""
    torch.manual_seed(seed)
    head = BlockHead(shape, 64, VOCAB - 2).eval()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(spread * torch.randn(parameter.shape))
    return head


def task_of(texts: States, head: BlockHead) -> Blocks:
    return Blocks(head, texts, texts, INVERSE, positions=128)


def test_the_whole_way(target_folder: Path, tmp_path: Path) -> None:
    """The command line end to end; the draft runs, greedily and sampled, and the text is that of plain decoding."""
    work = tmp_path / "work"
    shutil.copytree(test_train.exported_by_commands(target_folder), work / "target")
    result = run(
        *["train", "block", target_folder, "-o", work, "--corpus-tokens", 1500, "--texts-per-shard", 32, *SMALL],
        *["--new-tokens", 24, "--steps", 30, "--batch", 128, "--evaluate-every", 30, "--rank", 8],
        *["--vocabulary", 480, "--fit-rows", 2000, "--prompt-share", 1],
    )
    assert result.exit_code == 0, result.output
    assert Path(result.stdout.strip()) == work / "draft"
    manifest = json.loads((work / "draft" / "draft.json").read_text(encoding="utf-8"))
    assert manifest["drafter"]["needs"] == {"layers": [1, 3]} and manifest["drafter"]["model"]["vocab_size"] == 479
    assert manifest["measured"]["training"]["step"] == 30
    made = manifest["measured"]["corpus"]["of"]
    assert made["plan"]["shares"] == [0.68, 0.1, 0.14, 0.08] and all(o["licence"] for o in made["origins"].values())
    assert str(tmp_path) not in json.dumps(manifest), "no path of this machine goes to others"
    reached = manifest["measured"]["training"]["agreement"]
    assert reached > 5 / 479, "five times what chance gives"
    pair = load(work / "target", draft=str(work / "draft"), num_draft_tokens=4)
    plain = load(work / "target", draft="none")
    for sampling in (SamplingParams(), SamplingParams(temperature=0.8, seed=3)):
        drafted = pair.generate("def moving_average", max_new_tokens=24, sampling=sampling)
        assert drafted.token_ids == plain.generate("def moving_average", max_new_tokens=24, sampling=sampling).token_ids
        assert drafted.stats.proposed > 20


def test_least_squares_beats_a_random_head_and_training_beats_least_squares(
    target_folder: Path, texts: States, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(target_folder, dtype=torch.float32)
    rows = model.get_output_embeddings().weight.detach().numpy()[: VOCAB - 2]
    read = model.get_input_embeddings().weight.detach().numpy()[: VOCAB - 1]
    head = head_of(spread=0.0)
    task = task_of(texts, head)
    untrained = task.judge().agreement
    embeddings = warm_start.Embeddings(read, rows, np.ones(VOCAB - 2, np.int64))
    explained = warm_start.initialise(head, texts, INVERSE, embeddings, 1 << 20)
    fitted = task.judge().agreement
    assert fitted > 5 * max(untrained, 1 / VOCAB) and 0 < explained < 1
    curve = loop.run(task, dataclasses.replace(SCHEDULE, steps=60, evaluate_every=60), tmp_path, say=lambda point: None)
    assert curve[-1].agreement > fitted


def test_a_window_row_counts_for_the_anchors_behind_it_only() -> None:
    head = head_of()
    states = torch.randn(1, SHAPE.window + 2, 2, 64)
    there = torch.ones(1, SHAPE.window + 2, dtype=torch.bool)
    anchors = torch.tensor([[3, 4, 5]])
    last = [SHAPE.window - 1, SHAPE.window, SHAPE.window + 1]
    with torch.no_grad():
        found = head.streams(states, last, anchors, there)
        for row, moved in ((0, [True, False, False]), (SHAPE.window, [False, True, True])):
            changed = states.clone()
            changed[0, row] += 1
            other = head.streams(changed, last, anchors, there)
            assert [not torch.equal(a, b) for a, b in zip(found[0], other[0], strict=True)] == moved
        there[0, 0] = False
        assert not torch.equal(head.streams(states, last, anchors, there)[0, 0], found[0, 0])


@pytest.mark.parametrize("shape", [SHAPE, dataclasses.replace(SHAPE, depth=0, rank=0)], ids=["all", "least"])
@pytest.mark.parametrize("kind", ["f32", "int8"])
def test_the_graph_is_the_head(shape: Shape, kind: Any, tmp_path: Path) -> None:
    head, xml = head_of(shape), tmp_path / "head" / "openvino_model.xml"
    graph.write(head, xml, Weights(kind))
    gap, same = graph.differences(head, xml)
    assert gap < (1e-4 if kind == "f32" else 0.1) and same == 1
    static = OpenVINOStaticGraph(ov.Core(), xml)
    drafter = Block(static, np.arange(VOCAB - 2, dtype=np.int32), (1, 3), vocab_size=VOCAB)
    assert (drafter.longest, drafter.hidden_size) == (4, 64)
    assert sorted(path.name for path in xml.parent.iterdir()) == ["openvino_model.bin", "openvino_model.xml"]


def test_a_graph_chooses_with_the_noise_and_goes_on_from_its_choice(tmp_path: Path) -> None:
    head, xml = head_of(), tmp_path / "openvino_model.xml"
    graph.write(head, xml, Weights("f32"))
    inputs = {name: value.numpy() for name, value in graph.example(head).items()}
    static = OpenVINOStaticGraph(ov.Core(), xml)
    free = {name: value.copy() for name, value in static.run(inputs).items()}
    inputs["noise"][0, 7] = 1e6
    forced = static.run(inputs)
    assert forced["tokens"][0] == 7 != free["tokens"][0]
    np.testing.assert_array_equal(forced["logits"][0], free["logits"][0])
    assert not np.allclose(forced["logits"][1], free["logits"][1]), "the Markov head follows the choice"


def test_a_resumed_run_sees_the_batches_that_are_left(texts: States) -> None:
    task = task_of(texts, head_of())
    whole = task.batches(0)
    skipped = [next(whole) for _ in range(4)][3]
    assert torch.equal(next(task.batches(3)).states, skipped.states)


def test_a_batch_holds_the_rows_in_front_of_its_anchors(texts: States) -> None:
    """Row window - 1 + j is in front of anchor j, and what is not of the text does not count."""
    batches = task_of(texts, head_of())._texts
    text = texts.texts[0]
    begin, tokens = texts.answer(text) + 1, texts.tokens(text)
    batch = batches.batch([text], [begin], 3)
    states = texts.states(text).astype(np.float32)
    for anchor in range(3):
        assert int(batch.tokens[0, anchor]) == INVERSE[tokens[begin + anchor]]
        np.testing.assert_array_equal(batch.states[0, SHAPE.window - 1 + anchor].numpy(), states[begin + anchor - 1])
    end = batches.batch([text], [len(tokens) - 2], 3)
    assert end.known[0].tolist() == [True, True] + [False] * 5
    ids, _ = texts.top(text)
    best = INVERSE[ids[begin + 1 - texts.answer(text), 0]]
    assert int(batch.top_ids[0, 1, 0]) == (0 if best == VOCAB - 2 else best)


def test_ids_that_the_head_does_not_have_are_one() -> None:
    assert head_ids(np.array([2, 4, -1], np.int32), 6).tolist() == [2, 2, 0, 2, 1, 2]


def test_a_loss_that_is_no_number_stops(texts: States, tmp_path: Path) -> None:
    head = head_of()

    def spoil(point: loop.Point) -> None:
        head.head.bias.data[0] = float("nan")

    with pytest.raises(loop.Diverged, match="stopped at step 4"):
        loop.run(task_of(texts, head), SCHEDULE, tmp_path, say=spoil)


def test_total_variation_is_the_share_of_draws_that_are_rejected() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.2]]))
    ids, probs = torch.tensor([[1, 0]]), torch.tensor([[0.9, 0.1]])
    assert float(distance(logits, ids, probs, "tv")) == pytest.approx(1 - 0.3 - 0.1)
    assert float(distance(logits, ids, probs, "kl")) == pytest.approx(-0.9 * np.log(0.3) - 0.1 * np.log(0.5))
    both = 0.1 * float(distance(logits, ids, probs, "kl")) + 0.9 * float(distance(logits, ids, probs, "tv"))
    assert float(distance(logits, ids, probs, "kl+tv")) == pytest.approx(both)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--heads", "7"], "heads that divide the width"),
        (["--layers", "0,3"], "layers of the target whose states are read"),
        (["--layers", "1,x"], "layers of the target"),
        ([], "no hidden states there"),
    ],
)
def test_bad_input_is_one_line(
    options: list[str], line: str, target: Path, target_folder: Path, tmp_path: Path
) -> None:
    command = ["train", "block", target, "-o", tmp_path / "work", "--embeddings-from", target_folder]
    result = run(*command, "--states", tmp_path, *options)
    assert isinstance(result.exception, SettingError)
    assert line in str(result.exception)
