"""``edgespec train``: trains a draft for a target, and measures what it gains. The work is in edgespec_train."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import click

from edgespec.bench.report import show
from edgespec.commands.options import accept_licence, fetch_options, model_options
from edgespec.commands.train_sdsat import sdsat
from edgespec.commands.training_options import (
    MAKING,
    PATH,
    PLAN,
    called,
    check_head_options,
    choice_options,
    corpus_options,
    head_options,
    options_given,
    output,
    refuse_with_ready,
)
from edgespec.console import note
from edgespec.errors import SettingError
from edgespec.types import Backend


@click.group(name="train")
def command() -> None:
    """Train a draft for a target, and measure what it is worth."""


@command.command()
@click.argument("target")
@output
@corpus_options
@click.option("--states", is_flag=True, help="Keep hidden states too, in DIR/states: heads need no second reading.")
@choice_options
@click.pass_context
def corpus(context: click.Context, /, target: str, output: Path, states: bool, **plan: Any) -> None:
    """Let TARGET write the text a draft is trained on, into DIR/corpus. Goes on where it was stopped."""
    from edgespec_train import write_corpus

    choice = {name: plan.pop(name) for name in ("layers", "longest", "prompt_share")}
    if not states and (given := options_given(context, choice)):
        raise SettingError("options of the states that are kept", got=", ".join(given), hint="add --states")
    click.echo(write_corpus(target, output, note, keep=choice if states else None, **plan))


@command.command()
@click.argument("target")
@click.option("--corpus", "corpus_folder", type=PATH, metavar="DIR", required=True, help="The shards to read.")
@click.option("-o", "--output", metavar="DIR", required=True, type=PATH, help="The folder to fill.")
@choice_options
@click.option("--tokens", type=click.IntRange(1), metavar="N", help="Most tokens in all.  [default: all]")
def states(target: str, corpus_folder: Path, output: Path, layers: str | None, **choice: Any) -> None:
    """Let TARGET read a corpus once more: keeps its hidden states and best log-probabilities in DIR.

    TARGET is any model that edgespec runs. Layers are numbered as transformers' hidden_states: 0 is the embedding. Goes
    on where it was stopped.

    \b
    edgespec train states qwen2.5-coder-1.5b --corpus work/corpus -o work/states --layers 2,14,25,28
    """
    from edgespec_train import replay_corpus

    click.echo(replay_corpus(target, corpus_folder, output, note, layers, **choice))


@command.command()
@click.argument("target")
@output
@corpus_options
@click.option("--corpus", "corpus_folder", type=PATH, metavar="DIR", help="Shards made before.  [default: DIR/corpus]")
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
@click.option("--from-draft", type=PATH, metavar="DIR", help="Go on from DIR, the draft folder of an earlier run.")
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

    plan = {name: options.pop(name) for name in PLAN}
    # Plain text is read from --folder too.
    of_plain = {"folders"} if options["pretrain_tokens"] or options["continue_tokens"] else set()
    refuse_with_ready(context, "corpus_folder", set(MAKING) - of_plain)
    click.echo(train_fastdraft(target, output, note, plan, options))


@command.command()
@click.argument("target")
@output
@head_options()
@click.option(
    "--state", type=click.IntRange(0), default=768, show_default=True, help="Width of the recurrence; 0: none."
)
@click.option("--blocks", type=click.IntRange(0), default=2, show_default=True, help="Residual blocks.")
@click.option(
    "--rows",
    type=click.Choice(["target", "own", "low-rank"]),
    default="target",
    show_default=True,
    help="Output rows: the target's, trained ones, or a product of two narrow matrices.",
)
@click.option("--rank", type=click.IntRange(1), default=256, show_default=True, help="Of low-rank rows.")
@click.option("--lookahead", type=click.IntRange(1, 16), default=5, show_default=True, help="Steps it is trained on.")
@click.option(
    "--loss", type=click.Choice(["kd", "ce", "ce+kd"]), default="kd", show_default=True, help="See models/README.md."
)
@click.option("--share", type=click.FloatRange(0, 1, min_open=True), default=0.6, show_default=True)
@click.option("--fit-rows", type=click.IntRange(0), default=60_000, show_default=True, help="To fit before training.")
@click.option("--draft-length", type=click.IntRange(1, 16), default=5, show_default=True, help="Tokens of a draft.")
@click.option("--beams", type=click.IntRange(1, 64), default=1, show_default=True, help="1 is an exact chain.")
@click.option("--weights", type=click.Choice(["int8", "int4", "f32"]), default="int8", show_default=True)
@click.option(
    "--states-weights",
    type=click.Choice(["int8", "int4", "f32"]),
    default="int8",
    show_default=True,
    help="Of what a round reads once.",
)
@click.option("--embeddings-from", metavar="SOURCE", help="A checkpoint of TARGET that torch reads.")
@click.pass_context
def redrafter(context: click.Context, /, target: str, output: Path, **options: Any) -> None:
    """Train a recurrent head for TARGET (ReDrafter, arXiv 2403.09919); prints the folder to use with --draft.

    It drafts in one inference, from the hidden states of TARGET's last row. The last of --layers is the final one. Each
    step of the look-ahead is trained on a --share of the places of the step before it. All work is in DIR; after an
    interruption the same command goes on. After training it packs with other --weights, --draft-length or --beams.

    \b
    edgespec train redrafter default -o work --corpus-tokens 300000
    edgespec run -m default --draft work/draft "Hello"
    """
    from edgespec_train import train_head

    check_head_options(context)
    click.echo(train_head("redrafter", target, output, note, options))


@command.command()
@click.argument("target")
@output
@head_options(learning_rate=3e-4)
@click.option("--block", type=click.IntRange(1, 16), default=5, show_default=True, help="Tokens of a draft.")
@click.option("--window", type=click.IntRange(1), default=32, show_default=True, help="Rows of states that are read.")
@click.option("--width", type=click.IntRange(2), default=640, show_default=True)
@click.option("--depth", type=click.IntRange(0), default=1, show_default=True, help="Transformer layers.")
@click.option("--heads", type=click.IntRange(1), default=8, show_default=True, help="Heads that the width is cut into.")
@click.option("--intermediate", type=click.IntRange(1), default=1280, show_default=True, help="Width of its MLP.")
@click.option("--rank", type=click.IntRange(0), default=128, show_default=True, help="Of the Markov head; 0: none.")
@click.option(
    "--loss", type=click.Choice(["kl", "tv", "kl+tv"]), default="kl", show_default=True, help="See models/README.md."
)
@click.option("--decay", type=click.FloatRange(0, min_open=True), default=2.0, show_default=True)
@click.option("--fit-rows", type=click.IntRange(0), default=60_000, show_default=True, help="To fit before training.")
@click.option("--weights", type=click.Choice(["int8", "int4", "f16", "f32"]), default="int8", show_default=True)
@click.option("--embeddings-from", metavar="SOURCE", help="A checkpoint of TARGET that torch reads.")
@click.pass_context
def block(context: click.Context, /, target: str, output: Path, **options: Any) -> None:
    """Train a block drafter for TARGET (as DFlash and DSpark); prints the folder to use with --draft.

    It drafts a block of tokens in one inference, from the hidden states of TARGET's last rows; the last of --layers is
    the final one. Position i of a block weighs exp(-i / --decay). All work is in DIR; after an interruption the same
    command goes on. After training it packs with other --weights.

    \b
    edgespec train block default -o work --corpus-tokens 300000
    edgespec run -m default --draft work/draft "Hello"
    """
    from edgespec_train import train_head

    check_head_options(context)
    click.echo(train_head("block", target, output, note, options))


@command.command()
@click.argument("draft", type=PATH)
@click.argument("target")
@click.option("-o", "--output", metavar="DIR", required=True, type=PATH, help="The folder to write.")
@click.option("--weights", type=click.Choice(["int8", "int4", "f16", "f32"]), default="int4", show_default=True)
@click.option("--group-size", type=int, metavar="N", help="Weights that share a step in int4.  [default: 128]")
@called
@click.option("--licence", metavar="ID", help="Of the draft.  [default: the target's]")
@click.option(
    "--corpus", type=PATH, metavar="DIR", help="The shards it was trained on, to check it and for the record."
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

    click.echo(pack_draft(packing, note))


@command.command()
@model_options
@fetch_options
@click.option(
    "--prompts",
    type=PATH,
    metavar="FILE",
    help="Lines of JSON (kind, text). papers: summaries, stories, instructions, functions.  [default: 12 of our own]",
)
@click.option("--new-tokens", type=click.IntRange(2), default=128, show_default=True)
@click.option("--temperature", "-t", type=float, default=0.0, show_default=True, help="0 is greedy.")
@click.option("--per-category", type=click.IntRange(1), metavar="N", help="Take N prompts of each category.")
@click.option("--texts", "recorded", type=PATH, metavar="FILE", help="Keep what the target writes, for other drafts.")
@click.option("--held-out", type=PATH, metavar="CORPUS", help="Take the greedy texts of CORPUS not trained on.")
@click.option("--timed", type=click.IntRange(0), default=2, show_default=True, help="Texts to time in each category.")
@click.option("--alone", is_flag=True, help="Judge the model or head of --draft without the lookups beside it.")
def evaluate(
    prompts: Path | None,
    new_tokens: int,
    temperature: float,
    timed: int,
    per_category: int | None,
    recorded: Path | None,
    held_out: Path | None,
    alone: bool,
    **options: Any,
) -> None:
    """What a pair's drafter is worth, by category: acceptance by position, tokens per forward, MBSU, measured speed-up.

    MBSU is tokens per forward over 1 + k c, where c is what drafting a token costs over a step of the target: in
    weights that are read, and in measured time. A speed-up below 0.6 of it is marked.
    """
    from edgespec.commands.fetching import fetch_and_load
    from edgespec_train.evaluate import LENGTHS
    from edgespec_train.report import alone as without_lookups
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
    options["schedule"] = options["schedule"] or "synchronous"  # whatever was measured to be faster here
    pipeline = fetch_and_load(options)
    if alone:
        without_lookups(pipeline)
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
@click.option(
    "--draft",
    "drafts",
    multiple=True,
    required=True,
    metavar="REF",
    help="One to judge alone; may be repeated. auto: with all lookups.",
)
@click.option("-k", "k", type=click.IntRange(1, 8), default=3, show_default=True, help="Tokens to draft each round.")
@click.option("--temperature", "-t", type=click.FloatRange(0), default=0.6, show_default=True, help="Beside greedy.")
@click.option(
    "--prompts",
    type=PATH,
    default="papers",
    show_default=True,
    metavar="FILE",
    help="See evaluate. papers: summaries, stories, instructions, functions.",
)
@click.option("--new-tokens", type=click.IntRange(2), default=64, show_default=True)
@click.option("--per-category", type=click.IntRange(1), metavar="N", help="Take N prompts of each category.")
@click.option("--timed", type=click.IntRange(0), default=1, show_default=True, help="Texts to time in each category.")
@click.option("--texts", type=PATH, metavar="DIR", help="Keep what the target writes, for other drafters.")
@click.option(
    "--backend",
    "backends",
    type=click.Choice(get_args(Backend)),
    multiple=True,
    help="Engine; may be repeated.  [default: the faster one on this CPU]",
)
@accept_licence
def table(
    model: str, drafts: tuple[str, ...], backends: tuple[Backend, ...], accept_licence: bool, **asked: Any
) -> None:
    """Judge drafters of one target on the same texts, greedy and sampled; prints tables in Markdown.

    \b
    edgespec train table -m qwen2.5-coder-1.5b --draft block --draft ngram
    """
    from edgespec_train.table import Asked
    from edgespec_train.table import table as lines

    options = {"accept_licence": accept_licence}
    for line in lines(Asked(model, drafts, **asked, backends=backends or (None,), options=options), note):
        click.echo(line)


@command.command()
@click.option("--model", "-m", metavar="REF", default="default", show_default=True, help="The target.")
@click.option(
    "--recipe",
    type=click.Choice(["fastdraft", "redrafter"]),
    default="fastdraft",
    show_default=True,
    help="Whose shapes. A step of a recurrent head is the call that drafts a round.",
)
@click.option("--rounds", type=click.IntRange(3), default=30, show_default=True, help="Forwards of each shape.")
def latency(model: str, recipe: Any, rounds: int) -> None:
    """Time draft steps of many shapes with random weights: what a layer, a width, a token costs on this machine."""
    from edgespec_train import sweep

    rows = []
    for timed in sweep(model, rounds, recipe):
        rows.append((str(timed.candidate), timed.megabytes, timed.step_ms, timed.ratio, timed.ratio_in_bytes))
        note(f"{rows[-1][0]}: {timed.step_ms:.2f} ms, {timed.ratio:.3f} of a step of the target")
    columns = ["draft", "MB", "ms a step", "of a target step", "by bytes"]
    show("latency of draft shapes", columns, rows, {"shapes": {row[0]: row[1:] for row in rows}})


command.add_command(sdsat)
