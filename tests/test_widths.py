"""Prompts come in all lengths and are read at few widths: an engine keeps what it prepared for every width it met."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

import edgespec
from edgespec.backends.engine_model import LONGEST_PAD, PaddedModel
from edgespec.backends.widths import WIDEST_DRAFT, few_widths, width_of
from edgespec.types import Backend, Numerics


def test_a_pad_is_short() -> None:
    few = few_widths(1, 512)
    for n in range(1, 513):
        width = width_of(n, True, few)
        assert n <= width <= max(n + 1, 1.5 * n if n <= WIDEST_DRAFT else 1.25 * n) and width - n < LONGEST_PAD
        assert width_of(width, True, few) == width
        assert width_of(n, False, few) == (n if n <= WIDEST_DRAFT else width)
    assert len(few_widths(1, 256)) <= 24


@pytest.mark.parametrize(
    ("least", "most", "step"), [(1, 256, 1), (2, 64, 1), (5, 32, 1), (16, 16, 1), (3, 17, 1), (2, 256, 2), (4, 16, 4)]
)
def test_no_width_leaves_those_that_are_exact(least: int, most: int, step: int) -> None:
    few = few_widths(least, most, step)
    assert few[0] == least and few[-1] == most and list(few) == sorted(set(few))
    for n in range(least, most + 1):
        for reading in (True, False):
            width = width_of(n, reading, few, step)
            assert n <= width <= most and width % step == 0


@pytest.mark.parametrize("backend", get_args(Backend))
@pytest.mark.parametrize("numerics", get_args(Numerics))
def test_prompts_of_all_lengths_come_in_few_widths(
    tiny_fast_ir: Path, monkeypatch: pytest.MonkeyPatch, backend: Backend, numerics: Numerics
) -> None:
    """What the engine is given: rows of the forward, and rows of the output head."""
    seen: list[tuple[int, int]] = []
    pipeline = edgespec.load(tiny_fast_ir.parent, backend=backend, numerics=numerics, draft="none")
    assert isinstance(pipeline.target, PaddedModel)
    give = pipeline.target._set_inputs

    def watching(tokens, past, rows, tree):  # type: ignore[no-untyped-def]
        seen.append((len(tokens), len(rows)))
        give(tokens, past, rows, tree)

    monkeypatch.setattr(pipeline.target, "_set_inputs", watching)
    rng = random.Random(0)
    lengths = set()
    for _ in range(120):
        prompt = [rng.randrange(5, 400) for _ in range(rng.randrange(3, 480))]
        lengths.add(len(prompt))
        pipeline.generate(prompt, max_new_tokens=2, ignore_eos=True)
    assert len(lengths) > 90
    assert len({rows for rows, _ in seen}) <= 28
    assert {wanted for _, wanted in seen} <= {0, 1, pipeline.target.capabilities.min_width}


PROMPTS, LATER = 50, 200


@pytest.mark.slow
@pytest.mark.parametrize("backend", get_args(Backend))
def test_memory_after_many_prompts_is_what_few_left(backend: Backend) -> None:
    """Of the default pair, in a process of its own."""
    ran = subprocess.run(
        [sys.executable, "-m", __name__, backend, str(PROMPTS), str(LATER)],
        cwd=Path(__file__).parents[1], check=True, capture_output=True, text=True,
    )  # fmt: skip
    early, late = json.loads(ran.stdout.splitlines()[-1])
    assert late < 1.05 * early, (early, late)


def _memory_after(backend: Backend, *counts: int) -> list[int]:
    """Resident bytes after so many prompts of 3 to 600 tokens.

    Of more prompts than the test has time for: python -m tests.test_widths openvino 50 1000
    """
    import psutil

    pipeline = edgespec.load(backend=backend)
    rng = random.Random(0)
    found = []
    for number in range(1, max(counts) + 1):
        prompt = [rng.randrange(100, 40000) for _ in range(rng.randrange(3, 600))]
        pipeline.generate(prompt, max_new_tokens=4, ignore_eos=True)
        if number in counts:
            found.append(psutil.Process().memory_info().rss)
    return found


if __name__ == "__main__":
    print(json.dumps(_memory_after(sys.argv[1], *map(int, sys.argv[2:]))))  # type: ignore[arg-type]
