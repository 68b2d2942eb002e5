"""llama-cpp-python: ``Llama.generate`` on the GGUF file, alone or with its ``LlamaPromptLookupDecoding``."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice, pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

from edgespec_bench.peers.base import Run, WeightFormats, package_versions

LOOKUP_TOKENS = 2
"""its documentation says that 2 performs better on machines with a CPU only"""


class Peer:
    settings = "its own prefix match"

    def load(self, weight_formats: WeightFormats, mode: str, threads: int, cache: Path | None) -> None:
        import llama_cpp

        options: dict[str, Any] = {}
        self._lookup: Any = None
        if mode == "prompt_lookup":
            from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

            self._lookup = LlamaPromptLookupDecoding(num_pred_tokens=LOOKUP_TOKENS)
            options = {"draft_model": self._count, "logits_all": True}
            self.settings += f", num_pred_tokens {LOOKUP_TOKENS}"
        self._drafts: list[tuple[int, int]] = []
        self._llama = llama_cpp.Llama(
            str(weight_formats.need("gguf")),
            n_ctx=weight_formats.rows,
            n_threads=threads,
            n_threads_batch=threads,
            verbose=False,
            **options,
        )

    def generate(self, prompt: Sequence[int], new_tokens: int) -> Run:
        self._drafts.clear()
        began = perf_counter()
        first_s = 0.0
        tokens = []
        for token in islice(self._llama.generate(list(prompt), temp=0.0, repeat_penalty=1.0), new_tokens):
            first_s = first_s or perf_counter() - began
            tokens.append(int(token))
        total_s = perf_counter() - began
        if self._lookup is None:
            return Run(tokens, first_s, total_s, forwards=new_tokens - 1)
        lengths = [length for length, _ in self._drafts]
        accepted = sum(after - before - 1 for before, after in pairwise(lengths))
        proposed = sum(drafted for _, drafted in self._drafts[:-1])
        return Run(tokens, first_s, total_s, proposed=proposed, accepted=accepted, forwards=len(lengths) - 1)

    def versions(self) -> dict[str, str]:
        return package_versions("llama-cpp-python")

    def _count(self, input_ids: Any, /, **options: Any) -> Any:
        drafted = self._lookup(input_ids, **options)
        self._drafts.append((len(input_ids), len(drafted)))
        return drafted
