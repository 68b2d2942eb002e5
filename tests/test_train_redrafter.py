"""A recurrent head, end to end on a small target: warm start, look-ahead, the graph, and the packed draft in use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgespec import SamplingParams, bundle, draft_folder, load
from edgespec.backends.openvino.runtime import ov
from edgespec.backends.openvino.static_graph import OpenVINOStaticGraph
from edgespec.decode.policy import FixedLength
from edgespec.drafters.redrafter import ReDrafter
from edgespec.errors import SettingError

pytest.importorskip("optimum.intel", reason="training needs the train extra")
pytest.importorskip("accelerate", reason="training needs the train extra")

import torch
from click.testing import Result

from edgespec_train import report, table
from edgespec_train.corpus.replay import Choice, replay
from edgespec_train.corpus.states import States
from edgespec_train.draft_model import choose_vocabulary, invert
from edgespec_train.redrafter import graph, warm_start
from edgespec_train.redrafter.head import Head, HeadShape
from edgespec_train.redrafter.recipe import Options, write
from edgespec_train.redrafter.training import LookAhead
from edgespec_train.report import figures
from edgespec_train.ship_head import TrainedHead, pack_head
from edgespec_train.weights_read import bytes_read
from tests import test_train, test_train_ready_corpus
from tests.test_train import VOCAB, run

target_folder, target, corpus = test_train.target_folder, test_train.target, test_train.corpus
torch_target, bare = test_train.torch_target, test_train_ready_corpus.bare
LAYERS, D, IDS = (2, 3), 64, 40


@pytest.fixture(scope="module")
def states(bare: Path, target: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("states") / "states"
    choice = Choice(longest=192, prompt_share=0.98)
    return replay(bare, bundle.read(target), out, lambda line: None, layers=LAYERS, choice=choice)


def made(shape: HeadShape) -> Head:
    """With weights that all matter."""
    torch.manual_seed(0)
    head = Head(shape, torch.randn(IDS, D), torch.randn(IDS, D), torch.rand(len(shape.layers) * D) + 0.5)
    for parameter in head.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return head.eval()


def opened(model: ov.Model, folder: Path) -> OpenVINOStaticGraph:
    ov.save_model(model, folder / "openvino_model.xml", compress_to_fp16=False)
    return OpenVINOStaticGraph(ov.Core(), folder / "openvino_model.xml")


def inputs(noise: float) -> dict[str, Any]:
    random = np.random.default_rng(1)
    found = {"states": random.standard_normal((1, 2 * D)), "noise": noise * random.standard_normal((4, IDS))}
    return {name: array.astype(np.float32) for name, array in found.items()} | {"token": np.array([5], np.int32)}


@pytest.mark.parametrize("bits", [32, 8, 4])
@pytest.mark.parametrize(
    "shape",
    [
        HeadShape(LAYERS, state=32),
        HeadShape(LAYERS, state=0),
        HeadShape(LAYERS, state=32, rows="own", blocks=0),
        HeadShape(LAYERS, state=32, rows="low-rank", rank=32),
    ],
    ids=["all", "no recurrence", "own rows", "low rank"],
)
def test_the_graph_is_the_head_step_by_step(shape: HeadShape, bits: Any, tmp_path: Path) -> None:
    head = made(shape)
    fed = inputs(noise=2.0)
    found = opened(graph.chain(head, np.array([3]), 4, bits, bits), tmp_path).run(fed)
    others = np.arange(IDS) != 3
    with torch.no_grad():
        base, s = head.begin(torch.from_numpy(fed["states"]))
        token = 5
        for step in range(4):
            x, s = head.step(base, s, torch.tensor([token]))
            expected = head.logits(x)[0].numpy()[others]
            got = found["logits"][step]
            error = np.abs(got[others] - expected).mean() / expected.std()
            assert error < {32: 1e-4, 8: 0.05, 4: 0.4}[bits]
            token = int((got + fed["noise"][step]).argmax())
            assert found["tokens"][step] == token != 3


def test_beams_are_the_likeliest_continuations(tmp_path: Path) -> None:
    head = made(HeadShape(LAYERS, state=32))
    fed = inputs(noise=0.0)
    found = opened(graph.beams(head, np.array([3]), 4, 3, 32, 32), tmp_path).run(fed)
    with torch.no_grad():
        base, s = head.begin(torch.from_numpy(fed["states"]))
        beams: list[tuple[float, list[int], torch.Tensor]] = [(0.0, [], s)]
        for _ in range(4):
            longer = []
            for above, tokens, state in beams:
                x, after = head.step(base, state, torch.tensor([tokens[-1] if tokens else 5]))
                logits = head.logits(x)[0]
                logits[3] = -1e4
                logprobs = torch.log_softmax(logits, -1)
                longer += [(above + float(logprobs[i]), [*tokens, i], after) for i in range(IDS)]
            beams = sorted(longer, key=lambda beam: -beam[0])[:3]
    assert found["beams"].tolist() == [tokens for _, tokens, _ in beams]
    np.testing.assert_allclose(found["scores"][:, -1], [total for total, _, _ in beams], rtol=1e-4)
    assert (np.diff(found["scores"], axis=1) <= 1e-6).all()


def test_the_warm_start_drafts_better_than_chance_and_training_better_still(
    states: Path, torch_target: Any, tmp_path: Path
) -> None:
    read = States(states, LAYERS)
    id_map = choose_vocabulary(read.token_counts(VOCAB), 400, always=[])
    ids = torch.from_numpy(np.where(id_map < 0, 0, id_map).astype(np.int64))
    output = torch_target.get_output_embeddings().weight[ids].detach().clone()
    rest, held_out = read.split(0.3)
    head = Head(HeadShape(LAYERS, state=32, blocks=1, lookahead=3), output, output, warm_start.scales_of(rest))
    task = LookAhead(head, rest, held_out, id_map, VOCAB, tokens_per_batch=512)
    batch = next(task.batches(0))
    before = float(task.loss(head, batch, torch.device("cpu"))[0])
    assert warm_start.fit(head, rest, invert(id_map, VOCAB), rows=10_000) > 0.05
    assert float(task.loss(head, batch, torch.device("cpu"))[0]) < before - 0.1
    assert task.judge().agreement > 2 / 400
    assert batch.counts[0] == len(batch.states) > batch.counts[1] > batch.counts[2]
    optimizer = torch.optim.Adam(head.parameters(), 3e-3)
    losses = []
    for _, some in zip(range(30), task.batches(0), strict=False):
        loss, places = task.loss(head, some, torch.device("cpu"))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
        assert places == len(some.states)
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


def test_a_step_reads_what_the_target_wrote_and_is_judged_by_the_target_behind_it(states: Path) -> None:
    read = States(states, LAYERS)
    id_map = np.arange(VOCAB, dtype=np.int32)
    task = LookAhead(made(HeadShape(LAYERS, lookahead=3)), read, read, id_map, VOCAB)
    text = read.texts[0]
    steps = task.steps(read, [text])
    whole, answer = read.tokens(text), read.answer(text)
    np.testing.assert_array_equal(steps.reads[2], whole[answer + 2 : answer + 5])
    for step, target in enumerate(steps.targets):
        assert target.labels[2] == whole[answer + 3 + step]
        np.testing.assert_array_equal(target.top_ids[2], read.top(text)[0][3 + step])
    assert not steps.targets[1].readable[-1] and not steps.targets[1].top_probs[-1].any(), "behind the text's end"


def test_the_command_trains_packs_and_goes_on_and_the_draft_changes_no_token(
    target_folder: Path, target: Path, states: Path, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    command = ["train", "redrafter", target, "-o", work, "--states", states, "--layers", "2,3", "--steps", 6]
    command += ["--batch", 512, "--vocabulary", 300, "--state", 32, "--fit-rows", 3000, "--evaluate-every", 3]
    command += ["--embeddings-from", target_folder, "--draft-length", 3]
    result = run(*command)
    assert result.exit_code == 0, result.output
    packed = work / "draft"
    assert result.stdout.strip() == str(packed)
    manifest = draft_folder.read(packed).manifest
    assert manifest.drafter.kind == "redrafter" and manifest.drafter.needs.layers == (2, 3)
    assert manifest.measured["training"]["step"] == 6
    assert len(json.loads((work / "curve.json").read_text())["curve"]) == 2
    onward = ["train", "redrafter", target, "-o", tmp_path / "again", "--states", states, "--from-draft", packed]
    onward += [*command[command.index("--state") : command.index("--state") + 2], "--embeddings-from", target_folder]
    onward += ["--steps", 1, "--batch", 512, "--learning-rate", 1e-12, "--draft-length", 3]
    result = run(*onward)
    assert result.exit_code == 0, result.output
    begun = draft_folder.read(tmp_path / "again" / "draft").manifest.measured
    reached = manifest.measured["training"]
    assert begun["training"]["agreement"] == reached["agreement"], "it begins with the other's weights"
    pipeline, plain = load(target, draft=str(packed)), load(target, draft="none")
    for sampling in (SamplingParams(), SamplingParams(temperature=0.8, seed=3)):
        options: dict[str, Any] = {"max_new_tokens": 24, "sampling": sampling}
        found = pipeline.generate([5, 6, 7, 8], policy=pipeline.fixed_length(3), **options)
        assert found.token_ids == plain.generate([5, 6, 7, 8], **options).token_ids
        assert any(r.drafter == "redrafter" and r.proposed for r in found.stats.rounds)
    again = run(*command, "--beams", 2, "--draft-length", 2)
    assert again.exit_code == 0 and "R squared" not in again.output, again.output
    beams = ReDrafter(
        OpenVINOStaticGraph(ov.Core(), packed / "head" / "openvino_model.xml"),
        np.load(packed / "head" / "id_map.npy"),
        LAYERS,
        vocab_size=VOCAB,
    )
    assert beams.longest == 2 and beams.hidden_size == States(states).hidden_size
    for numerics, trees in (("fast", True), ("exact", False)):
        loaded = load(target, draft=str(packed), backend="openvino", numerics=numerics)  # type: ignore[arg-type]
        assert loaded.target.capabilities.tree == trees
        made = loaded.generate([5, 6, 7, 8], policy=FixedLength(loaded.drafter.last, 4), max_new_tokens=24)  # type: ignore[attr-defined]
        assert (max(r.proposed for r in made.stats.rounds) > 2) == trees, "two beams of two tokens, folded"
        if not trees:
            assert made.token_ids == plain.generate([5, 6, 7, 8], max_new_tokens=24).token_ids


def test_each_step_reads_its_matrices_again(tmp_path: Path) -> None:
    head = made(HeadShape(LAYERS, state=32))
    read = []
    for k in (1, 2, 3):
        opened(graph.chain(head, np.array([3]), k), tmp_path)
        read.append(bytes_read(tmp_path / "openvino_model.xml"))
    of_a_step = sum(part.numel() for name, part in head.named_parameters() if part.ndim > 1 and "states" not in name)
    of_a_step += head.table.numel() - head.first.weight.numel()
    assert read[2] - read[1] == read[1] - read[0]
    assert of_a_step <= read[1] - read[0] < 1.15 * of_a_step


def test_a_head_of_a_folder_is_judged_without_lookups(
    target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the table always, except for "auto"; by evaluate if it is asked to."""
    head, pair = made(HeadShape(LAYERS, state=32)), bundle.read(target)
    ids = np.array([*range(IDS - 1), -1], np.int32)
    options = Options(draft_length=2)
    trained = TrainedHead("redrafter", ids, LAYERS, lambda xml: write(head, ids, options, xml), "int8", {})
    packed = pack_head(trained, pair, str(target), tmp_path / "packed", ("Tiny-Model",))
    assert draft_folder.read(packed).manifest.target_names == ("tiny-model",)
    judged: list[str] = []
    of = figures

    def recording(pipeline: Any, *given: Any, **more: Any) -> Any:
        judged.append(pipeline.drafter.name)
        return of(pipeline, *given, **more)

    for module in (table, report):
        monkeypatch.setattr(module, "figures", recording)
    (tmp_path / "p.jsonl").write_text(json.dumps({"kind": "a", "text": "hello there"}) + "\n")
    same = ["-m", target, "--prompts", tmp_path / "p.jsonl", "--new-tokens", 4, "--timed", 0, "-t", 0, "-k", 2]
    assert run("train", "table", *same, "--draft", packed, "--draft", "auto").exit_code == 0
    for options_ in ([], ["--alone"]):
        assert run("train", "evaluate", *same, "--draft", packed, *options_).exit_code == 0
    assert judged == ["redrafter", "ngram+pool", "ngram+pool+redrafter", "redrafter"]


def test_settings_that_cannot_be_are_named(target_folder: Path, target: Path, states: Path, tmp_path: Path) -> None:
    command = ["train", "redrafter", target, "-o", tmp_path / "work", "--states", states]
    command += ["--embeddings-from", target_folder, "--layers"]
    for options, said in (
        (["2,9"], "no such layer of the target; got 9; allowed: 0 to 3"),
        (["1,3"], "no hidden states of these layers"),
        (["2,3", "--vocabulary", 20, "--beams", 30], "beams"),
    ):
        with pytest.raises(SettingError, match=said):
            raise_from(run(*command, *options))


def raise_from(result: Result) -> None:
    assert result.exception is not None
    raise result.exception
