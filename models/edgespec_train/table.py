"""``edgespec train table``: what several drafters of one target are worth, as the table of models/README.md.

All are judged on the same texts of the target, greedy ones and sampled ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from edgespec import Pipeline, draft_folder, load
from edgespec.bench import prompts as bench_prompts
from edgespec.bundle import Bundle, ModelFile
from edgespec.hub.resolve import model_path
from edgespec.sampling_params import SamplingParams
from edgespec.types import Backend
from edgespec_train.report import ALL, Figures, alone, figures, marked, require_drafter, texts_to_judge

_SEED = 1
_COLUMNS = ("draft", "text", "accepted at 1, 2, ...", "tokens a forward", "MBSU", "MBSU by time", "speed", "over MBSU")
Say = Callable[[str], None]


@dataclass(frozen=True)
class Asked:
    """What to judge, and on what. drafts: references, each alone; "auto": all that the target has. backends: None is
    the faster one. texts: a folder that keeps what the target writes."""

    target: str
    drafts: Sequence[str]
    prompts: Path
    k: int
    temperature: float
    new_tokens: int
    timed: int
    per_category: int | None = None
    texts: Path | None = None
    backends: Sequence[Backend | None] = (None,)
    options: dict[str, Any] | None = None
    """of ``load``, for each pair"""


def table(asked: Asked, say: Say) -> Iterator[str]:
    """Lines of Markdown. For each engine: a table of the drafts' sizes and costs, one of greedy texts and one of
    sampled texts."""
    with TemporaryDirectory(prefix="edgespec-", ignore_cleanup_errors=True) as scratch:
        folder = asked.texts or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for place, backend in enumerate(asked.backends):
            if place:
                yield ""
            yield from _of_engine(asked, backend, folder, say)


def _of_engine(asked: Asked, backend: Backend | None, folder: Path, say: Say) -> Iterator[str]:
    temperatures = list(dict.fromkeys((0.0, asked.temperature)))
    rows: dict[float, list[str]] = {temperature: [] for temperature in temperatures}
    about: list[str] = []
    name = ""
    for draft in dict.fromkeys(asked.drafts):
        say(f"judging {draft}")
        how: dict[str, Any] = {"schedule": "synchronous", "progress": True, "backend": backend}
        pipeline = load(asked.target, draft=draft, num_draft_tokens=asked.k, **how | (asked.options or {}))
        require_drafter(pipeline)
        if draft != "auto":
            alone(pipeline)
        name = f"{pipeline.bundle.name}, {pipeline.target.capabilities.backend}"
        found = {temperature: _judged(asked, pipeline, temperature, folder) for temperature in temperatures}
        for temperature, categories in found.items():
            rows[temperature] += [_line(draft, category, f) for category, f in categories.items()]
        about.append(_about(draft, pipeline, found[0.0][ALL]))
        del pipeline  # its target makes room for the next
    yield from (f"{name}, k = {asked.k}:", "")
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
    own = pipeline.drafter.name.split("+")
    entries = [e for e in pipeline.bundle.manifest.drafters if e.name in own]
    models = [e.model for e in entries if e.model is not None]
    xmls = [model_path(pipeline.bundle, model) for model in models]
    size = sum(path.stat().st_size for xml in xmls for path in (xml, xml.with_suffix(".bin")) if path.is_file())
    training = training_of(pipeline.bundle, models, adaptive=any(e.adaptive for e in entries))
    tokens, seconds = training.get("tokens"), training.get("seconds")
    return _row(
        draft,
        f"{size / 1e6:.1f}" if size else "-",
        f"{tokens / 1e6:.2f} M" if tokens else "-",
        f"{seconds / 3600:.1f}" if seconds else "-",
        f"{of_all.cost_in_bytes:.3f}",
        "-" if of_all.cost_in_time is None else f"{of_all.cost_in_time:.3f}",
    )


def training_of(pair: Bundle, models: Sequence[ModelFile], *, adaptive: bool = False) -> dict[str, Any]:
    """The end of the learning curve, from the draft's folder or from the bundle. adaptive: of tokens of the target."""
    files = [model.file for model in models if model.file]
    for place, root in pair.attached.items():
        if any(file.startswith(f"{place}/") for file in files):
            return dict(draft_folder.read(root).manifest.measured.get("training", {}))
    if not files and not adaptive:
        return {}
    measured = pair.manifest.measured.get("draft", {})
    return dict(measured.get("training") or measured.get("held_out", {}))


def _line(draft: str, category: str, f: Figures) -> str:
    by_time, speed = ("-" if value is None else f"{value:.2f}" for value in (f.mbsu_in_time, f.speed_up))
    places = " ".join(f"{share:.2f}" for share in f.by_position)
    return _row(draft, category, places, f"{f.tokens_per_forward:.2f}", f"{f.mbsu:.2f}", by_time, speed, marked(f))


def _head(columns: Sequence[str]) -> list[str]:
    return [_row(*columns), _row(*("---" for _ in columns))]


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"
