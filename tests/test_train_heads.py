"""What recipes of heads share, with the smallest head there is: a linear map of one hidden state."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edgespec import bundle
from edgespec.errors import IncompatiblePair, SettingError, SourceError

pytest.importorskip("optimum.intel", reason="training needs the train extra")
pytest.importorskip("accelerate", reason="training needs the train extra")

import torch

from edgespec_export import Request, Weights, export
from edgespec_train.corpus.layers import usual_layers
from edgespec_train.corpus.replay import Choice
from edgespec_train.corpus.states import NONE
from edgespec_train.corpus.texts import TextId
from edgespec_train.draft_model import UNKNOWN, invert
from edgespec_train.heads import Ground, HeadSettings, ground, prepared, right_ahead, trained
from edgespec_train.judging import Judged
from edgespec_train.loop import Diverged, Schedule
from tests import test_train, test_train_ready_corpus, tiny_models
from tests.test_train import VOCAB, run

target_folder, target, corpus = test_train.target_folder, test_train.target, test_train.corpus
bare = test_train_ready_corpus.bare
K = 2


class Linear:
    """The next K tokens, each by a map of its own from the state before x_n."""

    if_diverged = ""

    def __init__(self, on: Ground, schedule: Schedule) -> None:
        torch.manual_seed(schedule.seed)
        self.module: torch.nn.Module = torch.nn.Linear(on.states.hidden_size, K * len(on.id_map))
        self._on, self._schedule = on, schedule
        self._inverse = invert(on.id_map, VOCAB)

    def batches(self, first: int) -> Iterator[list[TextId]]:
        return self._on.states.batches(self._schedule.seed, self._schedule.tokens_per_batch, first)

    def loss(self, module: torch.nn.Module, batch: list[TextId], device: torch.device) -> tuple[torch.Tensor, int]:
        places = self._on.states.places(batch, K)
        logits = module(torch.from_numpy(places.states[:, 0]).to(device)).view(len(places.tokens), K, -1)
        there = torch.from_numpy(places.ahead != NONE)
        labels = torch.from_numpy(self._inverse[np.maximum(places.ahead, 0)])
        return torch.nn.functional.cross_entropy(logits[there], labels[there]), len(places.tokens)

    @torch.no_grad()
    def judge(self) -> Judged:
        places = self._on.held_out.places(self._on.held_out.texts, K)
        chosen = self.module(torch.from_numpy(places.states[:, 0])).view(len(places.tokens), K, -1).argmax(-1)
        right = self._on.id_map[chosen.numpy()] == places.ahead
        return Judged.of(right_ahead(np.bincount(places.texts).tolist(), right))


def settings_of(target: Path, bare: Path, folder: Path, **changes: Any) -> HeadSettings:
    choice = Choice(longest=150, prompt_share=0.95)
    return dataclasses.replace(HeadSettings(str(target), folder, (3,), 100, bare, choice=choice), **changes)


def begun(settings: HeadSettings, say: Callable[[str], None] = lambda line: None) -> Ground:
    settings, target = prepared(settings, None, say, reads=False)
    return ground(settings, target, say)


def test_a_head_is_trained_resumed_and_judged(target: Path, bare: Path, tmp_path: Path) -> None:
    """On states that are made on the way; a second run goes on where the first one ended."""
    schedule = Schedule(steps=6, tokens_per_batch=256, warmup=1, evaluate_every=3, learning_rate=2e-2)
    said: list[str] = []
    settings = settings_of(target, bare, tmp_path)
    on = begun(settings, said.append)
    assert len(on.id_map) == 100 and on.id_map[-1] == UNKNOWN
    assert set(on.states.texts).isdisjoint(on.held_out.texts)
    made = (tmp_path / "states" / "states-00000.npy").stat().st_mtime_ns
    curve = trained(Linear(on, schedule), schedule, settings, on, said.append, {"k": K})
    assert [point.step for point in curve] == [3, 6]
    assert len(curve[-1].by_position) == K and curve[-1].block_efficiency >= 1
    assert curve[-1].loss < curve[0].loss
    assert json.loads((tmp_path / "curve.json").read_text())["curve"][-1]["step"] == 6
    again = begun(settings, said.append)
    assert (tmp_path / "states" / "states-00000.npy").stat().st_mtime_ns == made
    assert [p.step for p in trained(Linear(again, schedule), schedule, settings, again, said.append, {"k": K})] == [
        3,
        6,
    ]
    with pytest.raises(SettingError, match="made with another k"):
        trained(Linear(again, schedule), schedule, settings, again, said.append, {"k": K + 1})


def test_a_head_that_diverges_says_at_which_step(target: Path, bare: Path, tmp_path: Path) -> None:
    schedule = Schedule(steps=3, tokens_per_batch=256, learning_rate=float("inf"), warmup=1)
    settings = settings_of(target, bare, tmp_path)
    on = begun(settings, lambda line: None)
    with pytest.raises(Diverged, match=r"stopped at step 2: .*another folder with a lower --learning-rate"):
        trained(Linear(on, schedule), schedule, settings, on, lambda line: None, {})
    assert not (tmp_path / "checkpoint").exists(), "weights that are no numbers are not kept"


def test_states_of_another_target_or_layer_are_refused(target: Path, bare: Path, tmp_path: Path) -> None:
    settings = settings_of(target, bare, tmp_path / "one")
    begun(settings)
    states = tmp_path / "one" / "states"
    with pytest.raises(SettingError, match=r"no hidden states of these layers; got \[1\]; allowed: \[3\]"):
        begun(settings_of(target, bare, tmp_path / "two", states=states, layers=(1, 3)))
    manifest = json.loads((states / "states.json").read_text())
    (states / "states.json").write_text(json.dumps(manifest | {"target": "target 0123456789abcdef"}))
    with pytest.raises(SettingError, match="the states are another target's; got target 0123456789abcdef"):
        begun(settings_of(target, bare, tmp_path / "two", states=states))


def test_options_of_a_head_leave_the_recipes_own(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "layers": "1,3",
        "longest": 448,
        "prompt_share": 0.45,
        "state_tokens": None,
        "corpus_folder": None,
        "states_folder": None,
        "from_draft": None,
        "corpus_tokens": 9,
        "folders": (),
        "exclude": (),
        "new_tokens": 5,
        "ray": False,
        "texts_per_shard": 8,
        "corpus_seed": 0,
        "shares": (1.0, 0.0, 0.0, 0.0),
        "target_names": ("small-2",),
        "vocabulary": 64,
        "precision": "f32",
        "steps": 4,
        "seed": 1,
        "tokens_per_batch": 64,
        "learning_rate": 0.1,
        "evaluate_every": 2,
        "rank": 8,
    }
    settings, schedule = HeadSettings.of("small", tmp_path, options)
    assert options == {"rank": 8}
    assert settings.target_names == ("small-2",)
    assert settings.layers == (1, 3) and settings.plan["corpus_tokens"] == 9
    assert (schedule.steps, schedule.seed, schedule.learning_rate) == (4, 1, 0.1)
    with pytest.raises(SettingError, match=r"layers of the target; got last; allowed: numbers with commas"):
        HeadSettings.of("small", tmp_path, {"layers": "last"})


# What is refused before a corpus is written


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ((1, 4), "no such layer of the target; got 4; allowed: 0 to 3"),
        ((3, 3), "a layer is named twice; got 3,3"),
        ((3, 1), "the last layer whose states a head reads; got 1; allowed: 3, the final one"),
    ],
)
def test_wrong_layers_are_refused_first(layers: tuple[int, ...], said: str, target: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=said):
        prepared(HeadSettings(str(target), tmp_path, layers, 100), None, lambda line: None, reads=False)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def alone(target: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The target as a bundle for ONNX Runtime."""
    folder = tmp_path_factory.mktemp("onnx")
    shutil.copytree(target, folder / "both")
    model = bundle.model_file(folder / "both", bundle.IR_FILE, precision="f32", vocab_size=VOCAB)
    read = bundle.read(target)
    bundle.write(folder / "both", msgspec.structs.replace(read.manifest, target=model))
    return export(Request(str(folder / "both"), folder / "alone", Weights(), format="onnx"), lambda line: None)


@pytest.mark.parametrize("recipe", ["block", "fastdraft", "corpus"])
def test_a_target_with_an_onnx_form_alone_is_refused_first(
    recipe: str, alone: Path, target_folder: Path, tmp_path: Path
) -> None:
    layers = ["--layers-from", target_folder] if recipe == "fastdraft" else []
    result = run("train", recipe, alone, "-o", tmp_path / "work", *layers)
    assert isinstance(result.exception, SettingError), result.output
    said = str(result.exception)
    assert "a target that is trained for is an OpenVINO IR; got model.onnx of" in said and "--format" in said
    assert not list((tmp_path / "work").iterdir())


def test_the_layers_follow_the_target(target: Path, tmp_path: Path) -> None:
    settings, _ = prepared(HeadSettings(str(target), tmp_path, (), 100), None, lambda line: None, reads=False)
    assert settings.layers == (2, 3)
    assert usual_layers(28) == (14, 25, 28) and usual_layers(30) == (15, 27, 30)


def test_embeddings_that_do_not_fit_are_refused_first(target: Path, target_folder: Path, tmp_path: Path) -> None:
    def check(embeddings: Path | None) -> None:
        settings = HeadSettings(str(target), tmp_path / "work", (3,), 100)
        prepared(settings, None if embeddings is None else str(embeddings), lambda line: None, reads=True)

    check(target_folder)
    with pytest.raises(SettingError, match=r"has no embeddings that torch can read: .*--embeddings-from SOURCE"):
        check(None)
    with pytest.raises(SourceError, match="no config.json in the folder"):
        check(tmp_path)
    tokenizer = target_folder / "tokenizer.json"
    narrow = tiny_models.build("llama", tmp_path / "narrow", hidden=32, tokenizer=tokenizer)
    with pytest.raises(SettingError, match="embeddings of narrow are of another width; got 32; allowed: 64"):
        check(narrow)
    other = tiny_models.with_two_tokens_swapped(tokenizer, tmp_path / "other.json")
    with pytest.raises(IncompatiblePair, match="does not fit target"):
        check(tiny_models.build("llama", tmp_path / "foreign", tokenizer=other))


@pytest.mark.parametrize("recipe", ["block", "redrafter"])
@pytest.mark.parametrize(
    ("options", "got"),
    [
        (["--states", "s", "--corpus", "c"], "--states names what is made already; got --corpus"),
        (["--states", "s", "--shares", "1,0,0,0"], "--states names what is made already; got --shares"),
        (["--states", "s", "--longest", 9], "--states names what is made already; got --longest"),
        (["--corpus", "c", "--corpus-tokens", 9, "--folder", "f"], "got --corpus-tokens, --folder"),
        (["--corpus", "c", "--ray"], "--corpus names what is made already; got --ray"),
        (["--from-draft", "f", "--vocabulary", 99], "--from-draft names what is made already; got --vocabulary"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    recipe: str, options: list[object], got: str, tmp_path: Path
) -> None:
    result = run("train", recipe, "default", "-o", tmp_path / "work", *options)
    assert isinstance(result.exception, SettingError) and got in str(result.exception)
    assert not (tmp_path / "work").exists()


def test_states_are_kept_of_the_usual_layers(target: Path, bare: Path, tmp_path: Path) -> None:
    command = ["train", "states", target, "--corpus", bare, "--tokens", 400, "--prompt-share", 1]
    for number, (options, layers) in enumerate((([], [2, 3]), (["--layers", "none"], []), (["--layers", "1"], [1]))):
        out = tmp_path / str(number)
        assert run(*command, "-o", out, *options).exit_code == 0
        assert json.loads((out / "states.json").read_text())["layers"] == layers
    result = run(*command, "-o", tmp_path / "out", "--layers", "1,4")
    assert "no such layer of the target; got 4" in str(result.exception) and not (tmp_path / "out").exists()
