"""The id map of a draft: nothing is made of what its header claims, only of what the manifest says."""

from __future__ import annotations

import io
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from edgespec.drafters.vocabulary_map import read_id_map
from edgespec.errors import BundleError

IDS = np.array([3, -1, 0, 9], np.int32)


def npy(ids: object) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(ids), allow_pickle=True)
    return buffer.getvalue()


def claiming(shape: str, kind: str = "<i4", version: int = 1) -> bytes:
    """A header with four numbers behind it."""
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    length = struct.pack("<H" if version == 1 else "<I", len(header))
    return b"\x93NUMPY" + bytes([version, 0]) + length + header + IDS.tobytes()


def npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, ids=IDS)
    return buffer.getvalue()


def test_what_was_saved_is_read(tmp_path: Path) -> None:
    path = tmp_path / "id_map.npy"
    np.save(path, IDS)
    assert read_id_map(path, 4, 10).tolist() == IDS.tolist()
    path.write_bytes(claiming("(4,)", version=2))
    assert read_id_map(path, 4, 10).tolist() == IDS.tolist()


DAMAGED = {
    "10**12 rows": claiming("(1000000000000,)"),
    "10**20 rows": claiming("(100000000000000000000,)"),
    "-4 rows": claiming("(-4,)"),
    "one row too many": npy([3, -1, 0, 9, 1]),
    "two dimensions": claiming("(4, 1)"),
    "another order": claiming("(4,)", ">i4"),
    "floats": claiming("(4,)", "<f4"),
    "objects": npy(np.array([3, None, 0, 9], object)),
    "pickle": b"cos\nsystem\n(S'true'\ntR.",
    "npz": npz(),
    "cut": npy(IDS)[:-3],
    "cut at a number": npy(IDS)[:-4],
    "more behind": npy(IDS) + b"x",
    "only a name": b"\x93NUMPY",
    "version 9": b"\x93NUMPY\x09\x00" + npy(IDS)[8:],
    "a header of 4 GB": b"\x93NUMPY\x02\x00\xff\xff\xff\xff{}",
    "a deep header": b"\x93NUMPY\x02\x00" + struct.pack("<I", 9000) + b"[" * 9000,
    "code in the header": claiming("(__import__('os').getpid(),)"),
    "empty": b"",
    "an id too large": npy(np.array([3, -1, 0, 10], np.int32)),
    "an id too small": npy(np.array([3, -2, 0, 9], np.int32)),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_anything_else_is_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "id_map.npy"
    path.write_bytes(DAMAGED[kind])
    tracemalloc.start()
    with pytest.raises(BundleError, match=r"id_map\.npy") as caught:
        read_id_map(path, 4, 10)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "\n" not in str(caught.value)
    assert peak < 10 << 20
