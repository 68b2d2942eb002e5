"""The .bin of an IR is mapped, and packed by the engine: it does not stay in memory a second time."""

from __future__ import annotations

import mmap
import re
import sys
from pathlib import Path

import pytest

from edgespec.backends.mapped_weights import release
from tests.conftest import load_ir

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems keep the pages")


def resident_bytes(file: Path) -> int:
    """Of this process, in mappings of a file."""
    found = 0
    for mapping in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(encoding="utf-8")):
        if str(file) in mapping.splitlines()[0]:
            found += int(re.findall(r"^Rss: +(\d+) kB", mapping, re.MULTILINE)[0]) << 10
    return found


def test_pages_go_and_come_back_as_they_were(tmp_path: Path) -> None:
    path, other = tmp_path / "weights.bin", tmp_path / "other.bin"
    content = bytes(range(256)) * (1 << 12)
    with path.open("wb") as file, other.open("wb") as second:
        file.write(content)
        second.write(content)
    with path.open("rb") as file, other.open("rb") as second:
        mapped, kept = (mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) for opened in (file, second))
        assert mapped[:] == kept[:] == content
        assert resident_bytes(path) == resident_bytes(other) == len(content)
        release(path)
        assert (resident_bytes(path), resident_bytes(other)) == (0, len(content))
        assert mapped[:] == content
        mapped.close()
        kept.close()


def test_what_may_be_written_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(bytes(1 << 16))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        mapped[0] = 7
        release(path)
        assert mapped[0] == 7


def test_a_file_that_is_gone_or_not_mapped_is_no_error(tmp_path: Path) -> None:
    release(tmp_path / "none")
    (tmp_path / "file").write_bytes(b"x")
    release(tmp_path / "file")


def test_a_model_keeps_no_second_copy(tiny_fast_ir: Path) -> None:
    weights = tiny_fast_ir.with_suffix(".bin")
    model = load_ir(tiny_fast_ir)
    first = model.forward([5, 6, 7]).logits.copy()
    for _ in range(4):
        model.forward([8, 9])
    assert resident_bytes(weights) < weights.stat().st_size / 2
    model.cache.reset()
    assert (model.forward([5, 6, 7]).logits == first).all()
