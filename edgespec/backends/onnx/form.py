"""The ONNX form of a model: made from its IR once, and checked.

It lies in a bundle that was exported with it, or else in the cache as long as a model on this machine has its weights.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from threading import Lock

from edgespec import cache, files
from edgespec.backends.engine_model import fingerprint
from edgespec.backends.layer_states import NoSuchLayer
from edgespec.backends.onnx import check, form_graph, graph, providers
from edgespec.backends.onnx.graph import MODEL_FILE
from edgespec.backends.onnx.session import OnnxRuntimeModel
from edgespec.backends.onnx.weights import NoONNXForm
from edgespec.backends.openvino.graph import NoPagedForm
from edgespec.backends.openvino.paged import OpenVINOPagedModel
from edgespec.backends.openvino.runtime import core, cpu_name
from edgespec.backends.openvino.settings import FULL_PRECISION, Settings
from edgespec.backends.openvino.stateful import StatefulModel
from edgespec.errors import BackendError, ConversionError, wrap_errors
from edgespec.manifest import data_files
from edgespec.types import Numerics

_SPACE_FACTOR = 3
"""bytes of disk that a form may take while it is written, in bytes of the IR's weights"""
_NAME = 12
"""characters of a fingerprint that tell what is old. What is used is told by a whole one."""
_WRITING = Lock()
"""target and draft are opened side by side"""


def space_for(xml: Path) -> int:
    """Bytes of disk that writing the form of an IR may take."""
    return _SPACE_FACTOR * xml.with_suffix(".bin").stat().st_size


def write_form(xml: Path, folder: Path, *, context_length: int, shares_weights: bool = False) -> None:
    """Write the form of an IR into a folder, and compare the two. See ``graph.write_onnx``. Raises NoONNXForm."""
    graph.write_onnx(xml, folder, longest=context_length, shares_weights=shares_weights)
    check.check(folder, _reference(xml))


def open_bundled(
    path: Path,
    ir: Path | None,
    numerics: Numerics,
    *,
    capacity: int,
    layers: tuple[int, ...] = (),
    threads: int | None = None,
    device: str = providers.CPU,
) -> OnnxRuntimeModel:
    """The model of the form in a bundle, which is checked first. ir: the .xml beside it, if there is one. layers: whose
    hidden states it returns. device: of ``providers``.

    Raises BackendError: it is damaged, or is no form.
    """
    allowed = [*data_files(path), *(data_files(ir) if ir is not None else ())]
    return OnnxRuntimeModel(
        path.parent,
        numerics,
        capacity=capacity,
        layers=layers,
        threads=threads,
        cpu=cpu_name(),
        file=path.name,
        data=form_graph.read_form(path, allowed),
        hint=form_graph.AGAIN,
        device=device,
    )


def open_form(
    xml: Path,
    numerics: Numerics,
    *,
    capacity: int,
    context_length: int,
    name: str,
    say: Callable[[str], None],
    layers: tuple[int, ...] = (),
    threads: int | None = None,
    device: str = providers.CPU,
) -> OnnxRuntimeModel:
    """The model of an IR on ONNX Runtime. A form that was damaged is made again. layers: whose hidden states it has.
    device: of ``providers``. name: of the model, for the line that says so.

    Raises NoONNXForm: it has none. Other ConversionErrors, and BackendErrors, say nothing of the model.
    """

    def opened(folder: Path) -> OnnxRuntimeModel:
        return OnnxRuntimeModel(
            folder, numerics, capacity=capacity, layers=layers, threads=threads, cpu=cpu_name(), device=device
        )

    folder = make_form(xml, context_length, name, say)
    try:
        return opened(folder)
    except NoSuchLayer:
        raise
    except BackendError:
        if device != providers.CPU:  # the device may be at fault, and not the form
            raise
        with _WRITING, cache.locked():
            if not cache.discard(folder):  # it is in use
                raise
        return opened(_folder_of(xml, context_length, name, say))


def make_form(xml: Path, context_length: int, name: str, say: Callable[[str], None]) -> Path:
    """The folder of an IR's form, which is written if it is not there. Raises what ``open_form`` does."""
    with wrap_errors(ConversionError, f"cannot keep an ONNX form in {cache.cache_dir()}"):
        return _folder_of(xml, context_length, name, say)


def _folder_of(xml: Path, context_length: int, name: str, say: Callable[[str], None]) -> Path:
    """Where the form lies. A reason for which there is none is kept too; no memory and no room are no such reason.

    It is of these contents, wherever they were when it was made: a cache may be moved, a model copied.
    """
    stamps = _stamps(xml)
    graph_hash, weights_hash = (files.sha256(file) for file in _parts(xml))
    made_of = graph_hash, weights_hash, context_length
    # How it was checked, too: a form that was refused in another precision may be right.
    key = fingerprint([cache.VERSIONS["onnx_form"], FULL_PRECISION, *made_of])
    contents = fingerprint(made_of)[:_NAME]
    # Where small weights lie is not known, so their forms stay.
    place = fingerprint([str(xml.resolve())])[:_NAME] if files.is_listed(xml.with_suffix(".bin")) else contents
    folder = cache.cache_dir() / "onnx" / f"{place}-{weights_hash[:_NAME]}-{contents}-{key}"
    if found := _written(folder.parent, key):
        return found
    with _WRITING, cache.locked():
        if found := _written(folder.parent, key):  # another process made it meanwhile
            return found
        if refused := next(folder.parent.glob(f"*-{key}.refused"), None):
            raise NoONNXForm(refused.read_text(encoding="utf-8"))
        _remove_older(folder.parent, place, contents)
        say(f"converting {name} for ONNX Runtime (one-time)")
        cache.require_space(space_for(xml))
        try:
            with cache.staged(folder) as partial:
                write_form(xml, partial, context_length=context_length)
                _require_unchanged(xml, stamps)
        except NoONNXForm as reason:
            _require_unchanged(xml, stamps)
            folder.with_suffix(".refused").write_text(str(reason), encoding="utf-8")
            raise
    return folder


def _parts(xml: Path) -> tuple[Path, Path]:
    return xml, xml.with_suffix(".bin")


def _stamps(xml: Path) -> list[files.Stamp]:
    return [files.stamp_of(file) for file in _parts(xml)]


def _require_unchanged(xml: Path, stamps: list[files.Stamp]) -> None:
    """Raises ConversionError: what was converted, and held against the IR, may be another one than was hashed."""
    try:
        is_same = _stamps(xml) == stamps
    except OSError:  # it is gone
        is_same = False
    if not is_same:
        raise ConversionError(f"{xml} was changed while it was converted", hint="run the command again")


def _reference(xml: Path) -> OpenVINOPagedModel | StatefulModel:
    try:
        return OpenVINOPagedModel(core(), xml, "CPU", Settings.in_full_precision(), capacity=check.TOKENS)
    except NoPagedForm:
        return StatefulModel(xml)


def _written(parent: Path, key: str) -> Path | None:
    """A folder in which the file is that is written last."""
    return next((folder for folder in parent.glob(f"*-{key}") if (folder / MODEL_FILE).is_file()), None)


def _remove_older(parent: Path, place: str, contents: str) -> None:
    """Forms and refusals: of these contents as they were made before, and of what lay at this place before, unless its
    weights lie at another one."""
    replaced = {path for path in parent.glob(f"{place}-*") if not files.is_somewhere(path.name.split("-")[1])}
    for old in replaced.union(parent.glob(f"*-{contents}-*")):
        cache.discard(old)
