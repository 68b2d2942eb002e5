"""Models on this machine: compiled by an engine, and what was measured of them, which is remembered."""

from __future__ import annotations

import os
import shutil
import sys
from importlib.metadata import version as version_of
from pathlib import Path
from threading import Lock
from time import perf_counter
from typing import TYPE_CHECKING, get_args

from edgespec import cache, files
from edgespec.adaptive import calibration
from edgespec.adaptive.calibration import Beside, ForwardTimes
from edgespec.adaptive.forward_cost import ForwardCost
from edgespec.backends.exact_widths import ROWS_NEEDED, ExactWidths, find_exact_widths
from edgespec.bundle import Bundle, ModelFile
from edgespec.errors import BackendError, BundleError, ConversionError, SettingError, printable, wrap_errors
from edgespec.hub.resolve import model_path
from edgespec.machine import engine_choice, measurements
from edgespec.types import Backend, Numerics

if TYPE_CHECKING:
    from edgespec.backends.engine_model import PaddedModel


_TIMES = 4
"""raise it when a change of ours makes remembered times untrue"""


class Machine:
    """ONNX Runtime is imported when it is first compared or used.

    capacity: rows of KV cache at most. progress: say on stderr what takes long.
    """

    def __init__(self, capacity: int, progress: bool, accept_licence: bool = False) -> None:
        from edgespec.backends.openvino.runtime import ov

        self.core = ov.Core()
        self.capacity = capacity
        self.progress = progress
        self.accept_licence = accept_licence
        self._writing = Lock()  # target and draft are loaded side by side
        self._cpu = str(self.core.get_property("CPU", "FULL_DEVICE_NAME"))

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
        layers: tuple[int, ...] = (),
    ) -> PaddedModel:
        """layers: whose hidden states it is compiled to return; on OpenVINO."""
        from edgespec.backends.openvino.graph import available

        device = available(self.core, device)
        capacity = min(self.capacity, context_length or self.capacity)
        xml = model_path(bundle, model, accept_licence=self.accept_licence, progress=self.progress)
        # The search for exact widths needs some room, whatever the context is limited to afterwards.
        room = max(capacity, ROWS_NEEDED)
        loaded: PaddedModel | None = None
        if backend == "onnxruntime":
            try:
                loaded = self._on_onnxruntime(xml, numerics, is_draft, room, bundle.manifest.generation.context_length)
            except engine_choice.REFUSALS:
                if not is_draft:  # a draft may run on another engine than its target
                    raise
        loaded = loaded or self._on_openvino(xml, device, numerics, is_draft, room, layers)
        if loaded.vocab_size != model.vocab_size:
            raise BundleError(
                f"{xml} does not fit its manifest: logits", got=loaded.vocab_size, allowed=model.vocab_size
            )
        if is_draft and capacity > 2:  # the first forwards repack the weights: now, while the target is being compiled
            loaded.forward([0, 0])
            loaded.forward([0])
            loaded.cache.reset()
        if loaded.numerics == "exact":
            loaded.set_exact_widths(self._exact_widths(loaded, bundle.name))
        loaded.cache.capacity = capacity
        return loaded

    def backend(self, bundle: Bundle, device: str, numerics: Numerics | None, asked: str | None) -> Backend:
        """The engine for a target: the one asked for, else EDGESPEC_BACKEND, else what is faster here on CPU."""
        given = asked or os.environ.get("EDGESPEC_BACKEND") or None
        named = given if asked or not given else f"{given} (EDGESPEC_BACKEND)"
        if given not in (None, *get_args(Backend)):
            raise SettingError("backend", got=named, allowed=", ".join(get_args(Backend)))
        if given == "onnxruntime" and device != "CPU":
            raise SettingError(f"backend {named} runs on CPU only", got=f"device {device}", allowed="CPU")
        if given == "openvino" or device != "CPU":
            return "openvino"
        missing = engine_choice.missing()
        if given is None:
            faster = "openvino" if missing else self._faster(bundle, numerics)
            return "openvino" if faster == "openvino" or engine_choice.broken() else "onnxruntime"
        if missing or (missing := engine_choice.broken()):
            raise SettingError(f"backend {named} is not here", got=missing, hint="pip install 'edgespec[onnx]'")
        return "onnxruntime"

    def costs(self, model: PaddedModel) -> ForwardCost:
        """Measured once, with nothing else running, and then remembered."""
        # Only exact numerics say that padding changes nothing.
        return ForwardCost(self._times(model), pins_width=model.numerics == "exact")

    def draft_costs(self, draft: PaddedModel, target: PaddedModel, target_s: ForwardCost) -> ForwardCost:
        """In turns with its target, as it will run."""

        def forward() -> None:
            target.cache.reset()
            target.forward([0])  # padded to the narrowest width

        beside = Beside(forward, target_s.seconds(target.min_width, 0))
        # A drawn draft depends on the draft's last digits, which must not depend on what was asked of it before.
        costs = ForwardCost(self._times(draft, beside, target), pins_width=False)
        target.cache.reset()
        return costs

    def _exact_widths(self, model: PaddedModel, name: str) -> ExactWidths:
        file = measurements.place("exact_widths-3", model.fingerprint)

        def known() -> ExactWidths | None:
            found = measurements.read(file, ExactWidths)
            return found if found and found.most <= model.max_width else None

        def find() -> ExactWidths:
            engine = model.capabilities.backend
            self._say(f"finding out at which widths {name} is exact with {engine}, this once")
            return find_exact_widths(model)

        return measurements.remembered(file, known, find)

    def _times(
        self, model: PaddedModel, beside: Beside | None = None, target: PaddedModel | None = None
    ) -> ForwardTimes:
        """Measured for this model, machine and engine, now or earlier; beside its target, if it is a draft."""
        of_target = f"-{target.numerics}-{target.fingerprint}" if target else ""
        kind = f"forward_costs-{_TIMES}-{model.numerics}-{model.min_width}-{model.max_width}{of_target}"
        file = measurements.place(kind, model.fingerprint)

        def known() -> ForwardTimes | None:
            found = measurements.read(file, ForwardTimes)
            inside = found and model.min_width <= found.widths[0] and found.widths[-1] <= model.max_width
            return found if inside else None

        return measurements.remembered(file, known, lambda: self._measured(model, beside))

    def _on_openvino(
        self,
        xml: Path,
        device: str,
        numerics: Numerics | None,
        is_draft: bool,
        capacity: int,
        layers: tuple[int, ...],
    ) -> PaddedModel:
        from edgespec.backends.openvino.paged import OpenVINOPagedModel
        from edgespec.backends.openvino.settings import Settings

        settings = Settings.of_draft(device) if is_draft else Settings.make(device, numerics)
        # On CPU the engine's model cache saves nothing (docs/log/engines.md); on GPU it keeps compiled kernels.
        kernels = None if device.startswith("CPU") else cache.cache_dir() / "compiled"
        return OpenVINOPagedModel(self.core, xml, device, settings, capacity=capacity, layers=layers, cache_dir=kernels)

    def _on_onnxruntime(
        self, xml: Path, numerics: Numerics | None, is_draft: bool, capacity: int, longest: int
    ) -> PaddedModel:
        from edgespec.backends.onnx.session import OnnxRuntimeModel

        with wrap_errors(ConversionError, f"cannot keep an ONNX form in {cache.cache_dir()}"):
            folder = self._onnx_form(xml, longest)
        kind: Numerics = "fast" if is_draft else numerics or "exact"
        try:
            return OnnxRuntimeModel(folder, kind, capacity=capacity, cpu=self._cpu)
        except BackendError:  # damaged since it was written
            shutil.rmtree(folder, ignore_errors=True)
            return OnnxRuntimeModel(self._onnx_form(xml, longest), kind, capacity=capacity, cpu=self._cpu)

    def _onnx_form(self, xml: Path, longest: int) -> Path:
        """Folder of the ONNX form of a model that was made for ``longest`` rows: made once, and kept in the cache until
        the model changes. So is the reason if it has none; that there was no memory or no room is none."""
        from edgespec.backends.engine_model import fingerprint
        from edgespec.backends.onnx.check import TOKENS, check
        from edgespec.backends.onnx.graph import VERSION, write_onnx
        from edgespec.backends.onnx.weights import NoONNXForm
        from edgespec.backends.openvino.paged import OpenVINOPagedModel
        from edgespec.backends.openvino.settings import FULL_PRECISION, Settings

        weights = xml.with_suffix(".bin").stat()
        place = fingerprint([str(xml.resolve())])
        # How it was checked, too: a form that was refused in another precision may be right.
        contents = files.sha256(xml), files.sha256(xml.with_suffix(".bin"))
        key = fingerprint([VERSION, FULL_PRECISION, *contents, longest])
        folder = cache.cache_dir() / "onnx" / f"{place}-{key}"
        refusal = folder.with_suffix(".refused")
        if folder.is_dir():
            return folder
        with self._writing, cache.locked():
            if folder.is_dir():  # another process made it meanwhile
                return folder
            if refusal.is_file():
                raise NoONNXForm(refusal.read_text(encoding="utf-8"))
            for old in folder.parent.glob(f"{place}-*"):  # of this model as it was
                if old.is_dir():
                    shutil.rmtree(old, ignore_errors=True)
                else:
                    old.unlink()  # a reason
            self._say(f"writing {xml} as ONNX, this once")
            cache.require_space(3 * weights.st_size)
            try:
                with cache.staged(folder) as partial:
                    write_onnx(xml, partial, longest=longest)
                    ours = Settings.in_full_precision()
                    check(partial, OpenVINOPagedModel(self.core, xml, "CPU", ours, capacity=TOKENS))
            except NoONNXForm as reason:
                refusal.write_text(str(reason), encoding="utf-8")
                raise
        return folder

    def _faster(self, bundle: Bundle, numerics: Numerics | None) -> Backend:
        """Each engine's best time for a short answer, in turns. Remembered for these weights, engines and numerics."""
        from edgespec.backends.engine_model import fingerprint
        from edgespec.backends.onnx.graph import VERSION
        from edgespec.backends.openvino.settings import Settings

        xml = model_path(bundle, bundle.manifest.target, accept_licence=self.accept_licence, progress=self.progress)
        weights = xml.with_suffix(".bin").stat()
        if weights.st_size > engine_choice.LARGEST_BYTES:
            return "openvino"
        threads = self.core.get_property("CPU", "INFERENCE_NUM_THREADS")
        versions = (VERSION, _TIMES, self.core.get_versions("CPU")["CPU"].build_number, version_of("onnxruntime"))
        identity = (xml.stat().st_size, weights.st_size, weights.st_mtime_ns, self._cpu, threads, numerics or "exact")
        key = fingerprint([*versions, *identity, Settings.make("CPU", numerics).properties])
        file = engine_choice.place(key)
        try:
            return measurements.remembered(
                file, lambda: engine_choice.remembered(file), lambda: self._compared(bundle, numerics)
            ).faster
        except engine_choice.REFUSALS:  # nothing to remember: next time there may be room on the disk
            return "openvino"

    def _compared(self, bundle: Bundle, numerics: Numerics | None) -> engine_choice.Comparison:
        from edgespec.backends.onnx.weights import NoONNXForm

        if broken := engine_choice.broken():
            raise BackendError(broken)
        self._say("finding out which engine is faster on this CPU, this once")

        def load(backend: Backend) -> PaddedModel:
            model = self.model(bundle, bundle.manifest.target, "CPU", backend=backend, numerics=numerics)
            model.cache.capacity = engine_choice.ROWS_NEEDED
            return model

        name, kind = bundle.manifest.name, numerics or "exact"
        try:
            models = {backend: load(backend) for backend in reversed(get_args(Backend))}
        except NoONNXForm:
            return engine_choice.Comparison(name, kind, {"openvino": 0.0})
        found = engine_choice.compare(name, kind, models)
        self._say(str(found))
        return found

    def _measured(self, model: PaddedModel, beside: Beside | None) -> ForwardTimes:
        self._say(f"measuring forwards of the {'draft' if beside else 'target'}, this once")
        return _measured(model, beside)

    def _say(self, what: str) -> None:
        if self.progress:
            print(f"edgespec: {printable(what)}", file=sys.stderr)


def _measured(model: PaddedModel, beside: Beside | None) -> ForwardTimes:
    capacity, model.cache.capacity = model.cache.capacity, max(model.cache.capacity, calibration.ROWS_NEEDED)
    try:
        return calibration.measure(model, perf_counter, least=model.min_width, beside=beside)
    finally:
        model.cache.capacity = capacity
