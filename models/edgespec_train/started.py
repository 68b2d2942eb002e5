"""A head that begins where another run ended: over more text, or over the user's own."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from edgespec import draft_folder
from edgespec.errors import SettingError
from edgespec_train.checkpoint import newest
from edgespec_train.draft_model import UNKNOWN
from edgespec_train.ship_head import HEAD, ID_MAP

_WEIGHTS = "model.safetensors"
_OPTION = "--from-draft"


@dataclass(frozen=True)
class Start:
    """The end of a run. id_map: see ``heads.Ground``. state: of its checkpoint. measured: the record of its draft."""

    checkpoint: Path
    id_map: NDArray[np.int32]
    state: dict[str, Any]
    measured: dict[str, Any]

    @classmethod
    def of(cls, draft: Path) -> Start:
        """draft: as the run packed it, with its checkpoint beside it. Raises SettingError if they are not there."""
        checkpoint = newest(draft.resolve().parent)
        if checkpoint is None:
            allowed = "the draft of a run of the same recipe, in that run's folder"
            raise SettingError(f"{_OPTION} has no checkpoint beside it", got=str(draft), allowed=allowed)
        try:
            state = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
            digest = state["vocabulary"]
            ids = np.load(draft / HEAD / ID_MAP, allow_pickle=False).astype(np.int32)
            measured = json.loads((draft / draft_folder.MANIFEST).read_text(encoding="utf-8"))["measured"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            hint = "run its command again: it packs the draft without training"
            raise SettingError(f"{_OPTION} cannot be read: {error}", got=str(draft), hint=hint) from error
        for id_map in (ids, np.append(ids, np.int32(UNKNOWN))):  # some drafts keep only the ids that they propose
            if hashlib.sha256(id_map.tobytes()).hexdigest() == digest:
                return cls(checkpoint, id_map, state, measured)
        raise SettingError(f"{_OPTION} holds a draft with other ids than its checkpoint", got=str(draft))

    @property
    def layers(self) -> tuple[int, ...]:
        """Of the target, whose states the head reads."""
        return tuple(self.state.get("layers", ()))

    def load(self, head: torch.nn.Module, same: dict[str, Any]) -> None:
        """Give the head its weights. same: what has to be equal in both runs. Raises SettingError."""
        for name, wanted in json.loads(json.dumps(same)).items():
            if (found := self.state.get(name)) != wanted:
                raise SettingError(f"{_OPTION} is a head of another {name}", got=found, allowed=wanted)
        path = self.checkpoint / _WEIGHTS
        try:
            head.load_state_dict(load_file(path))
        except Exception as error:  # safetensors and torch have their own
            raise SettingError(f"{path} does not hold this head", hint=str(error).splitlines()[0]) from error
