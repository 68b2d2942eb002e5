"""Frequencies of the rotary embedding in a GGUF file (RoPE, Su et al. 2021, arXiv:2104.09864), and their scaling.

The angle of pair ``i`` is ``position * frequency[i]``. A file stretches positions in one of these ways:

- linear: all frequencies are divided by one factor;
- yarn (Peng et al. 2023, arXiv:2309.00071): low frequencies are divided, high ones are not, and cosines and sines grow;
- llama3: the tensor rope_freqs divides each frequency;
- longrope: the tensor rope_factors_short does, up to the context that the model was first trained with. Behind it
  another tensor would, which turns keys that are cached already: so that context is the longest here.

Formulas: llama.cpp, ggml_rope_ext.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgespec.errors import ConversionError
from edgespec.gguf.header import ELSE, Header
from edgespec.gguf.values import DAMAGED, LARGEST_HEAD, number, size

SHORT, LONG = "rope_factors_short.weight", "rope_factors_long.weight"
DIVISORS = ("rope_freqs.weight", SHORT)
KINDS = ("none", "linear", "yarn", "longrope")


@dataclass(frozen=True)
class Rope:
    """rotated: numbers of a head that are, in pairs. trained: context before positions were stretched.

    magnitude: of cosines and sines. fast, slow: turns within that context, of pairs that are not divided and of pairs
    that are. local_base: of layers that see the newest tokens only, where no position is stretched.
    """

    base: float
    rotated: int
    kind: str = "none"
    factor: float = 1.0
    trained: int = 0
    magnitude: float = 1.0
    fast: float = 32.0
    slow: float = 1.0
    local_base: float | None = None

    @classmethod
    def of(cls, header: Header, head: int, context: int, local_base: float | None) -> Rope:
        """Raises ConversionError: a kind of scaling that is not known, or a number out of range."""
        stretched = SHORT in header.tensors
        kind = header.get("{arch}.rope.scaling.type", "longrope" if stretched else "linear")
        key = f"{header.architecture}.rope.scaling.type of {header.path.name}"
        if kind not in KINDS:
            raise ConversionError(f"{key} is unknown here", got=kind, allowed=", ".join(KINDS), hint=ELSE)
        if stretched != (kind == "longrope"):
            got = f"{kind} {'with' if stretched else 'without'} the tensor {SHORT}"
            raise ConversionError(key, got=got, allowed="longrope with that tensor, others without", hint=ELSE)
        older = header.get("{arch}.rope.scale_linear", 0.0)
        given = header.get("{arch}.rope.scaling.factor", older) if kind in ("linear", "yarn") else 0.0
        rope = cls(
            base=number(header, "{arch}.rope.freq_base", 10000.0),
            rotated=size(header, "{arch}.rope.dimension_count", head, most=LARGEST_HEAD),
            kind=kind,
            factor=number(header, "{arch}.rope.scaling.factor", older) if given else 1.0,
            trained=size(header, "{arch}.rope.scaling.original_context_length", None if stretched else context),
            magnitude=number(header, "{arch}.rope.scaling.attn_factor", 1.0),
            fast=number(header, "{arch}.rope.scaling.yarn_beta_fast", 32.0),
            slow=number(header, "{arch}.rope.scaling.yarn_beta_slow", 1.0),
            local_base=local_base,
        )
        rope._require_numbers(header)
        return rope

    def _require_numbers(self, header: Header) -> None:
        """Raises ConversionError: pairs that all turn alike, or faster than a number can say."""
        name = f"rope.freq_base of {header.path.name}"
        for base in (self.base, self.local_base):
            if base is not None and base <= 1:
                raise ConversionError(name, got=base, allowed="above 1", hint=DAMAGED)
        with np.errstate(over="ignore"):
            if not np.isfinite(self.frequencies().astype(np.float32)).all():
                raise ConversionError(f"{name} and its scaling", got="no finite frequencies", hint=DAMAGED)

    def frequencies(self, *, local: bool = False) -> NDArray[np.float64]:
        """Of each pair, before a tensor divides them."""
        base = self.local_base if local and self.local_base is not None else self.base
        plain: NDArray[np.float64] = base ** (-np.arange(0, self.rotated, 2) / self.rotated)
        if local and self.local_base is not None:
            return plain
        if self.kind != "yarn":
            return plain / self.factor
        divided = self._ramp()
        return plain * (1 - divided) + plain / self.factor * divided

    def scale(self, *, local: bool = False) -> float:
        """Of cosines and sines."""
        if local and self.local_base is not None:
            return 1.0
        return self.magnitude * (0.1 * math.log(self.factor) + 1 if self.kind == "yarn" and self.factor > 1 else 1.0)

    def _ramp(self) -> NDArray[np.float64]:
        """How far each pair is divided: 0 for those that turn often, 1 for those that do not turn once."""
        low, high = (self._pair_of(turns) for turns in (self.fast, self.slow))
        low, high = max(math.floor(low), 0), min(math.ceil(high), self.rotated - 1)
        ramp: Any = (np.arange(self.rotated // 2) - low) / max(0.001, high - low)
        return np.asarray(np.clip(ramp, 0, 1), np.float64)

    def _pair_of(self, turns: float) -> float:
        """Which pair turns so often within the trained context."""
        return self.rotated * math.log(self.trained / (turns * 2 * math.pi)) / (2 * math.log(self.base))
