"""The models that are loaded: on demand, within one memory budget, and not longer than they are used.

All calls come from the event loop's thread. A model loads and unloads on its own thread (``worker``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic, time

from edgespec.errors import EdgespecError
from edgespec.hub import catalog
from edgespec.pipeline import Pipeline
from edgespec.protocols import Model
from edgespec.server.about import About
from edgespec.server.refusals import Forbidden, NoModel, Refusal, Unavailable, refusal, without_folders
from edgespec.server.schema import Kind
from edgespec.server.sequences import Sequences
from edgespec.server.worker import Worker

_UNLOAD_S = 5.0
"""for a thread to end; one that still loads its model is not waited for"""


@dataclass(frozen=True, kw_only=True)
class Offer:
    """A model that may be loaded.

    size_of: gives the bytes of its files (``hub.sizes``), None if they are not known yet. about, context_of: what its
    files say of it while it is not loaded.
    aliases: other names of it. keep_alive_s: how long it stays loaded when it is not used, unless a request says
    otherwise; None or below 0: for good.
    """

    name: str
    load: Callable[[], Pipeline]
    size_of: Callable[[], int | None] = lambda: None
    about: Callable[[], About | None] = lambda: None
    context_of: Callable[[], int | None] = lambda: None
    aliases: tuple[str, ...] = ()
    created: int = 0
    keep_alive_s: float | None = None

    @property
    def size_bytes(self) -> int | None:
        """Of its files, as they are now: a model may be fetched while it is offered. Taken for its memory until it is
        loaded."""
        return self.size_of()


@dataclass(eq=False)
class Resident:
    """A loaded model. users: requests on their way. used_s, chat_s: when it was used last, and by a chat.

    expires: when it is unloaded, if it is.
    """

    offer: Offer
    worker: Worker
    users: int = 0
    used_s: float = field(default_factory=monotonic)
    chat_s: float | None = None
    keep_alive_s: float | None = None
    expires: asyncio.TimerHandle | None = None
    expires_at: float | None = None

    @property
    def pipeline(self) -> Pipeline | None:
        """None while it loads."""
        ready = self.worker.ready
        return ready.result() if ready.done() and ready.exception() is None else None

    @property
    def is_kept_for_chats(self) -> bool:
        """Whether it would still be loaded if nobody but chats used it."""
        if self.chat_s is None:
            return False
        seconds = self.keep_alive_s
        return seconds is None or seconds < 0 or monotonic() - self.chat_s < seconds

    @property
    def bytes(self) -> int:
        """Memory of weights and KV caches, of target and draft model together. While it loads, see ``Offer``."""
        if (pipeline := self.pipeline) is None:
            return _expected(self.offer)
        return sum(getattr(model, "weights_bytes", 0) + model.cache.nbytes for model in _models(pipeline))


class Residents:
    """offers: by name, the default one first. budget_bytes: of weights and KV caches together, when one more model
    loads; None: no limit."""

    def __init__(
        self,
        offers: Mapping[str, Offer],
        sequences: Sequences | None = None,
        *,
        budget_bytes: int | None = None,
    ) -> None:
        self.offers = dict(offers)
        self.sequences = sequences or Sequences(0)
        self.loaded: dict[str, Resident] = {}
        self._budget_bytes = budget_bytes
        self._leaving: list[Resident] = []
        """unloaded, and their threads may still hold memory"""
        self._expiring: set[asyncio.Task[None]] = set()

    def find(self, name: str | None) -> Offer:
        """The model of a name, as clients spell it; None is the first one. Raises NoModel. llama.vim always sends a
        name, an empty one where the user gave none."""
        if not name:
            return next(iter(self.offers.values()))
        for spelt in (name, name.removesuffix(":latest")):
            for offer in self.offers.values():
                if spelt == offer.name or spelt in offer.aliases:
                    return offer
        known = name.removesuffix(":latest")
        way_out = ""
        if catalog.find(known):
            way_out = f". It is not fetched: POST /api/pull, or run `edgespec pull {known}` and start the server again"
        raise NoModel(f"no model {name!r}; there is {', '.join(self.offers)}{way_out}", param="model")

    def has(self, name: str) -> bool:
        try:
            self.find(name)
        except NoModel:
            return False
        return True

    def add(self, offer: Offer) -> None:
        self.offers.setdefault(offer.name, offer)

    async def take(self, name: str | None, kind: Kind | None) -> Resident:
        """A loaded model, which stays until it is given back. Raises NoModel, Unavailable, Forbidden.

        kind: None for a question about the model, which changes nothing of its rank.
        """
        offer = self.find(name)
        resident = self.loaded.get(offer.name) or await self._load(offer, kind or "completion")
        resident.users += 1
        self._used(resident, kind)
        self._keep(resident)
        try:
            if not (ready := resident.worker.ready).done():
                await asyncio.shield(asyncio.wrap_future(ready))
            ready.result()
        except Exception as error:
            resident.users -= 1
            if self.loaded.get(offer.name) is resident:
                del self.loaded[offer.name]
            raise _failed(offer, error) from error
        except asyncio.CancelledError:
            self.give_back(resident)
            raise
        if self.loaded.get(offer.name) is not resident:
            self.give_back(resident)
            raise Unavailable(f"{offer.name} was unloaded while it was loading", retry_after_s=1.0)
        return resident

    def give_back(self, resident: Resident, keep_alive_s: float | None = None, kind: Kind | None = None) -> None:
        resident.users -= 1
        self._used(resident, kind)
        if keep_alive_s is not None:
            resident.keep_alive_s = keep_alive_s
        if not resident.users:
            self._expire_later(resident)

    async def release(self, name: str) -> None:
        """Unload a model once nobody uses it: at once, or behind the requests that are on their way."""
        resident = self.loaded.get(name)
        if resident is not None and resident.users:
            resident.keep_alive_s = 0.0
        else:
            await self.unload(name)

    async def unload(self, name: str, why: Refusal | None = None) -> None:
        """Free the memory of a model. Requests on their way to it end."""
        if resident := self.loaded.pop(name, None):
            self._keep(resident)
            self._leaving.append(resident)
            resident.worker.close(why or Unavailable(f"{name} was unloaded", retry_after_s=1.0))
            await asyncio.to_thread(resident.worker.join, _UNLOAD_S)
            self._forget_gone()

    async def close(self, why: Refusal) -> None:
        for name in list(self.loaded):
            await self.unload(name, why)
        for task in list(self._expiring):
            await task

    async def _load(self, offer: Offer, kind: Kind) -> Resident:
        await self._make_room(offer, kind)
        if resident := self.loaded.get(offer.name):  # while others were unloaded, somebody else began to load it
            return resident
        worker = Worker(offer.name, offer.load, self.sequences)
        self.loaded[offer.name] = resident = Resident(offer, worker, keep_alive_s=offer.keep_alive_s)
        worker.start()
        return resident

    async def _make_room(self, offer: Offer, kind: Kind) -> None:
        """Unload what was not used for longest, until this model fits. Nothing is unloaded if that is not enough."""
        if self._budget_bytes is None:
            return
        while self._bytes() + _expected(offer) > self._budget_bytes:
            leaving, unused = list(self._leaving), list(self._may_leave(kind))
            held = self._bytes() - sum(each.bytes for each in (*leaving, *unused))
            if not (leaving or unused) or held + _expected(offer) > self._budget_bytes:
                raise self._no_room(offer, unused)
            if not leaving:
                await self.unload(unused[0].offer.name)
            elif not await asyncio.to_thread(leaving[0].worker.join, _UNLOAD_S):
                what = f"no memory for {offer.name} yet: {leaving[0].offer.name} is being unloaded"
                raise Unavailable(what, retry_after_s=_UNLOAD_S)

    def _no_room(self, offer: Offer, unused: Sequence[Resident]) -> Unavailable:
        size, most = (f"{count >> 20} MiB" for count in (_expected(offer), self._budget_bytes or 0))
        what = f"no memory for {offer.name} ({size}) within {most}"
        if _expected(offer) > (self._budget_bytes or 0):  # it will not fit later either
            return Unavailable(f"{what}: raise --memory")
        names = ", ".join(
            f"{each.offer.name} ({each.bytes >> 20} MiB) is loaded and {'in use' if each.users else 'kept for chats'}"
            for each in self.loaded.values()
            if each not in unused
        )
        way_out = "Unload a model (keep_alive 0), or raise --memory"
        return Unavailable(f"{what}: {names}. {way_out}", retry_after_s=5.0)

    def _bytes(self) -> int:
        self._forget_gone()
        return sum(each.bytes for each in (*self.loaded.values(), *self._leaving))

    def _forget_gone(self) -> None:
        self._leaving = [each for each in self._leaving if each.worker.is_alive]

    def _may_leave(self, kind: Kind) -> Iterator[Resident]:
        """Unused models, longest unused first. A completion does not take the place of a chat's model."""
        for each in sorted(self.loaded.values(), key=lambda each: each.used_s):
            if not each.users and (kind == "chat" or not each.is_kept_for_chats):
                yield each

    def _used(self, resident: Resident, kind: Kind | None) -> None:
        resident.used_s = monotonic()
        if kind == "chat":
            resident.chat_s = resident.used_s

    def _keep(self, resident: Resident) -> None:
        if resident.expires is not None:
            resident.expires.cancel()
        resident.expires = resident.expires_at = None

    def _expire_later(self, resident: Resident) -> None:
        self._keep(resident)
        seconds = resident.keep_alive_s
        if seconds is None or seconds < 0:
            return
        resident.expires_at = time() + seconds
        resident.expires = asyncio.get_running_loop().call_later(seconds, self._expire, resident)

    def _expire(self, resident: Resident) -> None:
        if self.loaded.get(resident.offer.name) is resident and not resident.users:
            task = asyncio.ensure_future(self.unload(resident.offer.name))
            self._expiring.add(task)
            task.add_done_callback(self._expiring.discard)


def _models(pipeline: Pipeline) -> list[Model]:
    return [model for model in (pipeline.target, pipeline.draft_model) if model is not None]


def _failed(offer: Offer, error: BaseException) -> Refusal:
    reason = str(error) if isinstance(error, EdgespecError) else type(error).__name__
    found = refusal(error)
    kind = type(found) if isinstance(found, NoModel | Forbidden) else Unavailable
    what = f"{offer.name} cannot be loaded"
    return kind(f"{what}: {without_folders(reason)}", told=f"{what}: {reason}")


def _expected(offer: Offer) -> int:
    """Memory of a model that is not loaded yet: at least its files, where their size is known."""
    return 0 if (size := offer.size_bytes) is None else size
