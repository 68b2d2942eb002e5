"""The block head: from the target's hidden states to logits for a block of tokens, in one forward.

The first residual stream of each position is a linear map of the last row's states and of the anchor, so least squares
can set it (see ``warm_start``). Transformer layers then add what the window of earlier rows and the other positions
say. A low-rank Markov head (DSpark, arXiv 2607.05147) makes a position follow the token chosen before it: without it
positions are drafted as if each knew nothing of the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from edgespec.errors import SettingError

_CLIP = 8.0
"""standard deviations: some values of hidden states are hundreds of times larger at the first tokens of a text"""


_INPUT = 0.25
"""There are thousands of inputs. So their weights are small, and one step of training would move the sum too far."""


@dataclass(frozen=True)
class Shape:
    """layers: the target's layers whose states are read. width: of the stream. block: most tokens of a draft.
    depth: transformer layers; 0: none. window: rows of states that they see. rank: of the Markov head; 0: none."""

    layers: tuple[int, ...]
    width: int = 640
    block: int = 5
    depth: int = 1
    heads: int = 8
    intermediate: int = 1280
    window: int = 32
    rank: int = 128

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise SettingError("heads that divide the width", got=f"{self.width} over {self.heads} heads")
        if not self.layers or min(self.layers) < 1:
            raise SettingError("layers of the target whose states are read", got=self.layers, allowed="1 and more")


class Attention(nn.Module):
    """Of the block's positions, to the window's rows and to each other."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads, width = shape.heads, shape.width
        self.query = nn.Linear(width, width, bias=False)
        self.own = nn.Linear(width, 2 * width, bias=False)
        self.rows = nn.Linear(width // 2, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        nn.init.zeros_(self.out.weight)
        # How far back a row is, and which positions look at each other.
        self.distance = nn.Parameter(torch.zeros(shape.heads, shape.block, shape.window + shape.block))

    def forward(self, x: torch.Tensor, rows: torch.Tensor, bias: torch.Tensor, nearest: torch.Tensor) -> torch.Tensor:
        """x: ``(b, a, k, m)`` blocks of a anchors. rows: ``(b, r, m/2)`` window rows, shared by the anchors of a text.
        bias: ``(b, a, r)`` 0 or -inf. nearest: ``(a, r)`` how far in front of an anchor's last row a row is."""
        b, a, k, _ = x.shape
        q = self.query(x).view(b, a, k, self.heads, -1)
        own_k, own_v = self.own(x).view(b, a, k, self.heads, -1).chunk(2, -1)
        row_k, row_v = self.rows(rows).view(b, rows.shape[1], self.heads, -1).chunk(2, -1)
        scale = q.shape[-1] ** -0.5
        to_rows = torch.einsum("bakhd,brhd->bahkr", q, row_k) * scale
        to_own = torch.einsum("bakhd,bajhd->bahkj", q, own_k) * scale
        window = self.distance.shape[-1] - k
        away = self.distance[:, :, :window][:, :, nearest].permute(2, 0, 1, 3)  # (a, h, k, r)
        to_rows = to_rows + away + bias[:, :, None, None]
        weights = torch.cat([to_rows, to_own + self.distance[:, :, window:]], -1).softmax(-1)
        to_rows, to_own = weights[..., : rows.shape[1]], weights[..., rows.shape[1] :]
        found = torch.einsum("bahkr,brhd->bakhd", to_rows, row_v) + torch.einsum("bahkj,bajhd->bakhd", to_own, own_v)
        mixed: torch.Tensor = self.out(found.flatten(3))
        return mixed


class Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.before_attention, self.before_mlp = (nn.RMSNorm(shape.width, eps=1e-6) for _ in range(2))
        self.attention = Attention(shape)
        self.gate_up = nn.Linear(shape.width, 2 * shape.intermediate, bias=False)
        self.down = nn.Linear(shape.intermediate, shape.width, bias=False)
        nn.init.zeros_(self.down.weight)

    def forward(self, x: torch.Tensor, rows: torch.Tensor, bias: torch.Tensor, nearest: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.before_attention(x), rows, bias, nearest)
        gate, up = self.gate_up(self.before_mlp(x)).chunk(2, -1)
        added: torch.Tensor = self.down(functional.silu(gate) * up)
        return x + added


class BlockHead(nn.Module):
    """hidden_size: width of the target. vocabulary: ids that it can propose; id ``vocabulary`` stands for all others.

    mean, scale: ``(layers, hidden_size)`` of the states, so that each value has mean 0 and deviation 1.
    """

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, shape: Shape, hidden_size: int, vocabulary: int) -> None:
        super().__init__()
        self.shape, self.vocabulary = shape, vocabulary
        width, inputs = shape.width, len(shape.layers) * hidden_size
        self.register_buffer("mean", torch.zeros(len(shape.layers), hidden_size))
        self.register_buffer("scale", torch.ones(len(shape.layers), hidden_size))
        self.last_row = nn.Linear(inputs, width)
        self.anchor = nn.Embedding(vocabulary + 1, width)
        self.places = nn.Linear(width, shape.block * width)
        self.row = nn.Linear(inputs, width // 2)
        self.before_rows = nn.RMSNorm(width // 2, eps=1e-6)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.depth))
        self.head = nn.Linear(width, vocabulary)
        if shape.rank:
            self.previous = nn.Embedding(vocabulary + 1, shape.rank)
            self.following = nn.Linear(shape.rank, vocabulary, bias=False)

    def forward(self, states: torch.Tensor, tokens: torch.Tensor, there: torch.Tensor) -> list[torch.Tensor]:
        """For each position the logits ``(b, a, vocabulary)`` of b texts with a anchors each.

        tokens: ``(b, a + k)`` the anchors, which are consecutive tokens, and what followed. Others: see ``streams``.
        """
        anchors = states.shape[1] - self.shape.window + 1
        last = range(self.shape.window - 1, states.shape[1])
        streams = self.streams(states, last, tokens[:, :anchors], there)
        logits = []
        for place in range(self.shape.block):
            before = tokens[:, place : place + anchors] if place else None
            logits.append(self.logits(streams[:, :, place], before))
        return logits

    def normalised(self, states: torch.Tensor) -> torch.Tensor:
        """states: ``(..., layers, d)`` -> ``(..., layers * d)``."""
        return ((states - self.mean) / self.scale).clamp(-_CLIP, _CLIP).flatten(-2) * _INPUT

    def streams(
        self, states: torch.Tensor, last: Sequence[int], anchors: torch.Tensor, there: torch.Tensor
    ) -> torch.Tensor:
        """``(b, a, k, m)`` the block's last residual streams.

        states: ``(b, r, layers, d)`` rows of b texts. last: for each of a anchors the row in front of it. anchors:
        ``(b, a)`` head ids. there: ``(b, r)`` whether a row exists.
        """
        z = self.normalised(states)
        first = self.last_row(z[:, list(last)]) + self.anchor(anchors)
        x: torch.Tensor = self.places(first).unflatten(-1, (self.shape.block, self.shape.width))
        if not self.layers:
            return x
        rows = self.before_rows(self.row(z))
        back = torch.tensor(last, device=z.device)[:, None] - torch.arange(z.shape[1], device=z.device)[None]
        seen = (back >= 0) & (back < self.shape.window)
        bias = torch.zeros(there.shape[0], *back.shape, device=z.device).masked_fill(
            ~(there[:, None] & seen[None]), -1e9
        )
        nearest = back.clamp(0, self.shape.window - 1)
        for layer in self.layers:
            x = layer(x, rows, bias, nearest)
        return x

    def logits(self, streams: torch.Tensor, before: torch.Tensor | None = None) -> torch.Tensor:
        """streams: ``(..., m)``. before: ``(...)`` the token before each; None at the first position, whose anchor is
        read already."""
        out: torch.Tensor = self.head(streams)
        if before is not None and self.shape.rank:
            out = out + self.following(self.previous(before))
        return out
