"""Logits of a GGUF file's own numbers, one layer at a time: those of the whole model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgespec.gguf.reference import logits_of
from tests import tiny_gguf
from tests.test_gguf_graph import IDS, converted, logits


@pytest.mark.parametrize(
    "options",
    [
        {"arch": "qwen2"},
        {"tied": True},  # a llama, whose queries and keys are in another order
        {"quantize": "Q8_0", "layers": 3},
    ],
)
def test_one_layer_at_a_time_is_the_whole_model(tmp_path: Path, options: dict[str, Any]) -> None:
    source = tiny_gguf.write(tmp_path / "tiny.gguf", **options)
    np.testing.assert_allclose(logits_of(source, IDS.tolist()), logits(converted(source)), rtol=1e-3, atol=1e-3)
