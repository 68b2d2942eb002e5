"""A repository on the hub, pulled in a process of its own: the hub's settings are read at import."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgespec import bundle
from edgespec.bundle import HubSource
from edgespec.hub import repository
from tests import hub_server, processes
from tests.hub_server import COMMIT, Server, bundle_with, files_of, ir_files, publish

home, ir, server, tiny = hub_server.home, hub_server.ir, hub_server.server, hub_server.tiny


@pytest.fixture
def pull(server: Server, tmp_path: Path, home: Path) -> Iterator[object]:
    """Run ``edgespec pull REF`` against the server; returns (exit code, stdout, stderr)."""

    def run(ref: str, **env: str) -> tuple[int, str, str]:
        ours = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
        done = processes.decoded(processes.edgespec("pull", ref, cwd=tmp_path, env=os.environ | ours | env))
        return done.returncode, done.stdout.strip(), done.stderr.strip()

    yield run


def test_a_kill_during_a_move_to_another_disk_leaves_no_cut_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other programs take what is in the hub's cache as it is."""
    part, place = tmp_path / "large.part", tmp_path / "blob"
    part.write_bytes(b"whole")

    def across(*_: object, **__: object) -> None:
        raise OSError(errno.EXDEV, "another disk")

    def killed(source: str, target: str, **_: object) -> None:
        Path(target).write_bytes(b"who")
        raise KeyboardInterrupt

    monkeypatch.setattr("os.rename", across)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("shutil.copyfile", killed)
        repository._put(part, place)
    assert part.is_file() and not place.exists()
    repository._put(part, place)
    assert place.read_bytes() == b"whole"
    assert list(tmp_path.iterdir()) == [place]


def test_an_ir_repository(pull, server: Server, ir: Path) -> None:  # type: ignore[no-untyped-def]
    others = {"model.safetensors": b"x" * 1000, "openvino_tokenizer.bin": b"x", "training/optimizer.bin": b"x"}
    publish(server, ir_files(ir) | others)
    code, folder, said = pull("org/tiny")
    assert (code, said) == (
        0,
        "edgespec: fetching org/tiny (one-time)\n[org/tiny is ready: f16, 0 MB, drafts: lookups]",
    )
    assert not server.asked_for(".safetensors")
    assert not server.asked_for("openvino_tokenizer.bin")
    assert not server.asked_for("optimizer.bin")

    server.down, server.requests = True, []
    assert pull("org/tiny")[:2] == (0, folder)
    assert server.requests == [], "the second time needs no network"


def test_a_large_file_goes_on_where_it_stopped(pull, server: Server, ir: Path, home: Path) -> None:  # type: ignore[no-untyped-def]
    publish(server, ir_files(ir))
    server.cut = 50_000
    code, _, said = pull("org/tiny")
    assert code == 2 and "cannot fetch org/tiny" in said
    [part] = home.glob("downloads/*.part")
    assert part.stat().st_size == 50_000
    part.with_suffix(".joining").write_bytes(b"x")  # a mirror was tried, too
    server.down, server.requests = False, []
    code, folder, _ = pull("org/tiny")
    assert code == 0
    assert server.asked_for("openvino_model.bin") == ["bytes=50000-"]
    assert files_of(Path(folder))["openvino_model.bin"] == files_of(ir)["openvino_model.bin"]
    assert not list(home.glob("downloads/*"))


def test_a_bundle_repository_at_a_revision(pull, server: Server, ir: Path) -> None:  # type: ignore[no-untyped-def]
    publish(server, files_of(ir), revision="v1")
    code, _, said = pull("org/tiny@v1")
    assert code == 0
    assert said.startswith("edgespec: fetching org/tiny (one-time)\n[tiny is ready")


def test_a_source_on_the_hub(pull, server: Server, ir: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    publish(server, ir_files(ir), revision=COMMIT)
    pair = bundle_with(HubSource(repo="org/tiny", revision=COMMIT), ir, tmp_path / "pair")
    code, folder, said = pull(str(pair.root))
    assert code == 0
    assert said.startswith("edgespec: fetching org/tiny (one-time)\n[pair is ready")
    assert (Path(folder) / bundle.IR_FILE).is_file()


def test_a_snapshot_that_lost_a_file_is_fetched_again(pull, server: Server, ir: Path) -> None:  # type: ignore[no-untyped-def]
    publish(server, files_of(ir))
    folder = Path(pull("org/tiny")[1])
    weights = folder / "openvino_model.bin"
    with contextlib.suppress(OSError):
        weights.resolve().unlink()
    weights.unlink(missing_ok=True)
    assert pull("org/tiny")[0] == 0
    assert weights.is_file()


def test_a_changed_snapshot_is_fetched_again(pull, server: Server, ir: Path) -> None:  # type: ignore[no-untyped-def]
    publish(server, ir_files(ir))
    folder = Path(pull("org/tiny")[1])
    for name in ("openvino_model.bin", "openvino_model.xml", "tokenizer.json"):
        path = (folder / name).resolve()
        right = path.read_bytes()
        path.chmod(0o644)
        path.write_bytes(right[:-4] + b"    ")
        code, _, said = pull("org/tiny", HF_HUB_OFFLINE="1")
        assert code == 2, said
        assert re.search(f"{name} is not the file that was fetched .*edgespec pull org/tiny", said), said
        assert pull("org/tiny")[0] == 0
        assert (folder / name).read_bytes() == right


def test_a_cache_that_was_damaged_before_is_filled_again(pull, server: Server, ir: Path, home: Path) -> None:  # type: ignore[no-untyped-def]
    """Nothing is recorded here: another program put the repository into the hub's cache."""
    publish(server, ir_files(ir))
    weights = Path(pull("org/tiny")[1]) / "openvino_model.bin"
    right = weights.read_bytes()
    shutil.rmtree(home)
    weights.resolve().chmod(0o644)
    weights.resolve().write_bytes(bytes(len(right)))
    assert pull("org/tiny")[0] == 0
    assert weights.read_bytes() == right


@pytest.mark.parametrize("name", ["openvino_model.bin", "openvino_model.xml"])
def test_other_bytes_than_the_hub_lists_are_refused(pull, server: Server, ir: Path, name: str, home: Path) -> None:  # type: ignore[no-untyped-def]
    files = ir_files(ir)
    publish(server, files)
    server.files[f"/org/tiny/resolve/{COMMIT}/{name}"] = bytes(len(files[name]))
    code, _, said = pull("org/tiny")
    refused = f"error: {name} of org/tiny is not the file that the hub lists (SHA-256)"
    assert (code, said) == (2, f"edgespec: fetching org/tiny (one-time)\n{refused}")
    assert not list(home.glob("hub/*"))


@pytest.mark.parametrize("name", ["../../x.json", "/tmp/x.json", "a\\b.bin", "nul.xml", "x\x1b[2J.json"])
def test_a_file_name_on_the_hub_has_a_form(pull, server: Server, ir: Path, name: str) -> None:  # type: ignore[no-untyped-def]
    publish(server, ir_files(ir) | {name: b"{}"})
    code, _, said = pull("org/tiny")
    assert code == 2 and "a file inside the folder" in said and said.isprintable()


@pytest.mark.parametrize("what", ["commit", "hash"])
def test_what_becomes_the_name_of_a_file_has_a_form(pull, server: Server, ir: Path, what: str) -> None:  # type: ignore[no-untyped-def]
    publish(server, ir_files(ir))
    path = "/api/models/org/tiny/revision/main"
    right = COMMIT if what == "commit" else hashlib.sha256(ir_files(ir)["openvino_model.bin"]).hexdigest()
    server.files[path] = server.files[path].replace(right.encode(), b"../../x")
    code, _, said = pull("org/tiny")
    assert code == 2 and "got ../../x; allowed:" in said
    assert not server.asked_for("openvino_model.bin")


@pytest.mark.parametrize(
    "answer", [b"<html>", b"[]", b'{"siblings": 1}', b'{"siblings": [{}]}', b"[" * 100_000, b"\xff"]
)
def test_a_hub_that_answers_something_else_is_one_line(pull, server: Server, answer: bytes) -> None:  # type: ignore[no-untyped-def]
    server.files["/api/models/org/tiny/revision/main"] = answer
    code, _, said = pull("org/tiny")
    assert code == 2 and said.startswith("error: ") and "\n" not in said


def test_a_bundle_from_the_hub_runs_nothing(pull, server: Server, ir: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """A direct reference makes pip build its package, whatever it is told about wheels."""
    package = tmp_path / "package"
    package.mkdir()
    build = f"open({str(tmp_path / 'ran')!r}, 'w'); from setuptools import setup; setup(name='x', version='1')"
    (package / "setup.py").write_text(build, encoding="utf-8")
    manifest = json.loads((ir / bundle.MANIFEST).read_text(encoding="utf-8"))
    source = {"type": "wheel", "version": "1", "sha256": "0" * 64, "member": "m", "member_sha256": "0" * 64}
    for name, said in (
        (f"x @ {package.as_uri()}#", "package is 'x @ file:"),
        ("setuptools", "a Python package that edgespec does not know"),
    ):
        manifest["target"] = {"precision": "f16", "vocab_size": 512, "source": source | {"package": name}}
        publish(server, files_of(ir) | {bundle.MANIFEST: json.dumps(manifest).encode()})
        shutil.rmtree(tmp_path / "hf", ignore_errors=True)
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        code, _, error = pull("org/tiny")
        assert code == 2 and said in error
        assert not (tmp_path / "ran").exists() and not server.asked_for("/setuptools/")


@pytest.mark.parametrize(
    ("ref", "files", "env", "said"),
    [
        ("org/torch", {"config.json": b"{}"}, {}, r"convert it: edgespec export org/torch -o DIR"),
        ("org/gguf", {"x-Q4_0.gguf": b"", "x-Q8_0.gguf": b""}, {}, r"download x-Q4_0\.gguf from it"),
        ("org/none", None, {}, r"org/none: no such folder here and no such repository"),
        ("org/none", None, {"HF_HUB_OFFLINE": "1"}, r"not in the cache and the hub cannot be reached"),
        ("org/none", None, {"HF_ENDPOINT": "http://127.0.0.1:9"}, r"not in the cache and the hub cannot be reached"),
        ("org/half", {"openvino_model.xml": b"<x/>", "config.json": b"{}"}, {}, r"no openvino_model\.bin"),
    ],
)
def test_hub_errors_are_one_line(pull, server: Server, ref: str, files, env: dict[str, str], said: str) -> None:  # type: ignore[no-untyped-def]
    if files is None:
        server.headers = {"X-Error-Code": "RepoNotFound"}
    else:
        publish(server, files, repo=ref)
    code, out, error = pull(ref, **env)
    assert (code, out) == (2, "")
    assert re.search(said, error, re.IGNORECASE), error
    *lines, error = error.splitlines()
    assert error.startswith("error: ")
    assert lines in ([], [f"edgespec: fetching {ref} (one-time)"])
