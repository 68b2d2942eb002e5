"""Short names for pairs on the hub: the list is valid, licences come first, and a name loads both of its models."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from edgespec import loading
from edgespec.bundle import HubSource
from edgespec.errors import BundleError, LicenceError, SourceError
from edgespec.hub import catalog
from edgespec.hub.resolve import model_path, resolve
from tests import hub_server, processes
from tests.hub_server import Server, bundle_with, ir_files, publish

ROOT = Path(__file__).parents[1]
RESEARCH = ("qwen3-0.6b-pruned", "phi-3-mini-fastdraft", "llama-3.1-8b-fastdraft")
VALID = """
[licences.open]
use = "any"
url = "https://example.org/open"
[licences.closed]
use = "research"
url = "https://example.org/closed"
terms = "for research only"
[models.big]
repo = "org/big"
licence = "open"
draft = "small"
[models.small]
repo = "org/small"
licence = "open"
"""

home, server, tiny, ir = hub_server.home, hub_server.server, hub_server.tiny, hub_server.ir


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def edgespec(server: Server, tmp_path: Path):  # type: ignore[no-untyped-def]
    """Run a command with our hub in place of the real one."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        hub_of_ours = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
        return processes.decoded(processes.edgespec(*arguments, cwd=tmp_path, env=os.environ | hub_of_ours))

    return run


# --- the list


def test_the_list_is_valid_and_has_what_it_should() -> None:
    listed = catalog.load()
    assert {name.split("-")[0] for name in listed.models} == {"smollm2", "qwen2.5", "qwen3", "phi", "llama", "gemma"}
    assert {model.licence for model in listed.models.values()} == set(listed.licences), "no licence is for nothing"
    for name in ("smollm2-360m", "smollm2-1.7b"):
        assert listed.models[name].draft == "smollm2-135m"
    assert listed.licences["Intel Research Use License Agreement"].use == "research"


def test_names_are_no_known_names() -> None:
    assert not set(catalog.listed_names()) & set(catalog.shipped_names())


def test_no_default_draft_is_for_research_only() -> None:
    listed = catalog.load()
    for_research = {name for name, model in listed.models.items() if listed.licences[model.licence].use == "research"}
    assert for_research == set(RESEARCH)
    assert not {model.draft for model in listed.models.values()} & for_research


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('draft = "small"', 'drfat = "small"', "unknown field `drfat`"),
        ('use = "research"', 'use = "some"', "Invalid enum value 'some'"),
        ('draft = "small"', "draft = 1", "Expected `str \\| null`"),
        ("[models.big]", "[models.big", "cannot read"),
        ('terms = "for research only"', "", "licence closed has no terms"),
        ("[models.big]", "[models.default]", "default cannot be a name"),
        ("[models.big]", '[models."OWNER/NAME"]', "OWNER/NAME cannot be a name"),
        ("org/big", "big", "repo is 'big'; allowed: OWNER/NAME"),
        ("org/big", "../org/big", "repo is '../org/big'; allowed: OWNER/NAME"),
        ('"org/big"', '"org/big"\nfile = "../big.gguf"', "file is '../big.gguf'; allowed: a file inside the folder"),
        ('"org/big"', '"org/big"\nrevision = "../main"', "revision is '../main'; allowed: a commit, branch or tag"),
        ('licence = "open"', 'licence = "opn"', "no licence opn"),
        ('draft = "small"', 'draft = "smal"', "big: no draft smal"),
        ('draft = "small"', 'other_drafts = ["smal"]', "big: no draft smal"),
        (
            'repo = "org/small"\nlicence = "open"',
            'repo = "org/small"\nlicence = "closed"',
            "small is for research only and cannot be the default",
        ),
    ],
)
def test_a_list_with_a_mistake_is_refused(tmp_path: Path, old: str, new: str, said: str) -> None:
    path = tmp_path / catalog.FILE
    path.write_text(VALID, encoding="utf-8")
    assert catalog.read(path).models["big"].draft == "small"
    path.write_text(VALID.replace(old, new), encoding="utf-8")
    with pytest.raises(BundleError, match=said):
        catalog.read(path)
    path.unlink()
    with pytest.raises(BundleError, match="cannot read"):
        catalog.read(path)


def test_it_is_read_only_when_a_name_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import edgespec; from edgespec.cli import cli; cli.get_command(None, 'run'); import sys; print(*sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {"edgespec.hub.catalog", "tomllib", "tomli"} & set(loaded)

    monkeypatch.setattr(catalog, "load", lambda: pytest.fail("the list was read for the default model"))
    assert resolve("default").name == "smollm2-135m"
    assert catalog.default_draft("default") is None
    catalog.require_consent("default", accepted=False)


def test_the_wheel_has_it_and_the_document_says_what_it_means() -> None:
    assert f'"models/{catalog.FILE}" = "edgespec/_models/{catalog.FILE}"' in (ROOT / "pyproject.toml").read_text(
        "utf-8"
    )
    text = (ROOT / "docs" / "bundle.md").read_text(encoding="utf-8").split("## Pairs")[1].split("\n## ")[0]
    for kind in (catalog.Licence, catalog.Model):
        assert [key for key in kind.__struct_fields__ if f"`{key}`" not in text] == []


# --- licences


@pytest.mark.parametrize("name", RESEARCH)
def test_research_only_needs_consent_before_any_network(
    name: str, offline: None, home: Path, ir: Path, tmp_path: Path
) -> None:
    repo = catalog.load().models[name].repo
    pair = bundle_with(HubSource(repo=repo, revision="main"), ir, tmp_path / "pair")
    for attempt in (
        lambda: resolve(name),
        lambda: resolve(repo),
        lambda: resolve(f"{repo.lower()}@main"),
        lambda: model_path(pair, pair.manifest.target),
        lambda: loading.load(name),
        lambda: loading.load("phi-3-mini", draft=name),
        lambda: loading.load("phi-3-mini", draft=repo),
    ):
        with pytest.raises(LicenceError, match="--accept-licence"):
            attempt()
    assert not home.exists()


def test_refused_on_the_command_line_it_is_one_line(edgespec, server: Server) -> None:  # type: ignore[no-untyped-def]
    for arguments in (
        ("pull", "phi-3-mini-fastdraft"),
        ("run", "--model", "phi-3-mini", "--draft", "phi-3-mini-fastdraft", "Hello"),
        ("run", "--model", "llama-3.1-8b-fastdraft", "Hello"),
    ):
        ran = edgespec(*arguments)
        assert (ran.returncode, ran.stdout) == (2, ""), ran.stderr
        assert ran.stderr.startswith("error: ") and ran.stderr.count("\n") == 1
        assert "Intel Research Use License Agreement, for research purposes only" in ran.stderr
    assert server.requests == []


def test_with_consent_it_is_fetched_and_says_what_it_is(edgespec, server: Server, ir: Path) -> None:  # type: ignore[no-untyped-def]
    publish(server, ir_files(ir), repo="OpenVINO/Phi-3-mini-FastDraft-50M-int8-ov")
    ran = edgespec("pull", "phi-3-mini-fastdraft", "--accept-licence")
    assert ran.returncode == 0, ran.stderr
    notice, fetching, ready = ran.stderr.splitlines()
    assert "for research purposes only" in notice and "is ready" in ready
    assert fetching == "edgespec: fetching OpenVINO/Phi-3-mini-FastDraft-50M-int8-ov (one-time)"
    server.down = True
    assert edgespec("pull", "phi-3-mini-fastdraft").returncode == 2, "what is here already needs it too"
    assert edgespec("pull", "phi-3-mini-fastdraft", "--accept-licence").returncode == 0


def test_conditions_are_named_before_the_download_and_need_no_consent(edgespec, server: Server, ir: Path) -> None:  # type: ignore[no-untyped-def]
    publish(server, {"config.json": b"{}"}, repo="llmware/llama-3.2-3b-instruct-ov")
    failed = edgespec("pull", "llama-3.2-3b")
    assert failed.returncode == 2
    assert failed.stderr.startswith(
        "edgespec: llmware/llama-3.2-3b-instruct-ov comes under the Llama 3.2 Community License: "
    )

    publish(server, ir_files(ir), repo="llmware/llama-3.2-3b-instruct-ov")
    publish(server, ir_files(ir), repo="llmware/llama-3.2-1b-instruct-ov")
    ran = edgespec("pull", "llama-3.2-3b")
    assert ran.returncode == 0, ran.stderr
    told = [line for line in ran.stderr.splitlines() if not line.startswith("edgespec: fetching ")]
    assert ["comes under the Llama 3.2" in line for line in told] == [True, False, True, False]
    assert len(ran.stdout.splitlines()) == 1
    assert "comes under" not in edgespec("pull", "llama-3.2-3b").stderr, "nothing is fetched the second time"


# --- from a name to a pair


def test_a_name_runs_target_and_draft(edgespec, server: Server, ir: Path) -> None:  # type: ignore[no-untyped-def]
    publish(server, ir_files(ir), repo="OpenVINO/Qwen3-8B-int4-ov")
    publish(server, ir_files(ir), repo="OpenVINO/Qwen3-0.6B-int8-ov")
    command = (
        "run",
        "--model",
        "qwen3-8b",
        "--yes",
        "-n",
        "6",
        "--numerics",
        "exact",
        "--ignore-eos",
        "--json",
        "Hello",
    )
    ran = edgespec(*command, "-k", "4")
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert (told["model"], told["drafter"]) == ("qwen3-8b", "ngram+pool+qwen3-0.6b")
    assert told["devices"] == {"target": "CPU", "draft": "CPU"}
    assert told["proposed"] > 0
    plain = json.loads(edgespec(*command, "--draft", "none").stdout)
    assert (plain["drafter"], plain["token_ids"]) == ("none", told["token_ids"])


def test_a_gguf_file_of_a_repository_is_a_draft_too(edgespec, server: Server, ir: Path, tiny: Path) -> None:  # type: ignore[no-untyped-def]
    publish(server, ir_files(ir), repo="OpenVINO/Qwen2.5-7B-Instruct-int4-ov")
    repo, file = "Qwen/Qwen2.5-0.5B-Instruct-GGUF", "qwen2.5-0.5b-instruct-q8_0.gguf"
    publish(server, {"another.gguf": b""}, repo=repo)
    assert f"does not have {file}" in edgespec("pull", "qwen2.5-7b").stderr

    publish(server, {file: tiny.read_bytes(), "another.gguf": b"x"}, repo=repo)
    pulled = edgespec("pull", "qwen2.5-7b")
    assert pulled.returncode == 0, pulled.stderr
    assert pulled.stderr.splitlines()[-1].startswith("[qwen2.5-0.5b is ready: f16")
    assert not server.asked_for("another.gguf")

    server.down, server.requests = True, []
    ran = edgespec("run", "--model", "qwen2.5-7b", "--numerics", "fast", "-n", "4", "--ignore-eos", "--json", "Hello")
    assert json.loads(ran.stdout)["drafter"] == "ngram+pool+recycling+qwen2.5-0.5b", ran.stderr
    assert server.requests == [], "what was pulled needs no network"


def test_models_and_doctor_tell_without_a_network(edgespec, server: Server) -> None:  # type: ignore[no-untyped-def]
    table = edgespec("models").stdout
    known, unknown = table.split("By short name, of a size that is unknown until it is fetched")
    assert [line.split()[1:3] for line in known.splitlines() if "qwen2.5-coder-1.5b " in line] == [["1.1", "GB"]]
    assert "gemma-7b" in unknown and "gemma-7b" not in known and " GB" not in unknown
    assert [line for line in table.splitlines() if "phi-3-mini-fastdraft " in line and "research only" in line]
    listed = {entry["name"]: entry for entry in json.loads(edgespec("models", "--json").stdout)["pairs"]}
    assert listed["llama-3.1-8b"]["licence"] == "Llama 3.1 Community License"
    assert (listed["qwen3-8b"]["use"], listed["qwen3-8b"]["draft"]) == ("any", "qwen3-0.6b")
    plan = json.loads(edgespec("doctor", "--model", "gemma-7b", "--json").stdout)["model"]
    assert plan["drafter"] == "ngram+pool+recycling+gemma-2b"
    assert server.requests == []


def test_a_name_that_is_nearly_one_is_suggested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for typed, meant in (("qwen3-8", "qwen3-8b"), ("phi3-mini", "phi-3-mini"), ("smollm2-136m", "smollm2-135m or")):
        with pytest.raises(SourceError, match=f"Did you mean {meant}"):
            resolve(typed)
