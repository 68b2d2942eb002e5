"""A listed model has its short name wherever it is named, and what was stored under its other names is still found."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from click.testing import CliRunner

from edgespec import bundle
from edgespec.cli import cli
from edgespec.draft_folder import DraftFolder
from edgespec.hub import catalog, repository
from edgespec.hub.repository import Fetched
from edgespec.hub.resolve import resolve
from edgespec.hub.stored import cached
from edgespec.machine import engine_choice, engine_comparison, measurement_store
from edgespec.machine.engine_comparison import Comparison, Pace
from tests import hub_server

home, ir, tiny = hub_server.home, hub_server.ir, hub_server.tiny

REPO = "org/Tiny-7B-Instruct-int4-ov"


def list_model(monkeypatch: pytest.MonkeyPatch, **model: Any) -> None:
    listed = catalog.Model(licence="Apache-2.0", **model)
    pairs = msgspec.structs.replace(catalog.load(), models={"tiny-7b": listed})
    monkeypatch.setattr(catalog, "load", lambda: pairs)


@pytest.fixture
def fetched(ir: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The snapshot of a listed IR repository, which was fetched before."""
    list_model(monkeypatch, repo=REPO)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "snapshot"
    folder.mkdir()
    for name, body in hub_server.ir_files(ir).items():
        (folder / name).write_bytes(body)
    record(folder, "main")
    return folder


def record(folder: Path, revision: str) -> None:
    sha256 = {path.name: bundle.sha256_of(path) for path in folder.iterdir()}
    source = bundle.HubSource(repo=REPO, revision=revision)
    repository.record(Fetched(source=source, folder=str(folder), sha256=sha256))


def test_a_head_for_models_called_like_this_one_reads_a_listed_repository(fetched: Path) -> None:
    """By its short name as by OWNER/NAME."""
    head = DraftFolder(fetched, cast(Any, SimpleNamespace(target_names=("tiny-7b-instruct",))))
    for ref, name in (("tiny-7b", "tiny-7b"), (REPO, REPO)):
        found = resolve(ref, progress=False)
        assert (found.name, found.manifest.provenance.source) == (name, REPO)
        assert head.is_called_like(found)


def test_a_listed_repository_is_listed_by_its_name(fetched: Path, tmp_path: Path) -> None:
    another = shutil.copytree(fetched, tmp_path / "another")
    record(another, "v1")
    assert [entry.name for entry in cached()] == [f"{REPO}@v1", "tiny-7b"], "the name does not mean this revision"


def test_what_was_converted_before_is_listed_by_the_name_of_its_file(
    tiny: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve(str(tiny), progress=False)
    assert [entry.name for entry in cached()] == ["tiny"]
    sha256 = bundle.sha256_of(tiny)
    list_model(monkeypatch, repo=REPO, file="a.gguf", sha256=sha256, bytes=tiny.stat().st_size)
    assert [entry.name for entry in cached()] == ["tiny-7b"]


def test_a_package_that_comes_is_listed_by_the_name_of_its_model(home: Path) -> None:
    [package] = (each for each in catalog.packages() if catalog.name_of_package(each) == catalog.KNOWN[0].name)
    part = home / "downloads" / f"{package.sha256}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x")
    assert [entry.name for entry in cached()] == [catalog.KNOWN[0].name]


def test_doctor_finds_what_was_measured_by_whatever_name(fetched: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model is known by its file, so it has been measured once, however it is called."""

    def engine(ref: str) -> str:
        plan: dict[str, str] = json.loads(CliRunner().invoke(cli, ["doctor", "-m", ref, "--json"]).stdout)["model"]
        return plan["engine"]

    monkeypatch.delenv("EDGESPEC_BACKEND", raising=False)
    refs = "tiny-7b", REPO, str(fetched)
    assert all("measured when the model is first loaded" in engine(ref) for ref in refs)
    paces = {name: Pace(0.01, 0.1, 0.1) for name in ("onnxruntime", "openvino")}
    file = engine_comparison.file_of(engine_choice._key(fetched / "openvino_model.xml", None, ()))
    file.parent.mkdir(parents=True, exist_ok=True)
    measurement_store.write(file, Comparison("tiny-7b", "exact", paces))
    assert all("as last measured" in engine(ref) for ref in refs)
    weights = fetched / "openvino_model.bin"
    os.utime(weights, ns=(1, 1))
    assert "as last measured" in engine(str(fetched)), "a copy has other times"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert "as last measured" not in engine(str(fetched)), "other weights may be slower"
