"""Which models a server may load: those it was told, and those that are on this machine under a short name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from time import time
from typing import Any

from edgespec.errors import LicenceError, SettingError, SourceError
from edgespec.hub import catalog, repository
from edgespec.hub import resolve as hub
from edgespec.hub.progress import Watch
from edgespec.hub.sizes import bytes_of
from edgespec.loading import load
from edgespec.server.about import context_of, of_files
from edgespec.server.refusals import NoModel
from edgespec.server.residents import Offer

_OF_ONE = ("draft", "draft_from", "remember", "num_draft_tokens", "context_length", "weights", "draft_device")
"""options that mean the models that were named; the others hold for every model"""


def offers(refs: Sequence[str], options: Mapping[str, Any], *, keep_alive_s: float | None) -> dict[str, Offer]:
    """By name. refs: named by the user, the first is the default. options: of ``load``. keep_alive_s: of the models
    that nobody named, which are loaded when they are asked for."""
    found: dict[str, Offer] = {}
    for ref in refs:
        offer = _offer(ref, options, None)
        if offer.name in found:
            raise SettingError(f"two models are called {offer.name}", hint="name each model once", setting="model")
        found[offer.name] = offer
    others = {name: value for name, value in options.items() if name not in _OF_ONE}
    for ref in here():
        offer = _offer(ref, others, keep_alive_s)
        found.setdefault(offer.name, offer)
    return found


def fetcher(options: Mapping[str, Any], *, keep_alive_s: float | None) -> Callable[..., Callable[[Watch], Offer]]:
    """What fetches a model by its short name, with ``mirror=True`` from its mirror. A client cannot have anything else
    fetched: NoModel, LicenceError."""
    others = {name: value for name, value in options.items() if name not in _OF_ONE}

    def fetch(name: str, *, mirror: bool = False) -> Callable[[Watch], Offer]:
        name = name.removesuffix(":latest")
        wanted = hub.on_hub(name) if catalog.find(name) else None
        source = wanted.mirror if wanted and mirror else None
        if wanted is None or (mirror and source is None):
            raise NoModel(f"no model {name!r} to fetch; `edgespec models` lists their names", param="model")
        catalog.require_consent(name, accepted=bool(options.get("accept_licence")))

        def run(watch: Watch) -> Offer:
            if source is not None:
                hub.fetch_from_mirror(source, progress=False, watch=watch)
            else:
                accept_licence = bool(options.get("accept_licence"))
                try:
                    hub.fetch_from_hub(wanted, accept_licence=accept_licence, progress=False, watch=watch)
                except LicenceError:
                    raise
                except SourceError as error:
                    raise hub.naming_mirror(wanted, error) from error
            return _offer(name, others, keep_alive_s)

        return run

    return fetch


def here() -> list[str]:
    """Names of models that were fetched, short ones first, and the default one."""
    fetched = [name for name in catalog.listed_names() if _is_fetched(name)]
    sources = [wanted.source for name in fetched if (wanted := hub.on_hub(name))]
    records = [each for each in repository.all_recorded() if each.file is None and each.source not in sources]
    others = [f"{each.repo}@{each.revision}".removesuffix("@main") for each in (found.source for found in records)]
    return [*fetched, catalog.KNOWN[0].name, *sorted(filter(_is_fetched, others))]


def _is_fetched(ref: str) -> bool:
    return (wanted := hub.on_hub(ref)) is not None and hub.is_here(wanted)


def _offer(ref: str, options: Mapping[str, Any], keep_alive_s: float | None) -> Offer:
    known = next((known for known in catalog.KNOWN if ref in (known.name, *known.aliases)), None)
    name, aliases = (known.name, known.aliases) if known else (ref, ())
    if known is None and catalog.find(ref) is None and (path := hub.on_disk(ref)):
        name, aliases = path.resolve().name.removesuffix(".gguf"), (ref,)
    told = {name: value for name, value in options.items() if name in ("weights", "context_length")}
    return Offer(
        name=name,
        load=partial(load, ref, **options, progress=True),
        size_of=partial(bytes_of, ref),
        about=partial(of_files, ref, **told),
        context_of=partial(context_of, ref, **told),
        aliases=tuple(aliases),
        created=int(time()),
        keep_alive_s=keep_alive_s,
    )
