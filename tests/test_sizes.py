"""The size of a model is one number: in the server's lists, on its page, and in ``edgespec models``."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from starlette.testclient import TestClient

from edgespec.cli import cli
from edgespec.hub import catalog, repository
from edgespec.hub import resolve as hub
from edgespec.hub.sizes import bytes_of
from edgespec.server.app import application
from edgespec.server.chat.picker import Speeds, listed
from edgespec.server.offers import offers
from edgespec.server.residents import Residents
from edgespec.server.service import Service
from tests.fake_server import fake_pipeline

PINNED, UNPINNED = "qwen2.5-coder-0.5b", "smollm2-1.7b"
WEIGHTS = b"weights of a model that nobody has pinned"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both models lie there, as if they had been fetched."""
    monkeypatch.setenv("EDGESPEC_CACHE", str(tmp_path / "cache"))
    for name in (PINNED, UNPINNED):
        wanted = hub.on_hub(name)
        assert wanted is not None and wanted.model is not None
        folder, file = tmp_path / name, wanted.file or "openvino_model.bin"
        folder.mkdir()
        (folder / file).write_bytes(WEIGHTS)
        hashes = {file: wanted.model.sha256 or "0" * 64}
        repository.record(repository.Fetched(source=wanted.source, file=wanted.file, folder=str(folder), sha256=hashes))


def test_every_list_says_the_same_size_also_of_a_loaded_model(tmp_path: Path) -> None:
    models = json.loads(CliRunner().invoke(cli, ["models", "--json"]).stdout)
    said = {"edgespec models": {each["name"]: each["bytes"] for each in [*models["known"], *models["pairs"]]}}

    served = fake_pipeline(tmp_path / "served", name=PINNED)  # takes 1000 bytes of memory, and its KV cache
    offered = {
        name: replace(each, load=lambda: served) for name, each in offers(["default"], {}, keep_alive_s=None).items()
    }
    service = Service(Residents(offered))
    with TestClient(application(service), base_url="http://127.0.0.1") as client:
        client.post("/v1/completions", json={"model": PINNED, "prompt": "a", "max_tokens": 1}).raise_for_status()
        said["/v1/models"] = {each["id"]: each["meta"]["size"] for each in client.get("/v1/models").json()["data"]}
        said["/api/tags"] = {each["name"]: each["size"] for each in client.get("/api/tags").json()["models"]}
        [loaded] = client.get("/api/ps").json()["models"]
    said["page"] = {each["name"]: each["bytes"] for each in listed(service, Speeds([]))}

    default = catalog.KNOWN[0].name
    [package] = catalog.packages()
    for where, sizes in said.items():
        found = {name: sizes.get(name) for name in (default, PINNED, UNPINNED)}
        assert found == {default: package.wheel_bytes, PINNED: 491_400_064, UNPINNED: len(WEIGHTS)}, where
    assert loaded["size"] == service.residents.loaded[PINNED].bytes != 491_400_064  # memory


def test_a_file_has_its_size_and_what_is_not_here_has_none(tmp_path: Path) -> None:
    (tmp_path / "own.gguf").write_bytes(b"1234")
    assert bytes_of(str(tmp_path / "own.gguf")) == 4
    cache_bytes = bytes_of(str(tmp_path / "cache"))
    assert cache_bytes and bytes_of(str(tmp_path)) == 4 + cache_bytes + 2 * len(WEIGHTS)
    assert (
        bytes_of("qwen3-8b") is None and bytes_of("some/repository") is None and bytes_of("no such file.gguf") is None
    )


def test_a_reference_is_read_as_a_path_the_way_it_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "own.gguf").write_bytes(b"1234")
    assert bytes_of("~/own.gguf") == 4
    assert bytes_of("x" * 5000) is None and bytes_of("") is None and bytes_of("a\0b") is None
    [offer, *_] = offers(["~/own.gguf"], {}, keep_alive_s=None).values()
    assert (offer.name, offer.aliases, offer.size_bytes) == ("own", ("~/own.gguf",), 4)


def test_an_offer_has_a_size_once_its_model_was_fetched(tmp_path: Path) -> None:
    [file] = (tmp_path / UNPINNED).iterdir()
    away = file.rename(tmp_path / "away")
    offer = offers([UNPINNED], {}, keep_alive_s=None)[UNPINNED]
    assert offer.size_bytes is None
    away.rename(file)
    assert offer.size_bytes == len(WEIGHTS)


def test_a_damaged_folder_has_no_size_until_it_is_whole(tmp_path: Path) -> None:
    next((tmp_path / UNPINNED).iterdir()).unlink()
    assert bytes_of(UNPINNED) is None
