"""Training on shards that are there already, for any target that edgespec runs; and what can be wrong with them."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgespec import bundle, load
from edgespec.errors import EdgespecError, IncompatiblePair, SettingError

pytest.importorskip("optimum.intel", reason="training needs the train extra")
pytest.importorskip("accelerate", reason="training needs the train extra")

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from edgespec_train.corpus import shards
from edgespec_train.corpus.batches import Texts
from edgespec_train.draft_model import UNKNOWN, Shape, build, initialise_from, invert
from edgespec_train.stages import StageSettings, check, check_donor, train_draft
from edgespec_train.target import target_bundle
from edgespec_train.trainer import Diverged, Recipe
from tests import test_train, tiny_models
from tests.test_train import VOCAB, run

target_folder, target, corpus = test_train.target_folder, test_train.target, test_train.corpus


@pytest.fixture(scope="module")
def bare(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus without the target's log-probabilities, and without a manifest."""
    folder = tmp_path_factory.mktemp("bare")
    for path in shards.shard_paths(corpus):
        rewrite(path, folder / path.name, top_ids=None, top_logprobs=None)
    return folder


@pytest.fixture(scope="module")
def donor(target_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A narrower model of the target's vocabulary, with fewer rows of logits."""
    tokenizer = target_folder / "tokenizer.json"
    folder = tmp_path_factory.mktemp("donor") / "hf"
    return tiny_models.build("llama", folder, hidden=32, vocab_size=440, seed=5, tokenizer=tokenizer)


def rewrite(shard: Path, out: Path, **changes: Any) -> None:
    """A copy of a shard with other arrays; None leaves one out."""
    with np.load(shard) as data:
        arrays = {name: data[name] for name in data.files} | changes
    np.savez(out, **{name: array for name, array in arrays.items() if array is not None})


def settings_of(target: object, folder: Path, corpus: Path, **changes: Any) -> StageSettings:
    """One layer, 60 ids, three steps on the chosen tokens."""
    steps: dict[str, Any] = {"steps": 3, "tokens_per_batch": 256, "loss": "ce", "evaluate_every": 50}
    recipe = Recipe(
        **steps | {name: changes.pop(name) for name in list(changes) if name in Recipe.__dataclass_fields__}
    )
    settings = StageSettings(str(target), folder, recipe, Shape((0,)), 60, False, None, "f32", corpus, "f32")
    return dataclasses.replace(settings, **changes)


# The whole way


def test_a_gguf_target_is_drafted_for_by_layers_of_a_smaller_model(
    target_folder: Path, donor: Path, bare: Path, tmp_path: Path
) -> None:
    """A corpus without log-probabilities, layers of another width, 4-bit weights: the bundle holds the file's model."""
    file = tiny_models.write_gguf(target_folder, tmp_path / "big.gguf")
    result = run(
        *["train", "fastdraft", file, "-o", tmp_path / "work", "--corpus", bare, "--loss", "ce", "--layers-from"],
        *[donor, "--layers", 1, "--steps", 4, "--batch", 256, "--vocabulary", 100, "--weights", "int4"],
    )
    assert result.exit_code == 0, result.output
    made = bundle.read(tmp_path / "work" / "bundle")
    assert made.manifest.target.sha256 == bundle.sha256_of(made.path("openvino_model.bin"))
    assert made.name == "big"
    record = made.manifest.measured["draft"]
    assert record["recipe"]["layers_from"] == "hf"
    assert record["training"]["step"] == 4
    assert AutoConfig.from_pretrained(tmp_path / "work" / "draft").hidden_size == 32
    pipeline = load(made.root, num_draft_tokens=3)
    drafted = pipeline.generate("def moving_average", max_new_tokens=24)
    plain = load(made.root, draft="none").generate("def moving_average", max_new_tokens=24)
    assert drafted.token_ids == plain.token_ids
    assert drafted.stats.proposed > 0


def test_what_edgespec_runs_is_not_exported(target: Path, tmp_path: Path) -> None:
    found = target_bundle(str(target), tmp_path / "work", lambda line: None)
    assert found.root == target
    assert not list((tmp_path / "work").iterdir())


def test_a_bundle_has_no_layers_for_torch(target: Path, bare: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"has no layers that torch can read.*--layers-from SOURCE"):
        check(settings_of(target, tmp_path, bare))


def test_layers_of_another_vocabulary_are_refused(target: Path, bare: Path, tmp_path: Path) -> None:
    other = tiny_models.train_tokenizer(tmp_path / "other.json", special=("<|bos|>", "<|eos|>", "<x>"))
    foreign = tiny_models.build("llama", tmp_path / "foreign", tokenizer=other)
    settings = settings_of(target, tmp_path, bare, layers_from=str(foreign))
    check(settings)
    with pytest.raises(IncompatiblePair, match="does not fit target"):
        check_donor(settings, bundle.read(target))


def test_ids_beyond_the_donors_rows_begin_as_its_rare_tokens(target_folder: Path, donor: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(donor, dtype=torch.float32)
    id_map = np.array([3, 50, 500, UNKNOWN], np.int32)  # the donor has 440 rows
    draft: Any = build(model.config, Shape((0,)), len(id_map), seed=0)
    initialise_from(draft, model, Shape((0,)), id_map)
    rows, table = draft.get_input_embeddings().weight, model.get_input_embeddings().weight
    assert torch.equal(rows[:2], table[[3, 50]])
    assert torch.equal(rows[2], rows[3])


# What can be wrong with it


def test_texts_without_log_probabilities_have_the_same_labels(corpus: Path, bare: Path) -> None:
    everything = np.arange(VOCAB, dtype=np.int32)
    both = [Texts(shards.shard_paths(folder), invert(everything, VOCAB), everything >= 0) for folder in (corpus, bare)]
    rich, poor = (texts.batch(texts.texts[:5]) for texts in both)
    assert torch.equal(rich.labels, poor.labels) and torch.equal(rich.rows, poor.rows)
    assert rich.top_ids.shape[1] > 0 and poor.top_ids.shape == (len(poor.rows), 0)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def spoil(path: Path) -> None:
    """Damage in the middle of an array: the list of the archive is whole."""
    data = bytearray(path.read_bytes())
    data[len(data) // 3 : len(data) // 3 + 64] = bytes(64)
    path.write_bytes(data)


def lose_tokens(path: Path) -> None:
    with np.load(path) as data:
        tokens = data["tokens"]
    rewrite(path, path, tokens=tokens[:-5])


def lose_an_array(path: Path) -> None:
    rewrite(path, path, begins=None)


def misplace_an_answer(path: Path) -> None:
    with np.load(path) as data:
        answers = data["answers"].copy()
    answers[0] = len(answers) + 10_000
    rewrite(path, path, answers=answers)


def lose_rows(path: Path) -> None:
    with np.load(path) as data:
        rows = data["top_ids"]
    rewrite(path, path, top_ids=rows[:-1])


def speak_another_language(path: Path) -> None:
    with np.load(path) as data:
        tokens = data["tokens"].astype(np.int32)
    rewrite(path, path, tokens=tokens + VOCAB)


def be_an_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.arange(5))


def think_in_another_language(path: Path) -> None:
    with np.load(path) as data:
        best = data["top_ids"].astype(np.int32)
    rewrite(path, path, top_ids=best + VOCAB)


def forget_a_number(path: Path) -> None:
    with np.load(path) as data:
        logprobs = data["top_logprobs"].copy()
    logprobs[3, 1] = np.nan
    rewrite(path, path, top_logprobs=logprobs)


def keep_no_record(path: Path) -> None:
    (path.parent / "manifest.json").write_text("[1]", encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, "is not a whole shard"),
        (spoil, "is not a whole shard"),
        (lose_tokens, "do not fill"),
        (be_an_array, "is not a whole shard"),
        (lose_an_array, "is not a whole shard"),
        (misplace_an_answer, "an answer begins outside its text"),
        (lose_rows, "rows for"),
        (speak_another_language, "the corpus is another target's: token id"),
        (think_in_another_language, "the corpus is another target's: token id"),
        (forget_a_number, "top_logprobs has values that are no numbers"),
        (keep_no_record, r"manifest.json is damaged.*Delete it"),
    ],
)
def test_a_damaged_shard_is_named(
    damage: Callable[[Path], None],
    message: str,
    corpus: Path,
    target: Path,
    target_folder: Path,
    tmp_path: Path,
) -> None:
    damaged = tmp_path / "corpus"
    shutil.copytree(corpus, damaged, ignore=shutil.ignore_patterns("manifest.json"))
    path = shards.shard_paths(damaged)[-1]
    damage(path)
    settings = settings_of(target_folder, tmp_path / "work", damaged)
    with pytest.raises(EdgespecError, match=message) as caught:
        check(settings)
        train_draft(settings, bundle.read(target), lambda line: None)
    nameless = (speak_another_language, think_in_another_language, keep_no_record)
    assert path.name in str(caught.value) or damage in nameless


def test_a_corpus_that_never_ends_as_the_target_does_is_doubted(
    bare: Path, target: Path, target_folder: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    (tmp_path / "work").mkdir()
    endless = tmp_path / "endless"
    endless.mkdir()
    for path in shards.shard_paths(bare):
        with np.load(path) as data:
            tokens = data["tokens"]
        rewrite(path, endless / path.name, tokens=np.where(tokens == 1, 9, tokens))
    settings = settings_of(target_folder, tmp_path / "work", endless, steps=1)
    train_draft(settings, bundle.read(target), said.append)
    assert any("another model's corpus?" in line for line in said)


# What can happen during training


def test_a_loss_that_is_no_number_keeps_the_last_good_draft(
    bare: Path, target: Path, target_folder: Path, tmp_path: Path
) -> None:
    """At an absurd learning rate the weights overflow in the first steps."""
    (tmp_path / "work").mkdir()
    absurd = settings_of(target_folder, tmp_path / "work", bare, steps=20, learning_rate=1e30)
    with pytest.raises(Diverged, match=r"training stopped at step \d+: its loss or gradient is no finite number") as e:
        train_draft(absurd, bundle.read(target), lambda line: None)
    assert f"The draft of step {e.value.step} is kept" in str(e.value)
    kept: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "work" / "draft")
    assert all(torch.isfinite(parameter).all() for parameter in kept.parameters())
    check(settings_of(target_folder, tmp_path / "again", bare, from_draft=tmp_path / "work" / "draft"))


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ({"hidden": 66, "heads": 4}, "hidden size must be an even number of values per head"),
        ({"hidden": 60, "heads": 5}, "5 heads cannot share 2 heads of keys and values evenly"),
    ],
)
def test_heads_that_do_not_divide_are_refused_before_anything_is_made(
    widths: dict[str, int], message: str, bare: Path, target_folder: Path, tmp_path: Path
) -> None:
    options = [item for name, value in widths.items() for item in (f"--{name}", value)]
    result = run(
        *["train", "fastdraft", target_folder, "-o", tmp_path / "work", "--corpus", bare, "--loss", "ce"],
        *["--from-scratch", *options],
    )
    assert isinstance(result.exception, SettingError), result.output
    assert message in str(result.exception)
    assert not (tmp_path / "work").exists()


def test_a_shard_says_what_it_lacks(bare: Path, corpus: Path) -> None:
    assert shards.has_top(shards.shard_paths(corpus))
    assert not shards.has_top([*shards.shard_paths(corpus), *shards.shard_paths(bare)])
