"""A service from what a user names: models, options of loading, and a share of this machine's memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgespec.errors import SettingError
from edgespec.server.offers import fetcher, offers
from edgespec.server.residents import Residents
from edgespec.server.sequences import Sequences
from edgespec.server.service import Service

_SHARE = 0.6
"""of the memory of this machine, for models and their caches"""
_SAVED = 1 / 8
"""of that, for saved prefixes of prompts"""


def build(
    refs: Sequence[str],
    options: Mapping[str, Any],
    *,
    memory_gb: float | None = None,
    keep_alive_s: float | None = 300.0,
    longest_queue: int = 64,
    time_limit_s: float = 600.0,
) -> tuple[Service, list[str]]:
    """The service, and the names of the models to load first. Loads nothing yet. Raises SettingError.

    options: of ``load``. memory_gb: see ``budget_bytes``. The others: see ``Offer`` and ``Service``.
    """
    budget = budget_bytes(memory_gb)
    known = offers(refs, options, keep_alive_s=keep_alive_s)
    residents = Residents(known, Sequences(int(budget * _SAVED)), budget_bytes=int(budget * (1 - _SAVED)))
    service = Service(residents, time_limit_s=time_limit_s, longest_queue=longest_queue)
    service.is_ready = False
    service.fetch = fetcher(options, keep_alive_s=keep_alive_s)
    return service, list(known)[: len(refs)]


def budget_bytes(memory_gb: float | None) -> int:
    """Of models and caches together; None is a share of all memory. Raises SettingError."""
    import psutil

    if memory_gb is None:
        return int(psutil.virtual_memory().total * _SHARE)
    if not 0 < memory_gb < 1e6:
        raise SettingError("memory", got=memory_gb, allowed="GB, above 0", setting="memory")
    return int(memory_gb * 1e9)
