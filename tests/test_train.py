"""Training a draft: corpus, head fit, losses, checkpoints, bundle; on targets of a few hundred kilobytes."""

from __future__ import annotations

import dataclasses
import json
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgespec import Pipeline, SamplingParams, bundle, load
from edgespec.cli import cli
from edgespec.drafters.ngram import NGram
from edgespec.errors import SettingError

pytest.importorskip("optimum.intel", reason="training needs the train extra")
pytest.importorskip("accelerate", reason="training needs the train extra")

import torch
from click.testing import CliRunner, Result
from transformers import AutoModelForCausalLM

from edgespec.bench.prompts import Prompt
from edgespec_train.corpus import build as corpora
from edgespec_train.corpus import shards, sources
from edgespec_train.corpus.batches import Texts
from edgespec_train.corpus.build import Plan, make_corpus
from edgespec_train.corpus.decontaminate import OWN, Decontaminator
from edgespec_train.corpus.generate import Generated, Generator, Job
from edgespec_train.corpus.paged_texts import TOP
from edgespec_train.draft_model import UNKNOWN, Shape, build, choose_vocabulary, initialise_from, invert
from edgespec_train.evaluate import generate_texts, replay
from edgespec_train.initialise import fit_head, take_over
from edgespec_train.losses import loss_of
from edgespec_train.pack import save_draft
from edgespec_train.stages import StageSettings, train_draft
from edgespec_train.trainer import Point, Recipe, agreement, block_efficiency, hidden_states, train
from tests import tiny_models

VOCAB = 512
PLAN = Plan("tiny", texts_per_shard=16, new_tokens=20, max_length=192)
TOKENS = 1800
"""of the corpus of most tests: two shards"""


@pytest.fixture(scope="module")
def target_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three layers, of which the first says most: a shallow draft can learn it."""
    folder = tiny_models.build("llama", tmp_path_factory.mktemp("target") / "hf", layers=3)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        for layer in model.model.layers[1:]:
            layer.self_attn.o_proj.weight.mul_(0.2)
            layer.mlp.down_proj.weight.mul_(0.2)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def target(target_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.export_ir(target_folder, tmp_path_factory.mktemp("target-ir") / "target").parent


@pytest.fixture(scope="module")
def torch_target(target_folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(target_folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def corpus(target: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    make_corpus(PLAN, target, folder, TOKENS, lambda line: None)
    return folder


def texts_of(corpus: Path, id_map: np.ndarray[Any, Any]) -> Texts:
    return Texts(shards.shard_paths(corpus), invert(id_map, VOCAB), np.isin(np.arange(VOCAB), id_map))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


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
        texts = [maker.tokenizer.decode(part) for part in np.split(data["tokens"], data["begins"][1:-1])]
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


# What the draft begins with


def test_a_draft_with_all_of_the_target_is_the_target(torch_target: Any, corpus: Path) -> None:
    """Copied weights, then a fitted head that finds nothing to mend."""
    shape = Shape(tuple(range(3)))
    id_map = np.arange(VOCAB, dtype=np.int32)
    draft: Any = build(torch_target.config, shape, VOCAB, seed=0)
    initialise_from(draft, torch_target, shape, id_map)
    ids = torch.tensor([[5, 9, 70, 33, 8]])
    with torch.no_grad():
        torch.testing.assert_close(draft(ids).logits, torch_target(ids).logits)
    share = fit_head(draft, torch_target, texts_of(corpus, id_map), rows=800, ridge=1e-9)
    assert share == pytest.approx(1.0, abs=1e-4)
    with torch.no_grad():
        assert (draft(ids).logits.argmax(-1) == torch_target(ids).logits.argmax(-1)).all()


def test_the_fitted_head_is_least_squares(torch_target: Any, corpus: Path) -> None:
    """Of fewer layers the head explains a part; any other map from the same rows explains less."""
    shape = Shape((0,))
    id_map = np.arange(VOCAB, dtype=np.int32)
    draft: Any = build(torch_target.config, shape, VOCAB, seed=0)
    initialise_from(draft, torch_target, shape, id_map)
    texts = texts_of(corpus, id_map)
    share = fit_head(draft, torch_target, texts, rows=texts.answer_tokens, ridge=1e-9)
    copy: Any = build(torch_target.config, shape, VOCAB, seed=0)
    initialise_from(copy, torch_target, shape, id_map)
    copy.model.norm.weight.data.fill_(1.0)
    batch, ids = texts.batch(texts.texts), torch.from_numpy(texts.padded(texts.texts))
    with torch.no_grad():
        x = hidden_states(copy, batch.tokens)[batch.rows].double()
        y = hidden_states(torch_target, ids)[batch.rows].double()
    lens = torch.linalg.lstsq(x, y).solution
    assert share == pytest.approx(1 - float(((y - x @ lens) ** 2).sum() / (y**2).sum()), abs=1e-4)
    assert 0.05 < share < 0.999
    expected = x @ lens @ torch_target.get_output_embeddings().weight.double().T
    with torch.no_grad():
        got = draft.get_output_embeddings()(hidden_states(draft, batch.tokens)[batch.rows])
    torch.testing.assert_close(got, expected.float(), atol=1e-2, rtol=1e-2)


def test_a_draft_that_goes_on_from_an_earlier_one_thinks_as_it_did(torch_target: Any, corpus: Path) -> None:
    counts = shards.token_counts(shards.shard_paths(corpus), VOCAB)
    ids = [choose_vocabulary(counts, size, always=[0]) for size in (200, 300)]
    drafts: list[Any] = [build(torch_target.config, Shape((0,)), len(some), seed=3) for some in ids]
    with torch.no_grad():
        for parameter in drafts[0].parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    initialise_from(drafts[1], torch_target, Shape((0,)), ids[1])
    fit_head(drafts[1], torch_target, texts_of(corpus, ids[1]), rows=500)
    common = np.intersect1d(*ids)
    assert take_over(drafts[1], ids[1], drafts[0], ids[0]) == len(common) > 150
    shared = common[common >= 0]  # -1 stands for all tokens that a draft does not know, and the two know different ones
    text = np.random.default_rng(0).choice(shared, 20)
    rows = [torch.from_numpy(invert(some, VOCAB)) for some in ids]
    logits = [draft(row[text][None]).logits[0][:, row[shared]] for draft, row in zip(drafts, rows, strict=True)]
    torch.testing.assert_close(logits[0], logits[1], atol=1e-4, rtol=1e-4)


def test_a_trimmed_vocabulary_reads_and_proposes_the_same_ids(torch_target: Any) -> None:
    counts = np.zeros(VOCAB, np.int64)
    counts[[3, 50, 51, 400]] = 9, 5, 7, 1
    id_map = choose_vocabulary(counts, 5, always=[1])
    assert id_map.tolist() == [1, 3, 50, 51, UNKNOWN]
    assert invert(id_map, VOCAB)[[1, 3, 50, 51, 2]].tolist() == [0, 1, 2, 3, 4]
    shape = Shape((0, 1, 2))
    draft: Any = build(torch_target.config, shape, 5, seed=0)
    initialise_from(draft, torch_target, shape, id_map)
    with torch.no_grad():
        full = torch_target(torch.tensor([[3, 50, 1]])).logits[..., [1, 3, 50, 51]]
        torch.testing.assert_close(draft(torch.tensor([[1, 2, 0]])).logits[..., :4], full)


# Training


def test_distillation_is_least_where_the_draft_thinks_as_the_target(corpus: Path) -> None:
    batch = texts_of(corpus, np.arange(VOCAB, dtype=np.int32)).batch([(0, 0), (0, 1)])
    probs = torch.full((len(batch.rows), VOCAB), 1e-9).scatter(1, batch.top_ids, batch.top_probs)
    same = torch.log(probs)
    best = loss_of(same, batch, "kd")
    for seed in range(3):
        noise = torch.randn(same.shape, generator=torch.Generator().manual_seed(seed))
        assert loss_of(same + 0.1 * noise, batch, "kd") > best
    assert loss_of(same, batch, "ce+kd") == pytest.approx(float((best + loss_of(same, batch, "ce")) / 2))


def test_rows_the_draft_cannot_say_do_not_count(corpus: Path) -> None:
    counts = shards.token_counts(shards.shard_paths(corpus), VOCAB)
    texts = texts_of(corpus, choose_vocabulary(counts, 64, always=[]))
    batch = texts.batch(texts.texts[:6])
    assert 0 < int(batch.readable.sum()) < len(batch.rows)
    logits = torch.randn(len(batch.rows), 64)
    some = logits.clone()
    some[~batch.readable] = torch.randn(int((~batch.readable).sum()), 64)
    assert loss_of(logits, batch, "ce") == pytest.approx(float(loss_of(some, batch, "ce")))


def trainable(torch_target: Any, corpus: Path) -> tuple[Any, Texts, Texts]:
    id_map = choose_vocabulary(shards.token_counts(shards.shard_paths(corpus), VOCAB), 200, always=[1])
    shape = Shape((0,))
    draft: Any = build(torch_target.config, shape, 200, seed=0)
    initialise_from(draft, torch_target, shape, id_map)
    return draft, *texts_of(corpus, id_map).split(0.2)


RECIPE = Recipe(steps=8, tokens_per_batch=512, learning_rate=1e-3, warmup=2, evaluate_every=2)


def test_training_brings_a_draft_closer_to_the_target(torch_target: Any, corpus: Path, tmp_path: Path) -> None:
    id_map = np.arange(VOCAB, dtype=np.int32)
    texts = texts_of(corpus, id_map)
    draft: Any = build(torch_target.config, Shape((0,)), VOCAB, seed=1)
    before = np.concatenate(agreement(draft, texts, texts.texts)).mean()
    recipe = dataclasses.replace(RECIPE, steps=80, evaluate_every=80, learning_rate=5e-3)
    (point,) = train(draft, texts, texts, recipe, tmp_path, say=lambda point: None)
    after = np.concatenate(agreement(draft, texts, texts.texts)).mean()
    assert before < 0.02
    assert after > before + 0.03
    assert point.tokens > texts.answer_tokens


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(torch_target: Any, corpus: Path, tmp_path: Path) -> None:
    whole, texts, held_out = trainable(torch_target, corpus)
    expected = train(whole, texts, held_out, RECIPE, tmp_path / "whole", say=lambda point: None)

    def stop_at_four(point: Point) -> None:
        if point.step == 4:
            raise KeyboardInterrupt

    stopped, texts, held_out = trainable(torch_target, corpus)
    with pytest.raises(KeyboardInterrupt):  # after the checkpoint of step 2, before that of step 4
        train(stopped, texts, held_out, RECIPE, tmp_path / "cut", say=stop_at_four)
    resumed, texts, held_out = trainable(torch_target, corpus)
    curve = train(resumed, texts, held_out, RECIPE, tmp_path / "cut", say=lambda point: None)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=0, atol=0, msg=name)
    assert [(p.step, p.tokens, p.agreement) for p in curve] == [(p.step, p.tokens, p.agreement) for p in expected]


def test_a_checkpoint_of_another_run_is_refused(torch_target: Any, corpus: Path, tmp_path: Path) -> None:
    draft, texts, held_out = trainable(torch_target, corpus)
    train(draft, texts, held_out, dataclasses.replace(RECIPE, steps=2), tmp_path, say=lambda point: None)
    with pytest.raises(SettingError, match="another recipe"):
        train(draft, texts, held_out, RECIPE, tmp_path, say=lambda point: None)
    with pytest.raises(SettingError, match="another vocabulary"):
        train(
            *(draft, texts, held_out, dataclasses.replace(RECIPE, steps=2), tmp_path),
            say=lambda point: None,
            same={"vocabulary": "other ids, as many"},
        )


def test_a_draft_of_the_same_size_with_other_ids_is_refused(
    target_folder: Path, target: Path, corpus: Path, tmp_path: Path
) -> None:
    """More corpus changes which ids are kept: rows of the checkpoint would stand for other tokens."""
    few, all_ = tmp_path / "few", tmp_path / "all"
    for folder, paths in ((few, shards.shard_paths(corpus)[:1]), (all_, shards.shard_paths(corpus))):
        folder.mkdir()
        for path in paths:
            (folder / path.name).write_bytes(path.read_bytes())
    (tmp_path / "work").mkdir()
    recipe = Recipe(steps=2, tokens_per_batch=256)
    settings = StageSettings(
        str(target_folder), tmp_path / "work", recipe, Shape((0,)), 60, False, None, "f32", few, "f32"
    )
    train_draft(settings, bundle.read(target), lambda line: None)
    with pytest.raises(SettingError, match="made with another vocabulary"):
        train_draft(dataclasses.replace(settings, corpus=all_), bundle.read(target), lambda line: None)


def test_a_checkpoint_survives_a_failure_to_write_the_next(
    torch_target: Any, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draft, texts, held_out = trainable(torch_target, corpus)

    def full(self: Any, folder: str) -> None:
        Path(folder).mkdir()
        raise RuntimeError("No space left on device")

    def fill_the_disk(point: Point) -> None:
        if point.step == 4:
            monkeypatch.setattr("accelerate.Accelerator.save_state", full)

    with pytest.raises(SettingError, match="cannot write a checkpoint"):
        train(draft, texts, held_out, RECIPE, tmp_path, say=fill_the_disk)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
    monkeypatch.undo()
    (tmp_path / "checkpoint").replace(tmp_path / "checkpoint.old")  # as if killed between the two renames
    draft, texts, held_out = trainable(torch_target, corpus)
    curve = train(draft, texts, held_out, RECIPE, tmp_path, say=lambda point: None)
    assert [point.step for point in curve] == [2, 4, 6, 8]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_every_text_is_in_one_part_and_every_epoch_has_all(torch_target: Any, corpus: Path) -> None:
    texts = texts_of(corpus, np.arange(VOCAB, dtype=np.int32))
    rest, held_out = texts.split(0.3)
    assert sorted(rest.texts + held_out.texts) == sorted(texts.texts)
    assert rest.texts and held_out.texts
    prompts = [{bytes(texts.prompt(text)) for text in part.texts} for part in (rest, held_out)]
    assert not prompts[0] & prompts[1], "answers to one prompt on both sides"
    for epoch in (0, 1):
        batches = texts.epoch(0, epoch, 600)
        assert sorted(text for batch in batches for text in batch) == sorted(texts.texts)
    assert texts.epoch(0, 0, 600) == texts.epoch(0, 0, 600) != texts.epoch(0, 1, 600)
    ahead = texts.batches(0, 600)
    for _ in range(len(batches) + 3):
        next(ahead)
    assert next(texts.batches(0, 600, first=len(batches) + 3)) == next(ahead)


# The whole way


@pytest.mark.parametrize("beside_an_untrained_one", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_train_fastdraft_makes_a_draft_that_is_worth_more_than_an_untrained_one(
    target_folder: Path, tmp_path: Path, beside_an_untrained_one: bool
) -> None:
    """The command line end to end; then again with the corpus it made and a draft that learns nothing."""
    work = tmp_path / "work"
    common = ["--batch", 512, "--layers", 1, "--vocabulary", 480, "--weights", "f32", "--evaluate-every", 15]
    result = run(
        *["train", "fastdraft", target_folder, "-o", work, "--corpus-tokens", 1500, "--texts-per-shard", 32],
        *["--new-tokens", 24, "--steps", 30, "--learning-rate", 0.001, *common],
    )
    assert result.exit_code == 0, result.output
    assert Path(result.stdout.strip()) == work / "bundle"
    assert (work / "curve.png").stat().st_size > 1000
    manifest = json.loads((work / "bundle" / "bundle.json").read_text(encoding="utf-8"))
    assert manifest["drafters"][0]["unknown"] == 479
    record = manifest["measured"]["draft"]
    assert record["corpus"]["answer_tokens"] >= 1500
    assert record["training"]["step"] == 30

    rate = accepted_of(work / "bundle")
    assert rate > 0.1, "by chance it would be one in hundreds"
    if beside_an_untrained_one:
        lazy = tmp_path / "lazy"
        lazy.mkdir()
        (work / "target").replace(lazy / "target")
        result = run(
            *["train", "fastdraft", target_folder, "-o", lazy, "--corpus", work / "corpus", "--from-scratch"],
            *["--steps", 1, "--learning-rate", 1e-9, *common],
        )
        assert result.exit_code == 0, result.output
        assert rate > accepted_of(lazy / "bundle") + 0.15


def accepted_of(pair: Path) -> float:
    """Acceptance rate of a pair's drafts on what its target writes; and what it writes is the same with them."""
    pipeline = load(pair, num_draft_tokens=4)
    prompts = [Prompt("all", text, raw=True) for text in tiny_models.CORPUS]
    texts = list(generate_texts(pipeline, prompts, SamplingParams(), 60))
    rate = replay(pipeline.drafter, texts, SamplingParams(), 4, VOCAB)["all"].acceptance_rate
    drafted = pipeline.generate(texts[0].prompt, max_new_tokens=60)
    assert drafted.token_ids[: len(texts[0].tokens)] == list(texts[0].tokens), "exact with the trained draft"
    assert drafted.stats.proposed > 0
    assert rate is not None
    return rate


@pytest.mark.parametrize(
    ("drafter", "temperature"),
    [
        ("model", 0.8),
        ("ngram", 0.0),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in [("model", 0.0), ("ngram", 0.8)]),
    ],
)
def test_a_replay_has_the_rounds_of_the_real_run(drafter: str, temperature: float, pipeline: Pipeline) -> None:
    """Acceptance that is computed with a recording in the target's place is the acceptance with the target."""
    sampling = SamplingParams(temperature=temperature, seed=3 if temperature else None)
    prompts = [
        Prompt("all", "def add(a, b):\n    return a + b\n\ndef add(a, b):\n", raw=True),
        Prompt("all", "Say hello.", raw=False),
    ]
    texts = list(generate_texts(pipeline, prompts, sampling, 24))
    drafting: Any = NGram() if drafter == "ngram" else pipeline.drafter
    found = replay(drafting, texts, sampling, 3, pipeline.target.vocab_size)["all"]
    real = []
    for text in texts:
        drafting.reset()
        run = pipeline.generate(
            text.prompt, max_new_tokens=len(text.tokens), sampling=sampling, drafter=drafting, num_draft_tokens=3
        )
        real += [(r.proposed, r.accepted, r.committed) for r in run.stats.rounds]
    assert [(r.proposed, r.accepted, r.committed) for r in found.rounds] == real


def test_block_efficiency_counts_rounds() -> None:
    bits = np.array([False, True, True, False, True, False, False])
    assert block_efficiency([bits], 1) == 6 / 4
    assert block_efficiency([bits], 4) == 6 / 3
    assert block_efficiency([np.ones(11, bool)], 4) == 10 / 2


# What can go wrong


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fastdraft", "no/such/folder/x", "-o", "{}"], "no such model"),
        (["fastdraft", "default", "-o", "{}", "--from-layers", "a,b"], "layers of the target"),
        (["fastdraft", "default", "-o", "{}", "--hidden", "128"], "has its widths"),
        (["fastdraft", "{1}", "-o", "{}", "--from-layers", "0,9"], "layers of the target"),
        (["fastdraft", "default", "-o", "{}", "--seed", "-1"], "seed"),
        (["fastdraft", "default", "-o", "{}", "--corpus", "{}"], "no shards in the corpus"),
        (
            ["fastdraft", "default", "-o", "{}", "--corpus", "{}", "--corpus-tokens", "9"],
            "shards that are made already",
        ),
        (["fastdraft", "default", "-o", "{}", "--from-draft", "{}"], "no trained draft there"),
        (["fastdraft", "qwen2.5-1.5b", "-o", "{}"], "an OpenVINO model already"),
        (["corpus", "default", "-o", "{}", "--folder", "{}/nothing"], "no such corpus folder"),
        (["corpus", "default", "-o", "{}", "--exclude", "{}/nothing.jsonl"], "cannot read the prompts to leave out"),
        (["evaluate", "-m", "{2}", "--prompts", "{0}/nothing.jsonl"], "cannot read prompts"),
        (["evaluate", "-m", "{2}", "--draft", "none"], "no drafter"),
        (["evaluate", "-k", "9"], "number of draft tokens"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    target_folder: Path,
    target: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from edgespec import cli as module

    monkeypatch.setattr(
        "sys.argv", ["edgespec", "train", *(a.format(tmp_path, target_folder, target) for a in arguments)]
    )
    with pytest.raises(SystemExit) as ended:
        module.main()
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert message in error.splitlines()[-1]
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (Shape((0, 1)), "the earlier draft has another num_hidden_layers; got 2; allowed: 1. --layers 2"),
        (Shape((0,), hidden=32), "the earlier draft has another hidden_size; got 32; allowed: 64. Go on from"),
        (Shape((0,), intermediate=96), "the earlier draft has another intermediate_size; got 96; allowed: 128"),
        (None, "cannot read the earlier draft in"),
    ],
)
def test_an_earlier_draft_of_another_shape_is_refused_before_anything_is_made(
    shape: Shape | None, message: str, target_folder: Path, torch_target: Any, tmp_path: Path
) -> None:
    earlier = tmp_path / "earlier"
    id_map = np.array([0, 1, 2, UNKNOWN], np.int32)
    save_draft(build(torch_target.config, shape or Shape((0,)), len(id_map), seed=0), id_map, earlier)
    if shape is None:
        (earlier / "config.json").write_text("{", encoding="utf-8")
    result = run(
        *["train", "fastdraft", target_folder, "-o", tmp_path / "work", "--layers", 1, "--from-draft", earlier],
        *["--corpus-tokens", 10, "--texts-per-shard", 8, "--new-tokens", 4, "--steps", 1],
    )
    assert isinstance(result.exception, SettingError), result.output
    assert message in str(result.exception)
    assert not (tmp_path / "work").exists()


def test_a_draft_is_saved_whole_or_not_at_all(
    torch_target: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [np.array(some, np.int32) for some in ([0, 1, UNKNOWN], [4, 5, 6, UNKNOWN])]
    drafts = [build(torch_target.config, Shape((0,)), len(some), seed=0) for some in ids]
    out = tmp_path / "draft"
    save_draft(drafts[0], ids[0], out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert {"id_map.npy", "model.safetensors", "config.json"} <= set(before)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", full)
        with pytest.raises(SettingError, match=r"cannot write the draft to .*draft: .*No space left"):
            save_draft(drafts[1], ids[1], out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["draft"]
    save_draft(drafts[1], ids[1], out)
    assert np.load(out / "id_map.npy").tolist() == ids[1].tolist()
    assert AutoModelForCausalLM.from_pretrained(out).config.vocab_size == 4
    assert [path.name for path in tmp_path.iterdir()] == ["draft"]


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
def test_shards_through_ray_are_the_shards_made_alone(target: Path, corpus: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs the train-ray extra")
    make_corpus(PLAN, target, tmp_path / "corpus", TOKENS, lambda line: None, ray=True)
    for path in shards.shard_paths(tmp_path / "corpus"):
        twin = corpus / path.name
        if twin.is_file():
            np.testing.assert_array_equal(np.load(path)["tokens"], np.load(twin)["tokens"])
