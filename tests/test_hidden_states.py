"""Hidden states of layers: on request, those of transformers, and told of a prefill too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgespec.backends.exact_widths import ExactWidths
from edgespec.backends.fake import FakeModel, random_table
from edgespec.errors import BackendError
from edgespec.types import Hidden, Verdict
from tests.conftest import load_ir
from tests.tiny_models import build, export_ir

LAYERS = (0, 1, 2)  # of the tiny models: embeddings, behind the first layer, what goes into the output head


def test_hidden_states_come_on_request(tiny_ir: Path) -> None:
    model = load_ir(tiny_ir, layers=LAYERS)
    step = model.forward([1, 2, 3])
    assert model.capabilities.hidden == LAYERS and set(step.hidden) == set(LAYERS)
    for states in step.hidden.values():
        assert states.shape == (3, 64) and np.isfinite(states).all()
    assert model.forward([4]).hidden[1].shape == (1, 64)
    assert not load_ir(tiny_ir).forward([1]).hidden
    with pytest.raises(BackendError, match="no such layer; got 3; allowed: 0 to 2"):
        load_ir(tiny_ir, layers=(3,))


@pytest.mark.parametrize(
    "arch",
    ["llama", *(pytest.param(arch, marks=pytest.mark.slow) for arch in ("phi3", "qwen2", "qwen3"))],
)
def test_hidden_states_are_those_of_transformers(tmp_path: Path, arch: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    folder = build(arch, tmp_path / "torch", layers=3)
    model = load_ir(export_ir(folder, tmp_path / "ir"), layers=(0, 1, 2, 3), full_precision=True)
    text = [(11 * i + i * i) % 300 + 10 for i in range(12)]
    with torch.no_grad():
        said = AutoModelForCausalLM.from_pretrained(folder)(torch.tensor([text]), output_hidden_states=True)
    step = model.forward(text)
    assert len(said.hidden_states) == 4
    for layer, expected in enumerate(said.hidden_states):
        correlation = np.corrcoef(step.hidden[layer].ravel(), expected[0].numpy().ravel())[0, 1]
        assert correlation > 0.999, (layer, correlation)


def test_hidden_states_of_a_prefill_and_of_what_it_defers_are_told(tiny_ir: Path) -> None:
    fake = FakeModel(random_table(50, seed=1), 50, max_width=64, leaves=20, layers=(1,))
    paged = load_ir(tiny_ir, layers=(1,))
    paged.set_exact_widths(ExactWidths(paged.min_width, 64))
    for model in (fake, paged):
        told: list[tuple[int, list[int], int]] = []

        def observe(start: int, tokens: Sequence[int], hidden: Hidden, told: list[Any] = told) -> None:
            told.append((start, list(tokens), len(hidden[1])))

        text = [(7 * i) % 50 for i in range(71)]
        model.prefill(text, reserve=3, observe=observe)  # type: ignore[attr-defined]
        assert told == [(0, text[:64], 64)]
        step = model.forward([1, 2, 3])
        assert (step.prompt_rows, len(step.hidden[1]), len(step.logits)) == (7, 10, 3)
        start, tokens, hidden = step.kept([*text, 1, 2, 9], Verdict(1, (2, 9), (0, 1)))
        assert (start, list(tokens), len(hidden[1])) == (64, [*text[64:], 1, 2], 9)
        assert np.array_equal(hidden[1], step.hidden[1][:9])
