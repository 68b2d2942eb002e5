"""The holes of ``edgespec_bench.holes``: how often the missing lines come back, and how fast. llama.cpp's beside it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgespec.bench.report import show
from edgespec.errors import SettingError, foreign
from edgespec.pipeline import Pipeline
from edgespec_bench.holes import Hole, holes
from edgespec_bench.peers import entries, process
from edgespec_bench.peers.base import Filled, WeightFormats


@dataclass(frozen=True)
class Score:
    """Shares of the holes whose first line came back, and all lines; tokens a second of writing."""

    first_line: float
    every_line: float
    tok_per_s: float
    tokens: int


Fill = Callable[[Hole], Filled]


class Answers:
    """Of each hole, by runtime. path: a file that keeps them, so that another run goes on from there. of: what a run
    has to have in common with the file's."""

    def __init__(self, path: Path | None = None, of: str = "") -> None:
        self._path, self._of = path, of
        self._found: dict[tuple[str, int], dict[str, Filled]] = {}
        if path is not None and path.exists():
            with foreign(SettingError, f"{path} has no answers"):
                for line in path.read_text(encoding="utf-8").splitlines():
                    self._read(json.loads(line))

    def of(self, hole: Hole) -> dict[str, Filled] | None:
        return self._found.get((hole.module, hole.seed))

    def add(self, hole: Hole, filled: dict[str, Filled]) -> None:
        self._found[hole.module, hole.seed] = filled
        if self._path is not None:
            answers = {name: asdict(each) for name, each in filled.items()}
            record = {"of": self._of, "module": hole.module, "seed": hole.seed, "answers": answers}
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")

    def _read(self, record: dict[str, Any]) -> None:
        if record["of"] != self._of:
            raise SettingError("answers of another run", got=record["of"], allowed=self._of, setting="answers")
        self._found[record["module"], record["seed"]] = {
            name: Filled(**each) for name, each in record["answers"].items()
        }


def measure(
    fills: dict[str, Fill], asked: Sequence[Hole], answers: Answers
) -> tuple[dict[str, Score], list[tuple[Hole, dict[str, str]]]]:
    """Every hole that has no answers by each runtime, in turns. Returns scores of all, and the texts by hole."""
    filled: dict[str, list[Filled]] = {name: [] for name in fills}
    for number, hole in enumerate(asked):
        if (found := answers.of(hole)) is None:
            found = {name: fills[name](hole) for name in (fills if number % 2 else reversed(fills))}
            answers.add(hole, found)
        for name, each in found.items():
            filled[name].append(each)
        right = ", ".join(f"{name} {score(asked[: number + 1], filled[name]).first_line:.0%}" for name in fills)
        print(f"{number + 1} of {len(asked)} holes: {right}", file=sys.stderr)
    texts = [(hole, {name: filled[name][number].text for name in fills}) for number, hole in enumerate(asked)]
    return {name: score(asked, each) for name, each in filled.items()}, texts


def score(asked: Sequence[Hole], answers: Sequence[Filled]) -> Score:
    """Spaces at the ends of lines do not count, nor lines behind the missing ones.

    >>> hole = Hole("m", 0, "", "x = ", "\\n", "f(1)\\ny = 2")
    >>> score([hole, hole], [Filled("f(1) \\ny = 2\\nz", 8, 2.0, 9), Filled("f(1)\\ny = 3", 4, 1.0, 9)])
    Score(first_line=1.0, every_line=0.5, tok_per_s=4.0, tokens=12)
    """
    first = every = 0
    for hole, answer in zip(asked, answers, strict=True):
        expected = _lines(hole.missing)
        written = _lines(answer.text)[: len(expected)]
        first += written[:1] == expected[:1]
        every += written == expected
    seconds, tokens = sum(answer.seconds for answer in answers), sum(answer.tokens for answer in answers)
    return Score(first / len(asked), every / len(asked), tokens / seconds if seconds else 0.0, tokens)


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.split("\n")]


def of_pipeline(pipeline: Pipeline, new_tokens: int, *, lines: int = 0) -> Fill:
    """lines: whole ones that stand behind the suffix, as if they had been typed since it was read."""

    def fill(hole: Hole) -> Filled:
        anchor = len("".join(hole.prefix.splitlines(keepends=True)[:-lines])) if lines else None
        result = pipeline.infill(hole.prefix + hole.typed, hole.suffix, anchor=anchor, max_new_tokens=new_tokens)
        stats = result.stats
        return Filled(result.text, stats.decoded, stats.decode_s, stats.prompt_tokens)

    return fill


def bench_infill(
    pipeline: Pipeline,
    *,
    gguf: Path | None = None,
    count: int = 100,
    new_tokens: int = 48,
    threads: int = 1,
    lines: int = 0,
    answers: Path | None = None,
) -> None:
    """gguf: the same weights for llama.cpp, if it is to run beside. threads: of llama.cpp. lines: see ``of_pipeline``;
    asked beside. answers: see ``Answers``."""
    asked = holes(count)
    with ExitStack() as stack:
        fills: dict[str, Fill] = {"edgespec": of_pipeline(pipeline, new_tokens)}
        if lines:
            fills[f"{lines} lines behind"] = of_pipeline(pipeline, new_tokens, lines=lines)
        if gguf is not None:
            fills["llama.cpp"] = of_llama_cpp(stack, gguf, new_tokens, threads)
        run = f"{pipeline.bundle.name}, {' and '.join(fills)}, {new_tokens} tokens, {threads} threads"
        run += f", Python {sys.version.split()[0]}"
        scores, texts = measure(fills, asked, Answers(answers, run))
    ours = scores["edgespec"].tok_per_s
    show(
        f"infill, {pipeline.bundle.name}, {len(asked)} holes in Python's library",
        ["runtime", "first line", "every line", "tokens a second", "edgespec / this"],
        [
            (
                name,
                f"{each.first_line:.0%}",
                f"{each.every_line:.0%}",
                each.tok_per_s,
                ours / (each.tok_per_s or ours or 1),
            )
            for name, each in scores.items()
        ],
        {
            "scores": {name: asdict(each) for name, each in scores.items()},
            "python": sys.version.split()[0],
            "new_tokens": new_tokens,
            "answers": [asdict(hole) | {"prefix": "", "suffix": "", "texts": by_name} for hole, by_name in texts],
        },
    )


def of_llama_cpp(stack: ExitStack, gguf: Path, new_tokens: int, threads: int) -> Fill:
    """Of llama.cpp's server in a process of its own, which ends with ``stack``."""
    [runtime] = [each for each in entries.choose("llama.cpp plain") if each.module == "llama_cpp"]
    if reason := process.missing(runtime):
        raise SettingError(f"llama.cpp cannot run beside: {reason}", hint='pip install ".[bench]", or leave --gguf out')
    peer = stack.enter_context(closing(process.start(runtime)))
    peer.load(WeightFormats(ref="", gguf=str(gguf)), runtime.mode, threads, None)
    return lambda hole: peer.infill(hole.prefix, hole.typed, hole.suffix, new_tokens)
