"""``edgespec bench peers``: from its options to the table and the report."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from pydoc_data import topics

from edgespec.bench import report as tables
from edgespec.bench.prompts import Prompt
from edgespec.bundle import Bundle
from edgespec.errors import SettingError, wrap_errors
from edgespec.hub.resolve import resolve
from edgespec.machine import devices
from edgespec.own_files import require_place
from edgespec.text.chat_template import ChatTemplate
from edgespec.text.tokenizer import Tokenizer
from edgespec_bench.peers import plots, report
from edgespec_bench.peers.entries import Runtime, choose
from edgespec_bench.peers.measure import MEMORY_PROMPT, TTFT_TOKENS, Measured, Results, Task, run
from edgespec_bench.peers.process import installed, missing
from edgespec_bench.peers.summary import lines, seconds
from edgespec_bench.peers.weights import Sources, prepare

CHAT = (
    ("What is a good plan for a rainy Sunday?", "Stay in, cook something slow and read."),
    ("What could I cook?", "A stew of lentils, carrots and onions: an hour on a low flame, and little to do."),
    ("Which book goes with it?", "One with short chapters, so that you can look after the pot in between."),
    ("And what would I listen to?", "The rain, or a quartet by Haydn, if the rain has ended by then."),
    ("What do I need to buy for all this?", ""),
)


def bench_peers(
    ref: str,
    prompts: Sequence[Prompt],
    *,
    draft: str | None,
    sources: Sources,
    only: str | None,
    new_tokens: int,
    pairs: int,
    threads: int | None,
    page: Path | None,
    command: str,
) -> None:
    """page: file of the report; its pictures go to a folder of the same name. None: no report."""
    runtimes = choose(only)
    if page is not None:
        _check(page)
    threads = threads or physical_cores()
    for line in list_missing(runtimes):
        _tell(line)
    task = make_task(resolve(ref), prompts, new_tokens=new_tokens, pairs=pairs, threads=threads)
    rows = max(
        max(TTFT_TOKENS) + 2,
        MEMORY_PROMPT + 2,
        *(len(ids) + new_tokens for _, ids in task.prompts),
        *(len(turn) + 1 for turn in task.chat[-1:]),
    )
    wanted = {name for runtime in runtimes for name in runtime.weight_formats}
    weight_formats = prepare(ref, draft, wanted, sources, rows=-(-(rows + 64) // 256) * 256, tell=_tell)
    results = run(runtimes, weight_formats, task)
    facts = report.Facts(
        command,
        f"{resolve(ref).name}, weights {weight_formats.precision['ir']}",
        devices.machine(),
        threads,
        new_tokens,
        pairs,
        dict(Counter(prompt.category for prompt in prompts)),
        date.today().isoformat(),
    )
    show(results, facts)
    if page is not None:
        write(results, facts, page)


def _check(page: Path) -> None:
    """Raises SettingError for a page that cannot be written, before any measurement."""
    if page.suffix.lower() != ".md":
        raise SettingError("report", got=str(page), allowed="a file that ends in .md")
    require_place(page, "the report")


def write(results: Results, facts: report.Facts, page: Path) -> None:
    pictures = plots.draw(results, page.with_suffix(""))
    if not pictures:
        _tell('no pictures: matplotlib is not installed (pip install ".[bench]")')
    relative = [path.relative_to(page.parent).as_posix() for path in pictures]
    text = report.markdown(results, facts, relative)
    with wrap_errors(SettingError, f"cannot write the report {page}"):
        page.parent.mkdir(parents=True, exist_ok=True)
        temporary = page.with_name(f".{page.name}.tmp")
        temporary.write_text(text, encoding="utf-8", newline="\n")
        temporary.replace(page)


def list_missing(runtimes: Sequence[Runtime]) -> list[str]:
    """The number of runtimes that can run, and the packages that the others miss."""
    lacking = [(why, runtime.distributions) for runtime in runtimes if (why := missing(runtime))]
    here = len(runtimes) - len(lacking)
    found = [f"{here} runtimes; all of them take half an hour, and longer the first time"]
    if lacking:
        reasons = dict.fromkeys(why for why, _ in lacking)
        packages = dict.fromkeys(name for _, names in lacking for name in names if not installed(name))
        found.append(f"{len(lacking)} more cannot run: {', '.join(reasons)}; pip install {' '.join(packages)}")
    return found


def show(results: Results, facts: report.Facts) -> None:
    """The table on stdout, and one line of JSON last."""
    columns = (report.GAPS, report.TTFT, report.COST[:4])
    head = (*report.SPEED, *(cell for each in columns for cell in each[1:]))
    cells: list[dict[str, tuple[str, ...]]] = []
    for rows_of, each in zip((report.gap_rows, report.ttft_rows, report.cost_rows), columns, strict=True):
        nothing = dict.fromkeys(results.measured, (report.NONE,) * (len(each) - 1))
        cells.append(nothing | {row[0]: row[1 : len(each)] for row in rows_of(results)})
    rows = [(*row, *(cell for by in cells for cell in by[row[0]])) for row in report.speed_rows(results)]
    for name, why in report.absent(results):
        print(f"{name}: {why}")
    summary = {
        "runtimes": {name: _medians(measured) for name, measured in results.measured.items()},
        "decoding": [asdict(line) for line in lines(results)],
    }
    tables.show(f"peers, {facts.threads} threads", head, rows, summary | {"facts": asdict(facts)})


def make_task(bundle: Bundle, prompts: Sequence[Prompt], *, new_tokens: int, pairs: int, threads: int) -> Task:
    generation = bundle.manifest.generation
    tokenizer = Tokenizer(
        bundle.hashed(bundle.manifest.tokenizer), bos_token=generation.bos_token, add_bos=generation.add_bos
    )
    source = bundle.chat_template()
    template = ChatTemplate(source, bos_token=generation.bos_token, eos_token=generation.eos_token) if source else None

    def encode(prompt: Prompt) -> list[int]:
        if prompt.raw or template is None:
            return tokenizer.encode(prompt.text, raw=True)
        return tokenizer.encode(template.render([{"role": "user", "content": prompt.text}]))

    filler = tokenizer.encode("\n\n".join(topics.topics.values()), raw=True)
    return Task(
        [(prompt.category, encode(prompt)) for prompt in prompts],
        filler,
        _chat(tokenizer, template) if template else [],
        new_tokens,
        pairs,
        threads,
        frozenset(generation.eos_token_ids),
    )


def _chat(tokenizer: Tokenizer, template: ChatTemplate) -> list[list[int]]:
    """The prompts of five turns. Each given answer is repeated, so that the prefix is long enough to reuse."""
    messages: list[dict[str, str]] = []
    turns = []
    for question, answer in CHAT:
        messages.append({"role": "user", "content": question})
        turns.append(tokenizer.encode(template.render(messages)))
        messages.append({"role": "assistant", "content": " ".join([answer] * 6)})
    return turns


def _medians(measured: Measured) -> dict[str, object]:
    return asdict(measured) | {"ttft_s": {what: seconds(measured, what) for what in measured.ttft_s}}


def physical_cores() -> int:
    import psutil

    return int(psutil.cpu_count(logical=False) or psutil.cpu_count() or 1)


def _tell(what: str) -> None:
    print(what, file=sys.stderr, flush=True)
