"""``edgespec train pack``: a trained draft as a folder that needs no target beside it (``edgespec.draft_folder``)."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from transformers import AutoModelForCausalLM

from edgespec import draft_folder
from edgespec.bundle import Bundle, Drafter, Provenance, line
from edgespec.draft_folder import DraftManifest
from edgespec.errors import SettingError, foreign
from edgespec.hub import catalog
from edgespec.hub.resolve import resolve
from edgespec.machine.devices import machine
from edgespec_export import staging
from edgespec_export.settings import Kind
from edgespec_train.corpus import shards
from edgespec_train.draft_model import UNKNOWN, invert
from edgespec_train.pack import DRAFT, ID_MAP, convert_draft

DRAFTER = "fastdraft"
_CHECKED_TOKENS = 256
"""of a text that the packed draft is held against the trained one on"""


@dataclass(frozen=True)
class Packing:
    """What to pack.

    draft: the ``draft`` folder of a training run. target: a reference. target_names: how other files of the target are
    called. corpus: the shards that it was trained on, for the record and for a text to check the result on.
    """

    draft: Path
    target: str
    out: Path
    weights: Kind = "int4"
    group_size: int | None = None
    target_names: Sequence[str] = ()
    licence: str | None = None
    corpus: Path | None = None
    notes: str | None = None


def pack(packing: Packing, say: Callable[[str], None]) -> Path:
    """Write ``packing.out`` and return it. Raises SettingError, IncompatiblePair and others."""
    target = resolve(packing.target)
    with foreign(SettingError, f"no trained draft in {packing.draft}", hint="name the draft folder of a training run"):
        id_map = np.load(packing.draft / ID_MAP, allow_pickle=False)
        draft: Any = AutoModelForCausalLM.from_pretrained(packing.draft, dtype="float32")
    if id_map.shape != (draft.config.vocab_size,) or id_map.max() >= target.manifest.target.vocab_size:
        allowed = f"{draft.config.vocab_size} ids below {target.manifest.target.vocab_size}"
        got = f"{id_map.shape} ids up to {id_map.max()}"
        raise SettingError(f"the ids of {packing.draft} do not fit {target.name}", got=got, allowed=allowed)
    if not (id_map == UNKNOWN).any():
        raise SettingError("a draft with all ids of its target cannot be packed alone", hint="train a smaller one")
    text = None
    if packing.corpus is not None:
        (shard,) = shards.read_shards(shards.require_shards(packing.corpus)[-1:], ())
        shards.check_ids(shard, target.manifest.target.vocab_size)
        text = invert(id_map, target.manifest.target.vocab_size)[shard["tokens"][:_CHECKED_TOKENS]]
    if packing.out.exists() and not draft_folder.is_one(packing.out):
        raise SettingError(
            "destination is not a draft", got=str(packing.out), allowed="a new folder, or one to replace"
        )
    with staging.staged(packing.out) as new:
        how = (draft, id_map, new, packing.weights)
        entry = convert_draft(*how, name=DRAFTER, group_size=packing.group_size, text=text, say=say)
        _write_manifest(new, packing, target, entry, int(id_map.max()) + 1)
    say(f"{sum(path.stat().st_size for path in (packing.out / DRAFT).iterdir()) / 1e6:.1f} MB")
    return packing.out


def _write_manifest(folder: Path, packing: Packing, target: Bundle, entry: Drafter, tokens: int) -> None:
    made_from = (target.manifest.provenance.revision or "").removeprefix("sha256:")
    name = packing.target if catalog.find(packing.target) else catalog.name_of(made_from)
    known = catalog.find(name) if name else None
    provenance = Provenance(
        licence=packing.licence or (known.licence if known else target.manifest.provenance.licence),
        source=line(target.manifest.provenance.source or target.name),
        revision=target.manifest.provenance.revision,
        notes=packing.notes,
    )
    manifest = DraftManifest(
        format=draft_folder.FORMAT,
        target=name or line(target.name),
        target_names=tuple(name.casefold() for name in packing.target_names),
        tokens=tokens,
        tokens_sha256=draft_folder.tokens_sha256(target, tokens),
        drafter=entry,
        provenance=provenance,
        measured=_training(packing.draft.parent) | _corpus(packing.corpus) | {"machine": machine()},
    )
    content = msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"
    (folder / draft_folder.MANIFEST).write_bytes(content)


def _training(work: Path) -> dict[str, Any]:
    """Recipe and end of the learning curve, from the checkpoint beside the draft."""
    path = work / "checkpoint" / "state.json"
    if not path.is_file():
        return {}
    with foreign(SettingError, f"{path} is damaged", hint="delete it to pack without the recipe"):
        state = json.loads(path.read_text(encoding="utf-8"))
        # Without a point of the curve, the loss was no number before the first one.
        return {"recipe": state["recipe"], "training": state["curve"][-1] if state["curve"] else state["at"]}


def _corpus(folder: Path | None) -> dict[str, Any]:
    if folder is None:
        return {}
    found = [shards.counts(path) for path in shards.shard_paths(folder)]
    return {"corpus": {key: sum(shard[key] for shard in found) for key in ("answer_tokens", "texts")}}
