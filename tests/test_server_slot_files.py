"""Slots in files: a prompt need not be read again, and a file of something else is refused."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from starlette.testclient import TestClient

from edgespec.pipeline import Pipeline
from edgespec.server import slot_files
from edgespec.server.app import application
from edgespec.server.sequences import Sequences
from tests.fake_server import Engine, fake_pipeline, service_of

PROMPT = "The lighthouse had stood on the headland for more than a century. " * 2


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGESPEC_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def client_of(pipeline: Pipeline) -> TestClient:
    client = TestClient(application(service_of(pipeline)), base_url="http://127.0.0.1")
    complete(client, "x")
    return client


def complete(client: TestClient, prompt: str) -> Any:
    return client.post("/completion", json={"prompt": prompt, "n_predict": 4}).json()


def act(client: TestClient, action: str, name: str = "mine", status: int = 200) -> Any:
    answer = client.post(f"/slots/0?action={action}", json={"filename": name})
    assert answer.status_code == status, answer.text
    return answer.json()


def test_a_prompt_comes_back_in_another_server(tmp_path: Path, data: Path) -> None:
    client = client_of(fake_pipeline(tmp_path))
    expected = complete(client, PROMPT)
    saved = act(client, "save")
    assert saved["n_saved"] == expected["tokens_evaluated"] + 3 and saved["filename"] == "mine"
    assert saved["n_written"] == (data / "slots/mine.npz").stat().st_size
    assert act(client, "erase")["n_erased"] == saved["n_saved"]

    other = client_of(fake_pipeline(tmp_path))
    assert act(other, "restore")["n_restored"] == saved["n_saved"]
    again = complete(other, PROMPT)
    assert again["content"] == expected["content"]
    assert again["timings"]["prompt_n"] == 1 and expected["timings"]["prompt_n"] > 20


def test_what_is_no_slot_of_this_model_is_refused(tmp_path: Path, data: Path) -> None:
    client = client_of(fake_pipeline(tmp_path))
    act(client, "save")
    for name in ("../mine", "/etc/passwd", "", "a/b", "..", "x" * 200, "NUL", "com1.x"):
        act(client, "save", name, status=400)
        act(client, "restore", name, status=400)
    assert [path.name for path in (data / "slots").iterdir()] == ["mine.npz"]
    assert "no slot was saved" in act(client, "restore", "other", status=400)["error"]["message"]
    another = client_of(fake_pipeline(tmp_path, name="another"))
    assert "another model" in act(another, "restore", status=400)["error"]["message"]
    for content in (b"", b"PK\x03\x04junk", (data / "slots/mine.npz").read_bytes()[:300]):
        (data / "slots/mine.npz").write_bytes(content)
        assert "damaged" in act(client, "restore", status=400)["error"]["message"]
    act(client, "explode", status=400)
    assert client.post("/slots/7?action=erase").status_code == 400
    assert complete(client, "x")["content"]


def test_a_slot_has_what_its_client_used_last(tmp_path: Path, data: Path) -> None:
    served = fake_pipeline(tmp_path)
    service = service_of(served, sequences=Sequences(1 << 20))
    client = TestClient(application(service), base_url="http://127.0.0.1")
    editor, program = {"user-agent": "editor"}, {"user-agent": "program"}

    def read(who: dict[str, str], prompt: str) -> int:
        answer = client.post("/completion", json={"prompt": prompt, "n_predict": 4}, headers=who).json()
        return int(answer["timings"]["prompt_n"])

    def act(action: str) -> dict[str, Any]:
        answer = client.post(f"/slots/0?action={action}", json={"filename": "mine"}, headers=editor)
        assert answer.status_code == 200, answer.text
        return cast(dict[str, Any], answer.json())

    other = "Another text, of another program. " * 4
    expected = read(editor, PROMPT)
    assert expected > 20 and read(program, other) > 20
    assert act("save")["n_saved"] >= expected - 1
    assert read(program, other) <= 2  # it is back from where it was kept
    more = "A third text, which nobody has kept. " * 4
    assert read(program, more) > 20
    assert read(editor, "The editor's own next file. " * 4) > 20
    restored = act("restore")["n_restored"]
    assert act("save")["n_saved"] == restored, "what came back is what it used last"
    assert read(editor, PROMPT) <= 2
    assert read(program, more) <= 2  # it was kept before the file took its place


def test_two_models_that_save_one_name_write_a_file_each(tmp_path: Path, data: Path) -> None:
    """The one that ends last is the slot: whole."""
    one, two = fake_pipeline(tmp_path), fake_pipeline(tmp_path, name="two")
    path, inner = data / "slots/mine.npz", [True]
    for each in (one, two):
        each.generate(PROMPT, raw=True, max_new_tokens=2)
    really = np.savez

    def savez(file: Any, **arrays: Any) -> None:
        if inner:
            inner.clear()
            slot_files.save(two, path)  # begins later, and ends before
        really(file, **arrays)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("numpy.savez", savez)
        slot_files.save(one, path)
    assert slot_files.restore(one, path).tokens == one.target.cache.length
    assert [each.name for each in path.parent.iterdir()] == ["mine.npz"]
    assert os.name != "posix" or path.stat().st_mode & 0o777 == 0o600


class Fingerprinted(Engine):
    fingerprint = "weights"


class Others(Engine):
    fingerprint = "other weights"


def test_a_slot_is_of_its_weights_whatever_they_are_called(tmp_path: Path, data: Path) -> None:
    """Models of the list have got other names, and their slots are the same."""
    client = client_of(fake_pipeline(tmp_path, name="tiny-instruct", model=Fingerprinted))
    saved = act(client, "save")["n_saved"]
    path = data / "slots/mine.npz"
    with np.load(path) as file:
        arrays = dict(file)
    header = json.loads(arrays["header"].tobytes())
    arrays["header"] = np.frombuffer(json.dumps({"model": "tiny-instruct"} | header).encode(), np.uint8)
    for older in (False, True):
        if older:  # it named the model, too
            np.savez(path, **arrays)
        renamed = client_of(fake_pipeline(tmp_path, name="tiny", model=Fingerprinted))
        assert act(renamed, "restore")["n_restored"] == saved
        others = client_of(fake_pipeline(tmp_path, name="tiny-instruct", model=Others))
        assert "another model" in act(others, "restore", status=400)["error"]["message"]


def test_a_disk_that_fills_up_keeps_no_part_of_a_slot(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = client_of(fake_pipeline(tmp_path))

    def full(file: Any, **arrays: Any) -> None:
        file.write(b"x")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("numpy.savez", full)
    assert "No space left" in act(client, "save", status=501)["error"]["message"]
    assert list((data / "slots").iterdir()) == []
