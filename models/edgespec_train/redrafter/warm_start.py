"""The head before training: the linear map from a state and the token it gave to the next state, by least squares.

The target's own output rows follow it, since that next state is what they read. So the head drafts from its first step
on.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from edgespec_train.corpus.states import States
from edgespec_train.redrafter.head import Head

_TEXTS_AT_ONCE = 16
_RIDGE = 1e-2
"""for each place, of inputs whose squares are about 1"""


def scales_of(states: States, texts: int = 64) -> torch.Tensor:
    """``(layers * d,)`` how far each value of the states spreads."""
    step = max(1, len(states.texts) // texts)
    some = states.places(states.texts[::step][:texts], 1).states
    return torch.from_numpy(some.reshape(len(some), -1).std(0).clip(min=1e-3))


@torch.no_grad()
def fit(head: Head, states: States, inverse: NDArray[np.int64], rows: int) -> float:
    """Set ``from_states`` and ``from_token`` from about so many places; returns R squared.

    inverse: the head's id of each target id. The last of ``states.layers`` is what the target's output head reads.
    """
    wide, width = len(head.scales), head.table.shape[1]
    inputs = wide + width + 1
    gram, product = torch.zeros(inputs, inputs), torch.zeros(inputs, width)
    squares, total, count = 0.0, torch.zeros(width), 0
    for x, y in _pairs(head, states, inverse, rows):
        gram += x.T @ x
        product += x.T @ y
        squares += float(y.square().sum())
        total += y.sum(0)
        count += len(x)
    gram += _RIDGE * count * torch.eye(inputs)
    found = torch.cholesky_solve(product.double(), torch.linalg.cholesky(gram.double())).float()
    residual = squares - 2 * float((found * product).sum()) + float((found * (gram @ found)).sum())
    head.from_states.weight.copy_(found[:wide].T)
    head.from_states.bias.copy_(found[-1])
    head.from_token.weight.copy_(found[wide:-1].T)
    return 1 - residual / (squares - float(total.square().sum()) / count)


def _pairs(
    head: Head, states: States, inverse: NDArray[np.int64], rows: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Inputs and the state to predict, by some texts at a time."""
    width, read = head.table.shape[1], 0
    order = np.random.default_rng(0).permutation(len(states.texts))
    for begin in range(0, len(order), _TEXTS_AT_ONCE):
        if read >= rows:
            return
        places = states.places([states.texts[i] for i in order[begin : begin + _TEXTS_AT_ONCE]], 1)
        same = np.flatnonzero(places.texts[1:] == places.texts[:-1])
        scaled = torch.from_numpy(places.states[same].reshape(len(same), -1)) / head.scales
        e = head.table[torch.from_numpy(inverse[places.tokens[same]])] * head.table_scale
        following = torch.from_numpy(places.states[same + 1, -1, :width]) / head.out_scale
        yield torch.cat([scaled, e, torch.ones(len(same), 1)], 1), following
        read += len(same)
