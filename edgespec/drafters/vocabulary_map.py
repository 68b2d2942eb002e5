"""The id map of a draft with a trimmed vocabulary: the target's id of each draft logit. The file is not trusted."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from edgespec.bundle import Drafter as DrafterEntry
from edgespec.errors import BundleError, foreign

_MOST_HEADER_BYTES = 4096
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def read_id_map(path: Path, draft_vocab: int, target_vocab: int) -> NDArray[np.int32]:
    """``(draft_vocab,)`` ids of the target, -1 where the draft's id has none. Raises BundleError.

    The header must say what the manifest says. No array of another length is allocated.
    """
    with foreign(BundleError, f"cannot read {path}", hint="export or pull the model again"):
        with path.open("rb") as opened:
            file = io.BytesIO(opened.read(4 * draft_vocab + _MOST_HEADER_BYTES))
        shape, _, dtype = _HEADERS[npy.read_magic(file)](file)
        if shape != (draft_vocab,) or dtype != np.int32:
            raise _no_map(path, f"{dtype} {shape}", draft_vocab, target_vocab)
        ids: NDArray[np.int32] = np.frombuffer(file.read(), np.int32).copy()
        if len(ids) != draft_vocab:
            raise ValueError(f"{len(ids)} ids")
    if ids.min() < -1 or ids.max() >= target_vocab:
        raise _no_map(path, f"values {ids.min()}..{ids.max()}", draft_vocab, target_vocab)
    return ids


def _no_map(path: Path, got: str, draft_vocab: int, target_vocab: int) -> BundleError:
    allowed = f"int32 ({draft_vocab},), values -1..{target_vocab - 1}"
    return BundleError(f"{path} is not a map from draft logits to target ids", got=got, allowed=allowed)


def input_map(
    own: DrafterEntry | None, id_map: NDArray[np.int32] | None, draft_vocab: int, target_vocab: int
) -> NDArray[np.intp] | None:
    """What the draft reads for each target id. None if it reads the id itself."""
    if own is not None and own.unknown is not None:
        if id_map is None:
            raise BundleError(f"drafter {own.name} has unknown and no id_map", hint="see docs/bundle.md")
        if not 0 <= own.unknown < draft_vocab:
            raise BundleError(f"drafter {own.name}: unknown", got=own.unknown, allowed=f"0..{draft_vocab - 1}")
        reads = np.full(target_vocab, own.unknown)
        reads[id_map[id_map >= 0]] = np.flatnonzero(id_map >= 0)
        return reads
    if id_map is not None or draft_vocab >= target_vocab:  # a head trimmed alone reads every id
        return None
    return np.where(np.arange(target_vocab) < draft_vocab, np.arange(target_vocab), 0)
