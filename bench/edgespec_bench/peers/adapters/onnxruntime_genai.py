"""onnxruntime-genai: ``Generator``, with a draft model in its configuration, or with its n-gram lookup."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

from edgespec.protocols import common_prefix
from edgespec_bench.peers.base import Run, WeightFormats, package_versions

SPECULATIVE: dict[str, dict[str, Any]] = {
    "plain": {},
    "draft": {"max_draft_tokens": 2},
    "ngram": {"ngram_size": 4, "max_draft_tokens": 3, "ngram_chained_lookup": True},
}
"""tried (docs/log/peers.md): drafts of 1 to 3 tokens; 2, 3, 4 and 8 tokens after n-grams of 2 and 3, 3 after 4"""


class Peer:
    settings = "prefix reuse by rewind_to"

    def load(self, weight_formats: WeightFormats, mode: str, threads: int, cache: Path | None) -> None:
        import onnxruntime_genai

        folder = weight_formats.need("onnx_draft" if mode == "draft" else "onnx")
        config = onnxruntime_genai.Config(str(folder))
        session = {"intra_op_num_threads": threads}
        parts = ("decoder", "draft") if mode == "draft" else ("decoder",)
        written = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))["model"]
        # It pads after its end token, and needs one within the vocabulary: the last id, which no text has.
        self._end = written["vocab_size"] - 1
        ends = {"eos_token_id": self._end, "pad_token_id": self._end}
        config.overlay(json.dumps({"model": ends | {part: {"session_options": session} for part in parts}}))
        self._model = onnxruntime_genai.Model(config)
        self._options = SPECULATIVE[mode]
        self._rows = weight_formats.rows
        self._generator: Any = None
        self._tokens: list[int] = []
        self.settings += "".join(f", {name} {value}" for name, value in self._options.items())

    def generate(self, prompt: Sequence[int], new_tokens: int) -> Run:
        import numpy as np

        prompt = list(prompt)
        began = perf_counter()
        held = min(common_prefix(self._tokens, prompt), len(prompt) - 1)
        if held == 0:
            self._generator = None  # free the old buffers before allocating new ones
            self._generator = self._new()
        else:
            self._generator.rewind_to(held)
        generator = self._generator
        generator.append_tokens(np.array(prompt[held:], np.int32))
        before = self._counts()
        tokens: list[int] = []
        at_s: list[float] = []
        for _ in range(new_tokens):
            generator.generate_next_token()
            tokens.append(int(generator.get_next_tokens()[0]))
            at_s.append(perf_counter() - began)
        if self._end in tokens[:-1]:
            raise RuntimeError(f"the text holds token {self._end}, which it takes for the end")
        self._tokens = [*prompt, *tokens[:-1]]
        counted: dict[str, Any] = {"forwards": new_tokens - 1, "reused": held}
        if self._options:
            names = ("draft_tokens_proposed", "draft_tokens_accepted")
            proposed, accepted = (int(self._counts()[name] - before.get(name, 0)) for name in names)
            counted |= {"proposed": proposed, "accepted": accepted, "forwards": new_tokens - 1 - accepted}
        return Run(tokens, at_s, **counted)

    def versions(self) -> dict[str, str]:
        return package_versions("onnxruntime-genai", "onnxruntime")

    def _new(self) -> Any:
        import onnxruntime_genai

        params = onnxruntime_genai.GeneratorParams(self._model)
        params.set_search_options(max_length=self._rows, do_sample=False)
        if self._options:
            params.set_speculative_options(**self._options)
        return onnxruntime_genai.Generator(self._model, params)

    def _counts(self) -> dict[str, Any]:
        return dict(self._generator.get_speculative_stats()) if self._options else {}
