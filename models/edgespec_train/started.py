"""A head that begins where another run ended: over more text, or over the user's own."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from edgespec import draft_folder, files
from edgespec.bundle import Bundle
from edgespec.draft_folder import DraftFolder
from edgespec.drafters.vocabulary_map import read_id_map
from edgespec.errors import SettingError, foreign
from edgespec_train.checkpoint import STATE, newest
from edgespec_train.draft_model import UNKNOWN
from edgespec_train.ship_head import HeadKind

_WEIGHTS = "model.safetensors"
_OF_SEVERAL_PROCESSES = "module."
"""what the names of weights begin with then"""
_OPTION = "--from-draft"


@dataclass(frozen=True)
class Start:
    """The end of a run. id_map: see ``heads.Ground``. shape: of the head, as its checkpoint has it."""

    draft: DraftFolder
    checkpoint: Path
    id_map: NDArray[np.int32]
    shape: object

    @classmethod
    def of(cls, folder: Path, target: Bundle, work: Path) -> Start:
        """folder: the draft as the run packed it, with the run's checkpoint beside it. work: of the run that begins.
        Raises SettingError and others for what is not there, is damaged, or does not fit the target."""
        draft = draft_folder.read(folder)
        draft_folder.require_fit(target, draft)
        home = folder.resolve().parent
        checkpoint = newest(home)
        if checkpoint is None:
            hint = "name the draft in the folder of the run that trained it"
            raise SettingError(f"{_OPTION} has no checkpoint beside it", got=str(folder), hint=hint)
        if home == work.resolve():
            raise SettingError(f"{_OPTION} is of the run in this folder", got=str(work), hint="name another folder: -o")
        drafter = draft.manifest.drafter
        with foreign(SettingError, f"{_OPTION} cannot be read", hint="train it again, or begin without it"):
            if drafter.model is None or drafter.model.vocab_size is None or drafter.id_map is None:
                raise ValueError("it has no ids")
            state = json.loads(files.read_bytes(checkpoint / STATE))
            digest, shape = str(state["vocabulary"]), state["shape"]
            ids = read_id_map(folder / drafter.id_map, drafter.model.vocab_size, target.manifest.target.vocab_size)
        for id_map in (ids, np.append(ids, np.int32(UNKNOWN))):  # some drafts keep only the ids that they propose
            if hashlib.sha256(id_map.tobytes()).hexdigest() == digest:
                return cls(draft, checkpoint, id_map, shape)
        raise SettingError(f"{_OPTION} has other ids than the checkpoint beside it", got=str(folder))

    @property
    def layers(self) -> tuple[int, ...]:
        """Of the target, whose states the head reads."""
        return self.draft.manifest.drafter.needs.layers

    @property
    def sha256(self) -> str | None:
        """Of the weights that it drafts with."""
        model = self.draft.manifest.drafter.model
        return None if model is None else model.sha256

    @property
    def measured(self) -> dict[str, Any]:
        """The record of the run."""
        return self.draft.manifest.measured

    def require(self, kind: HeadKind, shape: Any) -> None:
        """Raises SettingError unless its head is of this kind and shape. shape: a dataclass."""
        wanted = json.loads(json.dumps(asdict(shape)))
        for what, found, allowed in (
            ("kind", self.draft.manifest.drafter.kind, kind),
            ("shape", self.shape, wanted),
        ):
            if found != allowed:
                raise SettingError(f"{_OPTION} is a head of another {what}", got=found, allowed=allowed)

    def load(self, head: torch.nn.Module) -> None:
        """Give the head its weights. Raises SettingError."""
        path = self.checkpoint / _WEIGHTS
        with foreign(SettingError, f"{path} is damaged", hint="train it again, or begin without it"):
            found = {name.removeprefix(_OF_SEVERAL_PROCESSES): tensor for name, tensor in load_file(path).items()}
        wanted = head.state_dict()
        if other := sorted(found.keys() ^ wanted.keys()):
            got = f"no {other[0]}" if other[0] in wanted else other[0]
            raise SettingError(f"{path} was made by another version of edgespec", got=got)
        with foreign(SettingError, f"{path} does not hold this head"):
            head.load_state_dict(found)
