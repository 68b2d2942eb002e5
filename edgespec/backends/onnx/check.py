"""Is an ONNX form the function of the IR that it was written from?

What ``backends.onnx.graph`` takes for an operator of ONNX Runtime's is told by its form, and a model may be of that
form and mean something else. So both are asked, in full precision on both sides: what is left of the difference is the
order of sums.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgespec.backends.onnx.graph import MODEL_FILE
from edgespec.backends.onnx.session import OnnxRuntimeModel
from edgespec.backends.onnx.weights import NoONNXForm
from edgespec.backends.openvino.stateful import StatefulModel
from edgespec.protocols import Model

TOKENS, _CHUNK = 96, 32
_ALIKE, _ALL_ALIKE = 0.999, 0.995
"""correlation of the logits of a row: of half of the rows, and of nine in ten"""


def check(folder: Path, of: Model | StatefulModel) -> None:
    """Feed the form in ``folder`` and the IR's model a text in chunks. Raises NoONNXForm if they say different things.

    of: with room for TOKENS rows and chunks of 32; its cache is empty afterwards.
    """
    made = _in_full_precision(folder)
    text = [(31 * i + i * i) % min(made.vocab_size, 5000) for i in range(TOKENS)]
    alike: list[float] = []
    for begin in range(0, TOKENS, _CHUNK):
        ours, theirs = (model.forward(text[begin : begin + _CHUNK]).logits for model in (made, of))
        alike += [float(np.corrcoef(*rows)[0, 1]) for rows in zip(ours, theirs, strict=True)]
    of.cache.reset()
    half, most = np.quantile(alike, [0.5, 0.1])
    if not (half > _ALIKE and most > _ALL_ALIKE):
        raise NoONNXForm(
            "this model's ONNX form says something else than its IR",
            got=f"logits that correlate at {half:.3f} in the median, {most:.3f} in the lowest tenth",
            allowed=f"{_ALIKE} and {_ALL_ALIKE} or more",
            hint="run it on OpenVINO: --backend openvino",
        )


def _in_full_precision(folder: Path) -> OnnxRuntimeModel:
    """The same graph over the same file of weights, with activations as they are."""
    import onnx

    model = onnx.load(str(folder / MODEL_FILE), load_external_data=False)
    for node in model.graph.node:
        for option in node.attribute:
            if option.name == "accuracy_level":
                option.i = 1
    beside = folder / "check.onnx"
    try:
        onnx.save_model(model, str(beside))
        return OnnxRuntimeModel(folder, "fast", capacity=TOKENS, file=beside.name)
    finally:
        beside.unlink(missing_ok=True)
