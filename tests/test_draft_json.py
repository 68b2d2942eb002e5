"""A ``draft.json`` of a stranger: what would lead out of its folder or change the target is refused when it is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgespec import draft_folder
from edgespec.errors import BundleError
from edgespec.hub import catalog

SHIPPED = next(iter(catalog.trained_drafts().values())).root
ONNX = {"file": "draft/model.onnx", "version": 1}
SMALL = {"kind": "small_model", "needs": {}}
HEAD = {"kind": "redrafter", "unknown": None, "needs": {"layers": [28]}}
WEIGHTS = {"target_weights": ["0" * 64]}
HUB = {"type": "hub", "repo": "owner/name", "revision": "main"}


@pytest.mark.parametrize(
    ("top", "drafter", "model"),
    [
        ({"target": "my:model"}, {}, {}),
        ({"target": "owner/name"}, {}, {}),
        ({"target": "x" * 190}, {}, {}),
        ({"target_names": ["two\nlines"]}, {}, {}),
        ({}, {"kind": "ngram"}, {}),
        ({}, {**SMALL, "needs": {"layers": [1]}}, {}),
        ({}, {**SMALL, "id_map": None}, {}),
        ({"target_weights": []}, HEAD, {}),
        ({"target_weights": ["x"]}, HEAD, {}),
        (WEIGHTS, {**HEAD, "needs": {}}, {}),
        ({}, {}, {"onnx": ONNX}),
        ({}, {}, {"source": HUB}),
    ],
)
def test_a_draft_that_is_no_folder_of_its_own_is_refused(
    tmp_path: Path, top: dict[str, Any], drafter: dict[str, Any], model: dict[str, Any]
) -> None:
    write(tmp_path, top, drafter, model)
    with pytest.raises(BundleError, match="is not a valid draft"):
        draft_folder.read(tmp_path)


def test_a_head_names_the_weights_of_its_target(tmp_path: Path) -> None:
    write(tmp_path, WEIGHTS, HEAD | {"id_map": None}, {})
    found = draft_folder.read(tmp_path)
    assert found.manifest.drafter.is_head and found.manifest.target_weights == ("0" * 64,)


def write(folder: Path, top: dict[str, Any], drafter: dict[str, Any], model: dict[str, Any]) -> None:
    """The ``draft.json`` that ships, changed."""
    raw = json.loads((SHIPPED / draft_folder.MANIFEST).read_text(encoding="utf-8"))
    raw |= top
    raw["drafter"] |= drafter
    raw["drafter"]["model"] |= model
    (folder / draft_folder.MANIFEST).write_text(json.dumps(raw), encoding="utf-8")
