"""From a trained draft to a bundle: OpenVINO IR, id map, manifest."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel

from edgespec import bundle
from edgespec.bundle import IR_FILE, Bundle, Drafter
from edgespec.errors import SettingError
from edgespec_export import convert, parity, staging
from edgespec_export.settings import Kind, Weights
from edgespec_train.draft_model import UNKNOWN
from edgespec_train.narrow import with_narrow_embedding

DRAFT, ID_MAP = "draft", "id_map.npy"


def save_draft(draft: PreTrainedModel, id_map: NDArray[np.int32], out: Path) -> None:
    """Replace the folder ``out``: weights and ids together or not at all. Raises SettingError where it cannot."""
    try:
        with staging.staged(out) as new:
            draft.save_pretrained(new)
            np.save(new / ID_MAP, id_map)
    except Exception as error:  # safetensors has its own for a full disk
        raise SettingError(f"cannot write the draft to {out}: {error}", hint="is the disk full?") from error


def convert_draft(
    draft: Any,
    id_map: NDArray[np.int32],
    folder: Path,
    kind: Kind,
    *,
    name: str,
    group_size: int | None = None,
    text: NDArray[np.int64] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Drafter:
    """Write the draft's IR and id map into ``folder/draft``; returns its entry for the manifest.

    kind: int4 is for layers and embeddings; the output head is in 8 bits then. group_size: see ``Weights``.
    text: ``(n,)`` draft ids on which the IR is held against the torch model. Raises ConversionError if it is another
    function.
    """
    folder.mkdir(parents=True, exist_ok=True)
    xml = folder / DRAFT / IR_FILE
    weights = Weights(kind, group_size if kind == "int4" else None)
    draft = draft.to("cpu").eval()
    expected = None if text is None else parity.logits_on(draft, text)  # before the export, which patches the model
    with staging.scratch(folder) as temporary:
        raw = convert.export_ir(draft, temporary, weights)
        if kind == "int4":
            raw = with_narrow_embedding(raw, temporary / "narrow" / IR_FILE)
        weights, note = convert.compress(raw, xml, weights)
        gc.collect()  # Windows will not delete a file that a model maps
    if note:
        say(note)
    if expected is not None:
        found = parity.compare(expected, xml)
        say(str(found))
        parity.judge(found, weights)
    np.save(xml.with_name(ID_MAP), id_map)
    unknown = np.flatnonzero(id_map == UNKNOWN)
    return Drafter(
        name=name,
        kind="small_model",
        model=bundle.model_file(folder, f"{DRAFT}/{IR_FILE}", precision=kind, vocab_size=convert.check_ir(xml)),
        id_map=f"{DRAFT}/{ID_MAP}" if len(unknown) else None,
        id_map_sha256=bundle.sha256_of(xml.with_name(ID_MAP)) if len(unknown) else None,
        unknown=int(unknown[0]) if len(unknown) else None,
    )


def write_bundle(
    target: Bundle, folder: Path, out: Path, entry: Drafter, name: str, provenance: dict[str, Any]
) -> Path:
    """A bundle at ``out``: the target of another one, and the draft that lies in ``folder``."""
    manifest = msgspec.structs.replace(target.manifest, name=bundle.line(name))
    with staging.staged(out) as new:
        for text in filter(None, (manifest.tokenizer, manifest.chat_template)):
            shutil.copyfile(target.path(text.file), new / text.file)
        if manifest.target.file is not None:
            xml = target.model_path(manifest.target)
            (new / manifest.target.file).parent.mkdir(parents=True, exist_ok=True)
            for path in (xml, xml.with_suffix(".bin"), xml.with_name("config.json")):
                if path.is_file():
                    shutil.copyfile(path, (new / manifest.target.file).with_name(path.name))
        shutil.copytree(folder / DRAFT, new / DRAFT)
        if target.inline_template is not None:
            (new / "chat_template.jinja").write_bytes(target.inline_template.encode("utf-8"))
            digest = bundle.sha256_of(new / "chat_template.jinja")
            template = bundle.HashedFile(file="chat_template.jinja", sha256=digest)
            manifest = msgspec.structs.replace(manifest, chat_template=template)
        drafters = (entry, *(drafter for drafter in manifest.drafters if drafter.kind == "ngram"))
        changed = msgspec.structs.replace(
            manifest, drafters=drafters, measured=manifest.measured | {"draft": provenance}
        )
        bundle.write(new, changed)
    return out
