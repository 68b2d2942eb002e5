"""A trained head as a folder of its own (``edgespec.draft_folder``): its graph, its ids and what it needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgespec import bundle, draft_folder
from edgespec.bundle import IR_FILE, Bundle, Drafter, Provenance, line
from edgespec.draft_folder import DraftManifest
from edgespec.errors import SettingError
from edgespec.hub import catalog
from edgespec.machine.devices import machine
from edgespec.manifest import DrafterNeeds
from edgespec_export import staging

HeadKind = Literal["redrafter", "block"]
HEAD, ID_MAP = "head", "id_map.npy"


@dataclass(frozen=True)
class TrainedHead:
    """ids: ``(m,)`` target id of each of its ids. layers: whose states it reads. write: writes its IR to a path.
    precision: of the weights there. measured: recipe, corpus and training, for the record. trees: whether it drafts
    them."""

    kind: HeadKind
    ids: NDArray[np.int32]
    layers: tuple[int, ...]
    write: Callable[[Path], None]
    precision: str
    measured: dict[str, Any]
    trees: bool = False


def pack_head(head: TrainedHead, target: Bundle, reference: str, out: Path, target_names: Sequence[str] = ()) -> Path:
    """Write ``out`` and return it. reference: what the user called the target. Raises SettingError if another folder is
    in the way."""
    if out.exists() and not draft_folder.is_one(out):
        raise SettingError("destination is not a draft", got=str(out), allowed="a new folder, or one to replace")
    with staging.staged(out) as new:
        xml = new / HEAD / IR_FILE
        head.write(xml)
        id_map = xml.with_name(ID_MAP)
        np.save(id_map, head.ids)
        file = f"{HEAD}/{IR_FILE}"
        entry = Drafter(
            name=head.kind,
            kind=head.kind,
            model=bundle.model_file(new, file, precision=head.precision, vocab_size=len(head.ids)),
            id_map=f"{HEAD}/{ID_MAP}",
            id_map_sha256=bundle.sha256_of(id_map),
            needs=DrafterNeeds(layers=head.layers, trees=head.trees),
        )
        known = catalog.find(reference)
        own = target.manifest.provenance
        tokens = int(head.ids.max()) + 1
        manifest = DraftManifest(
            format=draft_folder.FORMAT,
            target=reference if known else line(target.name),
            target_names=tuple(name.casefold() for name in target_names),
            target_weights=draft_folder.weights_of(target),
            tokens=tokens,
            tokens_sha256=draft_folder.tokens_sha256(target, tokens),
            drafter=entry,
            provenance=Provenance(
                licence=known.licence if known else own.licence,
                source=line(own.source or target.name),
                revision=own.revision,
            ),
            measured=head.measured | {"machine": machine()},
        )
        content = msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"
        (new / draft_folder.MANIFEST).write_bytes(content)
    draft_folder.read(out)
    return out
