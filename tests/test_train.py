"""Training a draft: corpus, head fit, losses, checkpoints, bundle; on targets of a few hundred kilobytes."""

from __future__ import annotations

import dataclasses
import json
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest

from edgespec import SamplingParams, bundle, load
from edgespec.cli import cli
from edgespec.errors import SettingError

pytest.importorskip("optimum.intel", reason="training needs the train extra")
pytest.importorskip("accelerate", reason="training needs the train extra")

import torch
from click.testing import CliRunner, Result
from transformers import AutoModelForCausalLM

from edgespec.bench.prompts import Prompt
from edgespec_train.corpus import shards
from edgespec_train.corpus.batches import Texts
from edgespec_train.corpus.build import Plan, make_corpus
from edgespec_train.corpus.texts import TargetTexts
from edgespec_train.draft_model import UNKNOWN, Shape, build, choose_vocabulary, initialise_from, invert
from edgespec_train.evaluate import generate_texts, replay
from edgespec_train.initialise import fit_head, take_over
from edgespec_train.losses import loss_of
from edgespec_train.pack import save_draft
from edgespec_train.stages import StageSettings, train_draft
from edgespec_train.target import target_bundle
from edgespec_train.trainer import Recipe, hidden_states
from tests import tiny_models

VOCAB = 512
PLAN = Plan("tiny", texts_per_shard=16, new_tokens=20, max_length=192)
TOKENS = 1800
"""of the corpus of most tests: two shards"""


@pytest.fixture(scope="session")
def target_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_target(tmp_path_factory.getbasetemp() / "train")


@pytest.fixture(scope="session")
def target(target_folder: Path) -> Path:
    return exported(target_folder)


@pytest.fixture(scope="module")
def torch_target(target_folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(target_folder, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def corpus(target: Path) -> Path:
    return written_by(target)


# The files of tests about training each have these fixtures, and share what is made: nobody writes into it.


@cache
def made_target(folder: Path) -> Path:
    """Three layers, of which the first says most: a shallow draft can learn it."""
    folder.mkdir(exist_ok=True)  # where it failed once, each file of tests says why
    tiny_models.build("llama", folder / "hf", layers=3)
    model = AutoModelForCausalLM.from_pretrained(folder / "hf", dtype=torch.float32)
    with torch.no_grad():
        for layer in model.model.layers[1:]:
            layer.self_attn.o_proj.weight.mul_(0.2)
            layer.mlp.down_proj.weight.mul_(0.2)
    model.save_pretrained(folder / "hf")
    return folder / "hf"


@cache
def exported(target_folder: Path) -> Path:
    return tiny_models.export_ir(target_folder, target_folder.with_name("target")).parent


@cache
def written_by(target: Path) -> Path:
    folder = Path(mkdtemp(prefix="corpus-", dir=target.parent))
    make_corpus(PLAN, target, folder, TOKENS, lambda line: None)
    return folder


@cache
def exported_by_commands(target_folder: Path) -> Path:
    """What each command of training makes first of a checkpoint: ``target`` in its work folder."""
    work = target_folder.with_name("work")
    target_bundle(str(target_folder), work, lambda line: None)
    return work / "target"


def texts_of(corpus: Path, id_map: np.ndarray[Any, Any]) -> Texts:
    return Texts(shards.shard_paths(corpus), invert(id_map, VOCAB), np.isin(np.arange(VOCAB), id_map))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


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
    counts = TargetTexts(shards.shard_paths(corpus)).token_counts(VOCAB)
    ids = [choose_vocabulary(counts, size, always=[0]) for size in (200, 300)]
    drafts: list[Any] = [build(torch_target.config, Shape((0,)), len(some), seed=3) for some in ids]
    with torch.no_grad():
        for parameter in drafts[0].parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    initialise_from(drafts[1], torch_target, Shape((0,)), ids[1])
    fit_head(drafts[1], torch_target, texts_of(corpus, ids[1]), rows=500)
    common = np.intersect1d(ids[0], ids[1])
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
    counts = TargetTexts(shards.shard_paths(corpus)).token_counts(VOCAB)
    texts = texts_of(corpus, choose_vocabulary(counts, 64, always=[]))
    batch = texts.batch(texts.texts[:6])
    assert 0 < int(batch.readable.sum()) < len(batch.rows)
    logits = torch.randn(len(batch.rows), 64)
    some = logits.clone()
    some[~batch.readable] = torch.randn(int((~batch.readable).sum()), 64)
    assert loss_of(logits, batch, "ce") == pytest.approx(float(loss_of(some, batch, "ce")))


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


# The whole way


@pytest.mark.slow  # other recipes go the whole way by default: tests/test_pretrain.py, tests/test_train_block.py
@pytest.mark.parametrize("beside_an_untrained_one", [False, True])
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
            "what is made already",
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
