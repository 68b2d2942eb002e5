"""A large file is hashed once, and again as soon as the system says that it may be another."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest

from edgespec import files
from edgespec.errors import BundleError, IntegrityError

LARGE = files._SMALL_BYTES


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGESPEC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(files, "_in_process", {})
    return tmp_path / "cache"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were read from end to end."""
    found: list[Path] = []
    whole = files.sha256_of

    def counted(path: Path) -> str:
        found.append(path)
        return whole(path)

    monkeypatch.setattr(files, "sha256_of", counted)
    return found


def made(path: Path, content: bytes = b"a", size: int = LARGE) -> Path:
    path.write_bytes(content * size)
    time.sleep(1.5 * files._SETTLED_NS / 1e9)
    return path


def test_a_file_that_was_just_written_is_not_remembered(tmp_path: Path, reads: list[Path]) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(bytes(LARGE))
    files.sha256(path)
    files.sha256(path)
    assert len(reads) == 2


def test_a_large_file_is_read_once(tmp_path: Path, reads: list[Path]) -> None:
    path, other = made(tmp_path / "x.bin"), made(tmp_path / "y.bin", b"b")
    digests = [files.sha256(path), files.sha256(other)]
    assert reads == [path, other]
    for _ in range(2):
        files.check(path, digests[0], made_with="that was made", hint="make it again")
        assert [files.sha256(path), files.sha256(other)] == digests
    assert reads == [path, other]
    small = made(tmp_path / "small.bin", size=10)
    assert files.sha256(small) == files.sha256(small) and reads[2:] == [small, small]


def changed_in_place(path: Path) -> None:
    made(path, b"b")


def replaced(path: Path) -> None:
    made(path.with_name("new"), b"b").replace(path)


def replaced_with_its_time(path: Path) -> None:
    was = path.stat()
    new = made(path.with_name("new"), b"b")
    os.utime(new, ns=(was.st_atime_ns, was.st_mtime_ns))
    new.replace(path)


def changed_in_place_with_its_time(path: Path) -> None:
    was = path.stat()
    made(path, b"b")
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))


@pytest.mark.parametrize("change", [changed_in_place, replaced, replaced_with_its_time, changed_in_place_with_its_time])
def test_a_file_of_the_same_size_that_is_another_is_noticed(tmp_path: Path, change) -> None:  # type: ignore[no-untyped-def]
    if sys.platform == "win32" and change is changed_in_place_with_its_time:
        pytest.skip("Windows has no time of a change that a program cannot set")
    path = made(tmp_path / "x.bin")
    right = files.sha256(path)
    change(path)
    assert path.stat().st_size == LARGE
    with pytest.raises(IntegrityError, match=r"x\.bin is not the file that was made \(SHA-256\); got .* Make it again"):
        files.check(path, right, made_with="that was made", hint="make it again")


def test_everything_is_read_again_when_asked_but_once(tmp_path: Path, reads: list[Path]) -> None:
    path = made(tmp_path / "x.bin")
    files.sha256(path)
    with files.reading_everything():
        files.sha256(path)
        files.sha256(path)
    files.sha256(path)
    assert reads == [path, path]


def test_a_link_and_its_file_are_one(tmp_path: Path, reads: list[Path]) -> None:
    path = made(tmp_path / "x.bin")
    link = tmp_path / "link.bin"
    try:
        link.symlink_to(path)
    except OSError:
        pytest.skip("no links here")
    assert files.sha256(path) == files.sha256(link) and len(reads) == 1


def test_where_content_lies_is_known_while_it_does(tmp_path: Path, home: Path) -> None:
    """Of a file that was touched since, it is looked up in the file."""
    path, small = made(tmp_path / "x.bin"), made(tmp_path / "small.bin", size=10)
    digest = files.sha256(path)
    assert files.is_somewhere(digest[:12]) and not files.is_somewhere(files.sha256(small)[:12])
    assert files.is_listed(path) and not files.is_listed(small)
    os.utime(path)
    assert files.is_somewhere(digest[:12])
    path.replace(tmp_path / "moved.bin")
    assert not files.is_somewhere(digest[:12])
    made(path, b"b")
    assert not files.is_somewhere(digest[:12])


def test_what_another_process_hashed_since_lies_there_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process remembers what was there before."""
    path = made(tmp_path / "x.bin")
    before = files.sha256(path)
    made(path, b"b")
    with monkeypatch.context() as other:
        other.setattr(files, "_in_process", {})
        after = files.sha256(path)
    assert files.is_somewhere(after[:12]) and not files.is_somewhere(before[:12])


def test_the_list_forgets_files_that_are_gone(tmp_path: Path, home: Path) -> None:
    paths = [made(tmp_path / f"{number}.bin") for number in range(3)]
    for path in paths:
        files.sha256(path)
        path.unlink()
    assert list(json.loads((home / "hashes.json").read_bytes())) == [str(paths[2].resolve())]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[" * 100_000, b"\xff", b'{"x": [1]}', b'{"x": [1, 2, 3, "4", "5"]}', b"[]", b"7"]
)
def test_a_list_that_makes_no_sense_is_made_again(
    tmp_path: Path, home: Path, reads: list[Path], content: bytes
) -> None:
    home.mkdir()
    (home / "hashes.json").write_bytes(content)
    path = made(tmp_path / "x.bin")
    assert files.sha256(path) == files.sha256(path) and len(reads) == 1


def test_each_process_reads_a_file_once_if_the_cache_cannot_be_written(
    tmp_path: Path, home: Path, reads: list[Path]
) -> None:
    home.write_text("a file in its place", encoding="utf-8")
    path = made(tmp_path / "x.bin")
    assert files.sha256(path) == files.sha256(path) and len(reads) == 1, "once in each process"
    changed_in_place(path)
    files.sha256(path)
    assert len(reads) == 2


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cannot read .*gone"):
        files.check(tmp_path / "gone", "0" * 64, made_with="that was made", hint="make it again")
    with pytest.raises(ValueError, match="larger than 0 MiB"):
        files.read_bytes(made(tmp_path / "x", size=101), most=100)
