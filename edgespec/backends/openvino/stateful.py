"""An IR as it is, its cache inside the engine: what a form for another engine is held against where paging has none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgespec.backends.openvino.runtime import core
from edgespec.backends.openvino.settings import FULL_PRECISION
from edgespec.errors import BackendError, foreign
from edgespec.types import Step


class States:
    """Of an engine that keeps keys and values itself."""

    def __init__(self, request: Any) -> None:
        self._request = request
        self.length = 0

    def reset(self) -> None:
        self._request.reset_state()
        self.length = 0


class StatefulModel:
    """One text, read on and on. In full precision."""

    def __init__(self, xml: Path) -> None:
        with foreign(BackendError, f"cannot compile {xml.name}", hint="see: edgespec doctor"):
            self._request = core().compile_model(xml, "CPU", FULL_PRECISION).create_infer_request()
        self.cache = States(self._request)

    def forward(self, tokens: Sequence[int]) -> Step:
        begin, end = self.cache.length, self.cache.length + len(tokens)
        found = self._request.infer(
            {
                "input_ids": np.array([tokens], np.int64),
                "attention_mask": np.ones((1, end), np.int64),
                "position_ids": np.arange(begin, end, dtype=np.int64)[None],
                "beam_idx": np.zeros(1, np.int32),
            }
        )
        self.cache.length = end
        return Step(found["logits"][0].astype(np.float32), width=len(tokens))
