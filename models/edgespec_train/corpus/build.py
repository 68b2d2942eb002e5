"""``edgespec train corpus``: text the target wrote, in shards, with what it thought of at every token.

A shard depends on the plan and its own number alone, so shards can be made in any order, by several machines, and
again after an interruption.
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np

from edgespec import bundle
from edgespec.errors import SettingError
from edgespec.hub.resolve import model_path
from edgespec.text.chat_template import ChatTemplate
from edgespec.text.tokenizer import Tokenizer
from edgespec_train.corpus import shards, sources
from edgespec_train.corpus.decontaminate import Excluded
from edgespec_train.corpus.generate import Generated, Job, Writer
from edgespec_train.corpus.sources import Origin, Prompt

_TURN, _CODE_BEGUN, _CODE, _TEXT = range(4)
SOURCES = ("user turns by the target", "code begun by the target", "code", "text")
_TEMPERATURES = (0.0, 0.0, 0.6, 0.0, 0.8, 0.0, 0.6, 1.0)
MANIFEST = "manifest.json"
_TURN_TOKENS, _FILE_TOKENS, _SHORTEST = 72, 128, 8
"""tokens the target may take to write a prompt, and characters below which it is none"""
_OF_PROMPTS = 0.8
"""temperature at which it writes them: at 1.0 a small target's questions make no sense, and its answers follow"""


@dataclass(frozen=True)
class Plan:
    """What decides the content of every shard."""

    target: str
    """name and hash of the weights"""
    corpus_seed: int = 0
    texts_per_shard: int = 640
    new_tokens: int = 160
    max_length: int = 1280
    shares: tuple[float, ...] = (0.68, 0.10, 0.14, 0.08)
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
        self._own: list[Origin] = [sources.folder(Path(path)) for path in plan.folders]
        self._excluded = Excluded(Path(file) for file in plan.exclude)

    @cached_property
    def writer(self) -> Writer:
        xml = model_path(self.bundle, self.bundle.manifest.target)
        longest = min(self.plan.max_length, self.bundle.manifest.generation.context_length)
        eos = self.bundle.manifest.generation.eos_token_ids
        return Writer(xml, eos_token_ids=eos, slots=self._slots, max_length=longest)

    def _real(self, source: int, number: int, random: np.random.Generator) -> list[Prompt]:
        """``number`` prompts, at most three of one file; half of the files from the user's folders and the library."""
        read = sources.code_prompts if source == _CODE else sources.text_prompts
        near = [*self._own, sources.standard_library()] + ([sources.reference_manual()] if source != _CODE else [])
        far = sources.installed_packages() or near
        found: list[Prompt] = []
        for _ in range(20 * number):
            if len(found) >= number:
                break
            some = near if random.random() < 0.5 else far
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
        turns, heads, code, text = (round(share * plan.texts_per_shard) for share in plan.shares)
        openings = self._openings(turns, heads, random)
        asked = [
            (source, prompt)
            for source, number in ((_CODE, code), (_TEXT, text))
            for prompt in self._real(source, number, random)
        ]
        asked.sort(key=lambda entry: -len(entry[1].text))
        seen: set[tuple[int, ...]] = set()
        jobs: deque[Job] = deque()
        origins: dict[int, tuple[int, str]] = {}

        def ask(key: int, source: int, prompt: Prompt) -> Job | None:
            """The job that answers a prompt, unless it was answered before or is a benchmark's."""
            tokens = self._encode(prompt)
            if tokens in seen or self._excluded.holds(prompt.text):
                return None
            seen.add(tokens)
            own = np.random.default_rng((plan.corpus_seed, index, key))
            temperature = _TEMPERATURES[int(own.integers(len(_TEMPERATURES)))]
            origins[key] = source, prompt.source
            return Job(key, tokens, plan.new_tokens, temperature, seed=int(own.integers(1 << 30)))

        jobs.extend(job for job in (ask(2 * len(openings) + i, *entry) for i, entry in enumerate(asked)) if job)
        jobs.extend(job for _, job in openings)
        kept: list[tuple[int, str, Generated]] = []
        for written in self.writer.write(jobs):
            key = written.job.key
            if key >= len(openings):
                kept.append((*origins[key], written))
                continue
            source = openings[key][0]
            prompt = self._prompt_of(source, written)
            if source == _CODE_BEGUN:
                kept.append((source, prompt.source, written))
            if len(prompt.text) > _SHORTEST and (job := ask(len(openings) + key, source, prompt)):
                jobs.appendleft(job)  # goes on in the same place, where its beginning has been read
        kept = [entry for entry in sorted(kept, key=lambda entry: entry[2].job.key) if self._clean(entry[2])]
        if not kept:
            raise SettingError("a shard without a single text", got=f"{len(seen)} prompts", hint="fewer --new-tokens")
        shards.write_shard(path, kept, self.bundle.manifest.target.vocab_size, time.perf_counter() - began)

    def _openings(self, turns: int, heads: int, random: np.random.Generator) -> list[tuple[int, Job]]:
        """(source, job) for what the target begins itself: user turns, as in Magpie (arXiv 2406.08464: after the
        template's head the target writes what a user would), and Python files."""
        # A space at the end would force the next token to be a word's inside.
        chats = [self._user_head + opener for opener in _draw(sources.openers(), turns, random)]
        files = _draw(sources.code_openers(), heads, random)
        wanted = [(_TURN, text, _TURN_TOKENS, self.template is None) for text in chats]
        wanted += [(_CODE_BEGUN, text, _FILE_TOKENS, True) for text in files]
        seed = int(random.integers(1 << 30))
        encoded = [
            (source, self.tokenizer.encode(text.rstrip(" "), raw=raw), most) for source, text, most, raw in wanted
        ]
        return [
            (source, Job(key, tuple(tokens), most, _OF_PROMPTS, seed))
            for key, (source, tokens, most) in enumerate(entry for entry in encoded if entry[1])
        ]

    def _prompt_of(self, source: int, written: Generated) -> Prompt:
        """What the target began, as a prompt."""
        whole = self.tokenizer.decode([*written.job.prompt, *written.tokens])
        if source == _CODE_BEGUN:
            return Prompt(_head_of(whole), "raw", "the target")
        head = self.tokenizer.decode(self.tokenizer.encode(self._user_head)) if self._user_head else ""
        return Prompt(whole[len(head) :].strip(), "chat", "the target")

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

    def _clean(self, text: Generated) -> bool:
        """No benchmark in what was asked, nor in what the target made of it."""
        return not self._excluded.holds(self.tokenizer.decode([*text.job.prompt, *text.tokens]))


def make_corpus(
    plan: Plan, target: Path, folder: Path, tokens: int, say: Callable[[str], None], *, ray: bool = False
) -> dict[str, Any]:
    """Make shards until they hold ``tokens`` answer tokens; those that are there are kept. Returns the manifest.

    Raises SettingError if the folder's shards were made by another plan.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / MANIFEST
    planned = _described(plan)
    if path.is_file() and (old := read_manifest(folder).get("plan", {})) != planned:
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
    before = -1
    while True:
        content = {"plan": planned} | summary(folder)
        made, have = content["shards"], content["answer_tokens"]
        write_json(path, content)
        if have >= tokens:
            return content
        if have == before:
            raise SettingError("no shard was made", got=str(folder), hint="with --ray the folder must be shared")
        before = have
        say(f"corpus: {have} of {tokens} tokens")
        wanted = -(-(tokens - have) * len(made) // have) if have else 1
        missing = (n for n in count() if not shards.shard_path(folder, n).is_file())
        _run(maker, list(islice(missing, wanted if ray else 1)), ray)


def summary(folder: Path) -> dict[str, Any]:
    """What the shards of a folder hold: tokens, texts by source, temperature and origin, and the origins' licences."""
    made = {file.name: shards.counts(file) for file in shards.shard_paths(folder)}
    licences = {"the target": "as the target"}
    licences |= {o.name: o.licence for o in (sources.standard_library(), sources.reference_manual())}
    licences |= {o.name: o.licence for o in sources.installed_packages()}
    totals: dict[str, Counter[str]] = {key: Counter() for key in ("sources", "temperatures", "origins")}
    for shard in made.values():
        for key, total in totals.items():
            total.update(shard[key])
    origins = {
        name: {"texts": texts, "licence": licences.get(name, "the user's own")}
        for name, texts in sorted(totals["origins"].items())
    }
    return {
        "answer_tokens": sum(shard["answer_tokens"] for shard in made.values()),
        "texts": sum(shard["texts"] for shard in made.values()),
        "tokens_by_source": {SOURCES[int(key)]: value for key, value in sorted(totals["sources"].items())},
        "texts_by_temperature": dict(sorted(totals["temperatures"].items())),
        "origins": origins,
        "shards": made,
    }


def _described(plan: Plan) -> dict[str, Any]:
    """A plan as its manifest keeps it: hashes of the excluded files, and no paths of this machine."""
    found: dict[str, Any] = json.loads(json.dumps(asdict(plan)))
    found["folders"] = [Path(path).name for path in plan.folders]
    found["exclude"] = {Path(path).name: bundle.sha256_of(Path(path)) for path in plan.exclude if Path(path).is_file()}
    return found


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


def _draw(choices: Sequence[str], count: int, random: np.random.Generator) -> list[str]:
    return [choices[int(i)] for i in random.integers(len(choices), size=count)]


def _head_of(code: str) -> str:
    """Up to the end of the first docstring; the first half of the lines if there is none."""
    quotes = [match.end() for match in re.finditer(r'"""|\'\'\'', code)]
    if len(quotes) > 1:
        return code[: quotes[1]] + "\n"
    lines = code.splitlines(keepends=True)
    return "".join(lines[: max(1, len(lines) // 2)])
