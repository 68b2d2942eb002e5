"""No drafter: the loop becomes plain decoding."""

from __future__ import annotations

from collections.abc import Sequence

from edgespec.protocols import Drafter
from edgespec.types import Allowed, Draft


class NoDrafter(Drafter):
    """Proposes nothing, so the speculative loop becomes plain decoding."""

    name = "none"

    def propose(self, context: Sequence[int], k: int, allowed: Allowed | None = None) -> Draft:
        return Draft()
