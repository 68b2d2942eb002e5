"""What the page shows of the models that have a short name: licence, size, memory, speed here, and their download.

A speed is that of the answers which are in the chats. Without one it is estimated: a token takes as long as to read
the weights, which is measured for the models that have answered.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

import msgspec

from edgespec.hub import catalog, mirrors
from edgespec.hub.sizes import bytes_of
from edgespec.hub.stored import unfinished_bytes
from edgespec.server.service import Service


class _Timings(msgspec.Struct):
    predicted_ms: float
    predicted_per_second: float


class _Answered(msgspec.Struct):
    """Facts of an answer that was written on this machine; those of another machine come without ``weights_bytes``."""

    model: str
    weights_bytes: int
    timings: _Timings
    speedup: float | None = None


class Speeds:
    """Tokens a second, from the facts of answers."""

    def __init__(self, facts: Iterable[Mapping[str, Any]]) -> None:
        by_model: dict[str, list[_Answered]] = {}
        for each in facts:
            with suppress(msgspec.ValidationError):
                answered = msgspec.convert(each, _Answered)
                by_model.setdefault(answered.model, []).append(answered)
        self._measured = {
            name: _mean((a.timings.predicted_per_second, a) for a in all_) for name, all_ in by_model.items()
        }
        plain = [
            (all_[0].weights_bytes, _mean((a.timings.predicted_per_second / a.speedup, a) for a in all_ if a.speedup))
            for all_ in by_model.values()
        ]
        self._plain = [(weights_bytes, speed) for weights_bytes, speed in plain if weights_bytes and speed]

    def of(self, name: str, weights_bytes: int | None) -> dict[str, Any] | None:
        """Of a model here. is_measured: else it is an estimate, without drafts, from the measured model whose size is
        nearest. None: nothing has answered yet."""
        if speed := self._measured.get(name):
            return {"tok_per_s": speed, "is_measured": True}
        if not weights_bytes or not self._plain:
            return None
        near, speed = min(self._plain, key=lambda ran: abs(math.log(ran[0] / weights_bytes)))
        return {"tok_per_s": speed * near / weights_bytes, "is_measured": False}


def listed(service: Service, speeds: Speeds) -> list[dict[str, Any]]:
    """The models that can be picked, the default one first."""
    default = catalog.KNOWN[0]
    return [
        _entry(service, speeds, default.name, default.licence, None),
        *(_entry(service, speeds, name, model.licence, model) for name, model in catalog.load().models.items()),
    ]


def _entry(service: Service, speeds: Speeds, name: str, licence: str, model: catalog.Model | None) -> dict[str, Any]:
    """model: its entry on the list; the default one has none."""
    terms = catalog.load().licences[licence]
    offer = service.residents.offers.get(name)
    size = offer.size_bytes if offer else bytes_of(name)
    return {
        "name": name,
        "bytes": size,
        "licence": licence,
        "use": terms.use,
        "url": terms.url,
        "here": service.residents.has(name),
        "drafts": model is None or bool(model.draft or model.trained_draft),
        "mirror": mirrors.find(name) is not None,
        "memory": _memory(service, name, size, model),
        "speed": speeds.of(name, size),
        "download": _download(service, name, model),
    }


def _memory(service: Service, name: str, size: int | None, model: catalog.Model | None) -> dict[str, Any] | None:
    """Bytes that it takes while it is loaded; before that, at least those of the weights."""
    resident = service.residents.loaded.get(name)
    if resident is not None and resident.pipeline is not None:
        return {"bytes": resident.bytes, "is_measured": True}
    if size is None:
        return None
    draft = catalog.find(model.draft) if model and model.draft else None
    return {"bytes": size + ((draft.bytes if draft else None) or 0), "is_measured": False}


def _download(service: Service, name: str, model: catalog.Model | None) -> dict[str, Any] | None:
    """How far it is; None: there is none."""
    fetches = service.fetches
    if (running := fetches.running.get(name)) is not None:
        return {"state": "running", "bytes": running.n, "total": running.total, "failure": ""}
    failure = fetches.failures.get(name, "")
    had = unfinished_bytes(model.sha256) if model and model.sha256 else 0
    if not failure and not had:
        return None
    return {
        "state": "failed" if failure else "paused",
        "bytes": had,
        "total": model and model.bytes,
        "failure": failure,
    }


def _mean(speeds: Iterable[tuple[float, _Answered]]) -> float | None:
    """Over the time that each was kept up."""
    every = [(speed, answered.timings.predicted_ms) for speed, answered in speeds]
    total = sum(ms for _, ms in every)
    return sum(speed * ms for speed, ms in every) / total if total > 0 else None
