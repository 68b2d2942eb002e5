"""The ONNX form of each model in a bundle but heads: ONNX Runtime runs it as it is, with nothing to write first.

No torch in here: a form is written from the OpenVINO IR, and compared with it.
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec

from edgespec import bundle
from edgespec.backends.onnx.form import space_for, write_form
from edgespec.backends.onnx.weights import NoONNXForm
from edgespec.bundle import FORM_FILES, MANIFEST, Bundle, Drafter, ModelFile
from edgespec.errors import ConversionError, SettingError
from edgespec_export import staging
from edgespec_export.settings import Format, Request

Say = Callable[[str], None]


def add_form(folder: Path, entry: ModelFile, role: str, output: Format, context_length: int, say: Say) -> ModelFile:
    """Write the form beside an IR in ``folder``, if the format asks for one. Returns the entry of both, or of one.

    context_length: of the target. Raises ConversionError: the model has no form, or the disk has no room for it.
    """
    if output == "openvino":
        return entry
    assert entry.file is not None
    xml = folder / entry.file
    staging.require_room(folder, space_for(xml))
    most = f"at most {space_for(xml) / 1e6:.0f} MB beside {xml.with_suffix('.bin').stat().st_size / 1e6:.0f} MB"
    say(f"{role}: writing the ONNX form, {most}")
    try:
        write_form(xml, xml.parent, context_length=context_length, shares_weights=output == "both")
    except NoONNXForm as error:
        raise ConversionError(f"{role}: {error}", hint="or export it with --format openvino") from error
    gc.collect()  # the IR's weights are mapped, and Windows will not delete or rename a mapped file
    form = bundle.onnx_form(folder, (xml.parent / FORM_FILES[0]).relative_to(folder).as_posix())
    size = sum((folder / file.file).stat().st_size for file in form.files)
    if output == "both":
        say(f"{role}: the ONNX form takes {size / 1e6:.0f} MB more, and reads its codes from {xml.stem}.bin")
        return msgspec.structs.replace(entry, onnx=form)
    for file in (xml, xml.with_suffix(".bin")):
        file.unlink()
    say(f"{role}: the ONNX form takes {size / 1e6:.0f} MB")
    return ModelFile(precision=entry.precision, vocab_size=entry.vocab_size, onnx=form)


def export_forms(request: Request, source: Path, say: Say) -> Path:
    """A copy of a bundle with ONNX forms. The models in it stay as they are."""
    if request.draft is not None:
        raise SettingError("--draft with a bundle", got=request.draft, allowed="no --draft: its drafters are kept")
    if request.out.resolve() == source.resolve():
        raise SettingError("the bundle itself is the destination", got=str(request.out), hint="name a new folder")
    found = bundle.read(source)
    manifest = found.manifest
    without = [model for model in manifest.models if model.file is None or not model.file.endswith(".xml")]
    if without:
        hint = "it has ONNX forms only: export the original model again" if without[0].onnx else "pull it first"
        raise ConversionError(f"a model of {found.name} has no OpenVINO IR in the bundle", got=str(source), hint=hint)
    found.check()
    if manifest.target.onnx or any(drafter.model and drafter.model.onnx for drafter in manifest.drafters):
        say("the ONNX forms of the bundle are written again")
    length = manifest.generation.context_length
    with staging.staged(request.out, force=request.force) as folder:
        copy_bundle(found, folder)

        def made(model: ModelFile, role: str) -> ModelFile:
            return add_form(folder, msgspec.structs.replace(model, onnx=None), role, request.format, length, say)

        def drafter(entry: Drafter) -> Drafter:
            if entry.model is None or entry.is_head:  # a head runs on OpenVINO, whichever engine its target has
                return entry
            return msgspec.structs.replace(entry, model=made(entry.model, entry.name))

        target = made(manifest.target, "target")
        drafters = tuple(drafter(entry) for entry in manifest.drafters)
        name = bundle.line(request.out.name)
        bundle.write(folder, msgspec.structs.replace(manifest, name=name, target=target, drafters=drafters))
    return request.out


def is_bundle(reference: str) -> bool:
    return (Path(reference).expanduser() / MANIFEST).is_file()


def copy_bundle(of: Bundle, folder: Path) -> None:
    """All files that the manifest names, but ONNX forms."""
    manifest = of.manifest
    paths = [of.root / entry.file for entry in (manifest.tokenizer, manifest.chat_template) if entry is not None]
    paths += [path for drafter in manifest.drafters if (path := of.id_map_path(drafter)) is not None]
    for model in manifest.models:
        graph = of.model_path(model)
        paths += [graph, graph.with_suffix(".bin")]
    staging.require_room(folder, sum(path.stat().st_size for path in paths))
    for path in dict.fromkeys(paths):
        copy = folder / path.relative_to(of.root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
