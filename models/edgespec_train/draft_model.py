"""The draft: the target's block design with fewer layers, a trimmed vocabulary and weights from the target."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from edgespec.errors import SettingError

UNKNOWN = -1
"""in an id map: the draft's row for every token it has no row for; it reads it and never proposes it"""


@dataclass(frozen=True)
class Shape:
    """Size of the draft. None takes the target's.

    layers: layers of the target to copy. From scratch only their number counts.
    """

    layers: tuple[int, ...]
    hidden: int | None = None
    intermediate: int | None = None
    heads: int | None = None


def choose_vocabulary(counts: NDArray[np.int64], size: int, always: Sequence[int]) -> NDArray[np.int32]:
    """``(size,)`` target ids by frequency, ascending, then UNKNOWN; all ids, without UNKNOWN, if they fit.

    counts: ``(target vocabulary,)`` how often the target wrote each token. always: ids to keep at any count.
    A corpus is small beside what users ask about, so a tenth of the weight is spread over all ids as Zipf's law has
    it: byte-pair vocabularies list their merges by frequency.

    >>> choose_vocabulary(np.array([5, 0, 3, 9, 1]), 4, always=[4])
    array([ 0,  3,  4, -1], dtype=int32)
    """
    if size >= len(counts):
        return np.arange(len(counts), dtype=np.int32)
    zipf = 1 / (np.arange(len(counts)) + 100)
    ranked = counts + 0.1 * counts.sum() * zipf / zipf.sum()
    ranked[list(always)] = ranked.max() + 1
    kept = np.sort(np.argsort(-ranked, kind="stable")[: size - 1])
    return np.append(kept, UNKNOWN).astype(np.int32)


def invert(id_map: NDArray[np.int32], target_vocab: int) -> NDArray[np.int64]:
    """``(target vocabulary,)`` draft id of each target id; the UNKNOWN row where there is none."""
    unknown = np.flatnonzero(id_map == UNKNOWN)
    ids = np.full(target_vocab, unknown[0] if len(unknown) else 0, np.int64)
    known = np.flatnonzero(id_map != UNKNOWN)
    ids[id_map[known]] = known
    return ids


def build(config: PretrainedConfig, shape: Shape, vocab_size: int, *, seed: int) -> PreTrainedModel:
    """A draft with random weights. Raises SettingError for a shape the architecture cannot have."""
    if not shape.layers or min(shape.layers) < 0 or max(shape.layers) >= config.num_hidden_layers:
        allowed = f"0 to {config.num_hidden_layers - 1}"
        raise SettingError("layers of the target", got=",".join(map(str, shape.layers)), allowed=allowed)
    config = copy.deepcopy(config)
    heads = shape.heads or config.num_attention_heads
    share = config.num_attention_heads // config.num_key_value_heads
    changes: dict[str, Any] = {
        "num_hidden_layers": len(shape.layers),
        "vocab_size": vocab_size,
        "tie_word_embeddings": False,
        # These would be ids of the target, and torch freezes the row of a pad.
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id")),
    }
    if shape.hidden or shape.heads:
        hidden = shape.hidden or config.hidden_size
        if hidden % heads or (hidden // heads) % 2:
            raise SettingError(
                "hidden size must be an even number of values per head", got=f"{hidden} over {heads} heads"
            )
        changes |= {"hidden_size": hidden, "num_attention_heads": heads, "head_dim": hidden // heads}
        changes["num_key_value_heads"] = max(1, heads // share)
        if heads % changes["num_key_value_heads"]:
            what = f"{heads} heads cannot share {changes['num_key_value_heads']} heads of keys and values evenly"
            raise SettingError(what, hint=f"a multiple of {share} heads")
    if shape.intermediate:
        changes["intermediate_size"] = shape.intermediate
    if kinds := getattr(config, "layer_types", None):
        changes["layer_types"] = [kinds[layer % len(kinds)] for layer in shape.layers]
    for name, value in changes.items():
        setattr(config, name, value)
    torch.manual_seed(seed)
    made: Any = AutoModelForCausalLM
    model: PreTrainedModel = made.from_config(config, dtype=torch.float32).eval()  # no dropout: it is judged as it runs
    return model


def initialise_from(draft: Any, target: Any, shape: Shape, id_map: NDArray[np.int32]) -> None:
    """Initialise a draft of the target's width: copy embeddings, the layers of ``shape``, last norm and output head.

    target: the target itself, or another model of its vocabulary. It may have fewer rows than the target.
    """
    lacking = (id_map == UNKNOWN) | (id_map >= target.config.vocab_size)
    ids = torch.from_numpy(np.where(lacking, 0, id_map).astype(np.int64))
    unknown = torch.from_numpy(lacking)
    with torch.no_grad():
        for draft_part, target_part in (
            (draft.get_input_embeddings(), target.get_input_embeddings()),
            (draft.get_output_embeddings(), target.get_output_embeddings()),
        ):
            rows = target_part.weight[ids].clone()
            if unknown.any():
                rare = torch.ones(len(target_part.weight), dtype=torch.bool)
                rare[ids] = False
                rows[unknown] = target_part.weight[rare].mean(0)
            draft_part.weight.copy_(rows)
        for layer, index in zip(draft.model.layers, shape.layers, strict=True):
            layer.load_state_dict(target.model.layers[index].state_dict())
        draft.model.norm.load_state_dict(target.model.norm.state_dict())
