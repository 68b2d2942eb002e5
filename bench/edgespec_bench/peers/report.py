"""The results as a Markdown page, and as rows for the table on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from edgespec_bench.peers.measure import CHAT_TURN, NO_REUSE, TTFT_TOKENS, Measured, Results
from edgespec_bench.peers.summary import ALL, Line, lines, seconds

NONE = "-"


@dataclass(frozen=True)
class Facts:
    """The conditions of the results. command: as typed. machine: of ``machine.devices.machine``."""

    command: str
    model: str
    machine: dict[str, Any]
    threads: int
    new_tokens: int
    pairs: int
    prompts: dict[str, int]
    date: str


def speed_rows(results: Results, category: str = ALL) -> list[tuple[str, ...]]:
    """Rows under ``SPEED``."""
    return [
        (
            line.name,
            f"{line.tok_per_s:.1f}",
            f"{line.to_auto:.2f}",
            _number(line.to_plain),
            NONE if line.acceptance is None else f"{line.acceptance:.0%}",
            _number(line.tokens_per_forward),
            NONE if line.same is None else f"{line.same} of {line.of}",
        )
        for line in lines(results)
        if line.category == category
    ]


SPEED = (
    "runtime",
    "tok/s",
    "/ edgespec auto",
    "/ edgespec plain",
    "accepted",
    "tokens a forward",
    "same as own plain",
)
TTFT = ("runtime", *(f"{n} tokens, ms" for n in TTFT_TOKENS), "turn 5 of a chat, ms", "turn 5 without reuse, ms")
GAPS = ("runtime", "TPOT p50, ms", "TPOT p95, ms", "longest wait, ms")
COST = ("runtime", "load, cold, s", "load, again, s", "peak memory, MB", "weights")


def gap_rows(results: Results) -> list[tuple[str, ...]]:
    return [
        (line.name, _ms(line.tpot_p50_s), _ms(line.tpot_p95_s), _ms(line.longest_gap_s))
        for line in lines(results)
        if line.category == ALL and line.longest_gap_s is not None
    ]


def ttft_rows(results: Results) -> list[tuple[str, ...]]:
    names = (*map(str, TTFT_TOKENS), CHAT_TURN, NO_REUSE)
    return [
        (name, *(_ms(seconds(measured, what)) for what in names))
        for name, measured in results.measured.items()
        if measured.ttft_s
    ]


def cost_rows(results: Results) -> list[tuple[str, ...]]:
    return [
        (
            name,
            _number(m.load_cold_s),
            _number(m.load_warm_s),
            NONE if m.peak_mb is None else f"{m.peak_mb:.0f}",
            m.precision,
        )
        for name, m in results.measured.items()
        if m.versions and not m.duplicate_of
    ]


def category_rows(found: Sequence[Line], value: Callable[[Line], str]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Head and rows: a value of each runtime by category."""
    categories = list(dict.fromkeys(line.category for line in found))
    by = {(line.name, line.category): line for line in found}
    rows = []
    for name in dict.fromkeys(line.name for line in found):
        cells = (by.get((name, category)) for category in categories)
        rows.append((name, *(NONE if line is None else value(line) for line in cells)))
    return ("runtime", *categories), rows


def absent(results: Results) -> list[tuple[str, str]]:
    """The runtimes that did not run or not to the end, each with the reason."""
    found = []
    for name, measured in results.measured.items():
        if why := f"same engine and settings as {measured.duplicate_of}" if measured.duplicate_of else measured.failed:
            found.append((name, why))
    return found


def markdown(results: Results, facts: Facts, plots: Sequence[str]) -> str:
    """plots: paths of pictures, relative to the page."""
    found = lines(results)
    machine = ", ".join(f"{key} {value}" for key, value in facts.machine.items())
    prompts = ", ".join(f"{count} {category}" for category, count in facts.prompts.items())
    parts = [
        "# edgespec and other runtimes",
        f"The figures are by `{facts.command}` on {facts.date}.",
        f"{facts.model}. {machine}. {facts.threads} threads each. Prompts: {prompts}. Greedy; up to {facts.new_tokens} "
        f"new tokens each; {facts.pairs} answer{'s' * (facts.pairs > 1)} a prompt.",
        "## Decoding",
        _table(SPEED, speed_rows(results)),
        "tok/s: median over answers, without the first token. The two ratios: medians over prompts of near "
        "runs. Compare these, since a machine changes its speed. accepted: share of the drafted tokens, if the runtime "
        "reports it. same as own plain: prompts with exactly the tokens of the same runtime without drafts.",
        "## By category",
        "Speed over edgespec plain.",
        _table(*category_rows(found, lambda line: _number(line.to_plain))),
        *_gaps(results, found),
        *(f"![{path}]({path})" for path in plots),
        "## First token",
        _table(TTFT, ttft_rows(results)),
        "From the call with token ids to the first new token. Every prompt of a length is another text, so no prefix "
        "is reused. Turn 5 comes after turns 1 to 4 of the same conversation, whose answers are given. Without reuse, "
        "of edgespec auto alone: the same prompt with another first token.",
        "## Loading and memory",
        _table(COST, cost_rows(results)),
        "Cold: a new process and an empty folder for compiled models. One-time work was done before: conversions, and "
        "edgespec's search for exact widths and its measured costs (some ten seconds). Again: another process with "
        "that folder. Both include the import of the runtime; files are in the system's cache. Memory: peak of a "
        "process that answered the prompts of a round and one of 2,000 tokens, interpreter and imports included.",
        "## Versions and settings",
        _table(
            ("runtime", "versions", "settings"),
            [
                (name, _versions(m), m.settings)
                for name, m in results.measured.items()
                if m.versions and not m.duplicate_of
            ],
        ),
        *_absent(results),
        *_goals(results, found),
        _METHOD,
    ]
    return "\n\n".join(parts) + "\n"


_METHOD = """## Method

Each runtime is a process of its own, and one model is in memory at a time. In each round every runtime is visited once:
its process starts, loads, warms up, answers the prompts of the round and ends. edgespec auto is visited more often, and
every other run is compared with its nearest run of edgespec auto on the same prompt. The order rotates with the round.
The input is token ids, so tokenizers play no part. What follows an end token does not count. The engine that edgespec
chooses by itself does not run again under its own name.

edgespec, openvino-genai and optimum-intel run the weights of one IR. llama.cpp and the rows "edgespec gguf" run one
GGUF file. onnxruntime-genai runs weights that its own builder made, of the precision under "Loading and memory". The
draft model is the same everywhere. If its vocabulary is a part of the target's, the peers get it with one gather before
the graph and one after it. The two gathers map all ids at next to no cost.

edgespec chooses the draft length round by round. The peers draft the fixed length under "Versions and settings".

Times of openvino-genai are its own metrics, without a streamer. llama.cpp is its server, in its process, and is timed
at each event of the stream. The others are timed at each token. edgespec's lookups forget every answer before the next
one. Its arbiter keeps what it learned of times and acceptance within a visit."""


_WHY = """The project's docs/log/peers.md says why goals were missed on the machine of the published page."""


def _goals(results: Results, found: Sequence[Line]) -> list[str]:
    if find_spec("edgespec_bench.peers.goals") is None:  # the maintainers' goals are not in the wheel
        return []
    from edgespec_bench.peers.goals import goals

    rows = [goal.row for goal in goals(results, found)]
    why = [_WHY] if any(row[-1] == "no" for row in rows) else []
    return ["## Goals", _table(("ratio", "measured", "goal", "reached"), rows), *why] if rows else []


def _gaps(results: Results, found: Sequence[Line]) -> list[str]:
    if not (rows := gap_rows(results)):
        return []
    return [
        "Tokens a second, median over answers.",
        _table(*category_rows(found, lambda line: f"{line.tok_per_s:.1f}")),
        "## Time per token",
        _table(GAPS, rows),
        "TPOT: time per output token after the first; p50 and p95 are over all answers. Drafts bring tokens in bursts. "
        "Longest wait: for the next token of any answer.",
    ]


def _absent(results: Results) -> list[str]:
    rows = absent(results)
    return ["Not run, or not to the end:", _table(("runtime", "reason"), rows)] if rows else []


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "/") for cell in row) + " |" for row in cells)


def _versions(measured: Measured) -> str:
    return ", ".join(f"{name} {version}" for name, version in measured.versions.items())


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}"


def _ms(value: float | None) -> str:
    return NONE if value is None else f"{1e3 * value:.0f}"
