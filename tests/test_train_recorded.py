"""Texts of a target that are kept in a file, to judge several drafts on the same ones."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from edgespec import Pipeline, SamplingParams, load
from edgespec.bench.prompts import Prompt
from edgespec.errors import SettingError

pytest.importorskip("optimum.intel", reason="training needs the train extra")

from edgespec_train import recorded
from edgespec_train.evaluate import generate_texts
from edgespec_train.recorded import texts_in

PROMPTS = [
    Prompt("code", "def average(values):", raw=True),
    Prompt("chat", "Hi.", raw=True),
    Prompt("chat", "No", True),
]
GREEDY = SamplingParams()


@pytest.fixture(scope="module")
def tiny_pipeline(tiny_ir: Path) -> Pipeline:
    return load(tiny_ir.parent, draft="none", numerics="fast")


def test_the_file_holds_what_the_target_writes(
    tiny_pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second run generates nothing, and a run that was stopped in the middle of a line only what is missing."""
    file = tmp_path / "texts.jsonl"
    expected = list(generate_texts(tiny_pipeline, PROMPTS, GREEDY, 9))
    assert list(texts_in(file, tiny_pipeline, PROMPTS, GREEDY, 9)) == expected
    whole = file.read_bytes()
    asked: list[Any] = []

    def counting(pipeline: Pipeline, prompts: Any, *rest: Any) -> Any:
        asked.extend(prompts)
        return generate_texts(pipeline, prompts, *rest)

    monkeypatch.setattr(recorded, "generate_texts", counting)
    assert list(texts_in(file, tiny_pipeline, PROMPTS, GREEDY, 9)) == expected
    assert not asked
    file.write_bytes(whole[:-20])
    assert list(texts_in(file, tiny_pipeline, PROMPTS, GREEDY, 9)) == expected
    assert asked == PROMPTS[-1:]
    assert file.read_bytes() == whole


def test_a_target_is_known_by_its_weights_and_not_by_its_name(
    tiny_pipeline: Pipeline, tiny_ir: Path, tmp_path: Path
) -> None:
    """In a folder of its own, it is the same; in a folder of the same name, with other weights, another one."""
    file = tmp_path / "texts.jsonl"
    texts = list(texts_in(file, tiny_pipeline, PROMPTS, GREEDY, 3))
    moved, changed = tmp_path / "moved", tmp_path / tiny_ir.parent.name
    for folder in (moved, changed):
        shutil.copytree(tiny_ir.parent, folder)
    assert list(texts_in(file, load(moved, draft="none", numerics="fast"), PROMPTS, GREEDY, 3)) == texts
    weights = changed / tiny_ir.with_suffix(".bin").name
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    other = load(changed, draft="none", numerics="fast")
    assert other.bundle.name == tiny_pipeline.bundle.name
    with pytest.raises(SettingError, match="were generated with another target"):
        list(texts_in(file, other, PROMPTS, GREEDY, 3))


def test_texts_of_something_else_are_refused(tiny_pipeline: Pipeline, tmp_path: Path) -> None:
    file = tmp_path / "texts.jsonl"
    list(texts_in(file, tiny_pipeline, PROMPTS, GREEDY, 3))
    for prompts, sampling, new_tokens, name in (
        (PROMPTS[:2], GREEDY, 3, "prompts"),
        (PROMPTS, SamplingParams(temperature=0.6, seed=1), 3, "temperature"),
        (PROMPTS, GREEDY, 4, "new_tokens"),
    ):
        with pytest.raises(SettingError, match=f"were generated with another {name}"):
            list(texts_in(file, tiny_pipeline, prompts, sampling, new_tokens))
    empty = '{"number": 0, "category": "a", "prompt": [1], "tokens": []}'
    words = '{"number": 0, "category": "a", "prompt": ["one"], "tokens": [1]}'
    for content in ('{"target": 1}\n[1, 2]\n', "[1]\n", f"{{}}\n{empty}\n", f"{{}}\n{words}\n", "{}\n{}\n"):
        file.write_text(content, encoding="utf-8")
        with pytest.raises(SettingError, match="does not hold recorded texts"):
            list(texts_in(file, tiny_pipeline, PROMPTS, GREEDY, 3))
    with pytest.raises(SettingError, match="does not hold recorded texts"):
        list(texts_in(tmp_path, tiny_pipeline, PROMPTS, GREEDY, 3))
    with pytest.raises(SettingError, match="cannot write the texts"):
        list(texts_in(tmp_path / "no" / "folder.jsonl", tiny_pipeline, PROMPTS, GREEDY, 3))
