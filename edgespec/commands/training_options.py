"""Options that the recipes of ``edgespec train`` share."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from edgespec.errors import SettingError

PATH = click.Path(path_type=Path)
SHARES = (0.68, 0.10, 0.14, 0.08)
"""of the sources of a corpus's prompts"""
_ROUNDING = 1e-3
"""how far the sum of shares may be from 1"""
called = click.option(
    "--called", "target_names", multiple=True, metavar="NAME", help="What other files of TARGET begin with."
)
output = click.option("-o", "--output", metavar="DIR", required=True, type=PATH, help="Work folder.")
_OF_CORPUS = [
    click.option("--corpus-tokens", type=click.IntRange(1), default=1_000_000, show_default=True, metavar="N"),
    click.option("--folder", "folders", multiple=True, metavar="DIR", help="Your own code or text, to ask about too."),
    click.option("--exclude", multiple=True, metavar="FILE", help="Benchmark prompts that must not be trained on."),
    click.option("--new-tokens", type=click.IntRange(1), default=160, show_default=True, help="Longest answer."),
    click.option("--texts-per-shard", type=click.IntRange(8), default=640, show_default=True),
    click.option("--corpus-seed", "corpus_seed", type=click.IntRange(0), default=0, show_default=True),
    click.option(
        "--shares",
        callback=lambda context, option, text: _shares(text),
        default=",".join(f"{share:.2f}" for share in SHARES),
        show_default=True,
        metavar="A,B,C,D",
        help="Of the texts: chat whose questions TARGET writes, code that it begins, real code, real text.",
    ),
    click.option("--ray", is_flag=True, help="Make shards with Ray Data (extra train-ray)."),
]

_OF_STATES = [
    click.option(
        "--layers", metavar="I,J,...", help="Whose states are kept; none: of no layer.  [default: as train block]"
    ),
    click.option("--longest", type=click.IntRange(2), default=448, show_default=True, help="Most tokens of a text."),
    click.option(
        *("--prompt-share",),
        type=click.FloatRange(0, 1),
        default=0.45,
        show_default=True,
        help="Most of it that is prompt.",
    ),
]


PLAN = ("corpus_tokens", "folders", "exclude", "new_tokens", "ray", "texts_per_shard", "corpus_seed", "shares")
"""options that say how a corpus is made"""
MAKING = tuple(name for name in PLAN if name != "exclude")
"""those that mean nothing for one that is there: benchmarks are left out of it too"""
_CHOICE = {"longest", "prompt_share", "state_tokens"}
"""options that say which texts of a corpus a head is trained on"""


def _shares(text: str) -> tuple[float, ...]:
    """Four numbers that add up to 1. Raises SettingError for any others."""
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if len(found) != len(SHARES) or not all(0 <= share <= 1 for share in found) or abs(sum(found) - 1) > _ROUNDING:
        raise SettingError("--shares", got=text, allowed="four numbers that add up to 1, as 0.3,0.2,0.4,0.1")
    return found


def corpus_options(function: Any) -> Any:
    for option in reversed(_OF_CORPUS):
        function = option(function)
    return function


def choice_options(function: Any) -> Any:
    """Whose hidden states are kept, and of which texts."""
    for option in reversed(_OF_STATES):
        function = option(function)
    return function


def head_options(*, vocabulary: int = 8192, learning_rate: float = 1e-3) -> Callable[[Any], Any]:
    """Of a head, with a recipe's own defaults: the corpus, its states, and the schedule."""
    some = [
        click.option("--corpus", "corpus_folder", type=PATH, metavar="DIR", help="Shards made before."),
        click.option("--states", "states_folder", type=PATH, metavar="DIR", help="Made by: edgespec train states."),
        click.option(
            "--layers",
            metavar="I,J,...",
            help="Whose states it reads.  [default: half and nine tenths of the way, and the last]",
        ),
        click.option(
            "--longest", type=click.IntRange(2), default=448, show_default=True, help="Most tokens of a text."
        ),
        click.option("--prompt-share", type=click.FloatRange(0, 1), default=0.45, show_default=True),
        click.option("--state-tokens", type=click.IntRange(1), metavar="N", help="Most tokens with states."),
        click.option(
            "--from-draft", type=PATH, metavar="DIR", help="Begin with the head of an earlier run: its draft."
        ),
        click.option("--vocabulary", type=click.IntRange(16), default=vocabulary, show_default=True),
        click.option("--steps", type=click.IntRange(1), default=2000, show_default=True, help="Batches to train on."),
        click.option("--batch", "tokens_per_batch", type=click.IntRange(64), default=2048, show_default=True),
        click.option(
            "--learning-rate", type=click.FloatRange(0, min_open=True), default=learning_rate, show_default=True
        ),
        click.option("--precision", type=click.Choice(["f32", "bf16"]), default="f32", show_default=True),
        click.option("--evaluate-every", type=click.IntRange(1), default=200, show_default=True, metavar="STEPS"),
        click.option("--seed", type=click.IntRange(0), default=0, show_default=True),
        called,
    ]

    def add(function: Any) -> Any:
        for option in reversed(some):
            function = option(function)
        return corpus_options(function)

    return add


def check_head_options(context: click.Context) -> None:
    """Raises SettingError for options of a head that contradict each other."""
    refuse_with_ready(context, "states_folder", {"corpus_folder", *MAKING, *_CHOICE})
    refuse_with_ready(context, "corpus_folder", MAKING)
    refuse_with_ready(context, "from_draft", {"vocabulary", "fit_rows"})


def refuse_with_ready(context: click.Context, ready: str, names: Collection[str]) -> None:
    """Raises SettingError if a folder is named that is there already, and options that say how to make it.

    ready: parameter of the folder. names: parameters of those options.
    """
    if context.params[ready] is None:
        return
    if given := options_given(context, names):
        (folder,) = (max(option.opts, key=len) for option in context.command.params if option.name == ready)
        what = f"{folder} names what is made already"
        raise SettingError(what, got=", ".join(given), hint="leave out one of them")


def options_given(context: click.Context, names: Collection[str]) -> list[str]:
    """Of these parameters, the options that stand on the command line."""
    options = {option.name: max(option.opts, key=len) for option in context.command.params if option.name}
    return [
        option
        for name, option in options.items()
        if name in names and context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    ]
