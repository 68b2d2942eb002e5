"""From what was measured to what is said: medians of ratios of runs that stood side by side."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from edgespec_bench.peers.entries import CONTENDERS, OWN_PLAIN
from edgespec_bench.peers.measure import Measured, Race, Record

ALL = "all"


@dataclass(frozen=True)
class Line:
    """A contender on the prompts of one category.

    to_auto, to_plain: its speed over edgespec's, with drafts and without: medians over prompts.
    same, of: prompts whose tokens were those of its own plain decoding; None where that did not run.
    """

    name: str
    category: str
    tok_per_s: float
    to_auto: float
    to_plain: float | None
    acceptance: float | None
    tokens_per_forward: float | None
    same: int | None
    of: int


def lines(race: Race) -> list[Line]:
    """By category, in the order in which they were asked for, and then over all prompts."""
    categories = list(dict.fromkeys(record.category for record in race.records))
    found = []
    for category in [*categories, ALL]:
        for name in race.measured:
            ours = [r for r in race.records if r.name == name and category in (r.category, ALL)]
            if ours:
                found.append(_line(name, category, ours, race))
    return found


def _line(name: str, category: str, ours: Sequence[Record], race: Race) -> Line:
    everybody = race.records
    plain = {c.name: c.plain for c in CONTENDERS}.get(name, name)
    if plain in race.measured:
        plain = race.measured[plain].same_as or plain
    beside = _by_prompt(ours)
    base = _by_prompt([r for r in everybody if r.name == OWN_PLAIN])
    against = [ratio / base[prompt] for prompt, ratio in beside.items() if prompt in base]
    counted = [r for r in ours if r.proposed]
    forwards = [r for r in ours if r.forwards]
    same = _same(ours, [r for r in everybody if r.name == plain])
    return Line(
        name,
        category,
        median(r.tok_per_s for r in ours),
        median(beside.values()),
        median(against) if against else None,
        sum(r.accepted or 0 for r in counted) / sum(r.proposed or 0 for r in counted) if counted else None,
        sum(len(r.tokens) - r.first for r in forwards) / sum(r.forwards or 0 for r in forwards) if forwards else None,
        same,
        len(beside),
    )


def _by_prompt(records: Sequence[Record]) -> dict[int, float]:
    """Speed over the yardstick's beside it: the median of a prompt's pairs."""
    ratios: dict[int, list[float]] = defaultdict(list)
    for record in records:
        ratios[record.prompt].append(record.tok_per_s / record.beside)
    return {prompt: median(values) for prompt, values in ratios.items()}


def _same(ours: Sequence[Record], plain: Sequence[Record]) -> int | None:
    """Prompts that every run answered with the tokens of the first plain run."""
    if not plain:
        return None
    texts: dict[int, list[int]] = {}
    for record in plain:
        texts.setdefault(record.prompt, record.tokens)
    differ = {record.prompt for record in ours if record.tokens != texts.get(record.prompt, record.tokens)}
    return len({record.prompt for record in ours if record.prompt in texts} - differ)


def seconds(measured: Measured, what: str) -> float | None:
    values = measured.ttft_s.get(what)
    return median(values) if values else None
