"""``edgespec pull``: brings a model onto this machine, ready to run without a network."""

from __future__ import annotations

from pathlib import Path

import click

from edgespec import cache, files
from edgespec.commands.fetching import fetch
from edgespec.commands.options import accept_licence as accept_licence_option
from edgespec.commands.options import fetch_options, weights_option
from edgespec.hub import catalog
from edgespec.hub.resolve import model_path, resolve
from edgespec.manifest import data_files
from edgespec.types import GGUFWeights


@click.command(name="pull")
@click.argument("ref", default="default")
@fetch_options
@weights_option
@accept_licence_option
def command(ref: str, yes: bool, mirror: str | None, weights: GGUFWeights | None, accept_licence: bool) -> None:
    """Fetch a model, convert it if it has to be, and read all of it to check that it is whole.

    REF is a known name (see: edgespec models), OWNER/NAME[@REVISION] on the Hugging Face hub, a .gguf file, or a
    folder. Prints the folder of the model, which is a REF too; a model that is there already is not fetched again.
    A name that brings a draft along has the draft fetched too. What broke off goes on where it stopped.

    \b
    edgespec pull
    edgespec pull qwen2.5-coder-1.5b
    edgespec pull qwen2.5-coder-1.5b --mirror index
    edgespec pull ./Qwen3-0.6B-Q4_K_M.gguf
    edgespec pull ./Qwen3-0.6B-Q4_K_M.gguf --weights int4
    """
    draft = catalog.default_draft(ref)
    with files.reading_everything():
        fetch([ref], yes=yes, mirror=mirror, accept_licence=accept_licence)
        click.echo(_pull(ref, draft, accept_licence, weights))
        if draft is not None:
            fetch([draft], yes=yes, mirror=mirror, accept_licence=accept_licence)
            _pull(draft, None, accept_licence)


def _pull(ref: str, draft: str | None, accept_licence: bool, weights: GGUFWeights | None = None) -> Path:
    """Fetch and check one model, and describe it on stderr. Returns its folder."""
    pair = resolve(ref, weights=weights, accept_licence=accept_licence, progress=True)
    models = pair.manifest.models
    paths = [model_path(pair, model, accept_licence=accept_licence, progress=True) for model in models]
    pair.check()
    pair.chat_template()
    size = sum(cache.size_on_disk(file) for path in paths for file in (path, *data_files(path)) if file.is_file())
    drafters = draft or ", ".join(drafter.name for drafter in pair.manifest.drafters) or "lookups"
    summary = f"{pair.manifest.target.precision}, {size / 1e6:.0f} MB, drafts: {drafters}"
    click.echo(f"[{pair.name} is ready: {summary}]", err=True)
    return paths[0].parent if pair.manifest.target.source else pair.root
