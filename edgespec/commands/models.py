"""``edgespec models``: what is on this machine, and what has a name."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from edgespec import cache, console
from edgespec.commands import screen
from edgespec.hub import catalog
from edgespec.hub import resolve as hub

if TYPE_CHECKING:
    from rich.table import Table

_USE = {"any": "any", "conditions": "on conditions", "research": "research only: --accept-licence"}


@click.command(name="models")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
def command(as_json: bool) -> None:
    """List models: those in the cache, and those with a short name and what their licences allow.

    Remove a folder to free its space; the model is fetched again when it is next used.
    """
    cached = hub.cached()
    listed = catalog.load()
    if as_json:
        listing = {
            "cache": str(cache.cache_dir()),
            "cached": [
                {"name": entry.name, "kind": entry.kind, "bytes": entry.bytes, "path": str(entry.path)}
                for entry in cached
            ],
            "known": [
                {"name": entry.name, "aliases": entry.aliases, "about": entry.about, "licence": entry.licence}
                for entry in catalog.KNOWN
            ],
            "pairs": [
                {
                    "name": name,
                    "repo": model.repo,
                    "file": model.file,
                    "revision": model.revision,
                    "pinned": model.pinned,
                    "licence": model.licence,
                    "use": listed.licences[model.licence].use,
                    "draft": model.draft,
                    "other_drafts": model.other_drafts,
                }
                for name, model in listed.models.items()
            ],
        }
        screen.write(json.dumps(listing, ensure_ascii=False) + "\n")
        return

    from rich.table import Table

    here = Table("name", "kind", "MB", "path", title="Cached", title_justify="left", box=None)
    here.columns[2].justify = "right"
    here.columns[3].overflow = "fold"
    for entry in cached:
        console.row(here, entry.name, entry.kind, f"{entry.bytes / 1e6:.1f}", str(entry.path))
    names = Table("name", "also", "licence", "what it is", title="Known", title_justify="left", box=None)
    for model in catalog.KNOWN:
        console.row(names, model.name, ", ".join(model.aliases), model.licence, model.about)
    console.show(here if cached else f"Nothing cached in {cache.cache_dir()}.", "", names, "", _on_hub(listed))


def _on_hub(listed: catalog.Pairs) -> Table:
    from rich.table import Table

    columns = ("name", "draft", "other drafts", "licence", "use", "repository")
    pinned = sum(model.pinned for model in listed.models.values())
    caption = (
        f"Pinned to a commit: {pinned} of {len(listed.models)}. The others are what their branch is at the first pull."
    )
    table = Table(*columns, title="On the Hugging Face hub, by short name", title_justify="left", box=None)
    table.caption, table.caption_justify = caption, "left"
    for name, model in listed.models.items():
        use = _USE[listed.licences[model.licence].use]
        console.row(table, name, model.draft or "ngram", ", ".join(model.other_drafts), model.licence, use, model.repo)
    return table
