"""``edgespec bench``: measure this machine. Every figure the README quotes comes from here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgespec.commands.options import model_options, sampling_from, sampling_options
from edgespec.errors import SettingError


@click.group(name="bench")
def command() -> None:
    """Measure the loop on this machine: each prints a table, and one JSON line last."""


@command.command()
@model_options
@click.option("--pairs", type=click.IntRange(1), default=7, show_default=True, help="Interleaved repetitions.")
@click.option("--new-tokens", type=click.IntRange(1), default=128, show_default=True)
def loop(pairs: int, new_tokens: int, **options: Any) -> None:
    """Host time of the loop, and plain decoding against a bare OpenVINO loop."""
    from edgespec.bench.loop import bench_loop

    bench_loop(_load(options), pairs=pairs, new_tokens=new_tokens)


@command.command()
@model_options
@click.option("--pairs", type=click.IntRange(1), default=3, show_default=True, help="Interleaved repetitions.")
@click.option("--new-tokens", type=click.IntRange(1), default=96, show_default=True)
def speed(pairs: int, new_tokens: int, **options: Any) -> None:
    """Plain against speculative decoding: same tokens, how much less time?"""
    from edgespec.bench.speed import bench_speed

    bench_speed(_load(options), pairs=pairs, new_tokens=new_tokens)


@command.command()
@model_options
@sampling_options
@click.option("--pairs", type=click.IntRange(1), default=3, show_default=True, help="Interleaved repetitions.")
@click.option("--prompts", type=click.Path(path_type=Path), metavar="FILE", help="Lines of JSON (kind, text).")
@click.option("--per-category", type=click.IntRange(1), metavar="N", help="Take the first N prompts of each category.")
@click.option("--context", type=click.IntRange(0), default=0, help="Tokens of other text to put before each prompt.")
@click.option("--lengths", default="", metavar="K,K,...", help="Fixed draft lengths to compare with.")
def drafters(
    pairs: int, prompts: Path | None, per_category: int | None, context: int, lengths: str, **options: Any
) -> None:
    """Every drafter alone and all under the arbiter, by category: what each gains, and how often it is chosen."""
    from edgespec.assembly import load
    from edgespec.bench.drafters import bench_drafters
    from edgespec.bench.prompts import read

    chosen = read(prompts, per_category)
    sampling, new_tokens, options = sampling_from(options)
    bench_drafters(
        load(**options),
        chosen,
        new_tokens=new_tokens,
        pairs=pairs,
        context=context,
        lengths=_numbers(lengths),
        sampling=sampling,
    )


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise SettingError("draft lengths", got=text, allowed="numbers with commas, as 1,2,4") from error


@command.command()
@model_options
@click.option("--pairs", type=click.IntRange(1), default=1, show_default=True, help="Interleaved repetitions.")
@click.option("--new-tokens", type=click.IntRange(1), default=96, show_default=True)
def verify(pairs: int, new_tokens: int, **options: Any) -> None:
    """Coupled against rejection sampling: drafts accepted, tokens per forward, speed."""
    from edgespec.bench.verify import bench_verify

    bench_verify(_load(options), pairs=pairs, new_tokens=new_tokens)


@command.command()
@click.option("--model", "-m", metavar="REF", default="default", show_default=True)
@click.option("--draft", metavar="REF", help="Draft model, for all that take one. The pair's own unless told.")
@click.option("--only", metavar="NAME,...", help="Contenders whose names begin so; edgespec plain and auto always run.")
@click.option("--prompts", type=click.Path(path_type=Path), metavar="FILE", help="Lines of JSON (kind, text).")
@click.option("--per-category", type=click.IntRange(1), metavar="N", help="Take the first N prompts of each category.")
@click.option("--pairs", type=click.IntRange(1), default=1, show_default=True, help="Answers to each prompt.")
@click.option("--new-tokens", type=click.IntRange(2), default=128, show_default=True)
@click.option("--threads", type=click.IntRange(1), metavar="N", help="Of each contender. Physical cores unless told.")
@click.option("--report", type=click.Path(path_type=Path), metavar="FILE", help="Write a Markdown page, with pictures.")
def peers(model: str, report: Path | None, prompts: Path | None, per_category: int | None, **options: Any) -> None:
    """Other runtimes on the same weights: speed, first token, memory, exactness. First: pip install ".[bench]"."""
    import sys

    from edgespec.bench.peers.bench import bench_peers
    from edgespec.bench.prompts import read

    typed = " ".join(["edgespec", *sys.argv[1:]])
    bench_peers(model, read(prompts, per_category), page=report, command=typed, **options)


@command.command()
@model_options
def crop(**options: Any) -> None:
    """Cost of rolling back at contexts of 256 to 4096 tokens."""
    from edgespec.bench.crop import bench_crop

    bench_crop(_load(options))


@command.command()
@model_options
def exactness(**options: Any) -> None:
    """Whether a token's logits depend on how it was fed: widths, prefill chunks, rejected neighbours."""
    from edgespec.bench.exactness import bench_exactness

    bench_exactness(_load(options))


@command.command()
@click.option("--model", "-m", metavar="REF", default="default", show_default=True)
@click.option("--numerics", type=click.Choice(["exact", "fast"]))
def memory(model: str, numerics: str | None) -> None:
    """Peak memory of a prefill of 4,000 tokens."""
    from edgespec.bench.memory import bench_memory

    bench_memory({"ref": model, "numerics": numerics})


@command.command()
@click.option("--model", "-m", metavar="REF", default="default", show_default=True)
@click.option("--pairs", type=click.IntRange(1), default=5, show_default=True, help="Interleaved repetitions.")
def startup(model: str, pairs: int) -> None:
    """Time to the first token from the shell, and of import edgespec."""
    from edgespec.bench.startup import bench_startup

    bench_startup(model, pairs=pairs)


def _load(options: dict[str, Any]) -> Any:
    from edgespec.assembly import load

    options["ref"] = options.pop("model")
    return load(**options)
