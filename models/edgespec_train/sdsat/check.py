"""Proof that a graph with placeholders is the target still, and that it guesses what was trained."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgespec.errors import ConversionError
from edgespec_export.parity import run_ir
from edgespec_train.sdsat.placeholders import Placeholders, read

_MOST_TOKENS, _CUTS = 160, 6
_LEAST_AGREEMENT = 0.6
"""of the agreement of real tokens, which coded weights cost something too; a wrong product or row has 0.1 and less"""


@dataclass(frozen=True)
class Sameness:
    """standard_difference: largest difference of a real token's logits from those of the target's own graph, in f32 at
    the same widths. agreement: share of guesses that are those of the torch model. of_real_tokens: the same of the
    choices behind real tokens."""

    standard_difference: float
    agreement: float
    of_real_tokens: float

    def as_dict(self) -> dict[str, Any]:
        return {name: round(value, 6) for name, value in asdict(self).items()}


def compare(
    own: Path, xml: Path, first: int, target: Any, placeholders: Placeholders, tokens: NDArray[np.integer], count: int
) -> Sameness:
    """own: the target's graph. xml: with placeholders, whose ids begin with ``first``. tokens: of a text, ``(n,)``.

    Raises ConversionError if the guesses are others.
    """
    text = np.asarray(tokens[:_MOST_TOKENS], np.int64)
    anchors = np.unique(np.linspace(len(text) // 3, len(text) - 1, _CUTS).astype(np.int64))
    with torch.no_grad():
        states, cache = read(target, torch.from_numpy(text[None]))
        head = target.get_output_embeddings()
        said = head(states)[0].argmax(-1).numpy()
        hidden = placeholders(target, cache, torch.from_numpy(anchors[None]), count)
        expected = head(hidden)[0].argmax(-1).numpy()  # (cuts, count)
    ids = first + np.minimum(np.arange(count), len(placeholders.embeddings) - 1)
    difference, agrees = 0.0, []
    for anchor, guesses in zip(anchors, expected, strict=True):
        real = text[: anchor + 1]
        found = run_ir(xml, np.concatenate([real, ids]))
        same = run_ir(own, np.concatenate([real, np.full(count, text[0])]))
        difference = max(difference, float(np.abs(found[: len(real)] - same[: len(real)]).max()))
        agrees.append(found[len(real) :].argmax(-1) == guesses)
    of_real = float((same[: len(real)].argmax(-1) == said[: len(real)]).mean())
    result, least = Sameness(difference, float(np.mean(agrees)), of_real), _LEAST_AGREEMENT * of_real
    if not result.agreement >= least:
        raise ConversionError(
            "the graph with placeholders does not guess what was trained",
            got=f"agreement {result.agreement:.2f}",
            allowed=f"{least:.2f} or more",
        )
    return result
