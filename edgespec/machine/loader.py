"""Loads a model on this machine: fetch it, open it on its engine, limit it to exact widths, measure its forwards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, get_args

from edgespec import cache
from edgespec.adaptive.calibration import Beside
from edgespec.adaptive.draft_cost import CallCost
from edgespec.adaptive.forward_cost import ForwardCost
from edgespec.backends.cores import Threads
from edgespec.backends.exact_widths import ROWS_NEEDED, guess_exact_widths
from edgespec.backends.onnx import providers
from edgespec.backends.open import Opening, is_ready, open_model
from edgespec.bundle import Bundle, ModelFile, OnnxForm
from edgespec.errors import BackendError, BundleError, DeviceError, SettingError
from edgespec.hub.resolve import model_path
from edgespec.machine import engine_choice, engine_comparison
from edgespec.machine.devices import require_device
from edgespec.machine.engine_comparison import Comparison, Engine
from edgespec.machine.measure_forwards import call_seconds, exact_widths, forward_times
from edgespec.machine.progress_line import ProgressLine
from edgespec.types import Backend, KVPath, Needs, Numerics

if TYPE_CHECKING:
    from pathlib import Path

    from edgespec.backends.engine_model import PaddedModel
    from edgespec.backends.openvino.static_graph import OpenVINOStaticGraph


_LOADED = 0.2
"""of a comparison's work: to load one engine"""
_BOTH_ENGINES = 3
"""Resident memory of a model on both engines at once, in sizes of its weights: 1.8 and 1.2 (docs/log/engines.md)"""


class Machine:
    """Loads models for one pipeline.

    capacity: most rows of KV cache. progress: report slow steps on stderr. threads: of target and draft, if both run at
    once on the CPU.
    """

    def __init__(
        self, capacity: int, progress: bool, accept_licence: bool = False, threads: Threads | None = None
    ) -> None:
        self.capacity = capacity
        self.progress = progress
        self.accept_licence = accept_licence
        self._threads = threads
        self.kv: KVPath | None = None
        """where OpenVINO keeps keys and values; None: the device's own way"""
        self.brief = False
        """for a plan that may not be taken: what is not known of its models is guessed in seconds, and not stored"""
        self._say = ProgressLine(progress)

    def model(
        self,
        bundle: Bundle,
        model: ModelFile,
        device: str,
        *,
        backend: Backend = "openvino",
        numerics: Numerics | None = None,
        is_draft: bool = False,
        context_length: int | None = None,
        needs: Needs | None = None,
    ) -> PaddedModel:
        """needs: what it is compiled for."""
        capacity = min(self.capacity, context_length or self.capacity)
        graph = self._path(bundle, model)
        if is_draft and is_ready(graph):  # whatever its target runs on
            backend = engine_choice.of_ready(graph, None, device, _way_out(model))
        form = self._form(bundle, model) if backend == "onnxruntime" else None
        # The search for exact widths needs this room, even if the context is limited to less afterwards.
        rows = max(capacity, ROWS_NEEDED)
        opening = self._opening(
            bundle, model, graph, form, device, numerics, rows, needs=needs or Needs(), is_draft=is_draft
        )
        try:
            loaded = open_model(backend, opening)
        except (*engine_choice.REFUSALS, DeviceError) as error:
            if not is_draft or is_ready(graph) or (backend == "openvino" and device == "CPU"):
                raise
            # A draft may run on another engine than its target, and its text does not depend on where.
            if device != "CPU":
                self._say(f"the draft runs on the CPU: {error}")
            loaded = open_model("openvino", replace(opening, device="CPU"))
        if loaded.vocab_size != model.vocab_size:
            raise BundleError(
                f"{graph} does not fit its manifest: logits", got=loaded.vocab_size, allowed=model.vocab_size
            )
        if is_draft and capacity > 2:  # the first forwards repack the weights: do it while the target compiles
            loaded.forward([0, 0])
            loaded.forward([0])
            loaded.cache.reset()
        if loaded.numerics == "exact":
            loaded.set_exact_widths(exact_widths(loaded, self._say, brief=self.brief))
        loaded.cache.capacity = min(capacity, loaded.cache.capacity)
        return loaded

    def head(self, bundle: Bundle, model: ModelFile, device: str = "CPU") -> OpenVINOStaticGraph:
        """A drafting head. It runs on an OpenVINO device, whatever its target runs on."""
        from edgespec.backends.openvino.runtime import core
        from edgespec.backends.openvino.static_graph import OpenVINOStaticGraph

        if providers.is_other(device):
            raise SettingError("a drafting head runs on OpenVINO", got=f"device {device}", setting="draft_device")
        path, device = self._path(bundle, model), require_device(device)
        try:
            return OpenVINOStaticGraph(core(), path, device, self._say)
        except (BackendError, DeviceError) as error:
            if device == "CPU":
                raise
            self._say(f"the head runs on the CPU: {error}")
            return OpenVINOStaticGraph(core(), path)

    def backend(
        self,
        bundle: Bundle,
        device: str,
        numerics: Numerics | None,
        asked: str | None,
        trial: Callable[[Backend], Engine],
        layers: tuple[int, ...] = (),
    ) -> Backend:
        """The engine for a target: the one asked for, else EDGESPEC_BACKEND, else the faster one on this CPU. A ready
        ONNX model runs on one engine only.

        trial: loads the target and its drafters on an engine, to be timed (see ``for_trial``).
        layers: those whose hidden states the model is compiled to return.
        """
        target = bundle.manifest.target
        graph = self._path(bundle, target)
        if is_ready(graph):
            return engine_choice.of_ready(graph, asked, device, _way_out(target))
        return engine_choice.named(asked, device) or engine_choice.faster(
            graph,
            numerics,
            lambda: self._compared(bundle, numerics, trial, layers),
            has_form=_is_current(target.onnx),
            layers=layers,
        )

    def costs(self, model: PaddedModel) -> ForwardCost:
        """Measured once, with nothing else running, and then stored."""
        # Only exact numerics promises that padding changes nothing.
        times = forward_times(model, self._say, brief=self.brief)
        return ForwardCost(times, pins_width=model.numerics == "exact")

    def draft_costs(self, draft: PaddedModel, target: PaddedModel, target_s: ForwardCost) -> ForwardCost:
        """Measured in turns with the target, as the draft will run."""
        beside = _forward_of(target, target_s)
        # A drawn draft depends on the last digits of the draft's logits. They must not depend on its earlier forwards.
        times = forward_times(draft, self._say, beside=beside, target=target, brief=self.brief)
        costs = ForwardCost(times, pins_width=False)
        target.cache.reset()
        return costs

    def call_costs(self, head: OpenVINOStaticGraph, target: PaddedModel, target_s: ForwardCost) -> CallCost:
        """Like ``draft_costs``, of a drafting head."""
        beside = _forward_of(target, target_s)
        seconds = call_seconds(head, self._say, beside=beside, target=target, brief=self.brief)
        target.cache.reset()
        return CallCost(seconds)

    def for_trial(
        self, bundle: Bundle, numerics: Numerics | None, backend: Backend, layers: tuple[int, ...] = ()
    ) -> PaddedModel:
        """A target to be timed. Finding out which widths are exact takes longer than all of a comparison. So here it is
        a guess, and found for the chosen engine only."""
        opening = self._trial_opening(bundle, numerics, layers)
        model = open_model(backend, opening)
        if model.numerics == "exact" and (widths := guess_exact_widths(model)):
            model.set_exact_widths(widths)
        return model

    def _compared(
        self,
        bundle: Bundle,
        numerics: Numerics | None,
        trial: Callable[[Backend], Engine],
        layers: tuple[int, ...],
    ) -> Comparison:
        """Time each engine with the target of a bundle, in turns."""
        if reason := engine_choice.broken():
            raise BackendError(reason)
        from edgespec.backends.onnx.form import make_form
        from edgespec.backends.onnx.weights import NoONNXForm

        name, kind = bundle.manifest.name, numerics or "exact"
        opening = self._trial_opening(bundle, numerics, layers)
        self._require_room_for_both(opening.graph)
        try:
            if opening.form is None:
                # not part of the time to load
                make_form(opening.graph, opening.context_length, opening.name, self._say)
        except NoONNXForm:
            return Comparison(name, kind, {})
        try:
            what, engines = "measuring which engine is faster (one-time)", {}
            self._say(what, 0.0)
            for number, backend in enumerate(reversed(get_args(Backend)), 1):
                engines[backend] = trial(backend)
                self._say(what, number * _LOADED)
            loaded = len(engines) * _LOADED
            found = engine_comparison.compare(
                name, kind, engines, lambda share: self._say(what, loaded + share * (1 - loaded))
            )
        except engine_choice.REFUSALS as error:
            self._say(f"the engines cannot be compared, so OpenVINO runs: {error}")
            raise
        engines.clear()  # their memory
        self._say(f"{found.faster} is taken: {found}")
        if found.faster == "onnxruntime" and kind == "exact":
            try:
                exact_widths(open_model("onnxruntime", opening), self._say)
            except BackendError:
                return Comparison(name, kind, {})
        return found

    def _require_room_for_both(self, graph: Path) -> None:
        """Raises BackendError where two engines at once might fill the memory."""
        import psutil

        need, free = _BOTH_ENGINES * graph.with_suffix(".bin").stat().st_size, psutil.virtual_memory().available
        if free < need:
            sizes = f"{need / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free"
            self._say(f"no memory to compare the engines, so OpenVINO runs: {sizes}")
            raise BackendError("no memory to compare the engines", got=sizes)

    def _trial_opening(self, bundle: Bundle, numerics: Numerics | None, layers: tuple[int, ...]) -> Opening:
        target = bundle.manifest.target
        path, form = self._path(bundle, target), self._form(bundle, target)
        return self._opening(bundle, target, path, form, "CPU", numerics, ROWS_NEEDED, needs=Needs(layers))

    def _opening(
        self,
        bundle: Bundle,
        model: ModelFile,
        graph: Path,
        form: Path | None,
        device: str,
        numerics: Numerics | None,
        rows: int,
        *,
        needs: Needs,
        is_draft: bool = False,
    ) -> Opening:
        """rows: of KV cache."""
        return Opening(
            graph=graph,
            form=form,
            device=require_device(device),
            numerics=numerics,
            capacity=rows,
            context_length=bundle.manifest.generation.context_length,
            layers=needs.layers,
            trees=needs.trees,
            is_draft=is_draft,
            say=self._say.once,
            name=bundle.name if model == bundle.manifest.target else f"the draft of {bundle.name}",
            threads=None if self._threads is None else self._threads.draft if is_draft else self._threads.target,
            kv=self.kv,
        )

    def _path(self, bundle: Bundle, model: ModelFile) -> Path:
        return model_path(bundle, model, accept_licence=self.accept_licence, progress=self.progress)

    def _form(self, bundle: Bundle, model: ModelFile) -> Path | None:
        """The ONNX form in a bundle, if it is of the version that this edgespec runs. Raises BundleError if it is not,
        and there is nothing to make another one from."""
        form, version = model.onnx, cache.VERSIONS["onnx_form"]
        if form is None:
            return None
        if _is_current(form):
            return bundle.form_path(form)
        what = f"the ONNX form of {bundle.name} is for another edgespec: version"
        if model.file is None:
            newer = "upgrade edgespec" if form.version > version else "export the model again"
            raise BundleError(what, got=form.version, allowed=version, hint=newer)
        self._say(f"{what} {form.version}, not {version}. Another one is made in the cache")
        return None


def _forward_of(target: PaddedModel, target_s: ForwardCost) -> Beside:
    """The narrowest forward of a target, for a draft to take turns with."""

    def forward() -> None:
        target.cache.reset()
        target.forward([0])  # padded to the narrowest width

    return Beside(forward, target_s.seconds(target.min_width, 0))


def _is_current(form: OnnxForm | None) -> bool:
    return form is not None and form.version == cache.VERSIONS["onnx_form"]


def _way_out(model: ModelFile) -> str | None:
    """What to do if a model that is there in ONNX alone is wanted on OpenVINO."""
    return "export the model again with --format both" if model.onnx is not None else None
