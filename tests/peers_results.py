"""Runtimes and results for the tests of the comparison with other runtimes."""

from __future__ import annotations

from edgespec_bench.peers.entries import BASELINE, OWN_PLAIN, Runtime
from edgespec_bench.peers.measure import CHAT_TURN, Measured, Record, Results


def runtime(name: str, mode: str, weight_formats: tuple[str, ...] = (), package: str = "edgespec") -> Runtime:
    return Runtime(name, "fake", mode, package, weight_formats, name)


def record(
    name: str, prompt: int, tok_per_s: float, baseline_tok_per_s: float, tokens: list[int], category: str = "chat"
) -> Record:
    return Record(name, prompt, category, 0, tok_per_s, baseline_tok_per_s, tokens, 2, 10, 6, 2)


RESULTS = Results(
    {
        OWN_PLAIN: Measured(versions={"edgespec": "1"}, ttft_s={"64": [0.1, 0.3]}),
        BASELINE: Measured(versions={"edgespec": "1"}),
        "openvino-genai plain": Measured(
            versions={"openvino-genai": "2"}, ttft_s={"64": [0.05], CHAT_TURN: [0.02]}, peak_mb=512.2, load_cold_s=1.5
        ),
        "openvino-genai draft_model": Measured(failed="RuntimeError: no | pipe"),
    },
    [
        record(OWN_PLAIN, 0, 10, 20, [1, 2, 3]),
        record(OWN_PLAIN, 1, 30, 30, [4, 5, 6], "code"),
        record(BASELINE, 0, 20, 20, [1, 2, 3]),
        record(BASELINE, 1, 30, 30, [4, 5, 6], "code"),
        # The machine was slow here: 8 tok/s next to 8 is as fast as the baseline, which is twice as fast as plain.
        record("openvino-genai plain", 0, 8, 8, [1, 2, 9]),
        record("openvino-genai plain", 1, 15, 30, [4, 5, 6], "code"),
    ],
)
