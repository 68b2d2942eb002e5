"""What a draft is trained on: the token the target chose, the target's distribution, or both."""

from __future__ import annotations

from typing import Literal

import torch
from torch.nn import functional

from edgespec_train.corpus.batches import Batch

Loss = Literal["ce", "kd", "ce+kd"]


def loss_of(logits: torch.Tensor, batch: Batch, kind: Loss) -> torch.Tensor:
    """Mean over the rows. logits: ``(r, draft vocabulary)``.

    ce: cross-entropy on the chosen token (sequence-level distillation, as FastDraft). kd: cross-entropy against the
    target's stored top probabilities; tokens the draft does not have carry no weight.
    """
    logprobs = functional.log_softmax(logits, -1)
    total = logits.new_zeros(())
    if "ce" in kind:
        weight = batch.readable.float()
        picked = -logprobs.gather(1, batch.labels[:, None])[:, 0]
        total = total + (picked * weight).sum() / weight.sum().clamp(min=1)
    if "kd" in kind:
        probs = batch.top_probs
        soft = -(probs * logprobs.gather(1, batch.top_ids)).sum(-1)
        total = total + soft.sum() / probs.sum().clamp(min=1e-9)
    return total / (2 if kind == "ce+kd" else 1)
