"""A trained draft into a bundle: the target of another bundle, and the draft of a folder with a ``draft.json``."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec

from edgespec import bundle, draft_folder
from edgespec.errors import SettingError
from edgespec_export import forms, staging
from edgespec_export.settings import Request


def attach_draft(request: Request, say: Callable[[str], None]) -> Path:
    """A copy of the bundle ``request.target`` in which the draft of ``request.draft`` comes first."""
    assert request.draft is not None
    source, folder = Path(request.target).expanduser(), Path(request.draft).expanduser()
    if not forms.is_bundle(request.target) or request.format != "openvino":
        raise SettingError(
            "a trained draft is added to a bundle as it is",
            got=f"{request.target} with --format {request.format}",
            allowed="the folder of a bundle",
            hint="export the target alone first",
        )
    if request.out.resolve() == source.resolve():
        raise SettingError("the bundle itself is the destination", got=str(request.out), hint="name a new folder")
    target, draft = bundle.read(source), draft_folder.read(folder)
    draft_folder.require_fit(target, draft)
    both = draft_folder.attach(target, draft, first=True)
    both.check()
    entry = both.manifest.drafters[0]
    assert entry.model is not None and entry.model.file is not None
    files = [entry.model.file, Path(entry.model.file).with_suffix(".bin").as_posix(), entry.id_map]
    with staging.staged(request.out, force=request.force) as new:
        forms.copy_bundle(target, new)
        for file in filter(None, files):
            copy = new / file
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(both.path(file), copy)
        bundle.write(new, msgspec.structs.replace(both.manifest, name=bundle.line(request.out.name)))
    say(f"{target.name} with the draft {draft.name}")
    return request.out
