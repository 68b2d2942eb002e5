"""A GGUF file is converted once; what breaks on the way leaves the cache clean."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgespec import bundle, cache
from edgespec.errors import ConversionError, SourceError
from edgespec.hub.resolve import model_path, resolve
from tests import hub_server, tiny_gguf
from tests.hub_server import leftovers

home, tiny = hub_server.home, hub_server.tiny


def test_a_gguf_file_is_converted_once(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "Tiny Modell ü.gguf"
    shutil.copy(tiny, path)
    first = resolve(str(path), progress=False)
    assert first.name == path.stem
    assert first.manifest.provenance.revision == f"sha256:{bundle.sha256_of(tiny)}"
    written = model_path(first, first.manifest.target).stat().st_mtime_ns
    again = resolve(str(path), progress=False)
    assert model_path(again, again.manifest.target).stat().st_mtime_ns == written
    os.utime(path, ns=(1, 1))
    assert resolve(str(path), progress=False).root == first.root, "the same file"


def test_a_file_of_the_same_size_and_time_is_another_file(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    shutil.copy(tiny, path)
    before, was = resolve(str(path), progress=False), path.stat()
    path.write_bytes(path.read_bytes()[:-4] + struct.pack("<f", 2.0))  # the last number of the last tensor
    assert path.stat().st_size == was.st_size
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))
    after = resolve(str(path), progress=False)
    assert after.manifest.target.sha256 != before.manifest.target.sha256


def test_a_file_that_is_swapped_during_its_conversion_is_not_cached(
    tiny: Path, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was converted would be kept for good under the hash of what was there before."""
    path, other = tmp_path / "mine.gguf", tmp_path / "other.gguf"
    shutil.copy(tiny, path)
    shutil.copy(tiny, other)
    with monkeypatch.context() as patch, pytest.raises(SourceError, match="was changed while it was converted"):
        patch.setattr("edgespec.gguf.convert.convert", lambda *_, **__: other.replace(path))
        resolve(str(path), progress=False)
    assert not [name for name in leftovers(home) if "mine" in name]


def test_a_disk_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "exists", lambda self: False)  # as on Windows, for a letter without a drive
    with pytest.raises(SourceError, match=r"there is no disk .*got .*hub. Set HF_HOME to a folder"):
        cache.require_space(1, Path("hub"), "HF_HOME")


def test_a_refused_gguf_leaves_nothing(tmp_path: Path, home: Path) -> None:
    with pytest.raises(ConversionError):
        resolve(str(tiny_gguf.write(tmp_path / "x.gguf", arch="gemma2")))
    assert not home.exists()


def test_a_full_disk_before(tiny: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tiny.parent)._replace(free=100_000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(ConversionError, match=r"not enough disk space.*got 0 MiB free; allowed: 2 MiB.*EDGESPEC_CACHE"):
        resolve(str(tiny), progress=False)
    assert leftovers(home) in ([], [".lock"])


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounts a small disk")
def test_a_full_disk_in_the_middle(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("cannot mount here")
    request.addfinalizer(lambda: subprocess.run(["umount", str(disk)], check=True))
    monkeypatch.setenv("EDGESPEC_CACHE", str(disk))
    monkeypatch.setattr("edgespec.cache.require_space", lambda _: None)
    with pytest.raises(ConversionError, match="disk"):
        resolve(str(tiny), progress=False)
    assert leftovers(disk) in ([], [".lock"])


def test_a_killed_conversion_leaves_nothing_that_counts(tiny: Path, home: Path) -> None:
    """Killed without a chance to clean up; the next conversion removes what it left."""
    code = "import sys; from edgespec.hub import resolve as hub; hub.resolve(sys.argv[1], progress=False)"
    process = subprocess.Popen([sys.executable, "-c", code, str(tiny)])
    deadline = time.monotonic() + 30
    while not list(home.glob("ir/*.partial/*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert list(home.glob("ir/*.partial/*")), "it was over before it could be killed"
    process.kill()
    process.wait()
    assert not list(home.glob("ir/*/bundle.json"))
    assert resolve(str(tiny), progress=False).name == "tiny"
    assert not list(home.glob("ir/*.partial"))


def test_ctrl_c_cleans_up(tiny: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("edgespec.gguf.graph.decoder", interrupted)
        resolve(str(tiny), progress=False)
    assert leftovers(home) in ([], [".lock"])
    assert resolve(str(tiny), progress=False).name == "tiny"


def test_a_cache_that_cannot_be_made(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("EDGESPEC_CACHE", str(tmp_path / "file"))
    with pytest.raises(SourceError, match="cannot write to the cache.*EDGESPEC_CACHE"):
        resolve(str(tiny), progress=False)
