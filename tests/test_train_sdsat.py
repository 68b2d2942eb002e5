"""Adaptive tokens from the command to the text: trained for a tiny target, packed, and decoded on both engines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgespec import SamplingParams, bundle, load
from edgespec.cli import cli
from edgespec.errors import ConversionError, EdgespecError, SettingError

pytest.importorskip("optimum.intel", reason="training needs the train extra")
pytest.importorskip("accelerate", reason="training needs the train extra")

import torch
from click.testing import CliRunner
from transformers import AutoModelForCausalLM

from edgespec.types import Backend
from edgespec_train.corpus.texts import TargetTexts
from edgespec_train.loop import Diverged, Schedule, run
from edgespec_train.sdsat import task as task_module
from edgespec_train.sdsat.check import compare
from edgespec_train.sdsat.graph import with_placeholders
from edgespec_train.sdsat.placeholders import Placeholders, read
from edgespec_train.sdsat.places import choose, groups_of
from edgespec_train.sdsat.rows import recognised
from edgespec_train.sdsat.task import Guesses, Recipe, figures, likeliest, tokens_a_forward, worth
from tests import tiny_models

COUNT, VOCAB = 3, 512


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build("llama", tmp_path_factory.mktemp("sdsat") / "hf")


@pytest.fixture(scope="module")
def target(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Any texts do: the target says itself what comes behind each token."""
    return write(tmp_path_factory.mktemp("texts"), np.random.default_rng(0).integers(4, 400, 48 * 24))


def write(folder: Path, tokens: Any, **more: Any) -> Path:
    """A ready corpus of texts of 24 tokens, 6 of them the prompt. more: other arrays of the shard."""
    begins = np.arange(0, len(tokens) + 1, 24)
    np.savez(folder / "shard-00000.npz", tokens=tokens, begins=begins, answers=begins[:-1] + 6, **more)
    return folder


def train(folder: Path, work: Path, *more: object) -> str | None:
    """What refused training says."""
    sizes = ["--steps", 2, "--evaluate-every", 1, "--tokens", COUNT, "--batch", 256, "--rank", 2]
    arguments = ["train", "sdsat", folder, "-o", work, *sizes, *more]
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    if result.exit_code == 0:
        return None
    return str(result.exception) if isinstance(result.exception, EdgespecError) else result.output


@pytest.fixture(scope="module")
def trained(folder: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("sdsat-work")
    assert train(folder, work, "--corpus", corpus) is None
    return work


@pytest.fixture
def placeholders(target: Any) -> Placeholders:
    """Two embeddings, and adapters that do something."""
    torch.manual_seed(1)
    made = Placeholders(target, 2, rank=2)
    for name, parameter in made.named_parameters():
        if name.endswith("up"):
            torch.nn.init.normal_(parameter, std=0.2)
    return made


def texts_of(corpus: Path) -> TargetTexts:
    return TargetTexts(sorted(corpus.glob("shard-*.npz")))


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


@pytest.mark.parametrize("loss", ["kd", "ce"])
def test_the_target_is_not_changed_by_training(
    target: Any, corpus: Path, placeholders: Placeholders, loss: Any
) -> None:
    before = {name: value.clone() for name, value in target.state_dict().items()}
    texts, recipe = texts_of(corpus), Recipe(count=COUNT, share=0.5, loss=loss)
    task = Guesses(target, placeholders, texts, texts, recipe, Schedule(steps=1, tokens_per_batch=128))
    batch = next(task.batches(0))
    first, places = task.loss(placeholders, batch, torch.device("cpu"))
    first.backward()
    assert places > 0 and all(parameter.grad is not None for parameter in placeholders.parameters())
    assert all(parameter.grad is None for parameter in target.parameters())
    # A step along the gradient that should lower the loss by a hundredth: small enough for its curvature not to count.
    square = sum(float((p.grad**2).sum()) for p in placeholders.parameters() if p.grad is not None)
    torch.optim.SGD(placeholders.parameters(), 0.01 / square).step()
    again, _ = task.loss(placeholders, batch, torch.device("cpu"))
    assert again.item() < first.item()
    assert all(torch.equal(before[name], value) for name, value in target.state_dict().items())


@pytest.mark.parametrize("loss", ["kd", "ce"])
def test_a_loss_makes_logits_of_a_few_rows_at_a_time(
    target: Any, corpus: Path, placeholders: Placeholders, loss: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forwards and backwards; loss and gradients are those of all rows at once."""
    texts, recipe, found = texts_of(corpus), Recipe(count=COUNT, placing="every", loss=loss), {}
    task = Guesses(target, placeholders, texts, texts, recipe, Schedule(steps=1, tokens_per_batch=128))
    batch, rows = next(task.batches(0)), []
    watch = target.get_output_embeddings().register_forward_hook(lambda head, given, out: rows.append(len(given[0])))
    for most in (16, 1 << 20):
        monkeypatch.setattr(task_module, "_ROWS_AT_ONCE", most)
        placeholders.zero_grad()
        value, places = task.loss(placeholders, batch, torch.device("cpu"))
        value.backward()
        gradients = [p.grad.clone() for p in placeholders.parameters() if p.grad is not None]
        found[most] = float(value), torch.cat([gradient.flatten() for gradient in gradients])
        assert max(rows) <= most and places > 16
    watch.remove()
    (one, other) = found.values()
    assert one[0] == pytest.approx(other[0], rel=1e-5)
    torch.testing.assert_close(one[1], other[1], rtol=1e-3, atol=1e-6)


def test_batches_are_a_function_of_their_number(target: Any, corpus: Path, placeholders: Placeholders) -> None:
    texts = texts_of(corpus)
    task = Guesses(target, placeholders, texts, texts, Recipe(), Schedule(steps=1, tokens_per_batch=128))
    first = task.batches(0)
    _, second = next(first), next(first)
    again = next(task.batches(1))
    assert torch.equal(second.tokens, again.tokens) and torch.equal(second.anchors, again.anchors)


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_what_was_good(
    target: Any, corpus: Path, tmp_path: Path
) -> None:
    texts, schedule = texts_of(corpus), Schedule(steps=3, tokens_per_batch=128, evaluate_every=1)
    some = Placeholders(target, 1, rank=0)
    task = Guesses(target, some, texts, texts, Recipe(count=COUNT, rank=0), schedule)
    good = task.loss
    task.loss = lambda module, batch, device: (  # type: ignore[method-assign]
        good(module, batch, device) if not (tmp_path / "checkpoint").exists() else (some.embeddings.sum() * np.nan, 1)
    )
    with pytest.raises(Diverged, match="training stopped at step 2"):
        run(task, schedule, tmp_path, say=lambda point: None)
    assert torch.isfinite(some.embeddings).all()
    again = Guesses(target, Placeholders(target, 1, rank=0), texts, texts, Recipe(count=COUNT, rank=0), schedule)
    curve = run(again, schedule, tmp_path, say=lambda point: None)
    assert [point.step for point in curve] == [1, 2, 3], "it goes on behind the last good step"


def test_placeholders_stand_behind_every_token_or_at_random_places(corpus: Path) -> None:
    texts = texts_of(corpus)
    some = texts.texts[:8]
    every = choose(texts, some, "every", 0.2, np.random.default_rng(0))
    lengths = [texts.length(text) - len(texts.prompt(text)) for text in some]
    assert [len(places) for places in every] == lengths
    assert [places[0] for places in every] == [len(texts.prompt(text)) - 1 for text in some]
    random = choose(texts, some, "random", 0.2, np.random.default_rng(0))
    assert 1 <= sum(map(len, random)) < sum(lengths)
    told = groups_of(texts, some, every).told(COUNT)
    # Behind the anchor of answer token i stand n - i real tokens, and each tells what one placeholder stands for.
    assert told.sum() == sum(min(COUNT, n - i) for n in lengths for i in range(n))


def test_worth_is_what_rounds_would_earn() -> None:
    always = {"two_step": 2.5, "two_step_k": 3, "one_forward": 4.0, "one_forward_k": 3}
    never = {"two_step": 1.0, "two_step_k": 1, "one_forward": 1.0, "one_forward_k": 1}
    assert worth([np.ones((4, 3), bool)]) == always
    assert worth([np.zeros((4, 3), bool)]) == worth([]) == never


def test_every_number_of_guesses_is_a_column() -> None:
    """The first two guesses are right, the third is not: two are the best, and none is plain decoding."""
    right = np.tile([True, True, False, True], (5, 1))
    assert tokens_a_forward([right]) == {
        "two_step": [1, 1.5, 2, 2, 2],
        "one_forward": [1, 2, 3, 2, 2],
    }
    assert tokens_a_forward([])["two_step"][0] == 1


def test_held_out_figures_are_of_all_numbers_and_by_source(trained: Path) -> None:
    found = json.loads((trained / "held_out.json").read_text(encoding="utf-8"))
    assert found == bundle.read(trained / "bundle").manifest.measured["draft"]["held_out"]
    assert found["places"] > 0 and found["by_source"] == {}, "this corpus does not say where its prompts come from"
    for scheme in ("two_step", "one_forward"):
        columns = found["by_number"][scheme]
        assert len(columns) == 14 and columns[0] == 1
        assert columns[found[f"{scheme}_k"]] == max(columns[1:]) == pytest.approx(found[scheme], abs=1e-3)


@pytest.mark.parametrize(("separate", "most"), [(False, 13), (True, COUNT)])
def test_separate_placeholders_are_judged_no_further_than_they_go(
    target: Any, tmp_path: Path, separate: bool, most: int
) -> None:
    """And each source has figures of its own."""
    tokens = np.random.default_rng(0).integers(4, 400, 8 * 24)
    write(tmp_path, tokens, source=np.repeat([2, 3], 4))
    texts = texts_of(tmp_path)
    torch.manual_seed(0)
    some = Placeholders(target, COUNT if separate else 1, rank=0)
    found = figures(target, some, texts, texts.texts, Recipe(count=COUNT, separate=separate, rank=0))
    assert list(found["by_source"]) == ["code", "text"]
    assert sum(part["places"] for part in found["by_source"].values()) == found["places"]
    assert 1 <= found["two_step_k"] <= most and len(found["by_number"]["two_step"]) == 14


def test_the_number_of_guesses_is_found_where_texts_go_on_for_as_many(target: Any, tmp_path: Path) -> None:
    """Answers of 10 tokens tell of no 13 guesses, and at 8 places of 3."""
    tokens = np.random.default_rng(0).integers(4, 400, 4 * 16)
    begins = np.arange(0, len(tokens) + 1, 16)
    np.savez(tmp_path / "shard-00000.npz", tokens=tokens, begins=begins, answers=begins[:-1] + 6)
    texts = texts_of(tmp_path)
    some = Placeholders(target, COUNT, rank=0)
    found = figures(target, some, texts, texts.texts, Recipe(count=COUNT, separate=True, rank=0))
    assert (found["k_places"], found["places"], found["by_number"]) == (4 * 8, 0, {})
    with pytest.raises(SettingError, match=r"too short .* got 10; allowed: 13 or more"):
        figures(target, some, texts, texts.texts, Recipe(count=COUNT, rank=0))


def test_logits_are_made_of_a_few_rows_at_a_time(target: Any) -> None:
    head, most = target.get_output_embeddings(), 0
    hidden = torch.randn(2, 70, 13, head.in_features)

    def watched(rows: torch.Tensor) -> Any:
        nonlocal most
        most = max(most, len(rows))
        return head(rows)

    assert torch.equal(likeliest(watched, hidden), head(hidden).argmax(-1)) and most <= 256


def test_the_bundle_says_what_was_trained_and_that_real_tokens_kept_their_logits(trained: Path) -> None:
    manifest = bundle.read(trained / "bundle").manifest
    entries = [drafter for drafter in manifest.drafters if drafter.adaptive is not None]
    assert [entry.name for entry in entries] == ["sdsat", "sdsat-one-forward"]
    for entry in entries:
        assert entry.adaptive is not None and entry.adaptive.tokens == (VOCAB,) and entry.adaptive.count == 13
    measured = manifest.measured["draft"]
    assert measured["compared"]["standard_difference"] == 0
    assert measured["recipe"]["count"] == COUNT
    assert (trained / "curve.json").is_file() and (trained / "curve.png").is_file()


MODES = {"greedy": SamplingParams(), "coupled": SamplingParams(temperature=0.8, seed=5)}


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_both_engines_write_what_the_target_writes_alone(trained: Path, backend: Backend) -> None:
    plain = load(trained / "target", draft="none", backend=backend, numerics="exact")
    drafted = load(trained / "bundle", draft="sdsat-one-forward", backend=backend, numerics="exact")
    text: dict[str, Any] = {"max_new_tokens": 24, "raw": True, "ignore_eos": True}
    for params in MODES.values():
        expected = plain.generate("The lighthouse had", sampling=params, **text).token_ids
        for k in (1, 13):
            found = drafted.generate("The lighthouse had", sampling=params, num_draft_tokens=k, **text)
            assert found.token_ids == expected, k
            assert max(round_.extra for round_ in found.stats.rounds) == k


def test_holes_get_the_lines_that_the_target_alone_writes(trained: Path) -> None:
    """The paper's infilling test: exact matches before and after can only be equal where every text is."""
    plain = load(trained / "target", draft="none", backend="openvino", numerics="exact")
    drafted = load(trained / "bundle", draft="sdsat-one-forward", backend="openvino", numerics="exact")
    extra = 0
    for prefix, suffix in (("The lighthouse ha", " a lamp\n"), ("def f(x):\n    ", "\n    return x\n"), ("a = ", "")):
        expected = plain.infill(prefix, suffix, max_new_tokens=24)
        for k in (1, 5):
            found = drafted.infill(prefix, suffix, max_new_tokens=24, num_draft_tokens=k)
            assert (found.token_ids, found.text) == (expected.token_ids, expected.text)
            extra += sum(round_.extra for round_ in found.stats.rounds)
    assert extra


@pytest.mark.parametrize(("backend", "most"), [("openvino", 0), ("onnxruntime", 1e-4)])
def test_logits_of_real_tokens_stay_what_they_were(trained: Path, backend: Backend, most: float) -> None:
    """Every bit on OpenVINO. ONNX Runtime fuses other operations of the larger graph, and sums in another order."""
    tokens = np.random.default_rng(2).integers(4, 400, 12).tolist()
    logits = []
    for place in ("target", "bundle"):
        model = load(trained / place, draft="none", backend=backend, numerics="exact").target
        model.prefill(tokens[:6], reserve=16)
        extra = [VOCAB] * COUNT if place == "bundle" else [5] * COUNT
        logits.append(np.array(model.forward([*tokens[6:], *extra]).logits[:6]))
    assert np.abs(logits[0] - logits[1]).max() <= most


@pytest.mark.slow
def test_the_graph_guesses_what_the_trained_target_guesses(
    folder: Path, target: Any, placeholders: Placeholders, tmp_path: Path
) -> None:
    """In float32, where no guess may differ; and the check finds embeddings that were exchanged."""
    own, out = tiny_models.export_ir(folder, tmp_path / "f32"), tmp_path / "two" / "openvino_model.xml"
    first = with_placeholders(own, out, placeholders)
    found = compare(own, out, first, target, placeholders, np.arange(10, 70), COUNT)
    assert first == VOCAB and found.standard_difference == 0 and found.agreement == 1
    placeholders.embeddings.data = placeholders.embeddings.data.flip(0)
    with pytest.raises(ConversionError, match="does not guess what was trained"):
        compare(own, out, first, target, placeholders, np.arange(10, 70), COUNT)
    other = Placeholders(AutoModelForCausalLM.from_config(target.config), 1, rank=2)
    with pytest.raises(ConversionError, match="not those that were trained: layer 0, q_proj, k_proj, v_proj"):
        with_placeholders(own, out, other)


def test_rows_of_products_are_recognised_in_any_order() -> None:
    """As a merged product has them, or a file that permutes query and key."""
    from edgespec.backends.openvino.runtime import ops

    random = np.random.default_rng(0)
    weights = random.standard_normal((40, 32)).astype(np.float32)
    order = random.permutation(40)
    coded = (np.round(weights[order] * 20) / 20).astype(np.float16)
    given = ops.parameter([-1, 32], np.float32)
    parts = [ops.matmul(given, ops.convert(ops.constant(part), "f32"), False, True) for part in (coded[:8], coded[8:])]
    assert recognised(parts, weights, "all").tolist() == order.tolist()
    with pytest.raises(ConversionError, match=r"not those that were trained: some; got \[40, 32\] weights"):
        recognised(parts, weights[:39], "some")


def test_a_run_goes_on_only_with_its_own_settings(folder: Path, corpus: Path, trained: Path) -> None:
    said = train(folder, trained, "--corpus", corpus, "--share", 0.4)
    assert said is not None and "made with another sdsat" in said


def test_corpora_that_cannot_be_trained_on(folder: Path, corpus: Path, trained: Path, tmp_path: Path) -> None:
    """Another vocabulary, a cut shard, no shards."""
    (tmp_path / "foreign").mkdir()
    foreign = write(tmp_path / "foreign", np.full(48 * 24, VOCAB))
    assert "another target's: token id; got 512; allowed: 0 to 511" in str(train(folder, trained, "--corpus", foreign))
    (tmp_path / "cut").mkdir()
    shard = (corpus / "shard-00000.npz").read_bytes()
    (tmp_path / "cut" / "shard-00000.npz").write_bytes(shard[: len(shard) // 2])
    assert "is not a whole shard" in str(train(folder, trained, "--corpus", tmp_path / "cut"))
    assert "no shards in the corpus" in str(train(folder, tmp_path / "work", "--corpus", tmp_path))
    unread = train(folder, trained, "--corpus", corpus, "--exclude", tmp_path / "nothing.jsonl")
    assert "cannot read the prompts to leave out" in str(unread)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--adapt", "qkv,nose"], "products to adapt; got nose; allowed: qkv, o, gate_up, down"),
        (["--tokens", 14], "14 is not in the range"),
        (["--share", 0], "is not in the range"),
        (["--corpus", ".", "--corpus-tokens", 9], "--corpus names what is made already; got --corpus-tokens"),
    ],
)
def test_a_setting_that_cannot_be_is_one_line(folder: Path, tmp_path: Path, more: list[object], said: str) -> None:
    assert said in str(train(folder, tmp_path / "work", *more))
