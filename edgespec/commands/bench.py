"""``edgespec bench``: measure this machine. Every figure the README quotes comes from here.

Those for every user are here. All others are in edgespec_bench, with their commands.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import click
from click.core import ParameterSource

from edgespec.commands.options import fetch_options, load_pair, model_options, weights_option
from edgespec.errors import SettingError
from edgespec.types import Backend


class Benches(click.Group):
    """Those below, and those of edgespec_bench, which is imported when a bench is named or all are listed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *_laboratory().list_commands(ctx)])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return super().get_command(ctx, cmd_name) or _laboratory().get_command(ctx, cmd_name)


def _laboratory() -> click.Group:
    from edgespec_bench.commands import command

    return command


@click.group(name="bench", cls=Benches, invoke_without_command=True)
@model_options
@fetch_options
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE", help="Draw it too: a .png, .svg or .pdf file.")
@click.pass_context
def command(context: click.Context, /, plot: Path | None, **options: Any) -> None:
    """Measure edgespec on this machine. Each command prints a table, then one line of JSON.

    Without a command, plain decoding is compared with speculative decoding on a few prompts. That takes under a minute.
    Write the options of a command after its name.

    \b
    edgespec bench
    edgespec bench --plot speed.png
    edgespec bench speed --model DIR
    """
    if context.invoked_subcommand is None:
        _quick(plot, options)
        return
    given = [name for name in context.params if context.get_parameter_source(name) == ParameterSource.COMMANDLINE]
    if given:
        name = given[0].replace("_", "-")
        raise SettingError(f"--{name} is before {context.invoked_subcommand}", hint="write it after the command")


def _quick(plot: Path | None, options: dict[str, Any]) -> None:
    from edgespec.bench.plot import plot as draw
    from edgespec.bench.plot import require_plot
    from edgespec.bench.speed import bench_speed

    if plot is not None:
        require_plot(plot)
    pipeline = load_pair(options)
    speeds = bench_speed(pipeline, new_tokens=64, pairs=2, per_category=1)
    if plot is not None:
        draw(f"{pipeline.bundle.name}, {pipeline.drafter.name} drafts", speeds, plot)


@command.command()
@model_options
@fetch_options
@click.option("--pairs", type=click.IntRange(1), default=3, show_default=True, help="Interleaved repetitions.")
@click.option("--new-tokens", type=click.IntRange(1), default=96, show_default=True)
def speed(pairs: int, new_tokens: int, **options: Any) -> None:
    """Compare plain with speculative decoding: the same tokens, in less time."""
    from edgespec.bench.speed import bench_speed

    bench_speed(load_pair(options), pairs=pairs, new_tokens=new_tokens)


@command.command()
@model_options
@fetch_options
def exactness(**options: Any) -> None:
    """Check whether a token's logits depend on the width, the prefill chunks or rejected tokens beside it."""
    from edgespec.bench.exactness import bench_exactness

    bench_exactness(load_pair(options))


@command.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--tokens", type=int, default=256, show_default=True, help="Of text that both read.")
@click.option("--backend", type=click.Choice(get_args(Backend)))
@click.option("--numerics", type=click.Choice(["exact", "fast"]))
@weights_option
def weights(file: Path, tokens: int, **options: Any) -> None:
    """A GGUF file's own numbers in full precision, against the model that runs: divergence, likeliest tokens.

    The file is computed one layer at a time, which takes minutes.
    """
    from edgespec.bench.weights import bench_weights
    from edgespec.loading import load

    bench_weights(file, load(str(file), draft="none", context_length=max(tokens, 64), **options), tokens)
