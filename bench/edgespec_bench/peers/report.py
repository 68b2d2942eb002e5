"""The result as Markdown, and as the rows of the table on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from edgespec_bench.peers.measure import TTFT_TOKENS, Measured, Race
from edgespec_bench.peers.summary import ALL, Line, lines, seconds

NONE = "-"


@dataclass(frozen=True)
class Facts:
    """What the figures hold for. command: as it was typed. machine: see ``machine.devices.machine``."""

    command: str
    model: str
    machine: dict[str, Any]
    threads: int
    new_tokens: int
    pairs: int
    prompts: dict[str, int]
    date: str


def speed_rows(race: Race, category: str = ALL) -> list[tuple[str, ...]]:
    """Name, tokens a second, against edgespec auto, against edgespec plain, accepted, tokens a forward, same text."""
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
        for line in lines(race)
        if line.category == category
    ]


SPEED = (
    "contender",
    "tok/s",
    "/ edgespec auto",
    "/ edgespec plain",
    "accepted",
    "tokens a forward",
    "same as own plain",
)
TTFT = ("contender", *(f"{n} tokens, ms" for n in TTFT_TOKENS), "turn 5 of a chat, ms", "the same prompt anew, ms")
COST = ("contender", "load, cold, s", "load, again, s", "peak memory, MB", "weights")


def ttft_rows(race: Race) -> list[tuple[str, ...]]:
    names = (*map(str, TTFT_TOKENS), "turn 5", "turn 5 anew")
    return [
        (name, *(_ms(seconds(measured, what)) for what in names))
        for name, measured in race.measured.items()
        if measured.ttft_s
    ]


def cost_rows(race: Race) -> list[tuple[str, ...]]:
    return [
        (
            name,
            _number(m.load_cold_s),
            _number(m.load_warm_s),
            NONE if m.peak_mb is None else f"{m.peak_mb:.0f}",
            m.precision,
        )
        for name, m in race.measured.items()
        if m.versions and not m.same_as
    ]


def category_rows(found: Sequence[Line]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Head and rows: each contender's speed over edgespec plain by category."""
    categories = list(dict.fromkeys(line.category for line in found))
    by = {(line.name, line.category): line for line in found}
    rows = []
    for name in dict.fromkeys(line.name for line in found):
        cells = (by.get((name, category)) for category in categories)
        rows.append((name, *(NONE if line is None else _number(line.to_plain) for line in cells)))
    return ("contender", *categories), rows


def absent(race: Race) -> list[tuple[str, str]]:
    """Who did not run, or not to the end, and why."""
    found = []
    for name, measured in race.measured.items():
        if why := f"{measured.same_as} is the same here" if measured.same_as else measured.failed:
            found.append((name, why))
    return found


def markdown(race: Race, facts: Facts, plots: Sequence[str]) -> str:
    """plots: paths of pictures, relative to the page."""
    found = lines(race)
    machine = ", ".join(f"{key} {value}" for key, value in facts.machine.items())
    prompts = ", ".join(f"{count} {category}" for category, count in facts.prompts.items())
    parts = [
        "# edgespec beside other runtimes",
        f"Written by `{facts.command}` on {facts.date}; do not edit.",
        f"{facts.model}. {machine}. {facts.threads} threads each. Prompts: {prompts}; greedy, {facts.new_tokens} new "
        f"tokens each whatever they are, {facts.pairs} answer{'s' * (facts.pairs > 1)} a prompt.",
        "## Decoding",
        _table(SPEED, speed_rows(race)),
        "tok/s: the median answer, without its first token. The two ratios: medians over prompts of runs that stood "
        "side by side, which is what to compare, since a machine's speed moves. accepted: of the drafted tokens, where "
        "a contender tells. same: prompts whose tokens were exactly those of the same runtime without drafts.",
        "## By category",
        "Speed over edgespec plain.",
        _table(*category_rows(found)),
        *(f"![{path}]({path})" for path in plots),
        "## First token",
        _table(TTFT, ttft_rows(race)),
        "From the call with token ids to the first new token. Every prompt of a length is another text, so nothing is "
        "reused; turn 5 comes after turns 1 to 4 of the same conversation, whose answers are given.",
        "## Loading and memory",
        _table(COST, cost_rows(race)),
        "Cold: a new process and an empty folder for compiled models. What is done once per machine was done before: "
        "conversions, and edgespec's search for exact widths and its measured costs (some ten seconds). Again: another "
        "process with that folder. Both contain the import of the runtime; files are in the system's cache. Memory: "
        "peak of a process that loaded, warmed up and answered one prompt of 2,000 tokens, interpreter and imports "
        "included.",
        "## Who ran, and how",
        _table(
            ("contender", "versions", "settings"),
            [(name, _versions(m), m.settings) for name, m in race.measured.items() if m.versions and not m.same_as],
        ),
        *_absent(race),
        *_goals(race, found),
        _METHOD,
    ]
    return "\n\n".join(parts) + "\n"


_METHOD = """## Method

Each contender is a process of its own and sleeps while another works. All are loaded and warmed up first. For each
prompt they answer in turns; edgespec auto has every third turn, and every run is held against the one of edgespec auto
next to it; the order moves on with every prompt. Token ids go in, so tokenizers play no part. The engine that edgespec
chooses by itself is not run a second time under its name.

The weights of the IR are the same numbers for edgespec, openvino-genai and optimum-intel. llama.cpp runs the GGUF file
they were made from, onnxruntime-genai weights made from that file by its own builder. The draft is the same everywhere.
If its vocabulary is a part of the target's, the others get it with a gather in front of it and one behind it, which
give it all ids at next to no cost.

edgespec chooses how far to draft, round by round; the others draft the fixed length named under "Who ran, and how".

Times of openvino-genai are its own metrics, without a streamer; the others' are taken at each token. edgespec's
look-ups forget every answer before the next; what its arbiter learned of times and acceptance stays."""


_WHY = """Why a goal was missed on the machine of the published page, and what was tried against it, is in the project's
docs/log/peers.md."""


def _goals(race: Race, found: Sequence[Line]) -> list[str]:
    if find_spec("edgespec_bench.peers.goals") is None:  # the maintainers' own are not installed
        return []
    from edgespec_bench.peers.goals import goals

    rows = [goal.row for goal in goals(race, found)]
    why = [_WHY] if any(row[-1] == "no" for row in rows) else []
    return ["## Goals", _table(("what", "measured", "goal", "reached"), rows), *why] if rows else []


def _absent(race: Race) -> list[str]:
    rows = absent(race)
    return ["Not run, or not to the end:", _table(("contender", "why"), rows)] if rows else []


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "/") for cell in row) + " |" for row in cells)


def _versions(measured: Measured) -> str:
    return ", ".join(f"{name} {version}" for name, version in measured.versions.items())


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}"


def _ms(value: float | None) -> str:
    return NONE if value is None else f"{1e3 * value:.0f}"
