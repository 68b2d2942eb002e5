"""openvino-genai: ``LLMPipeline`` with paged attention (continuous batching), which serves all three modes.

Scheduler: its own latency-oriented default, a prompt in one forward and prefix caching on. Times are its own
``perf_metrics``, since the thread of a streamer would take time from decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from time import perf_counter
from typing import Any

from edgespec_bench.peers.base import Run, WeightFormats, package_versions

DRAFT_TOKENS = 2
"""1, 2, 3 and 5 were tried (docs/log/peers.md)"""
LOOKUP_TOKENS, LOOKUP_NGRAM = 3, 3
"""tried: 1 to 3 and 5 tokens after n-grams of 3, 2 and 3 after n-grams of 2"""


class Peer:
    settings = "paged attention, prefix caching"

    def load(self, weight_formats: WeightFormats, mode: str, threads: int, cache: Path | None) -> None:
        import openvino_genai

        scheduler = openvino_genai.SchedulerConfig()
        scheduler.enable_prefix_caching = True
        scheduler.max_num_batched_tokens = weight_formats.rows
        options: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        if cache is not None:
            options["CACHE_DIR"] = str(cache)
        ir = weight_formats.need("ir")
        extra: dict[str, Any] = {}
        assistant: dict[str, int] = {}
        if mode == "draft_model":
            extra["draft_model"] = openvino_genai.draft_model(str(weight_formats.need("draft_ir")), "CPU", **options)
            assistant = {"num_assistant_tokens": DRAFT_TOKENS}
        elif mode == "prompt_lookup":
            extra["prompt_lookup"] = True
            assistant = {"num_assistant_tokens": LOOKUP_TOKENS, "max_ngram_size": LOOKUP_NGRAM}
        self._pipeline = openvino_genai.LLMPipeline(str(ir), "CPU", scheduler_config=scheduler, **extra, **options)
        self._config = self._pipeline.get_generation_config()
        settings = {"do_sample": False, "ignore_eos": True, "apply_chat_template": False} | assistant
        for name, value in settings.items():
            setattr(self._config, name, value)
        self.settings += "".join(f", {name} {value}" for name, value in assistant.items())

    def generate(self, prompt: Sequence[int], new_tokens: int) -> Run:
        import numpy as np
        import openvino

        self._config.max_new_tokens = new_tokens
        tensor = openvino.Tensor(np.array([prompt], np.int64))
        began = perf_counter()
        result = self._pipeline.generate(tensor, self._config)
        wall_s = perf_counter() - began
        metrics = result.perf_metrics
        ttft_s = metrics.get_ttft().mean / 1e3
        raw = metrics.raw_metrics
        times = raw.m_new_token_times  # milliseconds, one entry a step
        tokens = [int(token) for token in result.tokens[0]]
        at_ms = spread(len(tokens), times, raw.m_batch_sizes)
        at_s = [min(wall_s, ttft_s + (at - times[0]) / 1e3) for at in at_ms]
        counts = result.extended_perf_metrics
        return Run(
            tokens,
            at_s,
            proposed=counts and int(counts.get_num_draft_tokens()),
            accepted=counts and int(counts.get_num_accepted_tokens()),
            forwards=len(times) - 1,
        )

    def versions(self) -> dict[str, str]:
        return package_versions("openvino-genai", "openvino")


def spread(tokens: int, times: Sequence[float], counts: Sequence[int]) -> list[float]:
    """The time of each token, from those of the steps and what each step wrote.

    With drafts it counts tokens that it then drops, so counts are shares: each step has its share of the tokens.

    >>> spread(4, [10.0, 20.0, 30.0], [1, 2, 1])
    [10.0, 20.0, 20.0, 30.0]
    >>> spread(3, [10.0, 20.0], [2, 4])
    [10.0, 20.0, 20.0]
    """
    steps = list(zip(times, accumulate(counts), strict=False))
    total = steps[-1][1]
    later = (next(at for at, so_far in steps if so_far * tokens >= place * total) for place in range(2, tokens + 1))
    return [times[0], *later]
