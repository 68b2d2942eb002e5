"""The successor table of ``drafters.recycling`` in a file, for the next process.

The file holds triples of tokens from the user's texts. Parts of the texts can be rebuilt from them, so only the user
may read it. Only known lines are written. A reader finds the old table or the new one.
"""

from __future__ import annotations

import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgespec.console import note
from edgespec.own_files import make_private, replacing

Successors = NDArray[np.int32]
"""``(vocab, width)``, likeliest first; -1 where none is known."""
Scores = NDArray[np.float32]
"""``(vocab, width)``."""
Before = NDArray[np.int32]
"""``(vocab,)`` the token before, -1 if there was none."""


def read_table(file: Path, about: str, successors: Successors, scores: Scores, before: Before) -> None:
    """Fill the arrays from a file about the same thing. A file about another thing is left alone.

    A damaged file is removed, with a line on stderr.
    """
    most = 2 * (successors.nbytes + scores.nbytes + before.nbytes) + (1 << 16)
    try:
        opened = file.open("rb")
    except OSError:  # most likely there is no file yet
        return
    try:
        with opened:
            with zipfile.ZipFile(opened) as archive:  # reads no more of a member than it declares
                if sum(member.file_size for member in archive.infolist()) > most:
                    raise ValueError("larger than any such table")
            opened.seek(0)
            with np.load(opened, allow_pickle=False) as stored:
                if str(stored["about"]) != about or tuple(stored["shape"]) != successors.shape:
                    return
                lines, known = stored["lines"], stored["successors"]
                shares, stood = stored["scores"], stored["before"]
        if known.min(initial=0) < -1 or known.max(initial=0) >= len(successors):
            raise ValueError("a token that is none")  # the target would read it
        if not (shares.min(initial=0) >= 0 and shares.max(initial=1) <= 1 and lines.min(initial=0) >= 0):
            raise ValueError("a number that cannot be")
        found = np.full_like(successors, -1), np.zeros_like(scores), np.full_like(before, -1)
        found[0][lines], found[1][lines], found[2][lines] = known, shares, stood
        successors[:], scores[:], before[:] = found
    except Exception as error:  # a damaged archive raises many things
        note(f"dropped {file}, which is damaged: {error}")
        with suppress(OSError):
            file.unlink()


def write_table(file: Path, about: str, successors: Successors, scores: Scores, before: Before) -> None:
    """Write the table. If the cache cannot be written, the next process learns again."""
    lines = np.flatnonzero(successors[:, 0] >= 0)
    with suppress(OSError):
        make_private(file.parent, file)
        with replacing(file, private=True) as out:
            np.savez(
                out,
                about=about,
                shape=successors.shape,
                lines=lines,
                successors=successors[lines],
                scores=scores[lines],
                before=before[lines],
            )
