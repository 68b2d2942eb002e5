"""Forms of models for ONNX Runtime in the cache: of which weights they are, how long they stay, and what is none."""

from __future__ import annotations

import gc
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgespec import cache, files
from edgespec.backends.onnx import form
from edgespec.backends.onnx.graph import MODEL_FILE, WEIGHTS_FILE
from edgespec.backends.onnx.weights import NoONNXForm
from edgespec.errors import BackendError, ConversionError
from edgespec.machine import engine_choice
from tests import test_engine_choice
from tests.test_engine_choice import loaded

engines = test_engine_choice.engines


@pytest.fixture
def model(engines: dict[str, float], tiny_fast_ir: Path, tmp_path: Path) -> Path:
    """The graph of a model that may be changed, in an empty cache."""
    return Path(shutil.copytree(tiny_fast_ir.parent, tmp_path / "model")) / tiny_fast_ir.name


def kept() -> list[Path]:
    return sorted((cache.cache_dir() / "onnx").iterdir())


def made(xml: Path) -> Path:
    return form.make_form(xml, 512, "tiny", lambda line: None)


def exported_again(xml: Path, place: float = 0.5) -> None:
    """In place: other weights of the same size, of a second before. On Windows nothing else tells. The second time
    they are as they were."""
    weights = xml.with_suffix(".bin")
    was, data = weights.stat(), bytearray(weights.read_bytes())
    data[int(place * len(data))] ^= 1
    weights.write_bytes(data)
    os.utime(weights, ns=(was.st_atime_ns, was.st_mtime_ns - 10**9))


def test_a_damaged_form_is_made_again(engines: dict[str, float], tiny_fast_ir: Path, tmp_path: Path) -> None:
    before = loaded(tiny_fast_ir, backend="onnxruntime").generate([1, 2], max_new_tokens=4, ignore_eos=True)
    [folder] = (tmp_path / "cache" / "onnx").iterdir()
    for file in (WEIGHTS_FILE, "rotary.npz"):
        (folder / file).write_bytes((folder / file).read_bytes()[:100])
        again = loaded(tiny_fast_ir, backend="onnxruntime").generate([1, 2], max_new_tokens=4, ignore_eos=True)
        assert again.token_ids == before.token_ids


def test_a_form_is_of_these_weights(model: Path) -> None:
    """Others of the same size and time have a form of their own."""
    before, weights = made(model), model.with_suffix(".bin")
    was = weights.stat()
    exported_again(model)
    os.utime(weights, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert made(model) != before


def fingerprint_of(xml: Path) -> str:
    """Of a loaded target, which is gone afterwards: Windows moves no folder with a file that is mapped."""
    found: Any = loaded(xml, backend="onnxruntime").target
    fingerprint: str = found.fingerprint
    del found
    gc.collect()
    return fingerprint


def test_what_was_moved_is_neither_converted_nor_measured_again(model: Path, tmp_path: Path) -> None:
    """Nor what was copied, with other times. Older forms of the same weights go, wherever those lay."""
    before = fingerprint_of(model)
    [folder] = kept()
    first = folder.stat().st_ino
    key = engine_choice._key(model, None, ())
    moved = model.parent.rename(tmp_path / "moved") / model.name
    for file in [*moved.parent.iterdir(), *folder.iterdir()]:
        os.utime(file, ns=(1, 1))
    assert fingerprint_of(moved) == before
    assert [path.stat().st_ino for path in kept()] == [first]
    assert engine_choice._key(moved, None, ()) == key
    old = folder.rename(folder.with_name(folder.name[:-1] + "x"))  # the key of another version
    loaded(moved, backend="onnxruntime")
    assert not old.exists() and len(kept()) == 1


def test_a_form_half_written_is_none(engines: dict[str, float], tiny_fast_ir: Path, tmp_path: Path) -> None:
    """What a killed process left behind is made again."""
    loaded(tiny_fast_ir, backend="onnxruntime")
    [folder] = (tmp_path / "cache" / "onnx").iterdir()
    shutil.move(str(folder), folder.with_name(folder.name + ".partial"))
    assert loaded(tiny_fast_ir, backend="onnxruntime").generate([1, 2], max_new_tokens=2).token_ids
    assert [path.name for path in (tmp_path / "cache" / "onnx").iterdir()] == [folder.name]


def test_a_folder_without_its_last_file_is_no_form(model: Path) -> None:
    """Whatever removed it, where Windows would not remove the rest."""
    folder = made(model)
    (folder / MODEL_FILE).unlink()
    assert made(model) == folder and (folder / MODEL_FILE).is_file()


@pytest.mark.parametrize("refused", [False, True])
def test_what_was_exported_again_meanwhile_is_not_converted(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: bool
) -> None:
    """Else its form, or its refusal, would be that of an unchanged copy of what was there before."""
    other = Path(shutil.copytree(model.parent, tmp_path / "copy")) / model.name
    write = form.write_form

    def slow(xml: Path, folder: Path, **options: Any) -> None:
        exported_again(xml)
        if refused:
            raise NoONNXForm("no", got="Tanh")
        write(xml, folder, **options)

    with monkeypatch.context() as patch:
        patch.setattr(form, "write_form", slow)
        with pytest.raises(ConversionError, match=r"was changed while it was converted\. Run") as caught:
            made(model)
    assert not isinstance(caught.value, NoONNXForm) and kept() == []
    assert made(other) != made(model)


@pytest.mark.parametrize("refused", [False, True])
def test_what_is_gone_meanwhile_was_changed(model: Path, monkeypatch: pytest.MonkeyPatch, refused: bool) -> None:
    """It says nothing of the cache, which the hint would have moved."""
    write = form.write_form

    def slow(xml: Path, folder: Path, **options: Any) -> None:
        write(xml, folder, **options)
        xml.replace(xml.with_name("moved.xml"))
        if refused:
            raise NoONNXForm("no", got="Tanh")

    monkeypatch.setattr(form, "write_form", slow)
    with pytest.raises(ConversionError, match=r"was changed while it was converted\. Run") as caught:
        made(model)
    assert not isinstance(caught.value, NoONNXForm) and kept() == []


def large(xml: Path) -> None:
    """Weights whose hashes are remembered, if they were written a while ago."""
    time.sleep(1.5 * files._SETTLED_NS / 1e9)


def small(xml: Path) -> None:
    assert not files.is_listed(xml.with_suffix(".bin"))


@pytest.mark.parametrize("size", [large, small])
def test_a_form_stays_as_long_as_a_model_has_its_weights(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: Callable[[Path], None]
) -> None:
    """Wherever the form was made first. Where small weights lie is not known, so their forms stay."""
    if size is large:
        monkeypatch.setattr(files, "_SMALL_BYTES", 1)
        monkeypatch.setattr(files, "_in_process", {})
    other = Path(shutil.copytree(model.parent, tmp_path / "copy")) / model.name
    size(other)
    shared = made(model)
    assert made(other) == shared
    exported_again(model)
    size(model)
    own = made(model)
    assert kept() == sorted([shared, own]) and made(other) == shared
    shutil.rmtree(other.parent)
    exported_again(model, 0.75)
    size(model)
    newest = made(model)
    assert kept() == sorted([newest] if size is large else [newest, shared, own])


def test_a_form_in_use_is_left_whole(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows moves no folder of which a process has a file open. Then what it holds is not removed either."""
    folder = made(model)
    names = sorted(path.name for path in folder.iterdir())
    (folder / WEIGHTS_FILE).write_bytes(b"")
    replace = Path.replace

    def held(path: Path, to: Path) -> Path:
        if path == folder:
            raise PermissionError(13, "in use")
        return replace(path, to)

    options: dict[str, Any] = {"capacity": 64, "context_length": 512, "name": "tiny", "say": lambda line: None}
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", held)
        with pytest.raises(BackendError, match="cannot load .*made again"):
            form.open_form(model, "fast", **options)
    assert sorted(path.name for path in folder.iterdir()) == names and kept() == [folder]
    assert form.open_form(model, "fast", **options).folder == folder
    assert kept() == [folder]
