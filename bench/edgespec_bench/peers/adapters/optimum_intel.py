"""optimum-intel: ``OVModelForCausalLM.generate`` of transformers, on the stateful IR."""

from __future__ import annotations

from collections.abc import Sequence
from functools import wraps
from pathlib import Path
from time import perf_counter
from typing import Any

from edgespec_bench.peers.base import Run, WeightFormats, package_versions


class Peer:
    settings = "no prefix reuse between calls"

    def load(self, weight_formats: WeightFormats, mode: str, threads: int, cache: Path | None) -> None:
        import torch
        from optimum.intel import OVModelForCausalLM

        torch.set_num_threads(threads)
        config = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "CACHE_DIR": str(cache or "")}

        def model(folder: Path) -> Any:
            loaded = OVModelForCausalLM.from_pretrained(str(folder), ov_config=config)
            loaded.generation_config.eos_token_id = None  # no token ends the text early
            loaded.generation_config.pad_token_id = 0
            return loaded

        self._model = model(weight_formats.need("ir"))
        self._draft = model(weight_formats.need("draft_ir")) if mode == "assistant_model" else None
        self._forwards = self._drafted = 0
        self._count()

    def generate(self, prompt: Sequence[int], new_tokens: int) -> Run:
        import torch

        ids = torch.tensor([list(prompt)])
        puts: list[tuple[float, int]] = []

        class Clock:
            """A streamer of transformers: it gets the prompt first, then the new tokens."""

            def put(self, tokens: Any) -> None:
                puts.append((perf_counter(), tokens.numel()))

            def end(self) -> None:
                pass

        self._forwards = self._drafted = 0
        extra = {} if self._draft is None else {"assistant_model": self._draft}
        began = perf_counter()
        output = self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new_tokens,
            do_sample=False,
            streamer=Clock(),
            **extra,
        )
        tokens = output[0, len(prompt) :].tolist()
        counted: dict[str, Any] = {"forwards": self._forwards - 1}
        if self._draft is not None:
            counted |= {"proposed": self._drafted, "accepted": len(tokens) - self._forwards}
        at_s = [at - began for at, count in puts[1:] for _ in range(count)]
        return Run(tokens, at_s, **counted)

    def versions(self) -> dict[str, str]:
        return package_versions("optimum-intel", "transformers", "torch", "openvino")

    def _count(self) -> None:
        """Count forwards, which ``generate`` does not report."""

        def counting(model: Any, name: str) -> None:
            forward = model.forward

            @wraps(forward)  # ``generate`` inspects its signature
            def counted(*args: Any, **kwargs: Any) -> Any:
                setattr(self, name, getattr(self, name) + 1)
                return forward(*args, **kwargs)

            model.forward = counted

        counting(self._model, "_forwards")
        if self._draft is not None:
            counting(self._draft, "_drafted")
