"""``edgespec bench infill``: holes are the same in every run, and a runtime is scored by what belongs into them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgespec.cli import cli
from edgespec.drafters.ngram import NGram
from edgespec.errors import SettingError
from edgespec_bench.holes import MODULES, SEEDS, Hole, cut, holes
from edgespec_bench.infill_latency import PREFIX_TOKENS, SUFFIX_TOKENS, bench_latency
from edgespec_bench.peers import infill
from edgespec_bench.peers.base import Filled
from edgespec_bench.peers.process import Process, RuntimeFailed
from tests.fake_server import fake_pipeline
from tests.test_infill import QWEN, faked
from tests.tiny_models import SPECIAL, train_tokenizer


@pytest.mark.slow
def test_there_are_a_hundred_holes_and_they_fit_into_their_files() -> None:
    found = holes(100)
    assert len({(hole.module, hole.seed) for hole in found}) == 100 == len(MODULES) * len(SEEDS)
    for hole in found:
        whole = Path(str(sys.modules[hole.module].__file__ if hole.module in sys.modules else _file(hole))).read_text(
            "utf-8"
        )
        assert hole.prefix + hole.typed + hole.missing + hole.suffix.removesuffix("\n") in whole
        assert hole.missing.strip() and "\n" not in hole.typed
    assert {hole.missing.count("\n") for hole in found} == {0, 2}
    assert cut("csv", 1) == cut("csv", 1) != cut("csv", 2)
    with pytest.raises(SettingError, match="holes; got 101"):
        holes(101)


def _file(hole: Hole) -> str:
    from importlib.util import find_spec

    spec = find_spec(hole.module)
    assert spec is not None and spec.origin is not None
    return spec.origin


@pytest.mark.slow
def test_runtimes_are_asked_in_turns_and_scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked, order = holes(6), []

    def right(hole: Hole) -> Filled:
        order.append("right")
        return Filled(hole.missing + "\nmore", 4, 2.0, 9)

    def wrong(hole: Hole) -> Filled:
        order.append("wrong")
        return Filled("no" + hole.missing, 4, 1.0, 9)

    kept = tmp_path / "answers.jsonl"
    scores, _ = infill.measure({"right": right, "wrong": wrong}, asked, infill.Answers(kept, "this run"))
    assert (scores["right"].first_line, scores["right"].every_line, scores["right"].tok_per_s) == (1.0, 1.0, 2.0)
    assert (scores["wrong"].first_line, scores["wrong"].every_line, scores["wrong"].tok_per_s) == (0.0, 0.0, 4.0)
    assert order[:4] in (["right", "wrong", "wrong", "right"], ["wrong", "right", "right", "wrong"])
    with pytest.raises(SettingError, match="another run; got this run"):
        infill.Answers(kept, "the next")
    again = infill.measure({"right": right, "wrong": right}, asked, infill.Answers(kept, "this run"))[0]
    assert again == scores and len(order) == 2 * len(asked), "no hole is filled twice"
    kept.write_text("{}\n", encoding="utf-8")
    with pytest.raises(SettingError, match="has no answers"):
        infill.Answers(kept, "this run")
    infill.bench_infill(faked(tmp_path, QWEN, NGram(), capacity=4096), count=2, new_tokens=4, lines=2)
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["scores"]["edgespec"]["tokens"] > 0 and len(figures["answers"]) == 2


def test_lines_are_typed_key_by_key_and_a_key_reads_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGESPEC_DATA", str(tmp_path))
    train_tokenizer(tmp_path / "tokenizer.json", special=(*SPECIAL, *QWEN[1:]))
    bench_latency(fake_pipeline(tmp_path, capacity=4096), lines=1, keys=3, new_tokens=4)
    requests = json.loads(capsys.readouterr().out.splitlines()[-1])["requests"]
    first, moved = requests["a file's first"][0], requests["the next line's first"][0]
    assert PREFIX_TOKENS < first["read"] < PREFIX_TOKENS + SUFFIX_TOKENS + 20
    assert len(requests["a key"]) == 3 and all(each["read"] <= 2 for each in requests["a key"])
    behind = requests["the next line's first behind an anchor"][0]
    assert behind["read"] < SUFFIX_TOKENS / 2 < moved["read"] < PREFIX_TOKENS
    assert requests["again after a reload"][0]["read"] <= 1
    assert not [*tmp_path.glob("slots/*")]
    assert all(each["seconds"] >= each["read_s"] + each["write_s"] for each in requests["a key"])


@pytest.mark.parametrize("unused", ["--gguf", "--holes", "--new-tokens", "--threads", "--answers"])
def test_what_a_latency_does_not_use_is_refused(unused: str) -> None:
    result = CliRunner().invoke(cli, ["bench", "infill", "--latency", unused, "7"])
    assert isinstance(result.exception, SettingError)
    assert str(result.exception).startswith(f"{unused} says nothing to --latency")


def test_a_runtime_that_fills_no_holes_says_so() -> None:
    process = Process("tests.peers_fake", patience_s=30)
    try:
        with pytest.raises(RuntimeFailed, match="no such request: infill"):
            process.infill("a", "b", "c", 4)
    finally:
        process.close()
