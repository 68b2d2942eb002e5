"""``edgespec train corpus``: text the target wrote, in shards, with what it thought of at every token.

A shard depends on the plan and its own number alone, so shards can be made in any order, by several machines, and
again after an interruption.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np

from edgespec import bundle, hub
from edgespec.chat_template import ChatTemplate
from edgespec.errors import SettingError
from edgespec.tokenizer import Tokenizer
from edgespec_train import shards, sources
from edgespec_train.sources import Origin, Prompt
from edgespec_train.writer import Job, Writer, Written

SOURCES = ("user turns by the target", "code begun by the target", "code", "text")
_TEMPERATURES = (0.0, 0.0, 0.6, 0.0, 0.8, 0.0, 0.6, 1.0)
MANIFEST = "manifest.json"
_SHINGLE = 10
_USER_TURN, _CODE_HEAD = 72, 128
"""tokens the target may take to write a prompt"""


@dataclass(frozen=True)
class Plan:
    """What decides the content of every shard."""

    target: str
    """name and hash of the weights"""
    corpus_seed: int = 0
    texts_per_shard: int = 640
    new_tokens: int = 160
    max_length: int = 1280
    shares: tuple[float, ...] = (0.46, 0.22, 0.22, 0.10)
    """of ``SOURCES``"""
    folders: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    """files of benchmark prompts: a prompt that shares ten words in a row with one is left out"""


class ShardMaker:
    """Makes any shard of one plan into ``folder``. Reads the sources and loads the target when first needed."""

    def __init__(self, plan: Plan, target: Path, folder: Path, slots: int = 64) -> None:
        """target: the root of its bundle."""
        self.plan = plan
        self.folder = folder
        self.bundle = bundle.read(target)
        generation = self.bundle.manifest.generation
        self.tokenizer = Tokenizer(
            self.bundle.hashed(self.bundle.manifest.tokenizer),
            bos_token=generation.bos_token,
            add_bos=generation.add_bos,
        )
        source = self.bundle.chat_template()
        texts = {"bos_token": generation.bos_token, "eos_token": generation.eos_token}
        self.template = ChatTemplate(source, **texts) if source else None
        self._slots = slots
        self._excluded = {words for file in plan.exclude for words in _benchmark(Path(file))}

    @cached_property
    def writer(self) -> Writer:
        xml = hub.model_path(self.bundle, self.bundle.manifest.target)
        longest = min(self.plan.max_length, self.bundle.manifest.generation.context_length)
        eos = self.bundle.manifest.generation.eos_token_ids
        return Writer(xml, eos_token_ids=eos, slots=self._slots, max_length=longest)

    @cached_property
    def origins(self) -> list[Origin]:
        """Where real code and text come from; the user's own folders first."""
        own = [sources.folder(Path(path)) for path in self.plan.folders]
        return [*own, sources.standard_library(), sources.reference_manual(), *sources.installed_packages()]

    def _real(
        self, read: Callable[[Origin], Iterator[Prompt]], number: int, random: np.random.Generator
    ) -> list[Prompt]:
        """``number`` prompts, at most three of one file; half of the files from the user's folders and the library."""
        few = len(self.plan.folders) + 2
        found: list[Prompt] = []
        for _ in range(20 * number):
            if len(found) >= number:
                break
            some = self.origins[:few] if random.random() < 0.5 else self.origins[few:] or self.origins
            origin = some[int(random.integers(len(some)))]
            file = origin.files[int(random.integers(len(origin.files)))]
            prompts = list(read(replace(origin, files=(file,))))
            found += [prompts[int(i)] for i in random.permutation(len(prompts))[:3]]
        return found[:number]

    def __call__(self, row: dict[str, int]) -> dict[str, int]:
        """Make shard ``row["number"]`` unless it is there."""
        path = shards.shard_path(self.folder, row["number"])
        if not path.is_file():
            self._make(row["number"], path)
        return row

    def _make(self, index: int, path: Path) -> None:
        began = time.perf_counter()
        plan = self.plan
        random = np.random.default_rng((plan.corpus_seed, index))
        numbers = [round(share * plan.texts_per_shard) for share in plan.shares]
        begun = self._begin(numbers[0], numbers[1], random)
        prompts = [(source, prompt) for source, (_, prompt) in begun if prompt]
        for source, read in ((2, sources.code_prompts), (3, sources.text_prompts)):
            prompts += [(source, prompt) for prompt in self._real(read, numbers[source], random)]
        jobs = []
        seen: set[tuple[int, ...]] = set()
        sources_of: dict[int, int] = {}
        for number, (source, prompt) in enumerate(prompts):
            tokens = self._encode(prompt)
            if tokens in seen or not self._allowed(prompt.text):
                continue
            seen.add(tokens)
            sources_of[number] = source
            temperature = _TEMPERATURES[int(random.integers(len(_TEMPERATURES)))]
            jobs.append(Job(number, tokens, plan.new_tokens, temperature, seed=int(random.integers(1 << 30))))
        jobs.sort(key=lambda job: -len(job.prompt))
        answers = sorted(self.writer.write(iter(jobs)), key=lambda text: text.job.key)
        texts = [(source, text) for source, (text, prompt) in begun if prompt and self._allowed(prompt.text)]
        texts += [(sources_of[text.job.key], text) for text in answers]
        vocab_size = self.bundle.manifest.target.vocab_size
        seconds = time.perf_counter() - began
        shards.write_shard(path, [text for _, text in texts], [source for source, _ in texts], vocab_size, seconds)

    def _begin(
        self, turns: int, heads: int, random: np.random.Generator
    ) -> list[tuple[int, tuple[Written, Prompt | None]]]:
        """(source, (what the target wrote, the prompt made of it)): user turns, as in Magpie (arXiv 2406.08464: after
        the template's head the target writes what a user would), and beginnings of Python files."""
        openers = [self._user_head + opener for opener in _draw(sources.openers(), turns, random)]
        openers += _draw(sources.code_openers(), heads, random)
        seed = int(random.integers(1 << 30))
        limits = [_USER_TURN] * turns + [_CODE_HEAD] * heads
        jobs = [Job(i, tuple(self.tokenizer.encode(openers[i])), limits[i], 1.0, seed) for i in range(len(openers))]
        begun: list[tuple[int, tuple[Written, Prompt | None]]] = []
        for text in sorted(self.writer.write(iter(jobs)), key=lambda text: text.job.key):
            opener, rest = openers[text.job.key], self.tokenizer.decode(text.tokens)
            if text.job.key < turns:
                turn = (opener[len(self._user_head) :] + rest).strip()
                begun.append((0, (text, Prompt(turn, "chat", "target") if len(turn) > 8 else None)))
            else:
                begun.append((1, (text, Prompt(_head_of(opener + rest), "raw", "target"))))
        return begun

    @cached_property
    def _user_head(self) -> str:
        if self.template is None:
            return ""
        mark = "\N{WHITE SQUARE}edgespec\N{WHITE SQUARE}"
        return self.template.render([{"role": "user", "content": mark}]).split(mark)[0]

    def _encode(self, prompt: Prompt) -> tuple[int, ...]:
        if prompt.kind == "raw" or self.template is None:
            return tuple(self.tokenizer.encode(prompt.text, raw=True))
        return tuple(self.tokenizer.encode(self.template.render([{"role": "user", "content": prompt.text}])))

    def _allowed(self, text: str) -> bool:
        return self._excluded.isdisjoint(shingles(text))


def make_corpus(
    plan: Plan, target: Path, folder: Path, tokens: int, say: Callable[[str], None], *, ray: bool = False
) -> dict[str, Any]:
    """Make shards until they hold ``tokens`` answer tokens; those that are there are kept. Returns the manifest.

    Raises SettingError if the folder's shards were made by another plan.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / MANIFEST
    planned = json.loads(json.dumps(asdict(plan)))
    if path.is_file() and (old := json.loads(path.read_text(encoding="utf-8"))["plan"]) != planned:
        changed = sorted(name for name in planned if old.get(name) != planned[name])
        raise SettingError(
            f"the corpus in {folder} was made with another {', '.join(changed)}",
            got=[planned[name] for name in changed],
            allowed=[old.get(name) for name in changed],
            hint="use the same settings, or another folder",
        )
    maker = ShardMaker(plan, target, folder)
    if maker.template is None:
        say("the target has no chat template: user turns become plain text")
    origins = [{"name": o.name, "licence": o.licence, "files": len(o.files)} for o in maker.origins]
    while True:
        made = {file.name: shards.counts(file) for file in shards.shard_paths(folder)}
        have = sum(shard["answer_tokens"] for shard in made.values())
        content = {"plan": planned, "answer_tokens": have, "sources": [*SOURCES], "origins": origins, "shards": made}
        write_json(path, content)
        if have >= tokens:
            return content
        say(f"corpus: {have} of {tokens} tokens")
        wanted = -(-(tokens - have) * len(made) // have) if have else 1
        missing = (n for n in count() if not shards.shard_path(folder, n).is_file())
        _run(maker, list(islice(missing, wanted if ray else 1)), ray)


def read_manifest(folder: Path) -> dict[str, Any]:
    """What ``make_corpus`` wrote about its shards; {} for shards without it."""
    try:
        content: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content


def _run(maker: ShardMaker, numbers: list[int], with_ray: bool) -> None:
    rows = [{"number": number} for number in numbers]
    if not with_ray:
        for row in rows:
            maker(row)
        return
    import ray.data

    arguments = {"plan": maker.plan, "target": maker.bundle.root.resolve(), "folder": maker.folder.resolve()}
    workers = (1, len(rows))
    data = ray.data.from_items(rows, override_num_blocks=len(rows))
    data.map(ShardMaker, fn_constructor_kwargs=arguments, concurrency=workers).materialize()


def write_json(path: Path, content: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def shingles(text: str) -> Iterator[str]:
    """Every ten words in a row, letter case and punctuation apart. A shorter text has none."""
    words = re.findall(r"\w+", text.lower())
    for begin in range(len(words) - _SHINGLE + 1):
        yield " ".join(words[begin : begin + _SHINGLE])


def _benchmark(path: Path) -> Iterator[str]:
    """Shingles of a file of prompts: of every string in each line of a .jsonl, or of the whole text."""
    try:
        text = path.read_text(encoding="utf-8")
        texts = (
            [text] if path.suffix != ".jsonl" else _strings([json.loads(line) for line in text.splitlines() if line])
        )
        for part in texts:
            yield from shingles(part)
    except (OSError, ValueError) as error:
        raise SettingError(f"cannot read the prompts to leave out: {path}", got=error) from error


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


def _draw(choices: Sequence[str], count: int, random: np.random.Generator) -> list[str]:
    return [choices[int(i)] for i in random.integers(len(choices), size=count)]


def _head_of(code: str) -> str:
    """Up to the end of the first docstring; the first half of the lines if there is none."""
    quotes = [match.end() for match in re.finditer(r'"""|\'\'\'', code)]
    if len(quotes) > 1:
        return code[: quotes[1]] + "\n"
    lines = code.splitlines(keepends=True)
    return "".join(lines[: max(1, len(lines) // 2)])
