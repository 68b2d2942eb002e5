"""Options that the recipes of ``edgespec train`` share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

PATH = click.Path(path_type=Path)
output = click.option("-o", "--output", metavar="DIR", required=True, type=PATH, help="Work folder.")
_OF_CORPUS = [
    click.option("--corpus-tokens", type=click.IntRange(1), default=1_000_000, show_default=True, metavar="N"),
    click.option("--folder", "folders", multiple=True, metavar="DIR", help="Your own code or text, to ask about too."),
    click.option("--exclude", multiple=True, metavar="FILE", help="Benchmark prompts that must not be trained on."),
    click.option("--new-tokens", type=click.IntRange(1), default=160, show_default=True, help="Longest answer."),
    click.option("--texts-per-shard", type=click.IntRange(8), default=640, show_default=True),
    click.option("--corpus-seed", "corpus_seed", type=click.IntRange(0), default=0, show_default=True),
    click.option("--ray", is_flag=True, help="Make shards with Ray Data (extra train-ray)."),
]


def say(line: str) -> None:
    click.echo(line, err=True)


def corpus_options(function: Any) -> Any:
    for option in reversed(_OF_CORPUS):
        function = option(function)
    return function


def head_options(*, layers: str, vocabulary: int = 8192, learning_rate: float = 1e-3) -> Callable[[Any], Any]:
    """Of a head, with a recipe's own defaults: the corpus, its states, and the schedule."""
    some = [
        click.option("--corpus", "corpus_folder", type=PATH, metavar="DIR", help="Shards made before."),
        click.option("--states", "states_folder", type=PATH, metavar="DIR", help="Made by: edgespec train states."),
        click.option("--layers", default=layers, show_default=True, metavar="I,J,...", help="Whose states it reads."),
        click.option(
            "--longest", type=click.IntRange(2), default=448, show_default=True, help="Most tokens of a text."
        ),
        click.option("--prompt-share", type=click.FloatRange(0, 1), default=0.45, show_default=True),
        click.option("--state-tokens", type=click.IntRange(1), metavar="N", help="Most tokens with states."),
        click.option("--vocabulary", type=click.IntRange(16), default=vocabulary, show_default=True),
        click.option("--steps", type=click.IntRange(1), default=2000, show_default=True, help="Batches to train on."),
        click.option("--batch", "tokens_per_batch", type=click.IntRange(64), default=2048, show_default=True),
        click.option(
            "--learning-rate", type=click.FloatRange(0, min_open=True), default=learning_rate, show_default=True
        ),
        click.option("--precision", type=click.Choice(["f32", "bf16"]), default="f32", show_default=True),
        click.option("--evaluate-every", type=click.IntRange(1), default=200, show_default=True, metavar="STEPS"),
        click.option("--seed", type=click.IntRange(0), default=0, show_default=True),
    ]

    def add(function: Any) -> Any:
        for option in reversed(some):
            function = option(function)
        return corpus_options(function)

    return add
