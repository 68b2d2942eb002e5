"""What examples/editors tell editors to ask: addresses that this server has."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from edgespec.hub import catalog
from edgespec.server.app import application
from tests.fake_server import fake_pipeline, service_of

FOLDER = Path(__file__).parent.parent / "examples" / "editors"
FILES = sorted(path for path in FOLDER.iterdir() if path.suffix != ".md")


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.name)
def test_every_address_is_one_of_the_servers(file: Path, tmp_path: Path) -> None:
    text = file.read_text(encoding="utf-8")
    urls = re.findall(r"https?://127[^\s'\"]*", text)
    assert urls and all(url.startswith("http://127.0.0.1:8012") for url in urls), "the port of edgespec serve"
    with TestClient(application(service_of(fake_pipeline(tmp_path))), base_url="http://127.0.0.1") as client:
        for path in {url.removeprefix("http://127.0.0.1:8012") for url in urls}:
            if path in ("", "/v1"):  # a base, to which the editor adds the rest
                assert client.get(f"{path}/models" if path else "/api/tags").status_code == 200
            else:
                assert client.post(path, content=b"{}").status_code == 400, "a route that wants fields"
    assert f"({file.name})" in (FOLDER / "README.md").read_text(encoding="utf-8")


def test_the_files_are_sound_and_name_a_known_model() -> None:
    assert json.loads((FOLDER / "zed.json").read_text(encoding="utf-8"))
    for file in FILES:
        for name in re.findall(r"qwen[\w.\-]+", file.read_text(encoding="utf-8")):
            assert catalog.find(name) is not None, name
