"""Texts that the target generated, kept in a file: several drafts are judged on the same ones, without the target.

The first line says what they are of, and each other line is one text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from operator import index
from pathlib import Path
from typing import Any, TextIO

from edgespec import Pipeline, files
from edgespec.bench.prompts import Prompt
from edgespec.errors import SettingError, foreign
from edgespec.hub.resolve import model_path
from edgespec.sampling_params import SamplingParams
from edgespec_train.corpus import shards
from edgespec_train.corpus.texts import TargetTexts
from edgespec_train.evaluate import GeneratedText, generate_texts


def texts_in(
    file: Path, pipeline: Pipeline, prompts: Sequence[Prompt], sampling: SamplingParams, new_tokens: int
) -> Iterator[GeneratedText]:
    """The texts of the file, and those that it lacks, which are generated and added to it.

    Raises SettingError for a file of another target, other prompts or other settings.
    """
    asked = json.dumps([(prompt.category, prompt.text, prompt.raw) for prompt in prompts])
    head = {
        "target": _weights_of(pipeline),
        "prompts": hashlib.sha256(asked.encode()).hexdigest(),
        "temperature": sampling.temperature,
        "seed": sampling.seed,
        "new_tokens": new_tokens,
    }
    done: set[int] = set()
    for number, text in read(file, head):
        done.add(number)
        yield text
    with _opened(file) as lines:
        if not done and lines.tell() == 0:
            lines.write(f"{json.dumps(head)}\n")
        for number, prompt in enumerate(prompts):
            for text in generate_texts(pipeline, [] if number in done else [prompt], sampling, new_tokens):
                whole = {"number": number, "category": text.category, "prompt": text.prompt, "tokens": text.tokens}
                lines.write(f"{json.dumps(whole)}\n")
                lines.flush()
                yield text


def _weights_of(pipeline: Pipeline) -> str:
    """The SHA-256 of the target's weights: it is another target with others, and the same one in another folder."""
    target = pipeline.bundle.manifest.target
    if target.sha256 is not None:
        return target.sha256
    graph = model_path(pipeline.bundle, target, progress=False)
    beside = graph.with_suffix(".bin")
    return files.sha256(beside if beside.is_file() else graph)


def held_out_texts(corpus: Path, names: Sequence[str]) -> list[GeneratedText]:
    """The greedy texts of a corpus that are not trained on. names: of its sources, as categories."""
    everything = TargetTexts(shards.require_shards(corpus))
    _, held_out = everything.split(shards.held_out_share(len(everything.texts)))
    texts: dict[tuple[int, ...], GeneratedText] = {}
    for text in held_out.texts:
        whole, answer, source = held_out.tokens(text).tolist(), held_out.answer(text), held_out.source(text)
        if held_out.temperature(text) == 0 and len(whole) > answer + 1:
            known = source is not None and source < len(names)
            category = names[source] if known and source is not None else "all texts"
            asked = tuple(whole[:answer])
            texts[asked] = GeneratedText(category, asked, tuple(whole[answer:]))
    return sorted(texts.values(), key=lambda text: text.category)


def read(file: Path, head: dict[str, Any] | None = None) -> list[tuple[int, GeneratedText]]:
    """Number of the prompt and text of each line. A last line that was cut is left out.

    head: what the texts have to be of.
    """
    if not file.exists():
        return []
    hint = "name another file, or delete this one"
    with foreign(SettingError, f"{file} does not hold recorded texts", hint=hint):
        first, *lines = file.read_text(encoding="utf-8").splitlines(keepends=True) or ["{}"]
        found = dict(json.loads(first))
        if any(not line.endswith("\n") for line in lines):
            _drop_last(file)
        made = [_text(json.loads(line)) for line in lines if line.endswith("\n")]
    for name, value in (head or {}).items():
        if found.get(name) != value:
            what = f"the texts in {file} were generated with another {name}"
            raise SettingError(what, got=value, allowed=found.get(name), hint=hint)
    return made


def _text(line: dict[str, Any]) -> tuple[int, GeneratedText]:
    """Raises ValueError and others for what is no text."""
    prompt, tokens = ([index(token) for token in line[name]] for name in ("prompt", "tokens"))
    if not prompt or not tokens or min(*prompt, *tokens) < 0:
        raise ValueError("a text without tokens")
    return index(line["number"]), GeneratedText(str(line["category"]), tuple(prompt), tuple(tokens))


def _opened(file: Path) -> TextIO:
    try:
        return file.open("a", encoding="utf-8", newline="\n")
    except OSError as error:
        raise SettingError(f"cannot write the texts to {file}: {error.strerror}", hint="name another file") from error


def _drop_last(file: Path) -> None:
    """Cut off a line that a stopped run did not finish."""
    content = file.read_bytes()
    file.write_bytes(content[: content.rindex(b"\n") + 1])
