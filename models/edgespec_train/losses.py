"""What a draft is trained on: the token the target chose, the target's distribution, or the mean of both."""

from __future__ import annotations

from typing import Literal

import torch
from torch.nn import functional

from edgespec_train.corpus.batches import Batch

Loss = Literal["ce", "kd", "tv", "ce+kd", "ce+tv"]


def loss_of(logits: torch.Tensor, batch: Batch, kind: Loss) -> torch.Tensor:
    """Mean over the rows; of "a+b" half of each. logits: ``(r, draft vocabulary)``.

    ce: cross-entropy on the chosen token (sequence-level distillation, as FastDraft). kd: cross-entropy against the
    target's stored top probabilities, which is KL but for a constant. tv: total variation from them. Tokens the draft
    does not have carry no weight.
    """
    logprobs = functional.log_softmax(logits, -1)
    parts = kind.split("+")
    total = logits.new_zeros(())
    if "ce" in parts:
        weight = batch.readable.float()
        picked = -logprobs.gather(1, batch.labels[:, None])[:, 0]
        total = total + (picked * weight).sum() / weight.sum().clamp(min=1)
    if "kd" in parts:
        probs = batch.top_probs
        soft = -(probs * logprobs.gather(1, batch.top_ids)).sum(-1)
        total = total + soft.sum() / probs.sum().clamp(min=1e-9)
    if "tv" in parts:
        # What the draft gives a token too little of. The sum is 1 less the chance that verification by rejection
        # accepts, as far as the stored tokens go: of the others it is not known what the target gave them.
        probs = batch.top_probs
        lacking = (probs - logprobs.gather(1, batch.top_ids).exp()).relu() * (probs > 0)
        total = total + lacking.sum() / probs.sum().clamp(min=1e-9)
    return total / len(parts)
