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
HUB = {"type": "hub", "repo": "owner/name", "revision": "main"}


@pytest.mark.parametrize(
    ("top", "drafter", "model"),
    [
        ({"target": "my:model"}, {}, {}),
        ({"target": "owner/name"}, {}, {}),
        ({"target": "x" * 190}, {}, {}),
        ({}, {"kind": "ngram"}, {}),
        ({}, {"needs": {"layers": [1]}}, {}),
        ({}, {}, {"onnx": ONNX}),
        ({}, {}, {"source": HUB}),
    ],
)
def test_a_draft_that_is_no_folder_of_its_own_is_refused(
    tmp_path: Path, top: dict[str, Any], drafter: dict[str, Any], model: dict[str, Any]
) -> None:
    raw = json.loads((SHIPPED / draft_folder.MANIFEST).read_text(encoding="utf-8"))
    raw |= top
    raw["drafter"] |= drafter
    raw["drafter"]["model"] |= model
    (tmp_path / draft_folder.MANIFEST).write_text(json.dumps(raw), encoding="utf-8")
    with pytest.raises(BundleError, match="is not a valid draft"):
        draft_folder.read(tmp_path)
