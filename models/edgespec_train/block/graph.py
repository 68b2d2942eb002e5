"""The whole draft as one graph of fixed shapes: states in, a block of tokens out (see ``edgespec.drafters.block``)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino as ov
import torch
from torch import nn

from edgespec.backends.openvino.settings import FULL_PRECISION
from edgespec_export import convert
from edgespec_export.settings import Weights
from edgespec_train.block.head import BlockHead

INPUTS, OUTPUTS = ("states", "count", "token", "noise"), ("logits", "tokens")


class Round(nn.Module):
    """One draft. The Markov head chooses a token after the other, so the steps are written out one by one."""

    def __init__(self, head: BlockHead) -> None:
        super().__init__()
        self.head = head

    def forward(
        self, states: torch.Tensor, count: torch.Tensor, token: torch.Tensor, noise: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """states: ``(window, layers, d)`` newest last, of which ``count`` exist. token: ``(1,)``. noise: ``(k, m)``."""
        head, window = self.head, self.head.shape.window
        there = torch.arange(window)[None] >= window - count
        streams = head.streams(states[None], [window - 1], token[None], there)[0, 0]
        own = head.head(streams)
        logits, tokens = [], []
        for place in range(head.shape.block):
            row = own[place : place + 1]
            if place and head.shape.rank:
                row = row + head.following(head.previous(token))
            token = (row + noise[place : place + 1]).argmax(-1).to(token.dtype)
            logits.append(row)
            tokens.append(token)
        return torch.cat(logits), torch.cat(tokens)


def example(head: BlockHead, seed: int = 0) -> dict[str, torch.Tensor]:
    """Inputs of a round, for tracing and for a comparison."""
    generator = torch.Generator().manual_seed(seed)
    shape = head.shape
    spread = torch.randn(shape.window, *head.mean.shape, generator=generator)
    return {
        "states": head.mean + head.scale * spread,
        "count": torch.tensor([max(1, shape.window - seed)], dtype=torch.int32),
        "token": torch.tensor([seed % head.vocabulary], dtype=torch.int32),
        "noise": torch.zeros(shape.block, head.vocabulary),
    }


def write(head: BlockHead, xml: Path, weights: Weights) -> str | None:
    """Write the graph's IR, its weights compressed; returns why the settings are not the usual ones."""
    head = head.float().cpu().eval()
    inputs = example(head)
    with torch.no_grad():
        model = ov.convert_model(Round(head), example_input=inputs)
    for port in model.inputs:
        name = next(iter(port.get_names() & set(INPUTS)))
        port.get_node().set_partial_shape(ov.PartialShape(list(inputs[name].shape)))
        port.get_tensor().set_names({name})
    for port, name in zip(model.outputs, OUTPUTS, strict=True):
        port.get_tensor().set_names({name})
    model.validate_nodes_and_infer_types()
    raw = xml.with_name("raw.xml")
    raw.parent.mkdir(parents=True, exist_ok=True)
    ov.save_model(model, raw, compress_to_fp16=False)
    note: str | None = convert.compress(raw, xml, weights)[1]
    for path in (raw, raw.with_suffix(".bin")):
        path.unlink()
    return note


def differences(head: BlockHead, xml: Path, rounds: int = 4) -> tuple[float, float]:
    """Largest difference of the logits of the first position, as a share of their spread, and the share of first
    tokens that are the same, between the graph and the torch model."""
    run = ov.compile_model(ov.Core().read_model(xml), "CPU", FULL_PRECISION)
    worst, same = 0.0, 0
    for seed in range(rounds):
        inputs = example(head, seed)
        with torch.no_grad():
            expected, tokens = Round(head)(**inputs)
        found = run({name: value.numpy() for name, value in inputs.items()})
        gap = np.abs(found["logits"][0] - expected[0].numpy()).max() / float(expected[0].std())
        worst, same = max(worst, float(gap)), same + int(found["tokens"][0] == tokens[0])
    return worst, same / rounds
