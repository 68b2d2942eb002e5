"""``edgespec train sdsat``: adaptive tokens, at which the target drafts for itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgespec.commands.training_options import MAKING, PATH, corpus_options, output, refuse_with_ready
from edgespec.console import note


@click.command()
@click.argument("target")
@output
@corpus_options
@click.option("--corpus", "corpus_folder", type=PATH, metavar="DIR", help="Shards made before.  [default: DIR/corpus]")
@click.option("--steps", type=click.IntRange(1), default=1000, show_default=True, help="Batches to train on.")
@click.option("--batch", "tokens_per_batch", type=click.IntRange(64), default=768, show_default=True, metavar="TOKENS")
@click.option("--learning-rate", type=click.FloatRange(0, min_open=True), default=2e-3, show_default=True)
@click.option("--tokens", "count", type=click.IntRange(1, 13), default=5, show_default=True, help="Adaptive tokens.")
@click.option("--separate", is_flag=True, help="An embedding for each of them, not one for all.")
@click.option("--rank", type=click.IntRange(0), default=16, show_default=True, help="Of the adapters; 0: none.")
@click.option("--adapt", default="qkv,o,gate_up,down", show_default=True, metavar="A,B,...", help="Products adapted.")
@click.option(
    "--placing",
    type=click.Choice(["random", "every"]),
    default="random",
    show_default=True,
    help="Behind which tokens of a text they stand in training.",
)
@click.option("--share", type=click.FloatRange(0, 1, min_open=True), default=0.2, show_default=True, help="If random.")
@click.option("--loss", type=click.Choice(["kd", "ce"]), default="kd", show_default=True, help="See models/README.md.")
@click.option("--precision", type=click.Choice(["f32", "bf16"]), default="f32", show_default=True)
@click.option("--evaluate-every", type=click.IntRange(1), default=100, show_default=True, metavar="STEPS")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.pass_context
def sdsat(context: click.Context, /, target: str, output: Path, **options: Any) -> None:
    """Train adaptive tokens for TARGET (SDSAT, arXiv 2403.18647); prints the folder of the bundle.

    TARGET is a transformers folder, a .gguf file, a name of one, or OWNER/NAME[@REVISION] on the Hugging Face hub.
    It is frozen: its logits stay bit for bit the same on OpenVINO, and but for rounding on ONNX Runtime. Only the new
    tokens' embeddings are trained, and small adapters that act on their rows. All work is in DIR; after an
    interruption the same command goes on.

    \b
    edgespec train sdsat default -o work --corpus-tokens 300000
    edgespec run -m work/bundle --draft sdsat "Hello"
    edgespec run -m work/bundle --draft sdsat-one-forward "Hello"
    """
    from edgespec_train import train_sdsat

    refuse_with_ready(context, "corpus_folder", MAKING)
    click.echo(train_sdsat(target, output, note, options))
