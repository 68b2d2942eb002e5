"""What is trained: an embedding for each placeholder, and low-rank adapters (LoRA, arXiv 2106.09685) on its rows.

Real tokens stand before the placeholders and cannot see them. So their keys and values are computed once, without
gradients, and any number of placeholder groups read them at the same time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional
from transformers import DynamicCache

from edgespec.errors import SettingError

GROUPS: dict[str, tuple[str, ...]] = {
    "qkv": ("q_proj", "k_proj", "v_proj"),
    "o": ("o_proj",),
    "gate_up": ("gate_proj", "up_proj"),
    "down": ("down_proj",),
}
"""products of a decoder layer that read the same activations: an adapter has one narrow side for each group"""


class Adapter(nn.Module):
    """``x @ down.T @ up.T``, added to a product. Zero at first.

    down: ``(rank, in)``. up: ``(out, rank)``, the group's outputs one after the other.
    """

    def __init__(self, products: list[nn.Linear], rank: int) -> None:
        super().__init__()
        self.sizes = [product.out_features for product in products]
        inputs = products[0].in_features
        self.down = nn.Parameter(torch.randn(rank, inputs) / inputs**0.5)
        self.up = nn.Parameter(torch.zeros(sum(self.sizes), rank))

    def part(self, x: torch.Tensor, index: int) -> torch.Tensor:
        begin = sum(self.sizes[:index])
        up = self.up[begin : begin + self.sizes[index]]
        return functional.linear(functional.linear(x, self.down), up)


class Placeholders(nn.Module):
    """count: embeddings; 1 is shared by all slots. groups: of ``GROUPS``, those that have adapters.

    target: a decoder of transformers whose layers have the products of ``GROUPS``.
    """

    def __init__(self, target: Any, count: int, *, rank: int, groups: tuple[str, ...] = tuple(GROUPS)) -> None:
        super().__init__()
        table = target.get_input_embeddings().weight
        mean, spread = table.mean(0), table.std(0)
        self.embeddings = nn.Parameter(mean + 0.1 * spread * torch.randn(count, table.shape[1]))
        self.rank = rank
        self.layers = nn.ModuleList()
        self._products: list[tuple[nn.Linear, Adapter, int]] = []
        for layer in target.model.layers if rank else ():
            named = {name.rpartition(".")[2]: part for name, part in layer.named_modules()}
            adapters = nn.ModuleDict()
            for group in groups:
                if not all(isinstance(named.get(name), nn.Linear) for name in GROUPS[group]):
                    raise SettingError("the target's layers have no such products", got=", ".join(GROUPS[group]))
                products = [named[name] for name in GROUPS[group]]
                adapter = adapters[group] = Adapter(products, rank)
                self._products += [(product, adapter, index) for index, product in enumerate(products)]
            self.layers.append(adapters)

    def weights(self, adapter: Adapter) -> NDArray[np.float32]:
        """``(out, in)`` of the target's products that an adapter is added to, one after the other."""
        found = [product.weight for product, own, _ in self._products if own is adapter]
        return torch.cat(found).detach().float().cpu().numpy()

    def embedded(self, slots: torch.Tensor) -> torch.Tensor:
        """slots: 0 for the first placeholder behind a token, and so on."""
        return self.embeddings[slots.clamp(max=len(self.embeddings) - 1)]

    def forward(self, target: Any, cache: DynamicCache, anchors: torch.Tensor, count: int) -> torch.Tensor:
        """``(b, groups, count, d)`` last hidden states of the placeholders behind some tokens.

        cache: of ``read``; changed. anchors: ``(b, groups)`` the places of the last real tokens. A group sees the real
        tokens up to its anchor, and its own earlier placeholders.
        """
        texts, groups = anchors.shape
        length = cache.get_seq_length()
        slots = torch.arange(count, device=anchors.device)
        places = (anchors[:, :, None] + 1 + slots).reshape(texts, -1)
        seen = torch.arange(length, device=anchors.device) <= anchors.repeat_interleave(count, 1)[:, :, None]
        group = torch.arange(groups, device=anchors.device).repeat_interleave(count)
        slot = slots.repeat(groups)
        own = (group[:, None] == group) & (slot[:, None] >= slot)
        mask = torch.cat([seen, own.expand(texts, -1, -1)], -1)[:, None]
        with self._acting():
            out = target.model(
                inputs_embeds=self.embedded(slot).expand(texts, -1, -1),
                past_key_values=cache,
                attention_mask=mask,
                position_ids=places,
                use_cache=True,
            )
        return out.last_hidden_state.unflatten(1, (groups, count))  # type: ignore[no-any-return]

    @contextmanager
    def _acting(self) -> Iterator[None]:
        """All rows that the target computes in here are placeholders' rows."""
        hooks = [
            product.register_forward_hook(
                lambda _, given, out, adapter=adapter, index=index: out + adapter.part(given[0], index)
            )
            for product, adapter, index in self._products
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def read(target: Any, tokens: torch.Tensor) -> tuple[torch.Tensor, DynamicCache]:
    """The target's last hidden states of real tokens ``(b, n)``, and their keys and values."""
    with torch.no_grad():
        out = target.model(input_ids=tokens, use_cache=True)
    return out.last_hidden_state, out.past_key_values
