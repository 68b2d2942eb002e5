"""The drafts in models/ without their targets: the files are those that the manifests name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgespec.bundle import sha256_of

MODELS = Path(__file__).resolve().parent.parent / "models"


@pytest.mark.parametrize("name", ["qwen2.5-coder-1.5b", "smollm2-135m"])
def test_the_files_of_a_draft_have_the_hashes_of_its_manifest(name: str) -> None:
    folder = MODELS / name
    manifest = json.loads((folder / "draft.json").read_text(encoding="utf-8"))
    drafter = manifest["drafter"]
    model = drafter["model"]
    graph = folder / model["file"]
    assert sha256_of(graph.with_suffix(".bin")) == model["sha256"] and sha256_of(graph) == model["graph_sha256"]
    assert sha256_of(folder / drafter["id_map"]) == drafter["id_map_sha256"]
    assert manifest["provenance"]["licence"] == "Apache-2.0" and manifest["measured"]["recipe"]
    assert {path.name for path in folder.rglob("*") if path.is_file()} == {
        "draft.json",
        graph.name,
        graph.with_suffix(".bin").name,
        Path(drafter["id_map"]).name,
    }
