"""Folders of the cache are whole or gone, also where a process has a file of them open."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgespec import cache
from edgespec.errors import ConversionError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One with two files, which is in the way of a new one."""
    made = tmp_path / "made"
    made.mkdir()
    for name in ("weights", "graph"):
        (made / name).write_text("old", encoding="utf-8")
    return made


def rewritten(folder: Path) -> None:
    with cache.staged(folder) as partial:
        (partial / "graph").write_text("new", encoding="utf-8")


def test_a_new_folder_takes_the_place_of_the_old_one(folder: Path) -> None:
    (folder.parent / "killed.partial").mkdir()
    rewritten(folder)
    assert [path.read_text(encoding="utf-8") for path in folder.iterdir()] == ["new"]
    assert list(folder.parent.iterdir()) == [folder]


def test_a_folder_in_use_stays_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows moves no folder with an open file. To remove what it lets go would leave half of a model."""
    replace = Path.replace

    def held(path: Path, to: Path) -> Path:
        if folder in (path, to):
            raise OSError(13, "in use")
        return replace(path, to)

    monkeypatch.setattr(Path, "replace", held)
    monkeypatch.setattr("edgespec.cache.time.sleep", lambda pause_s: None)
    assert not cache.discard(folder)
    with pytest.raises(ConversionError, match="cannot write the model to the cache: in use"):
        rewritten(folder)
    assert {path.read_text(encoding="utf-8") for path in folder.iterdir()} == {"old"}
    assert sorted(path.name for path in folder.iterdir()) == ["graph", "weights"]
    assert list(folder.parent.iterdir()) == [folder]


def test_what_is_not_there_is_discarded(folder: Path) -> None:
    assert cache.discard(folder / "graph") and cache.discard(folder / "graph")
    assert cache.discard(folder) and list(folder.parent.iterdir()) == []
