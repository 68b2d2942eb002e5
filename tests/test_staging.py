"""A bundle appears whole or not at all, and what a killed process left is gone after the next run."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgespec_export import staging

BUSY = """
import sys, time
from pathlib import Path
from edgespec_export import staging
out = Path(sys.argv[1])
with staging.staged(out) as folder, staging.scratch(folder) as raw, staging.scratch(out.parent / "ir") as other:
    for inside in (folder, raw, other):
        (inside / "weights.bin").write_bytes(b"x" * 1000)
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process in the middle of an export to ``tmp_path / "out"``."""
    process = subprocess.Popen([sys.executable, "-c", BUSY, str(tmp_path / "out")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("place", ["export", "training"])
def test_what_a_killed_process_left_is_swept_by_the_next(
    busy: subprocess.Popen[str], tmp_path: Path, place: str
) -> None:
    assert len([name for name in names(tmp_path) if "-raw-" in name and not name.endswith("lock")]) == 2
    busy.kill()
    busy.wait()
    if place == "export":
        with staging.staged(tmp_path / "another") as folder:
            (folder / "bundle.json").touch()
        assert names(tmp_path) == ["another"]
    else:
        with staging.scratch(tmp_path / "ir") as raw:
            assert [name for name in names(tmp_path) if not name.endswith("lock")] == [raw.name]
        assert names(tmp_path) == []


def test_what_a_live_process_writes_to_stays(busy: subprocess.Popen[str], tmp_path: Path) -> None:
    before = names(tmp_path)
    with staging.staged(tmp_path / "out") as folder:
        (folder / "mine").touch()
    staging.check_destination(tmp_path / "third", force=False)
    assert names(tmp_path) == sorted([*before, "out"])
    assert names(tmp_path / "out") == ["mine"]


def test_a_kill_between_the_two_renames_loses_no_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old one is away and the new one not there yet."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "bundle.json").write_text("old", encoding="utf-8")
    code = """
import os, sys
from pathlib import Path
from edgespec_export import staging
rename = Path.replace
def killed(self, target):
    if self.name != "out":
        os._exit(9)
    return rename(self, target)
Path.replace = killed
with staging.staged(Path(sys.argv[1])) as folder:
    (folder / "bundle.json").write_text("new")
"""
    assert subprocess.run([sys.executable, "-c", code, str(out)], check=False).returncode == 9
    assert not out.exists()
    staging.sweep(tmp_path)
    assert (out / "bundle.json").read_text(encoding="utf-8") == "old"
    assert names(tmp_path) == ["out"]


def test_a_failure_leaves_the_old_bundle_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "bundle.json").write_text("old", encoding="utf-8")
    with pytest.raises(KeyboardInterrupt), staging.staged(out) as folder, staging.scratch(folder):
        raise KeyboardInterrupt
    assert names(tmp_path) == ["out"]
    with staging.staged(out) as folder:
        (folder / "bundle.json").write_text("new", encoding="utf-8")
    assert (out / "bundle.json").read_text(encoding="utf-8") == "new"
    assert names(tmp_path) == ["out"]
