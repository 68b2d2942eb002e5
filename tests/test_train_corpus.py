"""The corpus: what the target generates, in which shards, and what must not get into it."""

from __future__ import annotations

import dataclasses
import json
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgespec.errors import SettingError

pytest.importorskip("optimum.intel", reason="training needs the train extra")
pytest.importorskip("accelerate", reason="training needs the train extra")

import torch

from edgespec.bench.prompts import OWN
from edgespec_train.corpus import build as corpora
from edgespec_train.corpus import shards, sources
from edgespec_train.corpus.build import make_corpus
from edgespec_train.corpus.decontaminate import Decontaminator
from edgespec_train.corpus.generate import Generated, Generator, Job
from edgespec_train.corpus.paged_texts import TOP
from tests import test_train
from tests.test_train import PLAN, TOKENS, run

target_folder, target, corpus = test_train.target_folder, test_train.target, test_train.corpus
torch_target = test_train.torch_target


# Generation by the target


def test_generated_log_probabilities_are_those_of_the_target(target: Path, torch_target: Any) -> None:
    """Five texts in three slots, prompts of very different lengths: each token as torch alone would have chosen it."""
    generator = Generator(target / "openvino_model.xml", eos_token_ids=[], slots=3, max_length=128)
    random = np.random.default_rng(0)
    prompts = [tuple(int(t) for t in random.integers(4, 400, size=n)) for n in (3, 70, 1, 40, 9)]
    jobs = [Job(key, prompt, max_new_tokens=12) for key, prompt in enumerate(prompts)]
    queue, texts = deque(jobs), {}
    for text in generator.generate(queue, rows_per_forward=16):
        texts[text.job.key] = text
        if text.job.key < len(jobs):  # a follow-up goes on where the text stands in the cache
            queue.appendleft(Job(text.job.key + 10, (*text.job.prompt, *text.tokens[:-1], 7, 8), max_new_tokens=4))
    assert sorted(texts) == [0, 1, 2, 3, 4, 10, 11, 12, 13, 14]
    for text in texts.values():
        prompt = text.job.prompt
        with torch.no_grad():
            logits = torch_target(torch.tensor([[*prompt, *text.tokens]])).logits[0, len(prompt) - 1 : -1]
        expected = torch.log_softmax(logits, -1).topk(TOP)
        np.testing.assert_allclose(np.stack(text.top_logprobs), expected.values, atol=6e-2)  # 16-bit keys and values
        assert [int(row[0]) for row in text.top_ids] == text.tokens
    again = {text.job.key: text.tokens for text in generator.generate(deque(jobs))}
    assert again == {job.key: texts[job.key].tokens for job in jobs}, "an earlier text is left in the cache"


def test_sampling_follows_the_temperature_and_the_seed(target: Path) -> None:
    generator = Generator(target / "openvino_model.xml", eos_token_ids=[], slots=8, max_length=64)

    def first_tokens(temperature: float, seed: int) -> list[int]:
        jobs = deque(Job(key, (5, 6, 7), 1, temperature, seed) for key in range(400))
        return [text.tokens[0] for text in sorted(generator.generate(jobs), key=lambda text: text.job.key)]

    (best,) = set(first_tokens(0.0, 0))
    hot = first_tokens(1.0, 1)
    assert hot == first_tokens(1.0, 1) != first_tokens(1.0, 2)
    job = Job(0, (5, 6, 7), 1)
    probability = float(np.exp(next(generator.generate(deque([job]))).top_logprobs[0][0]))
    expected = 400 * probability
    assert abs(hot.count(best) - expected) < 5 * np.sqrt(expected * (1 - probability)) + 12  # 32 best, not all
    assert first_tokens(0.3, 1).count(best) > hot.count(best)


def test_a_shard_is_a_function_of_the_plan_and_its_number(target: Path, corpus: Path, tmp_path: Path) -> None:
    paths = shards.shard_paths(corpus)
    assert len(paths) >= 2, "the corpus of these tests needs two shards"
    maker = corpora.ShardMaker(PLAN, target, tmp_path)
    maker({"number": 1})  # alone, without shard 0 before it
    one, other = np.load(paths[1]), np.load(shards.shard_path(tmp_path, 1))
    for name in ("tokens", "begins", "answers", "source", "temperature", "top_ids"):
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_the_manifest_counts_what_is_there_and_a_second_run_adds_nothing(target: Path, corpus: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in shards.shard_paths(corpus)}
    manifest = make_corpus(PLAN, target, corpus, TOKENS, lambda line: None)
    assert {path.name: path.stat().st_mtime_ns for path in shards.shard_paths(corpus)} == before
    rows = sum(len(np.load(path)["top_ids"]) for path in shards.shard_paths(corpus))
    assert manifest["answer_tokens"] == rows >= TOKENS
    assert sum(manifest["tokens_by_source"].values()) == rows
    assert sum(manifest["texts_by_temperature"].values()) == manifest["texts"]
    assert {"0.0", "0.6", "1.0"} <= set(manifest["texts_by_temperature"])
    assert sum(origin["texts"] for origin in manifest["origins"].values()) == manifest["texts"]
    assert all(origin["licence"] for origin in manifest["origins"].values())
    with pytest.raises(SettingError, match="another new_tokens"):
        make_corpus(dataclasses.replace(PLAN, new_tokens=7), target, corpus, TOKENS, lambda line: None)


SECRET = "one two three four five six seven eight nine ten eleven twelve"


def test_no_benchmark_prompt_gets_in(target: Path, tmp_path: Path) -> None:
    """Nor a text that the target completed to one: generated texts are checked too."""
    own = tmp_path / "own"
    own.mkdir()
    (own / "a.py").write_text(f'def f():\n    """{SECRET}."""\n    return 1\n' * 3 + "\n" * 20, encoding="utf-8")
    benchmark = tmp_path / "benchmark.jsonl"
    benchmark.write_text(json.dumps({"turns": [f"Say: {SECRET.upper()}!"]}) + "\n", encoding="utf-8")
    plan = dataclasses.replace(PLAN, folders=(str(own),), shares=(0, 0, 1, 0), texts_per_shard=60, new_tokens=1)
    decontaminator = Decontaminator([benchmark])
    seen = {}
    for name, exclude in (("with", ()), ("without", (str(benchmark),))):
        maker = corpora.ShardMaker(dataclasses.replace(plan, exclude=exclude), target, tmp_path)
        path = tmp_path / f"{name}.npz"
        maker._make(0, path)
        data = np.load(path)
        texts = [maker.tokenizer.decode(part.tolist()) for part in np.split(data["tokens"], data["begins"][1:-1])]
        seen[name] = sum(decontaminator.matches(text) for text in texts)
        assert len(texts) > 10
    assert seen["with"] > 0
    assert seen["without"] == 0
    maker._decontaminator.add(maker.tokenizer.decode([7, 8, 9, *range(50, 80)]) + " " + SECRET)
    tokens = maker.tokenizer.encode(SECRET)
    assert not maker._clean(Generated(Job(0, tuple(tokens[:4]), 1), tokens[4:]))


def test_short_benchmark_prompts_are_excluded_whole_and_our_own_always() -> None:
    decontaminator = Decontaminator([])
    own = [json.loads(line)["text"] for line in OWN.read_text(encoding="utf-8").splitlines()]
    assert own and all(decontaminator.matches(text) for text in own)
    decontaminator.add("Who wrote Hamlet?")
    assert decontaminator.matches("who wrote hamlet")
    assert not decontaminator.matches("Who wrote Hamlet, and when was it first played?")
    assert not decontaminator.matches("Write a Python function that adds two numbers.")


def test_a_shard_is_there_whole_or_not_at_all(target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: Any, **arrays: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(SettingError, match="No space left"):
        make_corpus(PLAN, target, tmp_path / "corpus", 10, lambda line: None)
    assert [path.name for path in (tmp_path / "corpus").iterdir()] == ["manifest.json"]


def test_shares_say_where_prompts_come_from(target: Path, tmp_path: Path) -> None:
    command = ["train", "corpus", target, "-o", tmp_path, "--corpus-tokens", 10, "--new-tokens", 4]
    result = run(*command, "--texts-per-shard", 16, "--shares", "0,0.25,0.75,0")
    assert result.exit_code == 0, result.output
    data = np.load(shards.shard_path(tmp_path / "corpus", 0))
    assert set(data["source"]) == {1, 2}, "code begun by the target, and code"
    manifest = json.loads((tmp_path / "corpus" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["plan"]["shares"] == [0, 0.25, 0.75, 0]


@pytest.mark.parametrize("shares", ["1,0,0", "0.5,0.5,0.5,0", "a,b,c,d", "2,-1,0,0", "nan,0,0,1"])
def test_shares_that_are_no_whole_are_one_line(shares: str, tmp_path: Path) -> None:
    result = run("train", "corpus", "default", "-o", tmp_path / "work", "--shares", shares)
    assert isinstance(result.exception, SettingError)
    assert f"--shares; got {shares}; allowed: four numbers that add up to 1" in str(result.exception)
    assert not (tmp_path / "work").exists()


def test_prompts_come_from_real_code_and_text(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(
        'import os\n\n\ndef scale(values, factor):\n    """Multiply every value by a factor."""\n    return values\n',
        encoding="utf-8",
    )
    (tmp_path / "notes.md").write_text("A long paragraph about tides. " * 20, encoding="utf-8")
    (tmp_path / "picture.bin").write_bytes(bytes(range(256)))
    origin = sources.folder(tmp_path)
    assert {path.name for path in origin.files} == {"a.py", "notes.md"}
    raw, asked = list(sources.code_prompts(origin))
    assert raw.kind == "raw" and raw.text.endswith('"""Multiply every value by a factor."""\n')
    assert (asked.kind == "chat" and "scale" in asked.text) or "factor" in asked.text
    assert any("tides" in prompt.text for prompt in sources.text_prompts(origin))


@pytest.mark.parametrize("content", [None, {}, {"a.bin": b"\0\1\2"}, {"empty.txt": b" \n"}])
def test_a_corpus_folder_without_text_is_refused(tmp_path: Path, content: dict[str, bytes] | None) -> None:
    folder = tmp_path / "own"
    if content is not None:
        folder.mkdir()
        for name, data in content.items():
            (folder / name).write_bytes(data)
    with pytest.raises(SettingError, match="corpus folder"):
        sources.folder(folder)


def test_a_target_without_a_chat_template_gets_plain_prompts(target: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in target.iterdir():
        if path.name != "chat_template.jinja":
            (bare / path.name).write_bytes(path.read_bytes())
    said: list[str] = []
    make_corpus(PLAN, bare, tmp_path / "corpus", 10, said.append)
    assert any("no chat template" in line for line in said)


@pytest.mark.slow
@pytest.mark.alone
def test_shards_through_ray_are_the_shards_made_alone(target: Path, corpus: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray.data", reason="needs the train-ray extra", exc_type=ImportError)
    make_corpus(PLAN, target, tmp_path / "corpus", TOKENS, lambda line: None, ray=True)
    for path in shards.shard_paths(tmp_path / "corpus"):
        twin = corpus / path.name
        if twin.is_file():
            np.testing.assert_array_equal(np.load(path)["tokens"], np.load(twin)["tokens"])
