"""The prompts that measurements use: those shipped beside this file, or the user's own."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from pydoc_data import topics

from edgespec.errors import SettingError
from edgespec.pipeline import Pipeline

OWN = Path(__file__).with_name("prompts.jsonl")
SUMMARIES_AND_STORIES = Path(__file__).with_name("papers_prompts.jsonl")
PAPERS = "papers"
"""in the place of a file: what papers on drafting measure. Summaries, stories to go on with, and of ``OWN`` the
instructions and functions"""
_OF_PAPERS = ("chat", "code")


@dataclass(frozen=True)
class Prompt:
    """``raw``: go on with the text as it is, no chat template."""

    category: str
    text: str
    raw: bool


def read(path: Path | None = None, per_category: int | None = None) -> list[Prompt]:
    """Lines of JSON: ``kind`` ("code": no template), ``text`` or ``turns`` (the first), and a ``category`` or none.

    path: None for ``OWN``; see also ``PAPERS``. per_category: take that many of each category only.
    """
    if path == Path(PAPERS) and not path.exists():
        own = [prompt for prompt in _read(OWN) if prompt.category in _OF_PAPERS]
        return _some([*_read(SUMMARIES_AND_STORIES), *own], per_category)
    return _some(_read(path or OWN), per_category)


def _read(path: Path) -> list[Prompt]:
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        prompts = [
            Prompt(
                line.get("category", line["kind"]),
                line["turns"][0] if "turns" in line else line["text"],
                line["kind"] == "code",
            )
            for line in lines
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        raise SettingError(
            f"cannot read prompts from {path}: {reason}", allowed='lines of {"kind", "text"}', setting="prompts"
        ) from error
    if not prompts:
        raise SettingError("no prompts in the file", got=str(path))
    return prompts


def _some(prompts: list[Prompt], per_category: int | None) -> list[Prompt]:
    if per_category is None:
        return prompts
    seen: Counter[str] = Counter()
    kept = []
    for prompt in prompts:
        seen[prompt.category] += 1
        if seen[prompt.category] <= per_category:
            kept.append(prompt)
    return kept


def encode(pipeline: Pipeline, prompt: Prompt) -> list[int]:
    if prompt.raw or pipeline.template is None:
        return pipeline.tokenizer.encode(prompt.text, raw=True)
    return pipeline.tokenizer.encode(pipeline.template.render([{"role": "user", "content": prompt.text}]))


def read_before(pipeline: Pipeline, ids: list[int]) -> list[int]:
    """``ids``, which the target has read already: every round of what follows is decoding alone, whoever drafts.

    It was answered in other turns: no drafter remembers that.
    """
    pipeline.forget()
    pipeline.target.prefill(ids[:-1])
    return ids


def behind(pipeline: Pipeline, prompt: Prompt, context: int) -> list[int]:
    """A prompt behind ``context`` tokens of Python's reference manual, which every Python brings along."""
    ids = encode(pipeline, prompt)
    if not context:
        return ids
    filler = pipeline.tokenizer.encode("\n\n".join(topics.topics.values()), raw=True)
    return [*filler[:context], *ids]
