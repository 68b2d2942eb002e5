"""The draft that ships for qwen2.5-coder-1.5b, on texts that this model wrote for our own prompts.

shipped_draft_texts.jsonl comes from the model itself:

    edgespec train evaluate -m qwen2.5-coder-1.5b --new-tokens 64 --timed 0 --texts tests/shipped_draft_texts.jsonl
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from edgespec import SamplingParams
from edgespec.drafters.small_model import SmallModel
from edgespec.drafters.vocabulary_map import input_map, read_id_map
from edgespec.hub import catalog
from edgespec_train.evaluate import GeneratedText, merged, replay
from edgespec_train.recorded import read
from tests.conftest import load_ir, load_onnx

TARGET = "qwen2.5-coder-1.5b"
TARGET_IDS = 151_936
BOUND = 1.4
"""tokens a forward at k = 3, alone, on all texts; chance would give 1.0"""


@pytest.fixture(scope="module")
def texts() -> list[GeneratedText]:
    return [text for _, text in read(Path(__file__).with_name("shipped_draft_texts.jsonl"))]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_the_shipped_draft_agrees_with_its_target(backend: str, texts: list[GeneratedText], tmp_path: Path) -> None:
    shipped = catalog.trained_drafts()[TARGET]
    entry = shipped.manifest.drafter
    assert entry.model is not None and entry.id_map is not None
    folder = tmp_path / "draft"  # the ONNX form is written beside the IR
    shutil.copytree(shipped.root / "draft", folder)
    model: Any = load_ir(folder, is_draft=True, capacity=1024) if backend == "openvino" else load_onnx(folder, "fast")
    id_map = read_id_map(shipped.root / entry.id_map, entry.model.vocab_size, TARGET_IDS)
    reads = input_map(entry, id_map, entry.model.vocab_size, TARGET_IDS)
    drafter = SmallModel(model, TARGET_IDS, id_map=id_map, reads=reads)
    rounds = replay(drafter, texts, SamplingParams(), 3, TARGET_IDS)
    assert merged(rounds.values(), 3).block_efficiency > BOUND
