"""Plans: the ways in which a pair can run on this machine. An option that the user gave restricts them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from edgespec.backends.cores import kind_of
from edgespec.load_options import LoadOptions
from edgespec.machine.devices import AUTO
from edgespec.types import Backend, Schedule

LOOKUPS = "ngram"
"""what drafts in a plan without a draft model"""
ENGINES = {"openvino": "OpenVINO", "onnxruntime": "ONNX Runtime"}


@dataclass(frozen=True)
class Place:
    """A device, and an engine that runs models on it."""

    device: str
    backend: Backend

    def __str__(self) -> str:
        return f"{ENGINES[self.backend]} on {self.device}"


@dataclass(frozen=True)
class Plan:
    """target, draft_model: where each runs; draft_model None: there is none, or a head, which has its own place.
    draft: as ``load`` takes it; None: all drafters of the pair."""

    target: Place
    draft_model: Place | None = None
    schedule: Schedule = "synchronous"
    draft: str | None = None

    def applied(self, options: LoadOptions) -> LoadOptions:
        """The options of ``load`` that follow this plan. What the user gave stays."""
        device = None if options.draft_device == AUTO else options.draft_device
        backend = options.draft_backend
        if self.draft_model is not None:
            device = device or (self.draft_model.device if self.draft_model.device != self.target.device else None)
            backend = backend or (self.draft_model.backend if self.draft_model.backend != self.target.backend else None)
        return replace(
            options,
            device=self.target.device,
            backend=self.target.backend,
            schedule=self.schedule,
            draft=options.draft or self.draft,
            draft_device=device,
            draft_backend=backend,
        )

    def __str__(self) -> str:
        if self.draft_model is None:
            return f"{self.target}, drafts: {self.draft or 'auto'}"
        where = "beside it" if self.draft_model == self.target else f"with {self.draft_model}"
        return f"{self.target}, drafts: {self.draft or 'auto'}, draft model {where}, {self.schedule}"


def plans(options: LoadOptions, places: Sequence[Place], *, has_model: bool, is_head: bool) -> list[Plan]:
    """All plans that the options allow: those of a place together, its simplest first.

    places: of this machine, the CPU's first. has_model: a draft model or head drafts, unless told otherwise.
    """
    found: list[Plan] = []
    for target in _allowed(places, options.device, options.backend):
        if has_model:
            found += [Plan(target, draft=options.draft)] if is_head else _with_model(options, target, places)
        if (options.draft is None or not has_model) and options.schedule != "overlapped":
            found.append(Plan(target, draft=options.draft or (LOOKUPS if has_model else None)))
    return found


def _with_model(options: LoadOptions, target: Place, places: Sequence[Place]) -> Iterator[Plan]:
    """The draft model in the target's place first."""
    around = [target, *(place for place in places if place != target)]
    schedules: tuple[Schedule, ...] = ("synchronous", "overlapped")
    for place in _allowed(around, options.draft_device or AUTO, options.draft_backend):
        for schedule in schedules:
            if options.schedule not in (None, schedule):
                continue
            if schedule == "overlapped" and (options.draft_from is not None or options.num_draft_tokens == 0):
                continue  # the draft model drafts alone, and always
            if schedule == "overlapped" and place.device == target.device != "CPU":
                continue  # only all cores of a CPU can be shared
            if "CPU" in (place.device, target.device) and (kind_of(place.device) or kind_of(target.device)):
                continue  # some cores beside all of them
            yield Plan(target, place, schedule, options.draft)


def _allowed(places: Sequence[Place], device: str, backend: Backend | None) -> list[Place]:
    """Those that the user's words leave. A device that is not listed is taken at the user's word."""
    found = [place for place in places if device in (AUTO, place.device) and backend in (None, place.backend)]
    return found or ([Place(device, backend or "openvino")] if device != AUTO else [])
