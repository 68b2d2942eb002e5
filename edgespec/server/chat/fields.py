"""What the store keeps for the page as JSON: options of a chat, facts of an answer. Both may come from a file of
another program, so only known fields of the right type get in: the page has to be able to show them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from edgespec.sampling_params import SamplingParams

Count = Annotated[int, Meta(ge=0, le=2**53)]
"""JavaScript has no larger whole numbers"""


class Options(msgspec.Struct, omit_defaults=True):
    """How a chat samples; see ``SamplingParams``."""

    model: str | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: Count = 0
    repetition_penalty: float = 1.0
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] | None = None
    max_tokens: Annotated[int, Meta(ge=1, le=2**31)] | None = None

    def sampling(self) -> SamplingParams:
        """Raises SettingError."""
        names = ("temperature", "top_p", "top_k", "repetition_penalty", "seed")
        return SamplingParams(**{name: getattr(self, name) for name in names})


class _Timings(msgspec.Struct):
    prompt_n: Count = 0
    prompt_ms: float = 0.0
    predicted_n: Count = 0
    predicted_ms: float = 0.0
    predicted_per_second: float = 0.0
    draft_n: Count = 0
    draft_n_accepted: Count = 0


class _Facts(msgspec.Struct, omit_defaults=True):
    model: str | None = None
    finish: str | None = None
    timings: _Timings | None = None
    speedup: float | None = None
    why: list[str] = []
    context: Count | None = None
    context_length: Count | None = None
    exact: bool = False
    stopped: bool = False
    edited: bool = False
    error: str | None = None
    drafted: list[tuple[Count, str]] = []


def options_of(fields: Mapping[str, Any]) -> Options:
    """Raises msgspec.ValidationError, SettingError, RecursionError."""
    found = msgspec.convert(fields, Options)
    found.sampling()
    return found


def kept(fields: Options) -> dict[str, Any]:
    """For the store: what differs from the default."""
    return dict(msgspec.to_builtins(fields))


def facts_of(fields: object) -> dict[str, Any]:
    """Facts of a foreign file. Those that the page could not show are left out."""
    try:
        return dict(msgspec.to_builtins(msgspec.convert(fields, _Facts)))
    except (msgspec.ValidationError, RecursionError):
        return {"finish": "stop"}
