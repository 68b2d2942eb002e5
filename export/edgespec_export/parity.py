"""Does the IR compute what the torch model computes? Compared on real text, in float32, on the CPU.

The text goes through the IR in two parts, so the second part reads the cache the first one wrote: a wrong position or
mask shows here.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from edgespec.backends.openvino.runtime import ov
from edgespec.backends.openvino.settings import FULL_PRECISION
from edgespec.bundle import Generation
from edgespec.errors import ConversionError
from edgespec_export.settings import Weights

MAX_TOKENS = 384
MIN_TOP1 = {"f32": 0.99, "f16": 0.9}
"""Trained models measure 1.000 in both; a random one with 49152 logits has near ties that f16 flips: 0.97."""
MAX_NLL_RISE = {"f32": 0.01, "f16": 0.05, "int8": 0.25, "int4": 1.0}
"""Nats a token. How often a compressed model agrees depends on how sure it is, so a broken one is told from a coarse
one by the likelihood of the text: a 135M model loses 0.01 in int8 and 0.3 in int4, a wrong position or mask several."""

TEXT = """\
The lighthouse had stood on the headland for more than a century before anyone thought to measure how far it leaned. \
It was a retired schoolteacher who noticed, holding up a pencil at arm's length one clear morning in March, that the \
tower and the horizon did not quite agree. She wrote to the council, the council wrote to the university, and in May \
two engineers arrived with instruments in padded cases. "About four degrees," one of them said, "and moving, slowly, \
towards the sea." Nothing much changed after that. The fishermen still used its light to find the harbour, and \
children still raced each other up the 212 steps to the gallery, where on a good day you could see three counties.

def moving_average(values: list[float], window: int) -> list[float]:
    \"\"\"Average of each run of `window` neighbours.\"\"\"
    if window < 1:
        raise ValueError(f"window must be positive, got {window}")
    total = sum(values[:window])
    result = [total / window]
    for index in range(window, len(values)):
        total += values[index] - values[index - window]
        result.append(total / window)
    return result

Question: What is the boiling point of water at sea level?
Answer: 100 degrees Celsius, which is 212 degrees Fahrenheit or 373 kelvin.
"""


@dataclass(frozen=True)
class Parity:
    """top1_agreement: share of positions with the same most likely token. nll_*: mean, in nats a token.
    kl: mean divergence of the IR's distribution from torch's."""

    tokens: int
    max_logit_difference: float
    top1_agreement: float
    kl: float
    nll_torch: float
    nll_ir: float
    reference: str

    def as_dict(self) -> dict[str, Any]:
        return {key: round(value, 6) if isinstance(value, float) else value for key, value in asdict(self).items()}

    def __str__(self) -> str:
        return (
            f"top-1 agreement {self.top1_agreement:.4f}, max logit difference {self.max_logit_difference:.3g}, "
            f"KL {self.kl:.2e}, NLL {self.nll_torch:.4f} torch, {self.nll_ir:.4f} IR ({self.tokens} tokens)"
        )


@dataclass(frozen=True)
class Reference:
    """The torch model's logits on the text, ``(n, vocab)``, and the type it computed in."""

    ids: NDArray[np.int64]  # (n,)
    logits: NDArray[np.float32]  # (n, vocab)
    dtype: str


def reference(model: PreTrainedModel, tokenizer: Tokenizer, generation: Generation) -> Reference:
    """Run the torch model on the built-in text. Done before the export, which patches the model."""
    ids = tokenizer.encode(TEXT, add_special_tokens=False).ids
    if generation.add_bos and generation.bos_token is not None:
        ids = [tokenizer.token_to_id(generation.bos_token), *ids]
    ids = ids[: min(MAX_TOKENS, generation.context_length)]
    rows = int(model.get_input_embeddings().get_parameter("weight").shape[0])
    if len(ids) < 8 or max(ids) >= rows:
        raise ConversionError(
            "the tokenizer does not fit the model",
            got=f"{len(ids)} tokens of text, highest id {max(ids, default=0)}",
            allowed=f"ids below {rows}",
        )
    return logits_on(model, np.asarray(ids, np.int64))


def logits_on(model: PreTrainedModel, ids: NDArray[np.int64]) -> Reference:
    """Run the torch model on tokens, ``(n,)``."""
    with torch.inference_mode(), _widened(model) as dtype:
        logits = model(input_ids=torch.from_numpy(ids[None]), use_cache=False).logits[0].float().numpy()  # (n, vocab)
    return Reference(ids, logits, dtype)


def compare(expected: Reference, xml: Path) -> Parity:
    """Run the IR on the same tokens."""
    actual = run_ir(xml, expected.ids)  # (n, vocab)
    if actual.shape != expected.logits.shape or not np.isfinite(actual).all():
        raise ConversionError("the exported graph returns wrong logits", got=f"{actual.shape}, or not finite numbers")
    n = len(expected.ids)
    divergence, nll_torch, nll_ir = 0.0, 0.0, 0.0
    for row in range(n):
        ours, theirs = _log_softmax(actual[row]), _log_softmax(expected.logits[row])  # (vocab,)
        divergence += float(np.sum(np.exp(theirs) * (theirs - ours)))
        if row + 1 < n:
            nll_torch -= float(theirs[expected.ids[row + 1]])
            nll_ir -= float(ours[expected.ids[row + 1]])
    return Parity(
        tokens=n,
        max_logit_difference=float(np.abs(actual - expected.logits).max()),
        top1_agreement=float((actual.argmax(-1) == expected.logits.argmax(-1)).mean()),
        kl=divergence / n,
        nll_torch=nll_torch / (n - 1),
        nll_ir=nll_ir / (n - 1),
        reference=f"torch {expected.dtype}, IR on CPU in f32",
    )


def judge(parity: Parity, weights: Weights) -> None:
    """Raises ConversionError if the IR is not the model."""
    if parity.top1_agreement < MIN_TOP1.get(weights.kind, 0.0):
        raise ConversionError(
            f"the {weights.kind} graph does not reproduce the model",
            got=f"top-1 agreement {parity.top1_agreement:.3f}",
            allowed=f"{MIN_TOP1[weights.kind]} or more",
        )
    rise = parity.nll_ir - parity.nll_torch
    if not rise <= MAX_NLL_RISE[weights.kind]:  # also when it is not a number
        raise ConversionError(
            f"the {weights.kind} graph has lost the model",
            got=f"{rise:.2f} nats a token more on plain text",
            allowed=f"up to {MAX_NLL_RISE[weights.kind]}",
            hint="try int8, or for int4 a smaller --group-size or a lower --ratio",
        )


def run_ir(xml: Path, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """Logits ``(n, vocab)`` of tokens ``(n,)``, in float32."""
    core = ov.Core()
    # A mapped file could not be renamed with its folder on Windows.
    core.set_property({"ENABLE_MMAP": False})
    compiled = core.compile_model(xml, "CPU", FULL_PRECISION)
    request = compiled.create_infer_request()
    names = {port.get_any_name() for port in compiled.inputs}
    half, n = len(ids) // 2, len(ids)
    parts = []
    for start, stop in ((0, half), (half, n)):
        feed = {
            "input_ids": ids[None, start:stop],
            "attention_mask": np.ones((1, stop), np.int64),
            "position_ids": np.arange(start, stop, dtype=np.int64)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        request.infer({name: value for name, value in feed.items() if name in names})
        parts.append(np.array(request.get_tensor("logits").data[0], np.float32))  # (stop - start, vocab)
    del request, compiled
    gc.collect()
    return np.concatenate(parts)


@contextlib.contextmanager
def _widened(model: PreTrainedModel) -> Iterator[str]:
    """Compute a 16-bit checkpoint in float32, if that fits: on a CPU its own arithmetic is noise in the comparison.

    Going back is lossless. Parameters only: buffers such as rotary frequencies are float32 already.
    """
    narrow = [p for p in model.parameters() if p.dtype in (torch.float16, torch.bfloat16)]
    needed = sum(parameter.numel() for parameter in narrow) * 5
    if not narrow or needed > psutil.virtual_memory().available:
        yield str(model.dtype).removeprefix("torch.")
        return
    dtypes = [parameter.dtype for parameter in narrow]
    try:
        for parameter in narrow:
            parameter.data = parameter.data.float()
        yield "float32"
    finally:
        for parameter, dtype in zip(narrow, dtypes, strict=True):
            parameter.data = parameter.data.to(dtype)


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max()
    return np.asarray(shifted - np.log(np.exp(shifted).sum()))
