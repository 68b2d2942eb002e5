"""edgespec itself, through the same interface as its peers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from typing import Any, cast

from edgespec.types import Backend
from edgespec_bench.peers.base import Run, WeightFormats, package_versions


class Peer:
    """Modes: "plain" and "auto", each also after the name of an engine."""

    settings = ""

    def load(self, weight_formats: WeightFormats, mode: str, threads: int, cache: Path | None) -> None:
        from edgespec import loading

        _set_threads(threads)
        engine, _, drafts = mode.rpartition(" ")
        backend = cast("Backend", engine) if engine else None
        draft = weight_formats.draft if drafts == "auto" else "none"
        self._pipeline = loading.load(weight_formats.ref, draft=draft, backend=backend)
        can = self._pipeline.target.capabilities
        self.settings = f"numerics {can.numerics} in {can.compute_precision}, engine {can.backend}"

    def generate(self, prompt: Sequence[int], new_tokens: int) -> Run:
        pipeline = self._pipeline
        pipeline.drafter.reset()  # drafters must not copy the answer of an earlier turn
        began = perf_counter()
        result = pipeline.generate(prompt, max_new_tokens=new_tokens, ignore_eos=True)
        total_s = perf_counter() - began
        assert result.ttft_s is not None
        stats = result.stats
        return Run(
            result.token_ids,
            result.ttft_s,
            total_s,
            stats.rounds[0].committed,
            stats.proposed,
            stats.accepted,
            forwards=len(stats.rounds) - 1,
            reused=stats.reused_tokens,
        )

    def versions(self) -> dict[str, str]:
        return package_versions("edgespec", self._pipeline.target.capabilities.backend)


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
