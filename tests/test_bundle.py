"""Bundles: what is read back is what was written, and damage is named in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgespec import bundle
from edgespec.bundle import Generation, HashedFile, Manifest
from edgespec.errors import BundleError, IntegrityError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "target").mkdir()
    (tmp_path / "target/openvino_model.xml").write_text("<net/>")
    (tmp_path / "target/openvino_model.bin").write_bytes(b"12345")
    (tmp_path / "tokenizer.json").write_text("{}")
    bundle.write(
        tmp_path,
        Manifest(
            format=1,
            name="pair",
            target=bundle.model_file(tmp_path, "target/openvino_model.xml", precision="int8", vocab_size=10),
            drafters=(bundle.Drafter(name="ngram", kind="ngram"),),
            tokenizer=HashedFile(file="tokenizer.json", sha256=bundle.sha256_of(tmp_path / "tokenizer.json")),
            generation=Generation(eos_token_ids=(2,), context_length=128),
        ),
    )
    return tmp_path


def test_round_trip(folder: Path) -> None:
    read = bundle.read(folder)
    assert read.name == "pair"
    assert read.manifest.generation == Generation(eos_token_ids=(2,), context_length=128)
    assert read.model_path(read.manifest.target) == folder / "target/openvino_model.xml"
    assert read.hashed(read.manifest.tokenizer).name == "tokenizer.json"
    assert [p.name for p in folder.iterdir() if "tmp" in p.name] == []


def edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "bundle.json"
        data = json.loads(path.read_text())
        change(data)
        path.write_text(json.dumps(data))

    return apply


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "unknown key": (edit(lambda d: d.update(colour="red")), "unknown field `colour`"),
    "unknown key inside": (edit(lambda d: d["target"].update(size=1)), r"unknown field `size`.*target"),
    "wrong type": (edit(lambda d: d["target"].update(vocab_size="ten")), r"Expected `int`, got `str`.*vocab_size"),
    "missing key": (edit(lambda d: d.pop("tokenizer")), "missing required field `tokenizer`"),
    "newer format": (edit(lambda d: d.update(format=2)), "bundle format; got 2; allowed: 1. Upgrade edgespec"),
    "no file and no source": (edit(lambda d: d["target"].pop("file")), "exactly one of file and source"),
    "draft without model": (edit(lambda d: d["drafters"][0].update(kind="small_model")), "needs a model"),
    "no context": (edit(lambda d: d["generation"].update(context_length=0)), "Expected `int` >= 1"),
    "not JSON": (lambda f: (f / "bundle.json").write_text("{"), "not a valid bundle manifest"),
    "not text": (lambda f: (f / "bundle.json").write_bytes(b"\xff\xfe\x00"), "not a valid bundle manifest"),
    "empty": (lambda f: (f / "bundle.json").write_bytes(b""), "not a valid bundle manifest"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_manifest_is_refused(folder: Path, name: str) -> None:
    break_it, message = DAMAGE[name]
    break_it(folder)
    with pytest.raises(BundleError, match=message) as caught:
        bundle.read(folder)
    assert "\n" not in str(caught.value)


def test_damaged_files_are_found_before_the_engine_sees_them(folder: Path) -> None:
    read = bundle.read(folder)
    (folder / "target/openvino_model.bin").write_bytes(b"123")
    with pytest.raises(IntegrityError, match=r"wrong size; got 3 bytes; allowed: 5 bytes"):
        read.model_path(read.manifest.target)
    (folder / "target/openvino_model.bin").unlink()
    with pytest.raises(BundleError, match="missing a file"):
        read.model_path(read.manifest.target)
    (folder / "tokenizer.json").write_text("{ }")
    with pytest.raises(IntegrityError, match="SHA-256"):
        read.hashed(read.manifest.tokenizer)


def test_folders_that_are_no_bundle_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such bundle folder"):
        bundle.read(tmp_path / "missing")
    with pytest.raises(BundleError, match="edgespec export SOURCE"):
        bundle.read(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BundleError, match=r"convert it first: edgespec export"):
        bundle.read(tmp_path)
