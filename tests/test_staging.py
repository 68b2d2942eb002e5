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


def test_what_has_come_to_the_destination_meanwhile_stays(tmp_path: Path) -> None:
    """And so does the result, which took hours, also for the next run in this place."""
    out = tmp_path / "out"
    for force in (False, True):
        with pytest.raises(staging.NotPublished) as caught, staging.staged(out, force=force) as folder:
            (folder / "bundle.json").touch()
            out.mkdir(exist_ok=True)
            (out / "of the user").touch()
        assert names(out) == ["of the user"]
        assert str(folder) in str(caught.value)
        staging.sweep(tmp_path)
        assert names(folder) == ["bundle.json"]
        assert not list(tmp_path.glob("*lock"))


def test_a_scanner_that_holds_a_new_folder_for_a_moment_loses_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename, tries = Path.replace, iter([True, False, True, True, True, True, True])
    monkeypatch.setattr("time.sleep", lambda seconds: None)

    def held(self: Path, target: Path) -> Path:
        if not self.name.endswith(".old") and target.name == "out" and next(tries):
            raise PermissionError(13, "held")
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", held)
    out = tmp_path / "out"
    with staging.staged(out, force=True) as folder:
        (folder / "bundle.json").write_text("first", encoding="utf-8")
    assert names(tmp_path) == ["out"]
    with pytest.raises(staging.NotPublished, match="held"), staging.staged(out, force=True) as folder:
        (folder / "bundle.json").write_text("second", encoding="utf-8")
    monkeypatch.undo()
    assert (folder / "bundle.json").read_text(encoding="utf-8") == "second"


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
