"""The summary of all records: medians over prompts of ratios of neighbouring runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from edgespec.stats import per_token_s, percentile
from edgespec_bench.peers.entries import OWN_PLAIN, RUNTIMES
from edgespec_bench.peers.measure import Measured, Record, Results

ALL = "all"


@dataclass(frozen=True)
class Line:
    """A runtime on the prompts of one category.

    to_auto, to_plain: its speed over that of edgespec auto and edgespec plain, medians over prompts.
    tpot_p50_s, tpot_p95_s: over its answers, of the time per output token after the first (see ``Stats.tpot_s``).
    longest_gap_s: between successive tokens of all its answers. All three are None without gaps.
    same, of: number of prompts with the tokens of its own plain decoding, and of all prompts. same is None if its plain
        decoding did not run.
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
    tpot_p50_s: float | None = None
    tpot_p95_s: float | None = None
    longest_gap_s: float | None = None


def lines(results: Results) -> list[Line]:
    """Lines by category, in the order of the prompts, then over all prompts."""
    categories = list(dict.fromkeys(record.category for record in results.records))
    found = []
    for category in [*categories, ALL]:
        for name in results.measured:
            records = [r for r in results.records if r.name == name and category in (r.category, ALL)]
            if records:
                found.append(_line(name, category, records, results))
    return found


def _line(name: str, category: str, records: Sequence[Record], results: Results) -> Line:
    plain = {c.name: c.plain for c in RUNTIMES}.get(name, name)
    if plain in results.measured:
        plain = results.measured[plain].duplicate_of or plain
    to_auto = _by_prompt(records)
    plain_to_auto = _by_prompt([r for r in results.records if r.name == OWN_PLAIN])
    to_plain = [ratio / plain_to_auto[prompt] for prompt, ratio in to_auto.items() if prompt in plain_to_auto]
    counted = [r for r in records if r.proposed]
    forwards = [r for r in records if r.forwards]
    gaps_s = [gap for record in records for gap in record.gaps_s]
    tpots_s = [tpot_s for record in records if (tpot_s := per_token_s(record.gaps_s)) is not None]
    same = _same(records, [r for r in results.records if r.name == plain])
    return Line(
        name,
        category,
        median(r.tok_per_s for r in records),
        median(to_auto.values()),
        median(to_plain) if to_plain else None,
        sum(r.accepted or 0 for r in counted) / sum(r.proposed or 0 for r in counted) if counted else None,
        sum(r.decoded for r in forwards) / sum(r.forwards or 0 for r in forwards) if forwards else None,
        same,
        len(to_auto),
        percentile(tpots_s, 0.5),
        percentile(tpots_s, 0.95),
        max(gaps_s, default=None),
    )


def _by_prompt(records: Sequence[Record]) -> dict[int, float]:
    """Speed over that of the neighbouring baseline run: the median over a prompt's pairs."""
    ratios: dict[int, list[float]] = defaultdict(list)
    for record in records:
        ratios[record.prompt].append(record.tok_per_s / record.baseline_tok_per_s)
    return {prompt: median(values) for prompt, values in ratios.items()}


def _same(records: Sequence[Record], plain: Sequence[Record]) -> int | None:
    """Number of prompts that every run answered with the tokens of the first plain run."""
    if not plain:
        return None
    texts: dict[int, list[int]] = {}
    for record in plain:
        texts.setdefault(record.prompt, record.tokens)
    differ = {record.prompt for record in records if record.tokens != texts.get(record.prompt, record.tokens)}
    return len({record.prompt for record in records if record.prompt in texts} - differ)


def seconds(measured: Measured, what: str) -> float | None:
    values = measured.ttft_s.get(what)
    return median(values) if values else None
