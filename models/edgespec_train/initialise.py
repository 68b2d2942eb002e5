"""Initialise the draft: an output head fitted to the target's layers, or the weights of an earlier draft."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoConfig, PretrainedConfig

from edgespec.errors import SettingError
from edgespec_train.corpus.batches import Texts
from edgespec_train.trainer import hidden_states

_SHAPE = (
    "model_type",
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
)


def check_earlier(folder: Path, wanted: PretrainedConfig) -> None:
    """Raises SettingError unless the earlier draft has the layers and widths of the new one. Its ids may differ."""
    try:
        found = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        what = f"cannot read the earlier draft in {folder}: {error}"
        raise SettingError(what, hint="name the draft folder of an earlier run") from error
    for name in _SHAPE:
        got, allowed = getattr(found, name, None), getattr(wanted, name, None)
        if got != allowed:
            hint = f"--layers {got}" if name == "num_hidden_layers" else "go on from a draft of this target's widths"
            raise SettingError(f"the earlier draft has another {name}", got=got, allowed=allowed, hint=hint)


@torch.no_grad()
def take_over(draft: Any, id_map: NDArray[np.int32], earlier: Any, earlier_ids: NDArray[np.int32]) -> int:
    """Initialise from an earlier draft over other ids: take its layers, and its rows of the ids that both have.

    Call it after ``fit_head``. Rows of new ids stay as fitted: rescaled to the earlier draft's last norm, and shifted
    by the mean change that training made to the other rows. Returns the number of ids taken over.
    """
    draft.model.layers.load_state_dict(earlier.model.layers.state_dict())
    row_of = {int(token): row for row, token in enumerate(id_map)}  # UNKNOWN, if it has a row, is an id like the others
    pairs = [(row_of[int(token)], row) for row, token in enumerate(earlier_ids) if int(token) in row_of]
    to, of = (torch.tensor(rows) for rows in zip(*pairs, strict=True))
    draft.get_input_embeddings().weight[to] = earlier.get_input_embeddings().weight[of]
    head, trained = draft.get_output_embeddings().weight, earlier.get_output_embeddings().weight[of]
    head.div_(earlier.model.norm.weight)
    head.add_((trained - head[to]).mean(0))
    head[to] = trained
    draft.model.norm.load_state_dict(earlier.model.norm.state_dict())
    return len(pairs)


@torch.no_grad()
def fit_head(
    draft: Any,
    target: Any,
    texts: Texts,
    *,
    rows: int = 20_000,
    ridge: float = 0.01,
    seed: int = 99,
) -> float:
    """Fold the map from the draft's last hidden state to the target's into the draft's output head.

    Returns the share of the target's squares that it explains: R squared, but that no mean is taken off.

    A draft that copies the target's first layers ends in the target's hidden state after these layers. The linear map
    from there to the target's last hidden state (the tuned lens, Belrose et al. 2023, arXiv 2303.08112) is least
    squares over ``rows`` answer rows, and costs nothing at run time: head times map is a head.
    """
    device = next(draft.parameters()).device
    target.to(device)
    draft.model.norm.weight.fill_(1.0)
    d = draft.config.hidden_size
    xx = torch.zeros(d, d, dtype=torch.float64, device=device)
    xy = torch.zeros(d, d, dtype=torch.float64, device=device)
    yy, seen = 0.0, 0
    for some in texts.batches(seed, 3072):
        batch = texts.batch(some).to(device)
        x = hidden_states(draft, batch.tokens)[batch.rows].double()
        ids = texts.padded(some)
        ids[ids >= target.config.vocab_size] = 0  # a model of the target's vocabulary may have fewer rows
        y = hidden_states(target, torch.from_numpy(ids).to(device))[batch.rows].double()
        xx += x.T @ x
        xy += x.T @ y
        yy += float((y * y).sum())
        seen += len(x)
        if seen >= rows:
            break
    damping = ridge * xx.diagonal().mean() * torch.eye(d, dtype=torch.float64, device=device)
    lens = torch.linalg.solve(xx + damping, xy)
    head = draft.get_output_embeddings().weight
    head.copy_((head.double() @ lens.T).to(head.dtype))
    return 1 - (yy - 2 * float((lens * xy).sum()) + float((lens * (xx @ lens)).sum())) / yy
