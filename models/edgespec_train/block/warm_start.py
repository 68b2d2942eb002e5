"""The block head before training, by least squares: what the last row's states and the anchor say of the next states.

The target's own output rows turn a state into logits. So a linear map to the target's next states is a draft already,
and it is found without a step of gradient descent. Everything is done in ``width`` directions in which the target's
states move its logits most.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import blas, cho_factor, cho_solve

from edgespec_train.block.head import BlockHead
from edgespec_train.corpus.states import States
from edgespec_train.corpus.texts import TextId

Matrix = NDArray[np.float32]
_DAMPING = 0.03
_ROWS_AT_ONCE = 2048
_SECOND = 0.6
"""weight of the second position where positions share the directions that are read of the states"""


@dataclass(frozen=True)
class Directions:
    """The subspace of the target's last states that moves its logits most.

    encode: ``(d, width)`` a state less ``mean`` -> its coordinates. decode: ``(width, vocabulary)`` coordinates ->
    logits less ``bias``.
    """

    encode: Matrix
    decode: Matrix
    mean: Matrix
    bias: Matrix

    def of(self, states: NDArray[np.floating]) -> Matrix:
        found = (states.astype(np.float32) - self.mean) @ self.encode
        return found.astype(np.float32, copy=False)


@dataclass(frozen=True)
class Embeddings:
    """The target's, at the head's ids. read: ``(vocabulary + 1, d)``, the last row for all other tokens. written:
    ``(vocabulary, d)`` rows of its output head. counts: ``(vocabulary,)`` how often each id is written."""

    read: Matrix
    written: Matrix
    counts: NDArray[np.int64]


def directions(states: Matrix, rows: Matrix, width: int) -> Directions:
    """states: ``(n, d)`` the target's last states. rows: ``(vocabulary, d)`` of its output head."""
    mean = states.mean(0)
    centred = rows - rows.mean(0)
    metric = centred.T @ centred / len(rows)
    values, vectors = np.linalg.eigh(metric.astype(np.float64))
    root = np.sqrt(np.maximum(values, values[-1] * 1e-9))
    to, back = (vectors * root) @ vectors.T, (vectors / root) @ vectors.T
    spread = (states - mean).T @ (states - mean) / len(states)
    best = np.linalg.eigh(to @ spread @ to)[1][:, ::-1][:, :width]
    encode, decode = (to @ best).astype(np.float32), (rows @ (back @ best)).astype(np.float32)
    size = float(
        np.sqrt(np.mean(((states - mean) @ encode) ** 2))
    )  # coordinates are about 1: steps of training suit them
    return Directions(encode / size, decode.T * size, mean, rows @ mean)


@torch.no_grad()
def initialise(head: BlockHead, states: States, inverse: NDArray[np.int64], embeddings: Embeddings, rows: int) -> float:
    """Set the head by least squares over about ``rows`` answer rows; returns R squared of the first position.

    states: of the head's layers, of which the last is the target's last one. inverse: head id of each target id.
    """
    texts = _some(states, rows)
    sample = np.concatenate([states.states(text)[states.answer(text) - 1 :: 4].astype(np.float32) for text in texts])
    head.mean.copy_(torch.from_numpy(sample.mean(0)))
    head.scale.copy_(torch.from_numpy(sample.std(0) + 1e-3))
    found = directions(sample[:, -1], embeddings.written, head.shape.width)
    read = (embeddings.read - embeddings.read.mean(0)) / embeddings.read.std()
    known = _Known(head, states, inverse, texts, found, read)
    return _fit_places(known, _fit_inputs(known, embeddings.counts))


@dataclass(frozen=True)
class _Known:
    """What is known at the anchors of the texts. read: embeddings that tell of a token."""

    head: BlockHead
    states: States
    inverse: NDArray[np.int64]
    texts: Sequence[TextId]
    directions: Directions
    read: Matrix

    def features(self, text: TextId, anchors: NDArray[np.intp]) -> Matrix:
        held = torch.from_numpy(self.states.states(text)[anchors - 1].astype(np.float32))
        return np.concatenate([self.head.normalised(held).numpy(), self.read[self.ids(text, anchors)]], 1)

    def following(self, text: TextId, anchors: NDArray[np.intp], places: int) -> Matrix:
        """``(anchors, places * width)`` the next states of the target."""
        coordinates = self.directions.of(self.states.states(text)[:, -1])
        return np.concatenate([coordinates[anchors + place] for place in range(places)], 1)

    def ids(self, text: TextId, places: NDArray[np.intp]) -> NDArray[np.int64]:
        found: NDArray[np.int64] = self.inverse[self.states.tokens(text)[places]]
        return found

    def anchors(self, places: int) -> Iterator[tuple[TextId, NDArray[np.intp]]]:
        """Those after which that many states are known."""
        for text in self.texts:
            anchors = np.arange(self.states.answer(text), len(self.states.tokens(text)) - places)
            if len(anchors):
                yield text, anchors


def _fit_inputs(known: _Known, counts: NDArray[np.int64]) -> Matrix:
    """Set what reads states and tokens, and what writes logits; returns the map from features to the stream."""
    head, read, width = known.head, known.read, known.head.shape.width
    pairs = ((known.features(t, a), known.following(t, a, 2)) for t, a in known.anchors(2))
    moments = products(_joined(pairs))
    linear = solve(moments, _DAMPING)
    joint = shared(moments, linear, width)
    own = linear.shape[0] - read.shape[1]
    head.last_row.weight.copy_(torch.from_numpy(joint[:own].T))
    head.last_row.bias.zero_()
    head.anchor.weight.copy_(torch.from_numpy(read @ joint[own:]))
    head.head.weight.copy_(torch.from_numpy(known.directions.decode.T))
    head.head.bias.copy_(torch.from_numpy(known.directions.bias))
    if rank := head.shape.rank:
        head.previous.weight.copy_(torch.from_numpy(low_rank(read @ linear[own:, :width], counts, rank)))
    return joint


def _fit_places(known: _Known, joint: Matrix) -> float:
    """Set what each position makes of the stream and of the token before it; returns R squared of the first."""
    head, shape = known.head, known.head.shape
    width, rank = shape.width, shape.rank
    squares = 0.0

    def pair(text: TextId, anchors: NDArray[np.intp]) -> tuple[Matrix, Matrix]:
        nonlocal squares
        parts = [known.features(text, anchors) @ joint, np.ones((len(anchors), 1), np.float32)]
        if rank:
            before = head.previous.weight.numpy()
            parts += [before[known.ids(text, anchors + place)] for place in range(1, shape.block)]
        targets = known.following(text, anchors, shape.block)
        squares += float((targets[:, :width] ** 2).sum())
        return np.concatenate(parts, 1), targets

    upper, cross = products(_joined(pair(t, a) for t, a in known.anchors(shape.block)))
    square = _symmetric(upper)
    stream = np.arange(width + 1)
    after: Matrix | None = None
    explained = 0.0
    for place in range(shape.block):
        own = slice(place * width, (place + 1) * width)
        target = cross[:, own]
        if place and rank:
            previous = np.arange(width + 1 + (place - 1) * rank, width + 1 + place * rank)
            if after is None:
                both = np.concatenate([stream, previous])
                after = solve((square[np.ix_(both, both)], target[both]), 1e-4)[width + 1 :]
                head.following.weight.copy_(torch.from_numpy((after @ known.directions.decode).T))
            target = target - square[:, previous] @ after
        solved = solve((square[np.ix_(stream, stream)], target[stream]), 1e-4)
        head.places.weight[own].copy_(torch.from_numpy(solved[:width].T))
        head.places.bias[own].copy_(torch.from_numpy(solved[width]))
        if not place:
            explained = float((solved * target[stream]).sum()) / squares
    return explained


def products(pairs: Iterable[tuple[Matrix, Matrix]]) -> tuple[Matrix, Matrix]:
    """``X'X`` (upper triangle) and ``X'Y`` over all parts of a pair of matrices."""
    total: tuple[Matrix, Matrix] | None = None
    for x, y in pairs:
        square, cross = blas.ssyrk(1.0, x.T, trans=0, lower=0), x.T @ y  # x.T is in Fortran order: no copy
        total = (square, cross) if total is None else (total[0] + square, total[1] + cross)
    assert total is not None, "no rows"
    return total


def solve(moments: tuple[Matrix, Matrix], damping: float) -> Matrix:
    """``(features, outputs)`` by ridge regression. damping: added to the diagonal, as a share of its mean."""
    xx, xy = moments
    full = xx.copy(order="F")
    full[np.diag_indices(len(full))] += damping * xx.diagonal().mean()
    found: Matrix = cho_solve(cho_factor(full, lower=False, check_finite=False), xy, check_finite=False)
    return found


def shared(moments: tuple[Matrix, Matrix], linear: Matrix, width: int) -> Matrix:
    """``(features, width)`` the directions of the features that tell most of what two positions need."""
    weighed = linear * np.repeat(np.array([1.0, _SECOND], np.float32), linear.shape[1] // 2)
    spread = weighed.T @ (_symmetric(moments[0]) @ weighed)
    best = np.linalg.eigh(spread.astype(np.float64))[1][:, ::-1][:, :width]
    found: Matrix = (weighed @ best).astype(np.float32)
    return found


def low_rank(rows: Matrix, counts: NDArray[np.int64], rank: int) -> Matrix:
    """``(n, rank)`` the coordinates of rows in their main directions, where frequent rows count more. The last row, of
    tokens without an id, has no count."""
    weights = np.sqrt(np.append(counts + 1, 1).astype(np.float32))[:, None]
    best = np.linalg.eigh(((rows * weights).T @ (rows * weights)).astype(np.float64))[1][:, ::-1][:, :rank]
    found: Matrix = (rows @ best).astype(np.float32)
    return found


def _some(states: States, rows: int) -> list[TextId]:
    """Texts from all over the corpus with about as many answer rows."""
    order = np.random.default_rng(5).permutation(len(states.texts))
    texts = [states.texts[i] for i in order]
    counts = np.cumsum([len(states.tokens(text)) - states.answer(text) for text in texts])
    return sorted(texts[: 1 + int(np.searchsorted(counts, rows))])


def _joined(parts: Iterable[tuple[Matrix, Matrix]]) -> Iterator[tuple[Matrix, Matrix]]:
    """The same rows, more at a time."""
    held: list[tuple[Matrix, Matrix]] = []
    for part in parts:
        held.append(part)
        if sum(len(x) for x, _ in held) >= _ROWS_AT_ONCE:
            yield np.concatenate([x for x, _ in held]), np.concatenate([y for _, y in held])
            held = []
    if held:
        yield np.concatenate([x for x, _ in held]), np.concatenate([y for _, y in held])


def _symmetric(upper: Matrix) -> Matrix:
    found: Matrix = np.triu(upper) + np.triu(upper, 1).T
    return found
