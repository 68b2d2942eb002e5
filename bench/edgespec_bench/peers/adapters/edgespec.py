"""edgespec itself, through the same interface as its peers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from time import perf_counter
from typing import Any, get_args

from edgespec.types import Backend
from edgespec_bench.peers.base import Run, WeightFormats, package_versions


class Peer:
    """Modes: "plain" and "auto", each also after "gguf", the name of an engine, "fast", in this order."""

    settings = ""

    def load(self, weight_formats: WeightFormats, mode: str, threads: int, cache: Path | None) -> None:
        from edgespec import loading

        _set_threads(threads)
        *words, drafts = mode.split()
        ref = str(weight_formats.need("gguf")) if "gguf" in words else weight_formats.ref
        self._pipeline = loading.load(
            ref,
            draft=weight_formats.draft if drafts == "auto" else "none",
            backend=next((engine for engine in get_args(Backend) if engine in words), None),
            numerics="fast" if "fast" in words else None,
            schedule="synchronous",  # whatever was measured to be faster here
        )
        can = self._pipeline.target.capabilities
        file = ", the GGUF file" if "gguf" in words else ""
        self.settings = f"numerics {can.numerics} in {can.compute_precision}, engine {can.backend}{file}"

    def generate(self, prompt: Sequence[int], new_tokens: int) -> Run:
        pipeline = self._pipeline
        pipeline.forget()  # drafters must not copy the answer of an earlier turn
        began = perf_counter()
        result = pipeline.generate(prompt, max_new_tokens=new_tokens, ignore_eos=True)
        wall_s = perf_counter() - began
        assert result.ttft_s is not None
        stats = result.stats
        return Run(
            result.token_ids,
            _times(result.ttft_s, wall_s, stats.gaps_s),
            stats.proposed,
            stats.accepted,
            forwards=len(stats.rounds) - 1,
            reused=stats.reused_tokens,
        )

    def versions(self) -> dict[str, str]:
        return package_versions("edgespec", self._pipeline.target.capabilities.backend)


def _times(ttft_s: float, wall_s: float, gaps_s: Sequence[float]) -> list[float]:
    """When each token came. The time between rounds (text, stop strings) is spread over the gaps, so none is lost."""
    stretch = (wall_s - ttft_s) / (sum(gaps_s) or 1.0)
    return list(accumulate((gap * stretch for gap in gaps_s), initial=ttft_s))


def _set_threads(threads: int) -> None:
    """edgespec has no such option and leaves the number to the engine, so the engine's API is wrapped."""
    from edgespec.backends.openvino.runtime import ov

    make: Any = ov.Core

    def core() -> Any:
        made = make()
        made.set_property("CPU", {"INFERENCE_NUM_THREADS": threads})
        return made

    ov.Core = core
    with suppress(ImportError):
        import onnxruntime

        make_options: Any = onnxruntime.SessionOptions

        def options() -> Any:
            made = make_options()
            made.intra_op_num_threads = threads
            return made

        onnxruntime.SessionOptions = options
