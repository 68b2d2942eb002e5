"""The figures of the simulator: ``figures.toml``, read once and checked."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from edgespec.errors import SettingError
from edgespec.manifest import Strict

FILE = Path(__file__).with_name("figures.toml")
Basis = Literal["measured", "published", "derived", "assumed"]
Schedule = Literal["synchronous", "overlapped"]
T = TypeVar("T")


class Figure(Strict, frozen=True):
    """A number, and how it is known. source: a key of ``Figures.sources``."""

    value: float
    basis: Basis
    source: str | None = None
    note: str = ""


class Device(Strict, frozen=True):
    """A device of a chip. The file's first lines describe the fields."""

    gb_per_s: Figure
    tops: Figure
    call_ms: Figure
    loop_ms: Figure
    row_share: Figure
    watts: Figure


class Chip(Strict, frozen=True):
    """bus_share: of ``bus_gb_per_s``, what devices reach that read at once. same_cores: the devices are engines on the
    same cores, so only one of them runs at a time."""

    title: str
    bus_gb_per_s: Figure
    bus_share: Figure
    devices: dict[str, Device]
    same_cores: bool = False

    @property
    def shared_gb_per_s(self) -> float:
        return self.bus_gb_per_s.value * self.bus_share.value


class ModelSize(Strict, frozen=True):
    """What a forward of a model reads and computes. kv_kb: of a token in the cache."""

    params_b: float
    weight_gb: Figure
    kv_kb: float


class Forwards(Strict, frozen=True):
    """Measured milliseconds of forwards by width, behind a short context."""

    chip: str
    device: str
    model: str
    widths: tuple[int, ...]
    ms: tuple[float, ...]
    source: str


class Pair(Strict, frozen=True):
    target: str
    draft: str
    acceptance: Figure


class Case(Strict, frozen=True):
    """A published result. Either of a chip with its models, or of forwards whose times were published too.

    accepted: accepted / drafted. acceptance: chance of a token if all before it are right. miss: why it is not met.
    """

    name: str
    source: str
    chip: str | None = None
    target: str | None = None
    target_device: str | None = None
    draft: str | None = None
    draft_device: str | None = None
    target_ms: float | None = None
    draft_ms: float | None = None
    schedule: Schedule = "synchronous"
    k: int = 0
    accepted: float | None = None
    acceptance: float | None = None
    waits_for: int = 0
    round_ms: float = 0.0
    fitted: bool = False
    tok_per_s: float | None = None
    speed_up: float | None = None
    miss: str = ""


class Unsimulated(Strict, frozen=True):
    """A published result that lacks what a simulation needs."""

    name: str
    source: str
    why: str


class Figures(Strict, frozen=True):
    """The whole file."""

    sources: dict[str, str]
    chips: dict[str, Chip]
    forwards: tuple[Forwards, ...]
    models: dict[str, ModelSize]
    pairs: dict[str, Pair]
    cases: tuple[Case, ...]
    unsimulated: tuple[Unsimulated, ...]

    def chip(self, name: str) -> Chip:
        return _named("chip", name, self.chips)

    def pair(self, name: str) -> Pair:
        return _named("pair", name, self.pairs)


@cache
def figures() -> Figures:
    return msgspec.toml.decode(FILE.read_bytes(), type=Figures)


def _named(what: str, name: str, known: dict[str, T]) -> T:
    found = known.get(name.strip().lower())
    if found is None:
        raise SettingError(f"no such {what}", got=name, allowed=", ".join(known), setting=what)
    return found
