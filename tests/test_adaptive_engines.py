"""Adaptive tokens on the engines: a target of the user's own, exported with its placeholder, and what is refused."""

from __future__ import annotations

import json
import shutil
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from edgespec import SamplingParams, bundle, load
from edgespec.cli import cli
from edgespec.errors import BundleError, EdgespecError, SettingError
from edgespec.pipeline import Pipeline
from edgespec.types import Backend

pytest.importorskip("optimum.intel", reason="exporting needs the export extra")

import torch
from click.testing import CliRunner
from transformers import AutoModelForCausalLM

from tests import tiny_models
from tests.everyday import check_everyday

PLACEHOLDER, MOST = 511, 13
TEXT: dict[str, Any] = {"max_new_tokens": 40, "raw": True, "ignore_eos": True}
MODES = {
    "greedy": SamplingParams(),
    "coupled": SamplingParams(temperature=0.5, seed=5),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target that reads all tokens as nearly the same one: so a placeholder's guesses are often right, not always."""
    folder = tiny_models.build("llama", tmp_path_factory.mktemp("adaptive") / "hf")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        table: Any = model.get_input_embeddings().weight
        table.copy_(table[7] + 0.3 * (table - table[7]))
        table[PLACEHOLDER] = table.mean(0)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def own(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("own") / "bundle"
    result = export(folder, out, "--adaptive-token", PLACEHOLDER, "--adaptive-count", MOST)
    assert result is None, result
    return out


def export(folder: Path, out: Path, *options: object) -> str | None:
    """What a refused export says."""
    arguments = ["export", folder, "-o", out, *options]
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    if result.exit_code == 0:
        return None
    assert isinstance(result.exception, EdgespecError), result.exception
    return str(result.exception)


@lru_cache
def loaded(folder: Path, draft: str, backend: Backend) -> Pipeline:
    return load(folder, draft=draft, backend=backend, numerics="exact")


@pytest.mark.parametrize("draft", ["adaptive", "adaptive-one-forward"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_any_number_of_guesses_gives_the_tokens_of_plain_decoding(
    own: Path, backend: Backend, mode: str, draft: str
) -> None:
    expected = loaded(own, "none", backend).generate("The lighthouse", sampling=MODES[mode], **TEXT)
    accepted = rejected = 0
    for k in (0, 1, 2, 5, MOST):
        found = loaded(own, draft, backend).generate("The lighthouse", sampling=MODES[mode], num_draft_tokens=k, **TEXT)
        assert found.token_ids == expected.token_ids, k
        assert bool(sum(round_.extra for round_ in found.stats.rounds)) == (k > 0)
        accepted += found.stats.accepted
        rejected += found.stats.proposed - found.stats.accepted
    assert accepted and rejected, "the guesses were all wrong, or all right: the test says little"


def test_rejection_sampling_drafts_too(own: Path) -> None:
    params = SamplingParams(temperature=0.5, seed=5, verification="rejection")
    found = loaded(own, "adaptive-one-forward", "openvino").generate("The lighthouse", sampling=params, **TEXT)
    assert len(found.token_ids) == TEXT["max_new_tokens"] and found.stats.accepted > 0


@pytest.mark.parametrize("draft", ["adaptive", "adaptive-one-forward"])
@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_chats_formats_stop_strings_and_dropped_streams_are_those_without_drafts(
    own: Path, backend: Backend, draft: str
) -> None:
    check_everyday(loaded(own, "none", backend), loaded(own, draft, backend), TEXT["max_new_tokens"])


def test_measurements_know_them(own: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"kind": "code", "text": "The lighthouse had stood"}) + "\n", encoding="utf-8")
    asked = ["-m", own, "--draft", "adaptive", "--backend", "openvino", "--prompts", prompts]
    compared = measured("bench", "drafters", *asked, "-n", 16, "--pairs", 1, "--lengths", 2)
    assert set(compared["categories"]["code"]) == {"none", "adaptive", "k = 2"}
    assert set(compared["same_tokens"].values()) == {"1 of 1"}
    found = measured("train", "evaluate", *asked, "-k", 2, "--new-tokens", 16, "--timed", 0)
    assert found["categories"]["code"]["k"] == 2


def measured(*arguments: object) -> dict[str, Any]:
    """The line of JSON behind a table."""
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == 0, (result.output, result.exception)
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


def test_they_draft_when_named_and_never_unasked(own: Path) -> None:
    plain = loaded(own, "none", "openvino")
    assert loaded(own, "adaptive", "openvino").drafter.name == "adaptive"
    for draft in (None, "auto"):
        pipeline = load(own, draft=draft, backend="openvino", numerics="exact")
        assert "adaptive" not in pipeline.drafter.name
        assert pipeline.num_draft_tokens is None
    assert plain.num_draft_tokens is None


def test_the_number_has_the_limit_of_the_bundle(own: Path, tmp_path: Path) -> None:
    few = changed(own, tmp_path / "few", count=3)
    assert load(few, draft="adaptive", backend="openvino").num_draft_tokens == 3
    with pytest.raises(SettingError, match=r"number of draft tokens of adaptive; got 4; allowed: 0 to 3"):
        load(few, draft="adaptive", backend="openvino", num_draft_tokens=4)


def test_they_draft_alone(own: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("a text to copy from", encoding="utf-8")
    with pytest.raises(SettingError, match="adaptive drafts alone"):
        load(own, draft="adaptive", draft_from=tmp_path, backend="openvino")


def changed(source: Path, out: Path, **adaptive: Any) -> Path:
    """A bundle with other adaptive tokens in its manifest."""
    shutil.copytree(source, out)
    content = json.loads((source / bundle.MANIFEST).read_text(encoding="utf-8"))
    for drafter in content["drafters"]:
        if drafter["kind"] == "adaptive":
            drafter["adaptive"] |= adaptive
    (out / bundle.MANIFEST).write_text(json.dumps(content), encoding="utf-8")
    return out


@pytest.mark.parametrize(
    ("adaptive", "said"),
    [
        ({"tokens": [1]}, r"that the tokenizer uses: it is '<\|eos\|>'; got 1; allowed: an id without a text"),
        ({"tokens": [PLACEHOLDER, 300]}, "that the tokenizer uses: it is .*; got 300"),
        ({"tokens": [512]}, "outside the vocabulary of .*; got 512; allowed: 0 to 511"),
    ],
)
def test_ids_that_mean_something_are_refused_when_loading(
    own: Path, tmp_path: Path, adaptive: dict[str, Any], said: str
) -> None:
    with pytest.raises(SettingError, match=said):
        load(changed(own, tmp_path / "bundle", **adaptive), draft="adaptive", backend="openvino")


@pytest.mark.parametrize("adaptive", [{"count": 65}, {"count": 0}, {"tokens": []}, {"tokens": [-1]}, {"rows": 65}])
def test_a_manifest_with_impossible_tokens_is_refused(own: Path, tmp_path: Path, adaptive: dict[str, Any]) -> None:
    with pytest.raises(BundleError, match=r"bundle\.json"):
        bundle.read(changed(own, tmp_path / "bundle", **adaptive))


@pytest.mark.parametrize(("kind", "said"), [("ngram", "has no adaptive tokens"), ("adaptive", "needs adaptive tokens")])
def test_adaptive_tokens_and_their_kind_go_together(own: Path, tmp_path: Path, kind: str, said: str) -> None:
    out = changed(own, tmp_path / "bundle")
    content = json.loads((out / bundle.MANIFEST).read_text(encoding="utf-8"))
    content["drafters"][0] |= {"kind": kind} | ({"adaptive": None} if kind == "adaptive" else {})
    (out / bundle.MANIFEST).write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(BundleError, match=f"a {kind} drafter {said}"):
        bundle.read(out)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--adaptive-token", 1, "--adaptive-count", 3], "got 1; allowed: an id without a text"),
        (["--adaptive-token", 300, "--adaptive-count", 3], "got 300; allowed: an id without a text"),
        (["--adaptive-token", 512, "--adaptive-count", 3], "got 512; allowed: 0 to 511"),
        (["--adaptive-token", -1, "--adaptive-count", 3], "got -1; allowed: 0 to 511"),
        (["--adaptive-token", 511, "--adaptive-count", 65], "number of adaptive tokens; got 65; allowed: 1 to 64"),
        (["--adaptive-token", 511, "--adaptive-count", 0], "number of adaptive tokens; got 0; allowed: 1 to 64"),
        (["--adaptive-token", 511], "--adaptive-token without --adaptive-count"),
        (["--adaptive-count", 3], "--adaptive-count without --adaptive-token"),
    ],
)
def test_placeholders_that_no_export_can_take(folder: Path, tmp_path: Path, options: list[object], said: str) -> None:
    """Said before anything is converted."""
    message = export(folder, tmp_path / "own", *options)
    assert message is not None and said in message
    assert not (tmp_path / "own").exists()
