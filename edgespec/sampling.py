"""From logits to a token: penalties, truncation, and a draw whose noise is a function of (seed, position, token id).

A draw is Gumbel-max: the token with the largest ``logit / temperature + noise`` is distributed as the softmax (Gumbel
1954; Maddison et al. 2014, arXiv 1411.0030). The noise is keyed and not taken from a stream. So a position draws the
same token however it is reached: alone, in a verification of many tokens, or after a rejected draft. That makes sampled
text exact. A drafter that uses the same noise agrees with the target whenever their distributions are close (Gumbel
coupling).

Rejection sampling draws in another way: ``pick`` turns one keyed uniform number into a token of a ``Distribution``.
Draft, acceptance and correction never use the same number (see ``uniform``).

The rules apply in this order: repetition penalty, bias, temperature, top-k, top-p, min-p. Top-p and min-p each apply to
the distribution that the rules before them left.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgespec.errors import SettingError
from edgespec.sampling_params import SamplingParams
from edgespec.types import Distribution, Logits

_GUMBEL_MAX = -np.log(-np.log1p(-(2.0**-53)))  # the largest value ``gumbel`` can return, about 36.7
_U64 = np.uint64
_MASK = 2**64 - 1
DRAFT, ACCEPT, CORRECT = 1, 2, 3
"""Purposes of a uniform number: the first word of its key."""


def choose(logits: Logits, context: Sequence[int], params: SamplingParams, position: int | None = None) -> int:
    """The token that follows ``context``: argmax, or the keyed draw.

    logits: ``(vocab,)``. context: the tokens before it, read only by the repetition penalty.
    position: index of the chosen token in the text, default: ``len(context)``.
    Raises SettingError if every logit is ``-inf``.
    """
    row = adjust(logits, context, params)
    if params.greedy:
        best = int(row.argmax())
        if row[best] == -np.inf:
            raise nothing_left()
        return best
    return draw(row, params, len(context) if position is None else position)


def draw(logits: Logits, params: SamplingParams, position: int, ids: NDArray[np.integer] | None = None) -> int:
    """Keyed draw from adjusted logits. ids: the token id of each logit, if it is not the index."""
    kept, scaled = truncate(logits, params)
    tokens: NDArray[np.integer] = kept if ids is None else ids[kept]
    assert params.seed is not None
    # A token this far below the leader's total cannot win, whatever its noise. So its noise is not computed.
    top = int(scaled.argmax())
    leader = scaled[top] + gumbel(params.seed, position, tokens[top : top + 1])[0]
    near = np.flatnonzero(scaled >= leader - _GUMBEL_MAX)
    return int(tokens[near[np.argmax(scaled[near] + gumbel(params.seed, position, tokens[near]))]])


def adjust(logits: Logits, context: Sequence[int], params: SamplingParams) -> Logits:
    """Logits after repetition penalty and bias. The input itself if neither is set."""
    if params.repetition_penalty == 1.0 and not params.logit_bias:
        return logits
    row: Logits = logits.copy()
    if params.repetition_penalty != 1.0 and len(context):
        seen = np.unique(np.asarray(context, dtype=np.int64))
        seen = seen[seen < len(row)]
        values = row[seen]
        row[seen] = np.where(values > 0, values / params.repetition_penalty, values * params.repetition_penalty)
    for token, bias in params.logit_bias.items():
        if token < len(row):
            row[token] += bias
    return row


def truncate(logits: Logits, params: SamplingParams) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Token ids that survive top-k, top-p and min-p, in ascending order, and their logits (float64). The logits are
    divided by temperature, and shifted so that the largest is 0.

    >>> truncate(np.log(np.array([.1, .6, .3], np.float32)), SamplingParams(temperature=1, top_p=.7))[0].tolist()
    [1, 2]
    """
    row = np.asarray(logits, dtype=np.float64)
    top = row.max()
    if top == -np.inf:
        raise nothing_left()
    row = row - top  # so that no temperature, however small, can overflow
    keep: NDArray[np.intp] = np.arange(len(row))
    if 0 < params.top_k < len(row):
        keep = np.sort(np.argpartition(row, -params.top_k)[-params.top_k :])
        row = row[keep]
    with np.errstate(over="ignore"):  # -inf is right: it cannot be drawn
        scaled = row / params.temperature
    if params.top_p < 1.0:
        inside = _nucleus(scaled, params.top_p)
        keep, scaled = keep[inside], scaled[inside]
    if params.min_p > 0.0:
        inside = np.flatnonzero(scaled >= scaled.max() + np.log(params.min_p))
        keep, scaled = keep[inside], scaled[inside]
    return keep, scaled


def distribution(logits: Logits, params: SamplingParams, ids: NDArray[np.integer] | None = None) -> Distribution:
    """The distribution ``draw`` draws from. ids: the token id of each logit, if it is not the index.

    Its ids are in ascending order if the given ids are. It is empty if every logit is ``-inf``.

    >>> distribution(np.log(np.array([.1, .6, .3], np.float32)), SamplingParams(temperature=1, top_k=2)).probs.round(3)
    array([0.667, 0.333])
    """
    if logits.max() == -np.inf:
        return Distribution(np.zeros(0, np.intp), np.zeros(0))
    kept, scaled = truncate(logits, params)
    weights = np.exp(scaled - scaled.max())
    some = np.flatnonzero(weights)
    if len(some) < len(weights):
        kept, weights = kept[some], weights[some]
    return Distribution(kept if ids is None else ids[kept], weights / weights.sum())


def probabilities(logits: Logits, params: SamplingParams) -> NDArray[np.float64]:
    """The probabilities of the next token, ``(vocab,)``; one-hot for greedy."""
    out = np.zeros(len(logits))
    if params.greedy:
        out[int(logits.argmax())] = 1.0
        return out
    found = distribution(logits, params)
    out[found.ids] = found.probs
    return out


def pick(source: Distribution, number: float) -> int:
    """The token at which the cumulative probability passes ``number`` (between 0 and 1). Never one with probability 0.

    >>> pick(Distribution(np.array([4, 5, 6]), np.array([.5, 0., .5])), .6)
    6
    """
    mass = np.cumsum(source.probs)
    return int(source.ids[np.searchsorted(mass, number * mass[-1])])


def uniform(seed: int, purpose: int, *key: int) -> float:
    """A hash of the arguments, as a number between 0 and 1, neither included.

    Rejection sampling is exact because no number is used twice:

    * ACCEPT is keyed by (position, sibling), CORRECT by position. A position is decided once in a generation. The
      decided tokens are committed, or the generation ends there. The next round begins after them.
    * DRAFT is keyed by the committed length, and is the seed of the draft's Gumbel noise in that round. A position may
      be drafted in many rounds, each time with another context. A drafter may also have looked at an earlier draw. But
      each round has its own committed length.
    """
    state = _mix_one(seed)
    for word in (purpose, *key):
        state = _mix_one(state + (word + 1) * 0xDA942042E4DD58B5)
    return ((state >> 12) + 0.5) * 2.0**-52


def gumbel(seed: int, position: int, tokens: NDArray[np.integer]) -> NDArray[np.float64]:
    """Standard Gumbel noise for each token id: a hash of (seed, position, id), so any subset can be computed alone.

    The hash is SplitMix64's finaliser (Steele, Lea, Flood 2014). It is applied once to (seed, position), and once to
    the id.
    """
    key = _mix(_mix(np.array([seed], dtype=_U64)) + np.array([position], dtype=_U64) * _U64(0xD1342543DE82EF95))
    bits = _mix(key + (tokens.astype(_U64) + _U64(1)) * _U64(0x9E3779B97F4A7C15))
    number = ((bits >> _U64(12)).astype(np.float64) + 0.5) * 2.0**-52  # 2**-53 ... 1 - 2**-53, exact in float64
    noise: NDArray[np.float64] = -np.log(-np.log(number))
    return noise


def nothing_left() -> SettingError:
    """The error to raise if every token is forbidden."""
    return SettingError(
        "no token is left to choose", hint="logit_bias or a dead end of the response format forbids the rest"
    )


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> _U64(30))) * _U64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> _U64(27))) * _U64(0x94D049BB133111EB)
    x ^= x >> _U64(31)
    return x


def _mix_one(x: int) -> int:
    """``_mix`` of one number, modulo 2**64, without the cost of an array."""
    x &= _MASK
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & _MASK
    return x ^ x >> 31


def _nucleus(scaled: NDArray[np.float64], top_p: float) -> NDArray[np.intp]:
    """Indices (ascending) of the smallest set of largest entries with mass >= top_p. Sorts no more than it needs."""
    weights = np.exp(scaled - scaled.max())
    wanted = top_p * weights.sum()
    size = min(64, len(weights))
    while True:
        if size < len(weights):
            head = np.argpartition(weights, -size)[-size:]
        else:
            head = np.arange(len(weights))
        order = head[np.lexsort((head, -weights[head]))]  # ties: lowest id first, as a full stable sort would
        mass = np.cumsum(weights[order])
        if mass[-1] >= wanted or size == len(weights):
            count = int(np.searchsorted(mass, wanted)) + 1
            return np.sort(order[:count])
        size = min(size * 8, len(weights))
