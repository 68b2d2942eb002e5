"""What a drafter is worth: rounds on recorded text, costs by bytes and time, texts that were held out, the tables."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edgespec import Pipeline, SamplingParams, bundle, draft_folder, load
from edgespec.bench import prompts as bench_prompts
from edgespec.bench.prompts import PAPERS, Prompt
from edgespec.bundle import Bundle
from edgespec.drafters.ngram import NGram
from edgespec.errors import SettingError
from edgespec.hub.resolve import resolve
from edgespec.protocols import Drafter
from edgespec.types import Allowed, Draft, Hidden, Needs, Round, Step, Verdict

pytest.importorskip("optimum.intel", reason="training needs the train extra")
pytest.importorskip("accelerate", reason="training needs the train extra")

from edgespec_train import table
from edgespec_train.corpus import SOURCES, shards
from edgespec_train.corpus.decontaminate import Decontaminator
from edgespec_train.evaluate import GeneratedText, Rounds, generate_texts, replay, states_of, timed
from edgespec_train.recorded import held_out_texts
from edgespec_train.report import Figures, figures, marked, texts_to_judge
from edgespec_train.weights_read import bytes_read, cost_in_bytes
from tests import test_train
from tests.heads import write_head
from tests.test_train import VOCAB, run
from tests.test_train_ready_corpus import rewrite, speak_another_language

target_folder, target, corpus = test_train.target_folder, test_train.target, test_train.corpus
torch_target = test_train.torch_target
GREEDY = SamplingParams()
PROMPTS = [
    Prompt("all", "def add(a, b):\n    return a + b\n\ndef add(a, b):\n", raw=True),
    Prompt("all", "Say hello.", raw=False),
]


@pytest.fixture(scope="module")
def pair(target: Path) -> Pipeline:
    """With lookups, and hidden states of two layers."""
    return load(target, draft="ngram", num_draft_tokens=3, backend="openvino", needs=Needs((1, 3)))


class Oracle(Drafter):
    """Drafts what it reads off the states of the row before the last token: one token a layer."""

    name = "oracle"
    needs = Needs((1, 3))

    def __init__(self) -> None:
        self.states: dict[int, Hidden] = {}
        self.drafted: dict[tuple[int, ...], tuple[int, ...]] = {}

    def propose(self, context: Sequence[int], k: int, allowed: Allowed | None = None) -> Draft:
        state = self.states.get(len(context) - 2)
        found: tuple[int, ...] = ()
        if state is not None:
            found = tuple(int(np.abs(state[layer][:9] * 50).sum()) % VOCAB for layer in (1, 3))[:k]
        self.drafted[tuple(context)] = found
        return Draft(found)

    def observe(self, start: int, tokens: Sequence[int], hidden: Hidden) -> None:
        for row in range(len(tokens)):
            self.states[start + row] = {layer: states[row].copy() for layer, states in hidden.items()}

    def reset(self) -> None:
        self.states.clear()


# Rounds


@pytest.mark.parametrize(
    ("drafter", "temperature"),
    [
        ("model", 0.8),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in [("model", 0.0), ("ngram", 0.0), ("ngram", 0.8)]),
    ],
)
def test_a_replay_has_the_rounds_of_the_real_run(drafter: str, temperature: float, pipeline: Pipeline) -> None:
    """Acceptance that is computed with a recording in the target's place is the acceptance with the target."""
    sampling = SamplingParams(temperature=temperature, seed=3 if temperature else None)
    texts = list(generate_texts(pipeline, PROMPTS, sampling, 24))
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


def test_a_drafter_that_reads_states_is_replayed_on_those_of_the_target(pair: Pipeline) -> None:
    texts = list(generate_texts(pair, PROMPTS, GREEDY, 12))
    replayed, real = Oracle(), Oracle()
    for text in texts:
        found = replay(replayed, [text], GREEDY, 2, VOCAB, states=lambda t: states_of(pair.target, t, (1, 3)))
        real.reset()
        pair.target.cache.crop(0)
        pair.generate(text.prompt, max_new_tokens=len(text.tokens), sampling=GREEDY, drafter=real, num_draft_tokens=2)
        assert found["all"].rounds
    # A text's first round has no states where it reads the end of the prompt itself.
    both = [context for context, tokens in real.drafted.items() if tokens and context in replayed.drafted]
    assert len(both) > 5
    assert [replayed.drafted[context] for context in both] == [real.drafted[context] for context in both]


def test_states_are_of_every_row_whatever_the_cache_held(pair: Pipeline) -> None:
    text = GeneratedText("all", tuple(range(5, 45)), (7, 8, 9))
    fresh = states_of(pair.target, text, (1, 3))
    again = states_of(pair.target, text, (3,))
    assert fresh[1].shape[0] == 43
    np.testing.assert_array_equal(fresh[3], again[3])


# Costs


def test_tables_that_are_looked_up_are_not_read(target: Path, torch_target: Any) -> None:
    """Of an untied model all weights but the embeddings; the file has them too."""
    xml = target / "openvino_model.xml"
    embeddings = torch_target.get_input_embeddings().weight.numel()
    everything = sum(parameter.numel() for parameter in torch_target.parameters())
    tied = torch_target.config.tie_word_embeddings
    read = 4 * (everything - (0 if tied else embeddings))
    assert read <= bytes_read(xml) < read * 1.05 + 4096
    assert tied or bytes_read(xml) < xml.with_suffix(".bin").stat().st_size - 2 * embeddings


def test_a_lookup_costs_no_bytes_and_a_model_its_weights_over_the_targets(pair: Pipeline, pipeline: Pipeline) -> None:
    assert cost_in_bytes(pair, 3) == 0
    weights = pipeline.draft_model.weights_bytes / pipeline.target.weights_bytes  # type: ignore[union-attr,attr-defined]
    assert 0 < cost_in_bytes(pipeline, 3) < 1.5 * weights


def test_mbsu_is_what_acceptance_allows_less_the_cost_of_drafting() -> None:
    one, other = (Round("draft", 3, 3, accepted, accepted + 1, 0.0, 0.0, 0.0) for accepted in (1, 3))
    rounds = Rounds(3, [one, other])
    assert rounds.block_efficiency == 3
    assert rounds.mbsu(0.1) == pytest.approx(3 / 1.3)
    assert rounds.by_position == [1.0, 0.5, 1.0]
    tree = Draft((4, 5, 6, 7), tree=(0, 0, 1, 1))
    beams = Round.of("draft", tree, Verdict(2, (4, 6, 9), (0, 1, 3)), Step(np.zeros((5, 9), np.float32)), 0, 0, 0, 0)
    assert Rounds(4, [beams]).by_position == [1.0, 1.0, 0.0, 0.0], "four nodes, of which two can be accepted"
    assert Rounds(4, [beams, Round("draft", 4, 4, 3, 4, 0.0, 0.0, 0.0)]).by_position == [1.0, 1.0, 1.0, 0.0]


def test_a_speed_far_below_mbsu_is_marked() -> None:
    figures = Figures(1, 3, 0.5, [0.5], 2.0, {3: 2.0}, 0.1, 0.1, 1.6, 1.6, 0.9, {3: 0.9})
    assert marked(figures) == "0.56 !"
    assert marked(dataclasses.replace(figures, speed_up=1.2)) == "0.75"
    assert marked(dataclasses.replace(figures, speed_up=None)) == "-"


def test_timed_runs_say_what_drafting_costs(pair: Pipeline) -> None:
    texts = list(generate_texts(pair, PROMPTS, GREEDY, 16))
    found = timed(pair, texts, GREEDY, 3)["all"]
    assert len(found.ratios) == len(texts) and found.speed_up > 0
    assert 0 <= found.cost < 1, "a lookup is cheaper than a step"


def test_a_drafter_that_drafts_with_the_target_is_run_with_it(pair: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rounds come from the real loop; a recording could not draft."""
    texts = list(generate_texts(pair, PROMPTS, GREEDY, 12))
    expected = figures(pair, texts, GREEDY, 3, timed_texts=0)["all"]
    monkeypatch.setattr(pair.drafter, "needs", Needs(extra=2))
    found = figures(pair, texts, GREEDY, 3, timed_texts=0)["all"]
    assert found.tokens_per_forward == expected.tokens_per_forward
    assert found.speed_up is not None and expected.speed_up is None
    assert list(found.block_efficiency) == [3]


# Texts that were held out


def evaluated(*arguments: object) -> dict[str, Any]:
    result = run("train", "evaluate", *arguments)
    assert result.exit_code == 0, result.output
    line: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return line


def test_a_drafter_is_judged_on_the_greedy_texts_that_were_held_out(target: Path, corpus: Path) -> None:
    held_out = held_out_texts(corpus, SOURCES)
    assert held_out
    found = evaluated("-m", target, "--draft", "ngram", "--held-out", corpus, "--timed", 1, "-k", 3)["categories"]
    assert found["all"]["texts"] == len(held_out)
    assert set(found) == {text.category for text in held_out} | {"all"} <= {*SOURCES, "all"}
    assert found["all"]["k"] == 3
    assert len(found["all"]["by_position"]) == 3
    assert found["all"]["over_mbsu"] == pytest.approx(found["all"]["speed_up"] / found["all"]["mbsu"], abs=0.01)
    assert set(found["all"]["block_efficiency"]) == {str(k) for k in range(1, 9)}


def test_held_out_texts_are_not_trained_on(corpus: Path) -> None:
    from edgespec_train.corpus.texts import TargetTexts

    texts = TargetTexts(shards.shard_paths(corpus))
    rest, _ = texts.split(shards.held_out_share(sum(len(np.load(p)["answers"]) for p in shards.shard_paths(corpus))))
    trained_on = {tuple(int(token) for token in rest.prompt(text)) for text in rest.texts}
    assert not trained_on & {text.prompt for text in held_out_texts(corpus, SOURCES)}


def test_held_out_texts_that_cannot_be_used(target: Path, corpus: Path, tmp_path: Path) -> None:
    """Of another vocabulary; none of them greedy; no corpus; beside other options."""
    for name, message in (
        ("foreign", "another target's: token id"),
        ("hot", "no greedy texts"),
        ("empty", "no shards"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        for path in shards.shard_paths(corpus) if name != "empty" else []:
            with np.load(path) as data:
                hot = np.full(len(data["temperature"]), 0.6, np.float16)
            rewrite(path, folder / path.name, **({"temperature": hot} if name == "hot" else {}))
            if name == "foreign":
                speak_another_language(folder / path.name)
        result = run("train", "evaluate", "-m", target, "--draft", "ngram", "--held-out", folder)
        assert isinstance(result.exception, SettingError), result.output
        assert message in str(result.exception)
    result = run("train", "evaluate", "-m", target, "--held-out", corpus, "-t", 0.6)
    assert "takes the texts of a corpus" in str(result.exception)


# What papers measure


def test_prompts_of_papers_are_summaries_stories_instructions_and_functions() -> None:
    found = bench_prompts.read(Path(PAPERS))
    by_category = {name: [p for p in found if p.category == name] for name in ("summary", "story", "chat", "code")}
    assert sum(map(len, by_category.values())) == len(found)
    assert len(by_category["summary"]) == len(by_category["story"]) == 8
    assert by_category["chat"] and all(prompt.raw for prompt in by_category["code"])
    assert len({prompt.text for prompt in found}) == len(found)
    assert not {"summary", "story"} & {prompt.category for prompt in bench_prompts.read()}
    assert len(bench_prompts.read(Path(PAPERS), per_category=1)) == 4
    decontaminator = Decontaminator([])
    assert all(decontaminator.matches(prompt.text) for prompt in found)


def test_the_tables_judge_all_drafters_on_the_same_texts(
    target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Greedy and sampled; the target writes each text once."""
    written: list[str] = []
    generate = texts_to_judge

    def counting(*arguments: Any, **options: Any) -> list[GeneratedText]:
        size = options["recorded"].stat().st_size if options["recorded"].exists() else 0
        texts = generate(*arguments, **options)
        written.append("new" if options["recorded"].stat().st_size > size else "kept")
        return texts

    monkeypatch.setattr(table, "texts_to_judge", counting)
    prompts = tmp_path / "prompts.jsonl"
    lines = [{"kind": "code", "category": name, "text": "def add(a, b):\n" * 3} for name in ("one", "two|three")]
    prompts.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    result = run(
        *["train", "table", "-m", target, "--draft", "ngram", "--draft", "recycling", "-k", 2, "--prompts", prompts],
        *["--new-tokens", 12, "--texts", tmp_path / "texts", "--backend", "openvino", "--backend", "onnxruntime"],
    )
    assert result.exit_code == 0, result.output
    assert written == ["new", "new", "kept", "kept"] * 2
    rows = [line for line in result.stdout.splitlines() if line.startswith("|")]
    assert [row.count("|") for row in rows] == ([7] * 4 + [9] * 16) * 2, rows
    titles = [line.split(", ", 1)[1] for line in result.stdout.splitlines() if line.endswith(":")]
    texts = ("k = 2:", "k = 2, greedy, 12 new tokens:", "k = 2, T 0.6, 12 new tokens:")
    assert titles == [f"{engine}, {text}" for engine in ("openvino", "onnxruntime") for text in texts]
    assert "two/three" in result.stdout


def test_the_table_has_the_training_of_the_draft_that_is_judged(target: Path, tmp_path: Path) -> None:
    default, read = resolve("default"), bundle.read(target)
    own = [entry.model for entry in default.manifest.drafters if entry.model]
    assert table.training_of(default, own)["tokens"] == 1558257
    assert table.training_of(default, []) == {}, "a lookup"
    training = {"tokens": 7, "seconds": 3.5}
    write_head(tmp_path / "head", read, [[1, 2, 3]], width=8, layers=(1,), measured={"training": training})
    pair = draft_folder.attach(read, draft_folder.read(tmp_path / "head"))
    assert table.training_of(pair, [entry.model for entry in pair.manifest.drafters if entry.model]) == training
    made = msgspec.structs.replace(
        default.manifest, measured={"draft": {"training": training, "held_out": {"places": 5}}}
    )
    recipes = Bundle(default.root, made)
    assert table.training_of(recipes, own) == training, "a bundle as train fastdraft writes it"
    assert table.training_of(recipes, [], adaptive=True) == training, "adaptive tokens have no file of their own"
