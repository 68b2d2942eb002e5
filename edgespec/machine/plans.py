"""Plans: the ways in which a pair can run on this machine. An option that the user gave restricts them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from edgespec.load_options import LoadOptions
from edgespec.machine.devices import AUTO
from edgespec.types import Backend, Schedule

LOOKUPS = "ngram"
"""what drafts in a plan without a draft model"""


@dataclass(frozen=True)
class Plan:
    """backend: of the target. draft: as ``load`` takes it; None: all drafters of the pair, one of them perhaps a model.
    draft_device: of the draft model; None: there is none."""

    device: str
    backend: Backend
    schedule: Schedule = "synchronous"
    draft: str | None = None
    draft_device: str | None = None

    def applied(self, options: LoadOptions) -> LoadOptions:
        """The options of ``load`` that follow this plan. What the user gave stays."""
        return replace(
            options,
            device=self.device,
            backend=self.backend,
            schedule=self.schedule,
            draft=self.draft if options.draft is None else options.draft,
            draft_device=options.draft_device or (self.draft_device if self.draft_device != self.device else None),
        )

    def __str__(self) -> str:
        engine = "OpenVINO" if self.backend == "openvino" else "ONNX Runtime"
        beside = f", draft model on {self.draft_device}, {self.schedule}" if self.draft_device else ""
        return f"{engine} on {self.device}, drafts {self.draft or 'auto'}{beside}"


def plans(
    options: LoadOptions, devices: Sequence[str], engines: Sequence[Backend], *, has_model: bool, can_overlap: bool
) -> list[Plan]:
    """All plans that the options allow. devices: of OpenVINO, the CPU first. engines: those that run on the CPU.

    has_model: a draft model or head drafts, unless told otherwise. can_overlap: it can run while the target does.
    """
    found = []
    for device in devices if options.device == AUTO else [options.device]:
        for backend in engines if device == "CPU" else ("openvino",):
            if options.backend not in (None, backend):
                continue
            found += list(_with_model(options, device, backend, devices, can_overlap)) if has_model else []
            if (options.draft is None or not has_model) and options.schedule != "overlapped":
                draft = options.draft or (LOOKUPS if has_model else None)
                found.append(Plan(device, backend, draft=draft))
    return list(dict.fromkeys(found))


def _with_model(
    options: LoadOptions, device: str, backend: Backend, devices: Sequence[str], can_overlap: bool
) -> Iterator[Plan]:
    schedules: tuple[Schedule, ...] = ("synchronous", "overlapped") if can_overlap else ("synchronous",)
    for draft_device in devices if options.draft_device is None else [options.draft_device]:
        for schedule in schedules:
            if options.schedule in (None, schedule):
                yield Plan(device, backend, schedule, options.draft, draft_device)
