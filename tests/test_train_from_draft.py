"""A head that begins with the weights of an earlier run, over other text."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgespec import bundle
from edgespec.errors import EdgespecError, IncompatiblePair

pytest.importorskip("optimum.intel", reason="training needs the train extra")
pytest.importorskip("accelerate", reason="training needs the train extra")

import torch
from safetensors.torch import load_file, save_file

from edgespec_train.corpus.replay import ALL, replay
from edgespec_train.started import Start
from tests import test_train, test_train_ready_corpus, tiny_models
from tests.test_train import run

target_folder, target, corpus = test_train.target_folder, test_train.target, test_train.corpus
bare = test_train_ready_corpus.bare
SHAPE = ["--width", 32, "--block", 3, "--heads", 4, "--intermediate", 32, "--window", 4, "--rank", 8]


@pytest.fixture(scope="module")
def states(target: Path, bare: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("states") / "states"
    return replay(bare, bundle.read(target), out, lambda line: None, layers=(1, 3), choice=ALL)


@pytest.fixture(scope="module")
def command(target: Path, states: Path) -> list[object]:
    return ["train", "block", target, "--states", states, "--batch", 120, *SHAPE]


@pytest.fixture(scope="module")
def work(command: list[object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that ended."""
    folder = tmp_path_factory.mktemp("earlier")
    result = run(*command, "-o", folder, "--layers", "1,3", "--vocabulary", 300, "--fit-rows", 0, "--steps", 4)
    assert result.exit_code == 0, result.output
    return folder


def record(work: Path) -> Any:
    return json.loads((work / "draft" / "draft.json").read_text(encoding="utf-8"))["measured"]


def test_it_has_the_weights_layers_ids_and_record_of_the_run_before(
    command: list[object], work: Path, tmp_path: Path
) -> None:
    onward = [*command, "-o", tmp_path, "--from-draft", work / "draft", "--steps", 1, "--learning-rate", 1e-12]
    result = run(*onward)
    assert result.exit_code == 0, result.output
    measured = record(tmp_path)
    assert measured["training"]["agreement"] == record(work)["training"]["agreement"]
    assert measured["before"] == record(work) and str(work) not in json.dumps(measured)
    ids = [np.load(folder / "draft" / "head" / "id_map.npy") for folder in (work, tmp_path)]
    assert np.array_equal(*ids)
    assert run(*onward, "--weights", "f32").exit_code == 0, "it packs again"
    without = run(*onward[: onward.index("--from-draft")], "--layers", "1,3", "--steps", 1, "--vocabulary", 300)
    assert "it was made with another" in str(without.exception), "the same folder, but not the same run"


def test_what_the_head_cannot_be_is_refused_before_a_corpus_is_made(
    target: Path, target_folder: Path, work: Path, tmp_path: Path
) -> None:
    new = tmp_path / "new"
    plain = ["train", "block", target, "-o", new, "--from-draft", work / "draft", *SHAPE]
    for options, said in (
        (["--rank", 4], "is a head of another shape"),
        (["--layers", "2,3"], "reads other layers; got (1, 3); allowed: (2, 3)"),
        (["--from-draft", work], "is not a valid draft"),
        (["-o", work], "is of the run in this folder"),
    ):
        result = run(*plain, *options)
        assert isinstance(result.exception, EdgespecError) and said in str(result.exception)
    result = run("train", "redrafter", *plain[2 : -len(SHAPE)], "--embeddings-from", target_folder)
    assert "is a head of another kind; got block; allowed: redrafter" in str(result.exception)
    assert not (new / "corpus").exists() and not (new / "states").exists()


def test_a_draft_for_another_vocabulary_is_refused(target_folder: Path, work: Path, tmp_path: Path) -> None:
    other = tiny_models.with_two_tokens_swapped(target_folder / "tokenizer.json", tmp_path / "other.json")
    tiny_models.build("llama", tmp_path / "other", tokenizer=other)
    assert run("export", tmp_path / "other", "-o", tmp_path / "bundle", "--weights", "f32").exit_code == 0
    with pytest.raises(IncompatiblePair, match="another vocabulary"):
        Start.of(work / "draft", bundle.read(tmp_path / "bundle"), tmp_path / "new")


def ids_of(work: Path) -> Path:
    return work / "draft" / "head" / "id_map.npy"


def state_of(work: Path) -> Path:
    return work / "checkpoint" / "state.json"


def weights_changed(work: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    path = work / "checkpoint" / "model.safetensors"
    save_file(change(load_file(path)), path)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda work: shutil.rmtree(work / "checkpoint"), "has no checkpoint beside it"),
        (lambda work: ids_of(work).write_bytes(b""), "cannot read .*id_map.npy"),
        (lambda work: ids_of(work).write_bytes(b"PK\3\4" + bytes(99)), "cannot read .*id_map.npy"),
        (lambda work: np.save(ids_of(work), np.arange(299, dtype=np.int32)), "has other ids than the checkpoint"),
        (lambda work: state_of(work).write_text("[" * 99_999), "cannot be read"),
        (lambda work: state_of(work).write_text("{}"), "cannot be read"),
        (lambda work: (work / "checkpoint" / "model.safetensors").write_bytes(b"\xff" * 64), "is damaged"),
        (lambda work: weights_changed(work, lambda old: old | {"more": torch.ones(1)}), "another version of edgespec"),
        (lambda work: weights_changed(work, lambda old: old | {"row.bias": torch.ones(3)}), "does not hold this head"),
    ],
)
def test_what_is_damaged_is_one_line(
    target: Path, work: Path, tmp_path: Path, damage: Callable[[Path], object], said: str
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(work, broken)
    damage(broken)
    with pytest.raises(EdgespecError, match=said):
        Start.of(broken / "draft", bundle.read(target), tmp_path / "new").load(head_of(work))


def test_weights_of_a_run_of_several_processes_are_read(target: Path, work: Path, tmp_path: Path) -> None:
    shutil.copytree(work, tmp_path / "several")
    weights_changed(tmp_path / "several", lambda old: {f"module.{name}": tensor for name, tensor in old.items()})
    head = head_of(work)
    Start.of(tmp_path / "several" / "draft", bundle.read(target), tmp_path / "new").load(head)
    kept = load_file(work / "checkpoint" / "model.safetensors")
    assert all(torch.equal(tensor, kept[name]) for name, tensor in head.state_dict().items())


def head_of(work: Path) -> torch.nn.Module:
    """One of the same shape with other weights."""
    from edgespec_train.block.head import BlockHead, Shape

    shape = json.loads(state_of(work).read_text(encoding="utf-8"))["shape"]
    return BlockHead(Shape(**shape | {"layers": tuple(shape["layers"])}), 64, len(np.load(ids_of(work))))
