"""What a server says of models that are not loaded, and which of them it offers."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.testclient import TestClient

from edgespec import load
from edgespec.bundle import sha256_of
from edgespec.hub import catalog, repository
from edgespec.hub import resolve as hub
from edgespec.manifest import HubSource
from edgespec.server.about import context_of, of_files, of_loaded
from edgespec.server.app import application
from edgespec.server.offers import here, offers
from edgespec.server.residents import Residents
from edgespec.server.service import Service
from tests import tiny_gguf

PINNED, OTHER = "qwen2.5-coder-0.5b", "somebody/tiny"


@pytest.fixture
def gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny file, fetched under a name of the list, and not converted."""
    monkeypatch.setenv("EDGESPEC_CACHE", str(tmp_path / "cache"))
    wanted = hub.on_hub(PINNED)
    assert wanted is not None and wanted.model is not None and wanted.model.sha256 and wanted.file
    path = tiny_gguf.write(tmp_path / wanted.file)
    _fetched(wanted.source, wanted.file, tmp_path, {wanted.file: wanted.model.sha256})
    return path


@pytest.fixture
def converted(gguf: Path) -> Path:
    """The same model as a repository, fetched by its address."""
    folder = hub.resolve(str(gguf), progress=False).root
    hashes = {path.name: sha256_of(path) for path in folder.iterdir()}
    _fetched(HubSource(repo=OTHER, revision="main"), None, folder, hashes)
    return folder


def _fetched(source: HubSource, file: str | None, folder: Path, sha256: dict[str, str]) -> None:
    (folder.parent if file is None else folder).mkdir(exist_ok=True)
    (repository._record_file(source, file).parent).mkdir(parents=True, exist_ok=True)
    repository.record(repository.Fetched(source=source, file=file, folder=str(folder), sha256=sha256))


def test_files_say_what_the_loaded_model_says(gguf: Path, converted: Path) -> None:
    loaded = of_loaded(load(converted, backend="openvino", draft="none", num_draft_tokens=0, progress=False))
    assert of_files(PINNED) == of_files(OTHER) == of_files(str(converted)) == loaded
    assert loaded.template and loaded.ends
    shorter = of_files(PINNED, context_length=16)
    assert shorter is not None and shorter.context_length == context_of(PINNED, context_length=16) == 16
    assert (context_of(OTHER), context_of(PINNED)) == (loaded.context_length, None)  # its header is not read for a list


def test_a_picker_that_shows_every_model_loads_none(converted: Path) -> None:
    default = catalog.KNOWN[0].name
    assert here() == [PINNED, default, OTHER]
    service = Service(Residents(offers(["default"], {}, keep_alive_s=None)))
    with TestClient(application(service), base_url="http://127.0.0.1") as client:
        names = [each["name"] for each in client.get("/api/tags").json()["models"]]
        assert names == [default, PINNED, OTHER]
        for name in names:
            shown = client.post("/api/show", json={"model": name}).json()
            assert shown["model_info"]["edgespec.context_length"] > 0 and "completion" in shown["capabilities"]
            assert '\nstop "<|' in shown["parameters"], shown["parameters"]
            if name == default:
                details = shown["details"]
                assert (details["parameter_size"], details["quantization_level"]) == ("135M", "int8")
        lengths = {each["id"]: each["context_length"] for each in client.get("/v1/models").json()["data"]}
        assert lengths[default] and lengths[OTHER] and lengths[PINNED] is None
    assert service.residents.loaded == {}


def test_a_model_whose_files_are_gone_or_damaged_is_known_by_nothing(converted: Path) -> None:
    (converted / "bundle.json").write_text("{", encoding="utf-8")
    assert of_files(OTHER) is None and context_of(OTHER) is None
    (converted / "bundle.json").unlink()
    assert OTHER not in here() and of_files("nobody/nothing") is None
