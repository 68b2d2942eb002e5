"""The id map of a draft with a trimmed vocabulary: the target's id of each draft logit, in a file of a stranger's."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from edgespec.errors import BundleError, foreign

_MOST_HEADER_BYTES = 4096
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def read_id_map(path: Path, draft_vocab: int, target_vocab: int) -> NDArray[np.int32]:
    """``(draft_vocab,)`` ids of the target, -1 where the draft's id has none. Raises BundleError.

    The header is believed only where it says what the manifest says: nothing is made of any other length.
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
