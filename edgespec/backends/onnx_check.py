"""Is an ONNX form the function of the IR that it was written from?

What ``onnx_graph`` takes for an operator of ONNX Runtime's is told by its form, and a model may be of that form and
mean something else: a rotary embedding of a part of each head, say. So both are asked.
"""

from __future__ import annotations

import numpy as np

from edgespec.backends.base import Model
from edgespec.errors import ConversionError

_TOKENS, _CHUNK = 48, 16
_ALIKE = 0.95
"""correlation of the logits of a row, in the median: 0.99 and more where only activations are rounded otherwise"""


def check(made: Model, of: Model) -> None:
    """Feed both a text in chunks. Leaves both caches empty. Raises ConversionError if they do not say the same."""
    text = [(31 * i + i * i) % min(made.vocab_size, 5000) for i in range(_TOKENS)]
    alike = []
    for begin in range(0, _TOKENS, _CHUNK):
        rows = (model.forward(text[begin : begin + _CHUNK]).logits for model in (made, of))
        alike += [np.corrcoef(ours, theirs)[0, 1] for ours, theirs in zip(*rows, strict=True)]
    made.cache.reset()
    of.cache.reset()
    if not np.median(alike) > _ALIKE:
        raise ConversionError(
            "this model's ONNX form says something else than its IR",
            got=f"correlation {np.median(alike):.2f} of their logits",
            allowed=f"{_ALIKE} or more",
            hint="run it on OpenVINO: --backend openvino",
        )
