"""The recurrent head (ReDrafter, arXiv 2403.09919): what the target would say next, from one of its hidden states.

A round begins with the state that gave the last token. Each step reads one token more:

    s   = SiLU(W e + U s + b)                  e: embedding of the token
    x   = A h + B e + C s,  x = x + SiLU(D x)  h: the state, constant for the round; as many blocks as asked for
    logits = x . rows

There are two deviations. ``B e`` stands beside the state, so that a linear map can be fitted before training (see
``warm_start``). And s begins as a map of h, where the paper has zeros: h grows old with each step, and the recurrence
can say how.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

Rows = Literal["target", "own", "low-rank"]
"""The output rows. target: the target's, frozen, which are read as embeddings too. own: trained. low-rank: trained, a
product of two narrow matrices."""


@dataclass(frozen=True)
class HeadShape:
    """layers: whose states are read. state: width of s; 0: no recurrence. rank: of low-rank rows."""

    layers: tuple[int, ...]
    state: int = 1536
    blocks: int = 2
    rows: Rows = "target"
    rank: int = 256
    lookahead: int = 5


class Head(nn.Module):
    """``(n, vocab)`` logits, step by step.

    embeddings: ``(vocab, d)`` of the ids that it can propose. output: ``(vocab, d)`` rows of the target's head. scales:
    ``(layers * d,)`` what each value of the states is divided by.
    """

    table: torch.Tensor
    table_scale: torch.Tensor
    scales: torch.Tensor
    out_scale: torch.Tensor

    def __init__(self, shape: HeadShape, embeddings: torch.Tensor, output: torch.Tensor, scales: torch.Tensor) -> None:
        super().__init__()
        self.shape = shape
        size = output.shape[1]
        # Steps of training are alike for all matrices if what they read is about 1.
        table = output if shape.rows == "target" else embeddings
        self.register_buffer("table", table.clone())
        self.register_buffer("table_scale", 1 / table.square().mean().sqrt())
        self.register_buffer("scales", scales.clone())
        self.register_buffer("out_scale", scales[-size:].square().mean().sqrt())
        self.from_states = nn.Linear(len(scales), size)
        self.from_token = nn.Linear(size, size, bias=False)
        if shape.state:
            self.first = nn.Linear(len(scales), shape.state, bias=False)
            self.read = nn.Linear(size, shape.state)
            self.carry = nn.Linear(shape.state, shape.state, bias=False)
            self.from_state = nn.Linear(shape.state, size, bias=False)
            nn.init.zeros_(self.from_state.weight)
        self.blocks = nn.ModuleList(nn.Linear(size, size) for _ in range(shape.blocks))
        for parameter in self.blocks.parameters():
            nn.init.zeros_(parameter)
        self.bias = nn.Parameter(torch.zeros(len(output)))
        if shape.rows == "own":
            self.rows = nn.Parameter(output.clone())
        elif shape.rows == "low-rank":
            u, s, v = torch.linalg.svd(output, full_matrices=False)
            share = s[: shape.rank].sqrt()
            self.narrow = nn.Parameter((v[: shape.rank].T * share).T.contiguous())
            self.rows = nn.Parameter((u[:, : shape.rank] * share).contiguous())

    def forward(self, states: torch.Tensor, reads: torch.Tensor, counts: Sequence[int]) -> list[torch.Tensor]:
        """The logits of each step, at the first ``counts`` of the places. reads: ``(n, steps)`` what is read there."""
        base, s = self.begin(states)
        found = []
        for step, count in enumerate(counts):
            x, s = self.step(base[:count], s[:count], reads[:count, step])
            found.append(self.logits(x))
        return found

    def begin(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What is constant for a round, and the first s. states: ``(n, layers * d)``."""
        scaled = states / self.scales
        first = self.first(scaled) if self.shape.state else scaled[:, :0]
        return self.from_states(scaled), first

    def step(self, base: torch.Tensor, s: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x and the next s. ids: ``(n,)`` the token that is read, as an id of the head."""
        e = self.table[ids] * self.table_scale
        x = base + self.from_token(e)
        if self.shape.state:
            s = functional.silu(self.read(e) + self.carry(s))
            x = x + self.from_state(s)
        for block in self.blocks:
            x = x + functional.silu(block(x))
        return x, s

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        if self.shape.rows == "low-rank":
            x = functional.linear(x, self.narrow)
        rows: torch.Tensor = self.table if self.shape.rows == "target" else self.rows
        return functional.linear(x * self.out_scale, rows) + self.bias
