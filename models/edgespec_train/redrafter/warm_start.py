"""The head before training: the linear map from a state and the token it gave to the next state, by least squares.

The target's own output rows follow it. So the head drafts from its first step on.
"""

from __future__ import annotations

import numpy as np
import torch

from edgespec_train.redrafter.head import Head
from edgespec_train.redrafter.rounds import Rounds

_AT_ONCE = 4096


@torch.no_grad()
def fit(
    head: Head, rounds: Rounds, limit: int = 60_000, ridge: float = 1e-2, dtype: torch.dtype = torch.float32
) -> float:
    """Sets ``from_states`` and ``from_token``; returns R squared. The state to predict is that of the next round."""
    same = np.flatnonzero((rounds.text[1:] == rounds.text[:-1]))
    random = np.random.default_rng(0)
    if len(same) > limit:
        same = np.sort(random.choice(same, limit, replace=False))
    size = rounds.states[0].shape[1]
    width = head.table.shape[1]
    inputs = size + width + 1
    gram = torch.zeros(inputs, inputs)
    product = torch.zeros(inputs, width)
    squares, total = 0.0, torch.zeros(width)
    for a in range(0, len(same), _AT_ONCE):
        which = same[a : a + _AT_ONCE]
        x, y = _pairs(head, rounds, which)
        wide = x.to(dtype)
        gram += (wide.T @ wide).float()
        product += (wide.T @ y.to(dtype)).float()
        squares += float(y.square().sum())
        total += y.sum(0)
    count = len(same)
    gram = (gram + gram.T) / 2
    gram += ridge * count * torch.eye(inputs)
    solved = torch.cholesky_solve(product.double(), torch.linalg.cholesky(gram.double())).float()
    residual = squares - 2 * float((solved * product).sum()) + float((solved * (gram @ solved)).sum())
    head.from_states.weight.copy_(solved[:size].T)
    head.from_states.bias.copy_(solved[-1])
    head.from_token.weight.copy_(solved[size:-1].T)
    return 1 - residual / (squares - float(total.square().sum()) / count)


def _pairs(head: Head, rounds: Rounds, which: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    width = head.table.shape[1]
    states = torch.from_numpy(rounds.states_of(which)) / head.scales
    following = torch.from_numpy(rounds.states_of(which + 1)[:, -width:]) / head.out_scale
    e = head.table[torch.from_numpy(rounds.inverse[rounds.last[which]])] * head.table_scale
    return torch.cat([states, e, torch.ones(len(which), 1)], 1), following
