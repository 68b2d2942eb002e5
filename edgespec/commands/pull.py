"""``edgespec pull``: have a model on this machine, ready to run without a network."""

from __future__ import annotations

import sys

import click

from edgespec import cache, hub


@click.command(name="pull")
@click.argument("ref", default="default")
def command(ref: str) -> None:
    """Fetch a model, convert it if it has to be, and check that it is whole.

    REF is a known name (see: edgespec models), OWNER/NAME[@REVISION] on the Hugging Face hub, a .gguf file, or a
    folder. Prints the folder of the model, which is a REF too; a model that is there already is not fetched again.

    \b
    edgespec pull
    edgespec pull ./Qwen3-0.6B-Q4_K_M.gguf
    """
    progress = sys.stderr.isatty()
    pair = hub.resolve(ref, progress=progress)
    own = [pair.manifest.target, *(drafter.model for drafter in pair.manifest.drafters if drafter.model)]
    paths = [hub.model_path(pair, model, progress=progress) for model in own]
    pair.hashed(pair.manifest.tokenizer)
    pair.chat_template()
    size = sum(cache.size_on_disk(file) for path in paths for file in (path, path.with_suffix(".bin")))
    click.echo(pair.root if pair.manifest.target.file else paths[0].parent)
    drafters = ", ".join(drafter.name for drafter in pair.manifest.drafters) or "ngram"
    summary = f"{pair.manifest.target.precision}, {size / 1e6:.0f} MB, drafts: {drafters}"
    click.echo(f"[{pair.name} is ready: {summary}]", err=True)
