"""Adaptive tokens from the command to the text: trained for a tiny target, packed, and decoded on both engines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgespec import SamplingParams, bundle, load
from edgespec.cli import cli
from edgespec.errors import BundleError, ConversionError, SettingError

pytest.importorskip("optimum.intel", reason="training needs the train extra")
pytest.importorskip("accelerate", reason="training needs the train extra")

import torch
from click.testing import CliRunner, Result
from transformers import AutoModelForCausalLM

from edgespec.types import Backend
from edgespec_train.corpus.texts import TargetTexts
from edgespec_train.loop import Schedule
from edgespec_train.sdsat.graph import with_placeholders
from edgespec_train.sdsat.placeholders import Placeholders, read
from edgespec_train.sdsat.places import choose, groups_of
from edgespec_train.sdsat.task import Guesses, Recipe, worth
from tests import tiny_models

COUNT = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build("llama", tmp_path_factory.mktemp("sdsat") / "hf")


@pytest.fixture(scope="module")
def target(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def train(folder: Path, work: Path, *more: object) -> Result:
    sizes = ["--corpus-tokens", 600, "--texts-per-shard", 32, "--new-tokens", 20, "--steps", 4, "--evaluate-every", 2]
    return run("train", "sdsat", folder, "-o", work, *sizes, "--tokens", COUNT, "--batch", 256, "--rank", 2, *more)


@pytest.fixture(scope="module")
def trained(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("sdsat-work")
    result = train(folder, work)
    assert result.exit_code == 0, result.output
    return work


@pytest.fixture
def placeholders(target: Any) -> Placeholders:
    """With adapters that do something."""
    torch.manual_seed(1)
    made = Placeholders(target, 2, rank=2)
    for name, parameter in made.named_parameters():
        if name.endswith("up"):
            torch.nn.init.normal_(parameter, std=0.2)
    return made


def texts_of(trained: Path) -> TargetTexts:
    return TargetTexts(sorted((trained / "corpus").glob("shard-*.npz")))


def test_groups_read_what_stands_before_them_and_nothing_else(target: Any, placeholders: Placeholders) -> None:
    """Beside each other in one forward, and each alone behind its text."""
    tokens = torch.randint(4, 400, (1, 20))
    anchors = torch.tensor([[5, 11, 19]])
    with torch.no_grad():
        _, cache = read(target, tokens)
        together = placeholders(target, cache, anchors, COUNT)[0]
        for group, anchor in enumerate(anchors[0].tolist()):
            _, cache = read(target, tokens[:, : anchor + 1])
            alone = placeholders(target, cache, torch.tensor([[anchor]]), COUNT)[0, 0]
            torch.testing.assert_close(together[group], alone, atol=1e-4, rtol=1e-4)


def test_the_target_is_not_changed_by_training(target: Any, trained: Path, placeholders: Placeholders) -> None:
    before = {name: value.clone() for name, value in target.state_dict().items()}
    texts, recipe = texts_of(trained), Recipe(count=COUNT, share=0.5)
    task = Guesses(target, placeholders, texts, texts, recipe, Schedule(steps=1, tokens_per_batch=128))
    batch = next(task.batches(0))
    loss, places = task.loss(placeholders, batch, torch.device("cpu"))
    loss.backward()  # type: ignore[no-untyped-call]
    assert places > 0 and all(parameter.grad is not None for parameter in placeholders.parameters())
    assert all(parameter.grad is None for parameter in target.parameters())
    optimizer = torch.optim.SGD(placeholders.parameters(), 1e-4)
    optimizer.step()
    again, _ = task.loss(placeholders, batch, torch.device("cpu"))
    assert again.item() < loss.item()
    assert all(torch.equal(before[name], value) for name, value in target.state_dict().items())


def test_batches_are_a_function_of_their_number(target: Any, trained: Path, placeholders: Placeholders) -> None:
    texts = texts_of(trained)
    task = Guesses(target, placeholders, texts, texts, Recipe(), Schedule(steps=1, tokens_per_batch=128))
    first = task.batches(0)
    _, second = next(first), next(first)
    again = next(task.batches(1))
    assert torch.equal(second.tokens, again.tokens) and torch.equal(second.anchors, again.anchors)


def test_placeholders_stand_behind_every_token_or_at_random_places(trained: Path) -> None:
    texts = texts_of(trained)
    some = texts.texts[:8]
    every = choose(texts, some, "every", 0.2, np.random.default_rng(0))
    lengths = [texts.length(text) - len(texts.prompt(text)) for text in some]
    assert [len(places) for places in every] == lengths
    assert [places[0] for places in every] == [len(texts.prompt(text)) - 1 for text in some]
    random = choose(texts, some, "random", 0.2, np.random.default_rng(0))
    assert 1 <= sum(map(len, random)) < sum(lengths)
    told = groups_of(texts, some, every).told(COUNT)
    assert told.sum() == sum(sum(min(COUNT, n - 1 - at) for at in range(n - 1)) for n in lengths) + 0 * COUNT


def test_worth_is_what_rounds_would_earn() -> None:
    always = [np.ones((4, 3), bool)]
    assert worth(always) == {"two_step": 2.5, "one_forward": 4.0}
    assert worth([np.zeros((4, 3), bool)]) == {"two_step": 1.0, "one_forward": 1.0}
    assert worth([]) == {"two_step": 1.0, "one_forward": 1.0}


def test_the_bundle_says_what_was_trained_and_that_real_tokens_kept_their_logits(trained: Path) -> None:
    manifest = bundle.read(trained / "bundle").manifest
    [entry] = [drafter for drafter in manifest.drafters if drafter.kind == "adaptive"]
    assert entry.adaptive is not None and entry.adaptive.tokens == (manifest.target.vocab_size,)
    measured = manifest.measured["draft"]
    assert measured["compared"]["standard_difference"] == 0
    assert measured["recipe"]["count"] == COUNT
    assert (trained / "curve.json").is_file() and (trained / "curve.png").is_file()


MODES = {"greedy": SamplingParams(), "sampled": SamplingParams(temperature=0.8, seed=5)}


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_both_engines_write_what_the_target_writes_alone(trained: Path, backend: Backend) -> None:
    plain = load(trained / "target", draft="none", backend=backend, numerics="exact")
    drafted = load(trained / "bundle", draft="sdsat", backend=backend, numerics="exact")
    extra = 0
    for params in MODES.values():
        expected = plain.generate("The lighthouse had", params, max_new_tokens=24, raw=True).token_ids
        for k in (0, 1, 3, 13):
            found = drafted.generate("The lighthouse had", params, max_new_tokens=24, raw=True, num_draft_tokens=k)
            assert found.token_ids == expected, k
            extra += sum(round_.extra for round_ in found.stats.rounds)
    assert extra > 0, "no placeholder was ever read"


def test_separate_embeddings_have_an_id_each(target: Any, placeholders: Placeholders, trained: Path) -> None:
    own = trained / "target" / "target" / "openvino_model.xml"
    out = trained / "two" / "openvino_model.xml"
    embedding = target.get_input_embeddings().weight[-1]
    first = with_placeholders(own, out, placeholders, embedding)
    from edgespec_train.sdsat.check import compare

    found = compare(own, out, first, target, placeholders, np.arange(10, 70), COUNT)
    assert found.standard_difference == 0 and found.agreement > 0.8
    placeholders.embeddings.data = placeholders.embeddings.data.flip(0)
    with pytest.raises(ConversionError, match="does not guess what was trained"):
        compare(own, out, first, target, placeholders, np.arange(10, 70), COUNT)


def test_a_run_goes_on_only_with_its_own_settings(folder: Path, trained: Path) -> None:
    result = train(folder, trained, "--share", 0.4)
    assert result.exit_code == 2 and "made with another sdsat" in result.output


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--adapt", "qkv,nose"], "products to adapt; got nose; allowed: qkv, o, gate_up, down"),
        (["--tokens", 14], "14 is not in the range"),
        (["--share", 0], "is not in the range"),
        (["--corpus", "nowhere"], "nowhere"),
    ],
)
def test_a_setting_that_cannot_be_is_one_line(folder: Path, tmp_path: Path, more: list[object], said: str) -> None:
    result = train(folder, tmp_path / "work", *more)
    assert result.exit_code == 2 and said in result.output and "Traceback" not in result.output


def changed(source: Path, out: Path, **adaptive: Any) -> Path:
    """The bundle with other adaptive tokens in its manifest."""
    out.mkdir()
    for file in source.iterdir():
        (out / file.name).symlink_to(file)
    content = json.loads((source / "bundle.json").read_text(encoding="utf-8"))
    next(d for d in content["drafters"] if d["kind"] == "adaptive")["adaptive"] |= adaptive
    (out / "bundle.json").unlink()
    (out / "bundle.json").write_text(json.dumps(content), encoding="utf-8")
    return out


@pytest.mark.parametrize(
    ("adaptive", "said"),
    [
        ({"tokens": [1]}, "that the tokenizer uses: a text ends with it"),
        ({"tokens": [300]}, "that the tokenizer uses: it is"),
        ({"tokens": [513]}, "outside the vocabulary"),
    ],
)
def test_placeholders_that_mean_something_are_refused(
    trained: Path, tmp_path: Path, adaptive: dict[str, Any], said: str
) -> None:
    with pytest.raises(SettingError, match=said):
        load(changed(trained / "bundle", tmp_path / "bundle", **adaptive), draft="sdsat", backend="openvino")


def test_a_manifest_without_placeholders_is_refused(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="adaptive"):
        load(changed(trained / "bundle", tmp_path / "bundle", count=65), draft="sdsat")


# A user's own target, exported with the ids that it was trained with


def test_a_target_of_the_users_own_decodes_with_its_placeholders(folder: Path, tmp_path: Path) -> None:
    result = run("export", folder, "-o", tmp_path / "own", "--adaptive-token", 511, "--adaptive-count", 4)
    assert result.exit_code == 0, result.output
    text, params = "The lighthouse had", MODES["sampled"]
    plain = load(tmp_path / "own", draft="none", backend="openvino", numerics="exact")
    own = load(tmp_path / "own", draft="adaptive", backend="openvino", numerics="exact")
    found = own.generate(text, params, max_new_tokens=24, raw=True)
    assert found.token_ids == plain.generate(text, params, max_new_tokens=24, raw=True).token_ids
    assert max(round_.extra for round_ in found.stats.rounds) == 4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--adaptive-token", 1, "--adaptive-count", 3], "got 1; allowed: an id without a text"),
        (["--adaptive-token", 300, "--adaptive-count", 3], "got 300; allowed: an id without a text"),
        (["--adaptive-token", 512, "--adaptive-count", 3], "got 512; allowed: 0 to 511"),
        (["--adaptive-token", -1, "--adaptive-count", 3], "got -1; allowed: 0 to 511"),
        (["--adaptive-token", 511, "--adaptive-count", 65], "number of adaptive tokens; got 65; allowed: 1 to 64"),
        (["--adaptive-token", 511], "--adaptive-token without --adaptive-count"),
        (["--adaptive-count", 3], "--adaptive-count without --adaptive-token"),
    ],
)
def test_placeholders_that_no_export_can_take(folder: Path, tmp_path: Path, options: list[object], said: str) -> None:
    result = run("export", folder, "-o", tmp_path / "own", *options)
    assert result.exit_code == 2 and said in result.output and "Traceback" not in result.output
    assert not (tmp_path / "own").exists()
