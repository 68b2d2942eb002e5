"""A corpus that is completed by replaying it: log-probabilities, hidden states, and what can be wrong with them."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgespec import bundle
from edgespec.errors import BackendError, ConversionError, EdgespecError, SettingError

pytest.importorskip("optimum.intel", reason="training needs the train extra")
pytest.importorskip("accelerate", reason="training needs the train extra")

import torch

from edgespec_train.corpus import paged_texts, shards
from edgespec_train.corpus.build import identity, make_corpus
from edgespec_train.corpus.generate import Generated
from edgespec_train.corpus.replay import Choice, Keeper, replay
from edgespec_train.corpus.states import NONE, States
from edgespec_train.corpus.texts import TargetTexts
from tests import test_train, test_train_ready_corpus, tiny_models
from tests.test_train import PLAN, TOKENS, VOCAB, run
from tests.test_train_ready_corpus import cut, lose_tokens, speak_another_language, spoil

target_folder, target, corpus = test_train.target_folder, test_train.target, test_train.corpus
torch_target, bare = test_train.torch_target, test_train_ready_corpus.bare
SHORT = Choice(longest=130, prompt_share=0.95)


def quiet(line: str) -> None:
    """Says nothing."""


@pytest.fixture(scope="module")
def made(bare: Path, target: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """States of the embedding, of a layer, and of what goes into the head."""
    out = tmp_path_factory.mktemp("made") / "states"
    return replay(bare, bundle.read(target), out, quiet, layers=(0, 2, 3), choice=SHORT)


def test_replayed_log_probabilities_are_those_of_the_generation(
    bare: Path, corpus: Path, target: Path, tmp_path: Path
) -> None:
    """All texts, whatever their length: a corpus that lost them gets them back."""
    out = replay(bare, bundle.read(target), tmp_path / "out", quiet)
    assert not list(out.glob("*.npy"))
    expected, got = TargetTexts(shards.shard_paths(corpus)), TargetTexts(shards.shard_paths(out))
    known = {expected.tokens(text).tobytes(): expected.top(text)[1] for text in expected.texts}
    assert len(got.texts) == len(known)
    for text in got.texts:
        np.testing.assert_allclose(got.top(text)[1], known[got.tokens(text).tobytes()], atol=6e-2)
    held = [{t.prompt(i).tobytes() for i in t.split(0.3)[1].texts} for t in (expected, got)]
    assert held[0] == held[1] != set()


def test_states_are_those_of_torch(made: Path, torch_target: Any) -> None:
    states = States(made)
    assert states.layers == (0, 2, 3) and states.hidden_size == torch_target.config.hidden_size
    assert len(states.texts) > 10
    for text in states.texts[:8]:
        assert states.length(text) <= SHORT.longest
        with torch.no_grad():
            found = torch_target(
                torch.from_numpy(states.tokens(text).astype(np.int64))[None], output_hidden_states=True
            )
        expected = torch.stack([found.hidden_states[layer][0] for layer in states.layers], 1)
        step = float(expected.abs().max()) / 127  # the engine's activations have 8 bits
        np.testing.assert_allclose(states.states(text), expected, atol=step)
    assert States(made, [3]).states(text).shape == (states.length(text), 1, states.hidden_size)
    np.testing.assert_array_equal(States(made, [3, 0]).states(text), states.states(text)[:, [2, 0]])


def test_a_place_has_the_state_before_its_token_and_the_tokens_after_it(made: Path) -> None:
    states = States(made, [3])
    one, other = states.texts[:2]
    places = states.places([one, other], k=3)
    count = states.length(one) - states.answer(one) - 1
    assert (places.texts == 0).sum() == count
    whole, answer = states.tokens(one), states.answer(one)
    for i in (0, 1, count - 1):
        np.testing.assert_array_equal(places.states[i, 0], states.states(one)[answer + i - 1, 0])
        assert places.tokens[i] == whole[answer + i]
        ahead = [*whole[answer + i + 1 : answer + i + 4], NONE, NONE, NONE][:3]
        assert places.ahead[i].tolist() == ahead
        for j, token in enumerate(ahead):
            if token == NONE:
                assert (places.top_ids[i, j] == NONE).all() and (places.top_logprobs[i, j] == -np.inf).all()
            else:
                np.testing.assert_array_equal(places.top_ids[i, j], states.top(one)[0][i + 1 + j])
    greedy = [text for text in states.texts if states.temperature(text) == 0]
    chosen = states.places(greedy, k=1)
    inside = chosen.ahead[:, 0] != NONE
    assert (chosen.top_ids[inside, 0, 0] == chosen.ahead[inside, 0]).mean() > 0.97  # ties of a random target


def test_what_is_there_is_not_made_again(
    bare: Path, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is stopped in its second shard leaves the first whole, and nothing of the second."""
    out, pair = tmp_path / "states", bundle.read(target)
    forward, calls = paged_texts.PagedTexts.read, []
    first = len(shards.read_shards(shards.shard_paths(bare)[:1], ())[0]["answers"])

    def stop(self: Any, fed: Any, rows: Any) -> Any:
        calls.extend(fed)
        if len(calls) > first:
            raise KeyboardInterrupt
        return forward(self, fed, rows)

    with monkeypatch.context() as patch:
        patch.setattr(paged_texts.PagedTexts, "read", stop)
        with pytest.raises(KeyboardInterrupt):
            replay(bare, pair, out, quiet, layers=(3,))
    assert sorted(path.name for path in out.iterdir()) == ["meta-00000.npz", "states-00000.npy", "states.json"]
    before = (out / "states-00000.npy").stat().st_mtime_ns
    replay(bare, pair, out, quiet, layers=(3,))
    assert (out / "states-00000.npy").stat().st_mtime_ns == before
    assert len(States(out).paths) == len(shards.shard_paths(bare))
    monkeypatch.setattr(paged_texts.PagedTexts, "read", stop)
    replay(bare, pair, out, quiet, layers=(3,))  # nothing left: no forward
    with pytest.raises(SettingError, match="were made with another layers"):
        replay(bare, pair, out, quiet, layers=(2,))


def test_a_choice_takes_short_texts_with_short_prompts_up_to_a_number_of_tokens(
    bare: Path, target: Path, tmp_path: Path
) -> None:
    choice = Choice(longest=90, prompt_share=0.8, tokens=300)
    out = replay(bare, bundle.read(target), tmp_path / "out", quiet, choice=choice)
    found = TargetTexts(shards.shard_paths(out))
    lengths = [found.length(text) for text in found.texts]
    assert 200 < sum(lengths) <= 300
    assert max(lengths) <= 90
    assert all(found.answer(text) <= 0.8 * found.length(text) for text in found.texts)
    with pytest.raises(SettingError, match="no text of the corpus is short enough"):
        replay(bare, bundle.read(target), tmp_path / "none", quiet, choice=Choice(longest=2))
    assert not (tmp_path / "none").exists()


def test_states_kept_while_the_target_writes_are_those_of_a_second_reading(
    target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of every token, though a text begins where its slot's earlier one is read; nothing is left to be replayed."""
    pair, choice = bundle.read(target), Choice(longest=200, prompt_share=0.9)
    keep = Keeper.of(tmp_path / "states", pair, (0, 3), choice, corpus=tmp_path / "corpus", tokens=100)
    plan, write = dataclasses.replace(PLAN, target=identity(pair)), shards.write_shard

    def in_memory(path: Path, texts: Any, *rest: Any) -> None:
        assert all(text.states is None for _, _, text in texts), "those of a shard may be gigabytes"
        write(path, texts, *rest)

    monkeypatch.setattr(shards, "write_shard", in_memory)
    make_corpus(plan, target, tmp_path / "corpus", TOKENS, quiet, keep=keep)
    kept = States(tmp_path / "states")
    replayed = States(replay(tmp_path / "corpus", pair, tmp_path / "again", quiet, layers=(0, 3), choice=choice))
    assert len(kept.paths) == len(shards.shard_paths(tmp_path / "corpus")) >= 2
    twins = {(number, int(i)): (number, place) for number, place, i in _of_shards(tmp_path / "again")}
    assert len(kept.texts) == len(replayed.texts) > 20
    for number, place, i in _of_shards(tmp_path / "states"):
        one, other = (number, place), twins[number, i]
        np.testing.assert_array_equal(kept.tokens(one), replayed.tokens(other))
        assert kept.answer(one) == replayed.answer(other) and kept.source(one) == replayed.source(other)
        step = float(np.abs(replayed.states(other)).max()) / 127
        np.testing.assert_allclose(kept.states(one), replayed.states(other), atol=step)
        np.testing.assert_allclose(kept.top(one)[1], replayed.top(other)[1], atol=6e-2)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "states").iterdir()}
    replay(tmp_path / "corpus", pair, tmp_path / "states", quiet, layers=(0, 3), choice=choice)
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "states").iterdir()} == before


def _of_shards(folder: Path) -> Iterator[tuple[int, int, int]]:
    """(number of the meta file, place in it, number in the corpus's shard)."""
    for number, path in enumerate(shards.shard_paths(folder)):
        for place, text in enumerate(np.load(path)["texts"]):
            yield number, place, int(text)


def test_the_corpus_command_keeps_states_where_heads_look_for_them(target: Path, tmp_path: Path) -> None:
    command = ["train", "corpus", target, "-o", tmp_path, "--corpus-tokens", 10, "--new-tokens", 8]
    command += ["--texts-per-shard", 16, "--states", "--prompt-share", 1]
    assert isinstance(run(*command, "--layers", "none").exception, SettingError)
    without = [part for part in command if part != "--states"]
    refused = run(*without, "--longest", 9).exception
    assert isinstance(refused, SettingError) and "got --longest, --prompt-share. Add --states" in str(refused)
    result = run(*command)
    assert result.exit_code == 0, result.output
    states = States(tmp_path / "states")
    assert states.layers == (2, 3)
    assert len(states.texts) == len(TargetTexts(shards.shard_paths(tmp_path / "corpus")).texts)
    (meta,) = (tmp_path / "states").glob("meta-*.npz")
    meta.unlink()  # as if the run had been ended behind the shard
    assert run(*command).exit_code == 0
    told = json.loads((tmp_path / "states" / "states.json").read_text(encoding="utf-8"))["corpus"]
    assert told["texts"] == len(TargetTexts(shards.shard_paths(tmp_path / "corpus")).texts) and told["origins"]
    assert len(States(tmp_path / "states").texts) == len(states.texts)


def test_states_of_texts_that_are_not_chosen_are_neither_kept_nor_looked_at(
    target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though those of one of them are no numbers."""
    pair, choice = bundle.read(target), Choice(longest=60, prompt_share=0.9)
    keep = Keeper.of(tmp_path / "states", pair, (0, 3), choice, corpus=tmp_path / "corpus", tokens=100)
    take, held = Keeper.take, []

    def spoilt(self: Keeper, text: Generated) -> None:
        assert text.states is not None
        if len(text.states) > 60:
            text.states = text.states * np.float16(np.nan)  # the slot goes on with the true ones
        take(self, text)
        held.append(text.states is not None)

    monkeypatch.setattr(Keeper, "take", spoilt)
    plan = dataclasses.replace(PLAN, target=identity(pair))
    make_corpus(plan, target, tmp_path / "corpus", 10, quiet, keep=keep)
    assert 0 < sum(held) < len(held)
    assert all(states.length(text) <= 60 for states in [States(tmp_path / "states")] for text in states.texts)

    def spoilt_all(self: Keeper, text: Generated) -> None:
        assert text.states is not None
        text.states = text.states * np.float16(np.nan)
        take(self, text)

    monkeypatch.setattr(Keeper, "take", spoilt_all)
    again = Keeper.of(tmp_path / "more", pair, (0, 3), choice, corpus=tmp_path / "other", tokens=100)
    with pytest.raises(BackendError, match="states of layer 0 are no finite numbers in 16 bits"):
        make_corpus(plan, target, tmp_path / "other", 10, quiet, keep=again)


# What can be wrong


def test_too_little_disk_is_said_before_anything_is_written(
    bare: Path, corpus: Path, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = SimpleNamespace(total=10**9, used=10**9, free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    said: list[str] = []
    with pytest.raises(ConversionError, match=r"not enough disk space at .*states; got 0 MiB free; allowed: \d+ MiB"):
        replay(bare, bundle.read(target), tmp_path / "states", said.append, layers=(0, 3))
    assert "GB in" in said[-1]
    keep = (tmp_path / "states", bundle.read(target), (0, 3), SHORT)
    with pytest.raises(ConversionError, match="not enough disk space"):
        Keeper.of(*keep, corpus=tmp_path / "corpus", tokens=TOKENS)
    assert not (tmp_path / "states").exists()
    Keeper.of(*keep, corpus=corpus, tokens=TOKENS)  # which is whole


def test_states_that_are_no_numbers_are_refused(
    bare: Path, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A value too large for 16 bits too."""
    forward = paged_texts.PagedTexts.read
    for wrong in (np.nan, 1e5):

        def spoilt(self: Any, fed: Any, rows: Any, wrong: float = wrong) -> Any:
            read = forward(self, fed, rows)
            read.hidden[0][1, 1] = wrong
            return read

        monkeypatch.setattr(paged_texts.PagedTexts, "read", spoilt)
        with pytest.raises(BackendError, match=r"states of layer 2 are no finite numbers.*shard-00000.npz"):
            replay(bare, bundle.read(target), tmp_path / "states", quiet, layers=(2,))
        assert [path.name for path in (tmp_path / "states").iterdir()] == ["states.json"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, "is not a whole shard"),
        (spoil, "is not a whole shard"),
        (lose_tokens, "do not fill"),
        (speak_another_language, "the corpus is another target's: token id"),
    ],
)
def test_a_corpus_that_cannot_be_replayed(
    damage: Callable[[Path], None], message: str, bare: Path, target: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "corpus"
    shutil.copytree(bare, damaged)
    damage(shards.shard_paths(damaged)[-1])
    with pytest.raises(EdgespecError, match=message):
        replay(damaged, bundle.read(target), tmp_path / "states", quiet)
    assert not (tmp_path / "states").exists()


def cut_states(folder: Path) -> None:
    cut(folder / "states-00000.npy")


def mix_states(folder: Path) -> None:
    shutil.copyfile(folder / "states-00001.npy", folder / "states-00000.npy")


def lose_states(folder: Path) -> None:
    (folder / "states-00000.npy").unlink()


def lose_the_manifest(folder: Path) -> None:
    (folder / "states.json").unlink()


def write_no_number(folder: Path) -> None:
    states = np.load(folder / "states-00000.npy", mmap_mode="r+")
    states[:, 1, 5] = np.nan
    states.flush()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_states, r"states-00000.npy holds no whole hidden states.*Delete meta-00000.npz"),
        (mix_states, "holds no whole hidden states"),
        (lose_states, "holds no whole hidden states"),
        (lose_the_manifest, "no hidden states there.*edgespec train states"),
        (write_no_number, r"holds states that are no numbers"),
    ],
)
def test_damaged_states_are_named(damage: Callable[[Path], None], message: str, made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "states"
    shutil.copytree(made, folder)
    damage(folder)
    with pytest.raises(SettingError, match=message):
        states = States(folder)
        states.places(states.texts[:4], 2)
    with pytest.raises(SettingError, match="no hidden states of these layers"):
        States(made, [1, 2])


# The commands


def test_the_command_names_its_folder_and_refuses_layers_that_are_none(
    bare: Path, target: Path, tmp_path: Path
) -> None:
    arguments = ["train", "states", target, "--corpus", bare, "-o", tmp_path / "out", "--layers"]
    result = run(*arguments, "1,3")
    assert result.exit_code == 0, result.output
    assert str(tmp_path / "out") in result.output
    assert States(tmp_path / "out").layers == (1, 3)
    assert "as 2,14,28" in str(run(*arguments, "last").exception)
    other = [*arguments[:-2], tmp_path / "other", "--layers"]
    assert "no such layer" in str(run(*other, "99").exception)


def test_a_draft_is_distilled_from_a_corpus_without_log_probabilities(
    bare: Path, target_folder: Path, tmp_path: Path
) -> None:
    """``--loss kd`` completes it in the work folder; the corpus stays as it was."""
    before = {path.name: path.stat().st_mtime_ns for path in bare.iterdir()}
    work = tmp_path / "work"
    result = run(
        *["train", "fastdraft", tiny_models.write_gguf(target_folder, tmp_path / "big.gguf"), "-o", work],
        *["--corpus", bare, "--loss", "kd", "--layers-from", target_folder],
        *["--layers", 1, "--steps", 3, "--batch", 256, "--vocabulary", 100, "--evaluate-every", 3],
    )
    assert result.exit_code == 0, result.output
    assert {path.name: path.stat().st_mtime_ns for path in bare.iterdir()} == before
    assert shards.has_top(shards.shard_paths(work / "completed"))
    assert bundle.read(work / "bundle").manifest.measured["draft"]["recipe"]["loss"] == "kd"
    assert VOCAB > 100
