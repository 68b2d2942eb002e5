"""``edgespec train table``: what several drafters of one target are worth, as the table of models/README.md.

All are judged on the same texts of the target, greedy ones and sampled ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from edgespec import Pipeline, load
from edgespec.bench import prompts as bench_prompts
from edgespec.hub.resolve import model_path
from edgespec.loading import draft_without_target
from edgespec.sampling_params import SamplingParams
from edgespec_train.report import ALL, Figures, alone, figures, marked, require_drafter, texts_to_judge

_SEED = 1
_COLUMNS = ("draft", "text", "accepted at 1, 2, ...", "tokens a forward", "MBSU", "MBSU by time", "speed", "over MBSU")
Say = Callable[[str], None]


@dataclass(frozen=True)
class Asked:
    """What to judge, and on what. drafts: references, each alone; "auto": all that the target has. texts: a folder that
    keeps what the target writes."""

    target: str
    drafts: Sequence[str]
    prompts: Path
    k: int
    temperature: float
    new_tokens: int
    timed: int
    per_category: int | None = None
    texts: Path | None = None
    options: dict[str, Any] | None = None
    """of ``load``, for each pair"""


def table(asked: Asked, say: Say) -> Iterator[str]:
    """Lines of Markdown: a table of the drafts' sizes and costs, one of greedy texts and one of sampled texts."""
    with TemporaryDirectory(prefix="edgespec-", ignore_cleanup_errors=True) as scratch:
        folder = asked.texts or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        temperatures = list(dict.fromkeys((0.0, asked.temperature)))
        rows: dict[float, list[str]] = {temperature: [] for temperature in temperatures}
        about: list[str] = []
        name = ""
        for draft in dict.fromkeys(asked.drafts):
            say(f"judging {draft}")
            how: dict[str, Any] = {"schedule": "synchronous", "progress": True} | (asked.options or {})
            pipeline = load(asked.target, draft=draft, num_draft_tokens=asked.k, **how)
            require_drafter(pipeline)
            if draft != "auto":
                alone(pipeline)
            name = f"{pipeline.bundle.name}, {pipeline.target.capabilities.backend}"
            of_all = None
            for temperature in temperatures:
                found = _judged(asked, pipeline, temperature, folder)
                of_all = of_all or found[ALL]
                rows[temperature] += [_line(draft, category, f) for category, f in found.items()]
            assert of_all is not None
            about.append(_about(draft, pipeline, of_all))
            del pipeline  # its target makes room for the next
    yield from _head(("draft", "MB", "training tokens", "hours", "c by bytes", "c by time"))
    yield from about
    for temperature in temperatures:
        drawn = f"T {temperature:g}" if temperature else "greedy"
        yield from ("", f"{name}, k = {asked.k}, {drawn}, {asked.new_tokens} new tokens:", "", *_head(_COLUMNS))
        yield from rows[temperature]


def _judged(asked: Asked, pipeline: Pipeline, temperature: float, folder: Path) -> dict[str, Figures]:
    sampling = SamplingParams(temperature=temperature, seed=_SEED if temperature else None)
    prompts = bench_prompts.read(asked.prompts, asked.per_category)
    engine = pipeline.target.capabilities.backend
    file = folder / f"texts-{engine}-{temperature:g}-{asked.new_tokens}.jsonl"
    texts = texts_to_judge(pipeline, prompts, sampling, asked.new_tokens, recorded=file)
    return figures(pipeline, texts, sampling, asked.k, timed_texts=asked.timed, lengths=(asked.k,))


def _about(draft: str, pipeline: Pipeline, of_all: Figures) -> str:
    """Size, training and costs. What is not recorded is a dash."""
    entries = [e for e in pipeline.bundle.manifest.drafters if e.name in pipeline.drafter.name.split("+") and e.model]
    size = sum(
        path.stat().st_size
        for entry in entries
        if entry.model is not None
        for path in [model_path(pipeline.bundle, entry.model)]
        for path in (path, path.with_suffix(".bin"))
        if path.is_file()
    )
    folder = draft_without_target(draft)
    measured = folder.manifest.measured if folder else pipeline.bundle.manifest.measured.get("draft", {})
    training = measured.get("training", {}) if isinstance(measured, dict) else {}
    tokens, seconds = training.get("tokens"), training.get("seconds")
    return _row(
        draft,
        f"{size / 1e6:.1f}" if size else "-",
        f"{tokens / 1e6:.2f} M" if tokens else "-",
        f"{seconds / 3600:.1f}" if seconds else "-",
        f"{of_all.cost_in_bytes:.3f}",
        "-" if of_all.cost_in_time is None else f"{of_all.cost_in_time:.3f}",
    )


def _line(draft: str, category: str, f: Figures) -> str:
    by_time, speed = ("-" if value is None else f"{value:.2f}" for value in (f.mbsu_in_time, f.speed_up))
    places = " ".join(f"{share:.2f}" for share in f.by_position)
    return _row(draft, category, places, f"{f.tokens_per_forward:.2f}", f"{f.mbsu:.2f}", by_time, speed, marked(f))


def _head(columns: Sequence[str]) -> list[str]:
    return [_row(*columns), _row(*("---" for _ in columns))]


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"
