"""``edgespec pull`` and ``edgespec models`` as a user runs them."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from edgespec import bundle
from tests import processes, tiny_gguf


def edgespec(*arguments: str, cache: Path, **env: str) -> subprocess.CompletedProcess[str]:
    ran = processes.edgespec(*arguments, env=os.environ | {"EDGESPEC_CACHE": str(cache)} | env)
    return processes.decoded(ran)


@pytest.fixture(scope="module")
def pulled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Cache, GGUF file, and the folder that ``pull`` printed."""
    root = tmp_path_factory.mktemp("pull")
    source = tiny_gguf.write(root / "tiny.gguf")
    run = edgespec("pull", str(source), cache=root / "cache")
    assert (run.returncode, run.stderr) == (
        0,
        "edgespec: converting tiny.gguf (one-time)\nedgespec: weights: 15 F16 as they are (exact)\n"
        "[tiny is ready: f16, 0 MB, drafts: lookups]\n",
    )
    return root / "cache", source, Path(run.stdout.strip())


def test_pull_prints_a_folder_that_is_a_reference(pulled: tuple[Path, Path, Path]) -> None:
    cache, source, folder = pulled
    assert bundle.read(folder).name == "tiny"
    for ref in (source, folder):
        again = edgespec("pull", str(ref), cache=cache, HF_HUB_OFFLINE="1")
        assert (again.returncode, again.stdout) == (0, f"{folder}\n")


def test_models_lists_what_is_cached_and_what_is_known(pulled: tuple[Path, Path, Path]) -> None:
    cache, _, folder = pulled
    table = edgespec("models", cache=cache)
    assert table.returncode == 0
    assert str(folder) in table.stdout
    assert "smollm2-135m" in table.stdout
    listing = json.loads(edgespec("models", "--json", cache=cache).stdout)
    [entry] = listing["cached"]
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert entry == {"name": "tiny", "kind": "converted", "bytes": size, "path": str(folder)}
    assert listing["cache"] == str(cache)
    assert listing["known"][0]["licence"] == "Apache-2.0"


def test_models_survives_a_damaged_entry(pulled: tuple[Path, Path, Path], tmp_path: Path) -> None:
    folder = tmp_path / "ir" / "broken"
    folder.mkdir(parents=True)
    (folder / bundle.MANIFEST).write_text("{", encoding="utf-8")
    listing = edgespec("models", cache=tmp_path)
    assert listing.returncode == 0
    assert "damaged" in listing.stdout


def test_models_with_no_cache(tmp_path: Path) -> None:
    listing = edgespec("models", cache=tmp_path / "none")
    assert listing.stdout.startswith("Nothing cached in ")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("damage", ["text", "template"])
def test_pull_refuses_a_bundle_with_a_changed_file(
    pulled: tuple[Path, Path, Path], tmp_path: Path, damage: str
) -> None:
    import shutil

    folder = tmp_path / "copy"
    shutil.copytree(pulled[2], folder)
    name = {"text": "tokenizer.json", "template": "chat_template.jinja"}[damage]
    (folder / name).write_text("changed", encoding="utf-8")
    run = edgespec("pull", str(folder), cache=tmp_path / "cache")
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith("error: ")
    assert name in run.stderr
    assert run.stderr.count("\n") == 1


def test_pull_help_and_unknown_name(tmp_path: Path) -> None:
    assert "REF" in edgespec("pull", "--help", cache=tmp_path).stdout
    run = edgespec("pull", "smollm2-136m", cache=tmp_path)
    assert (run.returncode, run.stdout) == (2, "")
    assert "Did you mean smollm2-135m" in run.stderr
