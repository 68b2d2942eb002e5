"""Whether a model goes back to what it was: tried once, when it is loaded on a device where that is not known.

A device may keep keys in blocks with common scales, which a rejected token changes for good. Or it may not run the
graph at all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from edgespec.errors import BackendError
from edgespec.protocols import Model

if TYPE_CHECKING:
    from edgespec.backends.engine_model import PaddedModel

_TEXT = [(31 * i + i * i) % 200 + 10 for i in range(40)]
_KEPT = 8
"""tokens of the text in front of the first draft"""
_REJECTED = [7, 3, 11]
_CLOSE = 0.02
"""of the largest logit: several times what 16 bits round, and far below what a changed key does"""


def goes_back(model: Model) -> bool:
    """Read a short text, once as it is and once with a rejected draft behind each token: the logits must agree. Leaves
    the cache empty."""
    tokens = [token % model.vocab_size for token in _TEXT]
    rejected = [token % model.vocab_size for token in _REJECTED]
    logits = []
    for draft in ([], rejected):
        model.cache.reset()
        model.prefill(tokens[:_KEPT])
        for token in tokens[_KEPT:-1]:
            model.forward([token, *draft], num_logits=0)
            model.cache.keep([0])
        logits.append(model.forward(tokens[-1:]).logits[0].copy())
    model.cache.reset()
    clean, drafted = logits
    difference = np.abs(clean - drafted).max()
    return bool(difference <= _CLOSE * np.abs(clean).max())  # no number is no agreement


def either(
    paged: Callable[[], PaddedModel], stateful: Callable[[], PaddedModel], device: str, say: Callable[[str], None]
) -> PaddedModel:
    """The paged model if it runs on this device and goes back, else the stateful one, with a line that says so."""
    try:
        model = paged()
        if goes_back(model):
            return model
        del model  # its memory, before another one is loaded
        why = "a rejected draft changed the text behind it"
    except BackendError as error:
        why = str(error)
    say(f"the paged cache does not work on {device}, so the stateful one runs: {why}")
    return stateful()
