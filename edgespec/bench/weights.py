"""How much of a GGUF file is left on an engine? Its own numbers in full precision, against the model that runs.

What differs is what the form of the weights rounds (see ``gguf.forms``), what the engine rounds of activations, and
the order of sums.
"""

from __future__ import annotations

from pathlib import Path
from pydoc_data import topics

import numpy as np
from numpy.typing import NDArray

from edgespec.bench.prompts import read
from edgespec.bench.report import show
from edgespec.console import note
from edgespec.errors import SettingError
from edgespec.gguf.reference import logits_of
from edgespec.pipeline import Pipeline

_CHUNK = 16
_FIRST = 8
"""Rows that are left out. So little text says nothing of what comes."""


def bench_weights(file: Path, pipeline: Pipeline, tokens: int) -> None:
    """Divergence of the next token's distribution, and how often the likeliest token is the same."""
    ids = _text(pipeline, tokens)
    note(f"computing {file.name} in full precision, which takes minutes")
    expected, found = logits_of(file, ids)[_FIRST:], _logits(pipeline, ids)[_FIRST:]
    show_agreement(file.name, pipeline, expected, found, np.array(ids[_FIRST + 1 :]))


def show_agreement(
    name: str,
    pipeline: Pipeline,
    expected: NDArray[np.float32],
    found: NDArray[np.float32],
    following: NDArray[np.int_],
) -> None:
    """following: the tokens that came, of all rows but the last."""
    divergence, same, (nll, nll_found) = agreement(expected, found, following)
    capabilities = pipeline.target.capabilities
    figures = {
        "kl_mean": float(divergence.mean()),
        "kl_p99": float(np.quantile(divergence, 0.99)),
        "kl_max": float(divergence.max()),
        "top_1": float(same.mean()),
        "nll_of_the_file": nll,
        "nll": nll_found,
    }
    about = {"file": name, "rows": len(expected), "numerics": capabilities.numerics, "backend": capabilities.backend}
    show("weights", ["figure", "value"], list(figures.items()), about | figures)


def agreement(
    expected: NDArray[np.float32], found: NDArray[np.float32], following: NDArray[np.int_]
) -> tuple[NDArray[np.float64], NDArray[np.bool_], tuple[float, float]]:
    """Of each row KL(expected, found) in nats, and whether the likeliest token is the same; of both the mean negative
    log-likelihood of the tokens that came.

    >>> divergence, same, _ = agreement(np.float32([[0, 0]]), np.log(np.float32([[1, 3]])), np.array([], int))
    >>> divergence.round(4).tolist(), same.tolist()  # 0.5 log(0.5 / 0.25) + 0.5 log(0.5 / 0.75)
    ([0.1438], [False])
    """
    divergence, same = np.empty(len(expected)), np.empty(len(expected), bool)
    likelihood = np.zeros((2, len(following)))
    for row, pair in enumerate(zip(expected, found, strict=True)):
        left, right = (_log_softmax(logits) for logits in pair)
        divergence[row] = (np.exp(left) * (left - right)).sum()
        same[row] = left.argmax() == right.argmax()
        if row < len(following):
            likelihood[:, row] = left[following[row]], right[following[row]]
    means = -likelihood.mean(1) if len(following) else np.zeros(2)
    return divergence, same, (float(means[0]), float(means[1]))


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max()
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum())
    return result


def _text(pipeline: Pipeline, tokens: int) -> list[int]:
    """The prompts of the other measurements, one behind the other, and some of Python's reference manual."""
    texts = [*(prompt.text for prompt in read()), *topics.topics.values()]
    ids = pipeline.tokenizer.encode("\n\n".join(texts), raw=True)
    longest = min(len(ids), pipeline.target.cache.capacity)
    if not _FIRST + 2 <= tokens <= longest:
        raise SettingError("tokens", got=tokens, allowed=f"{_FIRST + 2} to {longest}", setting="tokens")
    return ids[:tokens]


def _logits(pipeline: Pipeline, ids: list[int]) -> NDArray[np.float32]:
    target = pipeline.target
    target.cache.reset()
    chunk = min(_CHUNK, target.capabilities.max_width)
    rows = [target.forward(ids[at : at + chunk]).logits.copy() for at in range(0, len(ids), chunk)]
    target.cache.reset()
    return np.concatenate(rows)
