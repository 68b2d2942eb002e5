"""``edgespec models``: the models on this machine, and the models with a name."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

import click

from edgespec import cache, console
from edgespec.commands import screen
from edgespec.commands.fetching import megabytes
from edgespec.hub import catalog, mirrors
from edgespec.hub import resolve as hub
from edgespec.hub.sizes import bytes_of
from edgespec.hub.stored import Cached
from edgespec.hub.stored import cached as all_cached

if TYPE_CHECKING:
    from rich.table import Table

_WIDE = 140
"""columns: the names, licences and repositories beside each other"""
_USE = {"any": "", "conditions": " (on conditions)", "research": " (research only)"}


@click.command(name="models")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
def command(as_json: bool) -> None:
    """List models: those in the cache, and those with a short name, with size, licence, and where they come from.

    The size of a model is that of its own files. On disk is what a folder of the cache takes: a converted model has
    another size than its file. Remove a folder to free its space; the model is fetched again when it is next used.
    """
    cached = all_cached()
    listed = catalog.load()
    if as_json:
        listing = {
            "cache": str(cache.cache_dir()),
            "cached": [
                {"name": entry.name, "kind": entry.kind, "bytes": entry.bytes, "path": str(entry.path)}
                for entry in cached
            ],
            "known": [
                {
                    "name": entry.name,
                    "aliases": entry.aliases,
                    "about": entry.about,
                    "licence": entry.licence,
                    "bytes": bytes_of(entry.name),
                }
                for entry in catalog.KNOWN
            ],
            "pairs": [_as_json(name, model, listed) for name, model in listed.models.items()],
        }
        screen.write(json.dumps(listing, ensure_ascii=False) + "\n")
        return

    names = _table("Known", "name", "size", "also", "licence", "what it is", whole=("name", "size"))
    for known in catalog.KNOWN:
        console.row(names, known.name, _size(known.name), ", ".join(known.aliases), known.licence, known.about)
    here = _cached(cached) if cached else [f"Nothing cached in {cache.cache_dir()}."]
    console.show(*here, "", names, "", *_on_hub(listed))


def _cached(entries: list[Cached]) -> list[Any]:
    """A table, where the terminal has room for whole paths. Else each path has a line of its own."""
    rows = [(entry.name, megabytes(entry.bytes), entry.kind, str(entry.path)) for entry in entries]
    columns = ("name", "on disk", "kind", "path")
    table = _table("Cached", *columns, whole=columns)
    needed = sum(max(map(len, cells)) + len("  ") for cells in zip(columns, *rows, strict=True))
    if needed > console.width():
        return ["Cached", *(line for *facts, path in rows for line in (", ".join(facts), f"  {path}"))]
    for row in rows:
        console.row(table, *row)
    return [table]


def _as_json(name: str, model: catalog.Model, listed: catalog.Pairs) -> dict[str, Any]:
    mirror = mirrors.find(name)
    return {
        "name": name,
        "repo": model.repo,
        "file": model.file,
        "revision": model.revision,
        "pinned": model.pinned,
        "sha256": model.sha256,
        "bytes": bytes_of(name),
        "fetched": _is_here(name),
        "mirror": [part.package for part in mirror.parts] if mirror else [],
        "licence": model.licence,
        "use": listed.licences[model.licence].use,
        "draft": model.draft,
        "other_drafts": model.other_drafts,
    }


def _on_hub(listed: catalog.Pairs) -> list[Any]:
    """Two tables: of models whose size is known, and of the others. With all that is said of a model, or as much as a
    narrow terminal has room for."""
    more = ("drafts", "repository") if console.width() >= _WIDE else ()
    sizes = {name: _size(name) for name in listed.models}
    known = [name for name, size in sizes.items() if size]
    unknown = [name for name, size in sizes.items() if not size]
    pinned = sum(model.pinned for model in listed.models.values())
    tables = []
    for title, names, columns in (
        ("By short name", known, ("name", "size", "here", "from", "licence", *more)),
        ("By short name, of a size that is unknown until it is fetched", unknown, ("name", "from", "licence", *more)),
    ):
        if names:
            table = _table(title, *columns, whole=("name", "size", "here", "from", "repository"))
            for name in names:
                about = _about(name, sizes[name], listed)
                console.row(table, *(about[column] for column in columns))
            tables += [table, ""]
    return [
        *tables,
        f"From: hub is the Hugging Face hub, index a mirror on {mirrors.INDEX} (pull NAME --mirror index). Pinned for "
        f"good: {pinned} of {len(listed.models)}; the others are what their branch is at the first pull. "
        + ("Drafts in brackets have to be asked for." if more else "In a wider terminal: drafts and repositories."),
    ]


def _about(name: str, size: str, listed: catalog.Pairs) -> dict[str, str]:
    """What is said of a model, by column."""
    model = listed.models[name]
    own = model.draft or ("our own" if model.trained_draft else None)
    return {
        "name": name,
        "size": size,
        "here": "yes" if _is_here(name) else "",
        "from": "hub, index" if mirrors.find(name) else "hub",
        "licence": f"{model.licence}{_USE[listed.licences[model.licence].use]}",
        "drafts": " ".join([own or "lookups", *(f"({draft})" for draft in model.other_drafts)]),
        "repository": model.repo,
    }


def _size(name: str) -> str:
    return "" if (size := bytes_of(name)) is None else megabytes(size)


def _is_here(name: str) -> bool:
    wanted = hub.on_hub(name)
    return wanted is not None and hub.is_here(wanted)


def _table(title: str, *columns: str, whole: tuple[str, ...]) -> Table:
    """whole: columns that are never cut or folded, as names to be typed; the others give way to them."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None)
    for column in columns:
        justify: Literal["left", "right"] = "right" if column == "size" else "left"
        table.add_column(column, no_wrap=column in whole, overflow="fold", justify=justify)
    return table
