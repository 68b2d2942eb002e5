"""``edgespec train``: trains a draft for a target, and measures what it gains. The work is in edgespec_train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from edgespec.bench.report import show
from edgespec.commands.options import fetch_options, model_options
from edgespec.errors import SettingError

_PATH = click.Path(path_type=Path)
_output = click.option("-o", "--output", metavar="DIR", required=True, type=_PATH, help="Work folder.")
_CORPUS = [
    click.option("--corpus-tokens", type=click.IntRange(1), default=1_000_000, show_default=True, metavar="N"),
    click.option("--folder", "folders", multiple=True, metavar="DIR", help="Your own code or text, to ask about too."),
    click.option("--exclude", multiple=True, metavar="FILE", help="Benchmark prompts that must not be trained on."),
    click.option("--new-tokens", type=click.IntRange(1), default=160, show_default=True, help="Longest answer."),
    click.option("--texts-per-shard", type=click.IntRange(8), default=640, show_default=True),
    click.option("--corpus-seed", "corpus_seed", type=click.IntRange(0), default=0, show_default=True),
    click.option("--ray", is_flag=True, help="Make shards with Ray Data (extra train-ray)."),
]


def _corpus_options(function: Any) -> Any:
    for option in reversed(_CORPUS):
        function = option(function)
    return function


@click.group(name="train")
def command() -> None:
    """Train a draft for a target, and measure what it is worth."""


@command.command()
@click.argument("target")
@_output
@_corpus_options
def corpus(target: str, output: Path, **plan: Any) -> None:
    """Let TARGET write the text a draft is trained on, into DIR/corpus. Goes on where it was stopped."""
    from edgespec_train import write_corpus

    click.echo(write_corpus(target, output, _say, **plan))


@command.command()
@click.argument("target")
@_output
@_corpus_options
@click.option("--corpus", "corpus_folder", type=_PATH, metavar="DIR", help="Shards made before.  [default: DIR/corpus]")
@click.option("--steps", type=click.IntRange(1), default=2000, show_default=True, help="Batches to train on.")
@click.option("--batch", "tokens_per_batch", type=click.IntRange(64), default=3072, show_default=True, metavar="TOKENS")
@click.option("--learning-rate", type=click.FloatRange(0, min_open=True), default=2e-3, show_default=True)
@click.option(
    "--loss",
    type=click.Choice(["kd", "ce", "tv", "ce+kd", "ce+tv"]),
    default="kd",
    show_default=True,
    help="See models/README.md.",
)
@click.option(
    "--layers", type=click.IntRange(1), default=2, show_default=True, help="Take the target's first N layers."
)
@click.option("--from-layers", metavar="I,J,...", help="Take these layers of the target instead.")
@click.option("--layers-from", metavar="SOURCE", help="Take layers of another model with the target's vocabulary.")
@click.option("--from-scratch", is_flag=True, help="Initialise from random weights instead of the target's.")
@click.option("--from-draft", type=_PATH, metavar="DIR", help="Go on from DIR, the draft folder of an earlier run.")
@click.option(
    "--hidden", "--width", "hidden", type=click.IntRange(1), metavar="N", help="Width of a draft from scratch."
)
@click.option("--heads", type=click.IntRange(1), metavar="N", help="Heads that it divides its width into.")
@click.option("--intermediate", type=click.IntRange(1), metavar="N", help="Width of its MLP.")
@click.option(
    *("--pretrain-tokens", "pretrain_tokens"),
    type=click.IntRange(0),
    default=0,
    show_default=True,
    metavar="N",
    help="Read so many tokens of real text first, those of --folder before others.",
)
@click.option(
    *("--continue-tokens", "continue_tokens"),
    type=click.IntRange(0),
    default=0,
    show_default=True,
    metavar="N",
    help="Then so many of real code, mixed with a third of text.",
)
@click.option("--vocabulary", type=click.IntRange(16), default=8192, show_default=True, help="Tokens it can propose.")
@click.option("--weights", type=click.Choice(["int8", "int4", "f16", "f32"]), default="int8", show_default=True)
@click.option(
    "--precision", type=click.Choice(["f32", "bf16"]), default="f32", show_default=True, help="Of the training."
)
@click.option("--evaluate-every", type=click.IntRange(1), default=200, show_default=True, metavar="STEPS")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.pass_context
def fastdraft(context: click.Context, /, target: str, output: Path, **options: Any) -> None:
    """Train a small draft for TARGET (FastDraft, arXiv 2411.11055); prints the folder of the bundle with both.

    TARGET is any model that edgespec runs or exports: a name, a bundle, a .gguf file, a transformers folder, or
    OWNER/NAME[@REVISION] on the Hugging Face hub. The draft begins with its layers, or with those of a smaller model of
    the same vocabulary (--layers-from). torch reads layers from a transformers folder, a .gguf file, or a name of one.
    A draft from scratch can read real text before the target's (--pretrain-tokens, --continue-tokens).
    All work is in DIR; after an interruption the same command goes on. On several devices:
    accelerate launch -m edgespec train fastdraft ...

    \b
    edgespec train fastdraft default -o work --corpus-tokens 1000000 --steps 2000
    edgespec train fastdraft qwen2.5-coder-1.5b --layers-from qwen2.5-coder-0.5b --weights int4 -o work
    """
    from edgespec_train import train_fastdraft

    plan = {name: options.pop(name) for name in ("corpus_tokens", "folders", "exclude", "new_tokens", "ray")}
    plan |= {name: options.pop(name) for name in ("texts_per_shard", "corpus_seed")}
    # Plain text is read from --folder too, and benchmarks are left out of it.
    of_plain = {"folders", "exclude"} if options["pretrain_tokens"] or options["continue_tokens"] else set()
    given = [
        "--folder" if name == "folders" else f"--{name.replace('_', '-')}"
        for name in plan
        if name not in of_plain and context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    ]
    if given and options["corpus_folder"]:
        raise SettingError(
            "--corpus names shards that are made already", got=", ".join(given), hint="leave out one of them"
        )
    click.echo(train_fastdraft(target, output, _say, plan, options))


@command.command()
@click.argument("draft", type=_PATH)
@click.argument("target")
@click.option("-o", "--output", metavar="DIR", required=True, type=_PATH, help="The folder to write.")
@click.option("--weights", type=click.Choice(["int8", "int4", "f16", "f32"]), default="int4", show_default=True)
@click.option("--group-size", type=int, metavar="N", help="Weights that share a step in int4.  [default: 128]")
@click.option("--called", "target_names", multiple=True, metavar="NAME", help="What other files of TARGET begin with.")
@click.option("--licence", metavar="ID", help="Of the draft.  [default: the target's]")
@click.option(
    "--corpus", type=_PATH, metavar="DIR", help="The shards it was trained on, to check it and for the record."
)
@click.option("--notes", metavar="TEXT", help="For the record.")
def pack(**packing: Any) -> None:
    """Pack DRAFT, the draft folder of a training run for TARGET, into a small folder without the target.

    Use it with --draft DIR, on any model of the target's vocabulary.

    \b
    edgespec train pack work/draft qwen2.5-coder-1.5b -o small
    edgespec run -m qwen2.5-coder-1.5b --draft small "Hello"
    """
    from edgespec_train import pack_draft

    click.echo(pack_draft(packing, _say))


@command.command()
@model_options
@fetch_options
@click.option("--prompts", type=_PATH, metavar="FILE", help="Lines of JSON (kind, text).  [default: 12 of our own]")
@click.option("--new-tokens", type=click.IntRange(2), default=128, show_default=True)
@click.option("--temperature", "-t", type=float, default=0.0, show_default=True, help="0 is greedy.")
@click.option("--per-category", type=click.IntRange(1), metavar="N", help="Take N prompts of each category.")
@click.option("--texts", "recorded", type=_PATH, metavar="FILE", help="Keep what the target writes, for other drafts.")
@click.option("--held-out", type=_PATH, metavar="CORPUS", help="Take the greedy texts of CORPUS not trained on.")
@click.option("--timed", type=click.IntRange(0), default=2, show_default=True, help="Texts to time in each category.")
def evaluate(
    prompts: Path | None,
    new_tokens: int,
    temperature: float,
    timed: int,
    per_category: int | None,
    recorded: Path | None,
    held_out: Path | None,
    **options: Any,
) -> None:
    """Acceptance by category and position, block efficiency, and measured speed-up of a pair's drafter."""
    from edgespec.commands.fetching import fetch_first
    from edgespec.loading import load
    from edgespec_train.evaluate import LENGTHS
    from edgespec_train.report import evaluate_pair

    options["ref"] = options.pop("model")
    if held_out and (temperature or recorded or prompts or per_category):
        raise SettingError(
            "--held-out takes the texts of a corpus, greedy ones",
            hint="leave out -t, --prompts, --per-category and --texts",
        )
    k = 4 if options["num_draft_tokens"] is None else options["num_draft_tokens"]
    if k not in LENGTHS:
        allowed = f"{LENGTHS[0]} to {LENGTHS[-1]}"
        raise SettingError("number of draft tokens", got=k, allowed=allowed, setting="num_draft_tokens")
    fetch_first(options)
    pipeline = load(**options, progress=True)
    evaluate_pair(
        *(pipeline, prompts),
        new_tokens=new_tokens,
        temperature=temperature,
        timed=timed,
        k=k,
        per_category=per_category,
        recorded=recorded,
        held_out=held_out,
    )


@command.command()
@click.option("--model", "-m", metavar="REF", default="default", show_default=True, help="The target.")
@click.option("--rounds", type=click.IntRange(3), default=30, show_default=True, help="Forwards of each shape.")
def latency(model: str, rounds: int) -> None:
    """Time draft steps of many shapes with random weights: what a layer, a width, a token costs on this machine."""
    from edgespec_train import sweep

    rows = []
    for timed in sweep(model, rounds):
        rows.append((str(timed.candidate), timed.megabytes, timed.step_ms, timed.ratio))
        _say(f"{rows[-1][0]}: {timed.step_ms:.2f} ms, {timed.ratio:.3f} of a step of the target")
    columns = ["draft", "MB", "ms a step", "of a target step"]
    show("latency of draft shapes", columns, rows, {"shapes": {row[0]: row[1:] for row in rows}})


def _say(line: str) -> None:
    click.echo(line, err=True)
