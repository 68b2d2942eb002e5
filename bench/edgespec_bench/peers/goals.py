"""The maintainers' goals against each runtime. The page lists every goal, reached or missed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edgespec_bench.peers.entries import BASELINE, OWN_PLAIN
from edgespec_bench.peers.measure import CHAT_TURN, NO_REUSE, TTFT_TOKENS, Measured, Results
from edgespec_bench.peers.summary import ALL, Line, seconds

_GENAI, _GENAI_DRAFT = "openvino-genai plain", "openvino-genai draft_model"
_SPEED: Sequence[tuple[str, str, float]] = (
    (_GENAI_DRAFT, ALL, 1.25),
    (_GENAI, "chat", 1.4),
    (_GENAI, "code", 1.6),
    ("optimum-intel assistant_model", ALL, 1.5),
    ("onnxruntime-genai draft", ALL, 1.5),
    ("onnxruntime-genai ngram", ALL, 1.5),
    ("llama.cpp plain", ALL, 1.5),
    ("llama.cpp ngram-mod", ALL, 1.5),
)
"""least ratio of edgespec auto to this runtime on these prompts"""
_FIRST_TOKEN, _REUSED = 1.05, 0.5


@dataclass(frozen=True)
class Goal:
    """what: the ratio. goal: its bound, a lower one if ``at_least``."""

    what: str
    measured: float
    goal: float
    at_least: bool = False

    @property
    def reached(self) -> bool:
        return self.measured >= self.goal if self.at_least else self.measured <= self.goal

    @property
    def row(self) -> tuple[str, str, str, str]:
        """Cells of the table. ``reached`` compares the unrounded ratio."""
        bound = f"{'>=' if self.at_least else '<='} {self.goal:g}"
        return self.what, f"{self.measured:.2f}", bound, "yes" if self.reached else "no"


def goals(results: Results, found: Sequence[Line]) -> list[Goal]:
    """The goals whose runtimes ran. found: ``summary.lines`` of the results."""
    return [*_speeds(found), *_first_tokens(results), *_memory(results)]


def _speeds(found: Sequence[Line]) -> Iterator[Goal]:
    by = {(line.name, line.category): line for line in found}
    for name, category, goal in _SPEED:
        if (line := by.get((name, category))) and (BASELINE, category) in by:
            prompts = "" if category == ALL else f", {category}"
            yield Goal(f"decoding: {BASELINE} / {name}{prompts}", 1 / line.to_auto, goal, at_least=True)
    if (line := by.get((_GENAI, ALL))) and line.to_plain:
        yield Goal(f"decoding: {OWN_PLAIN} / {_GENAI}", 1 / line.to_plain, 1.0, at_least=True)


def _first_tokens(results: Results) -> Iterator[Goal]:
    edgespec_runtime, peer = (results.measured.get(name) or Measured() for name in (BASELINE, _GENAI))
    for tokens in TTFT_TOKENS:
        edgespec_s, peer_s = seconds(edgespec_runtime, str(tokens)), seconds(peer, str(tokens))
        if edgespec_s and peer_s:
            yield Goal(f"first token after {tokens}: {BASELINE} / {_GENAI}", edgespec_s / peer_s, _FIRST_TOKEN)
    reused_s, whole_s = seconds(edgespec_runtime, CHAT_TURN), seconds(edgespec_runtime, NO_REUSE)
    if reused_s and whole_s:
        yield Goal(f"first token of turn 5: {BASELINE} / itself without reuse", reused_s / whole_s, _REUSED)


def _memory(results: Results) -> Iterator[Goal]:
    for edgespec_runtime, peer in ((BASELINE, _GENAI_DRAFT), (OWN_PLAIN, _GENAI)):
        edgespec_mb, peer_mb = ((results.measured.get(name) or Measured()).peak_mb for name in (edgespec_runtime, peer))
        if edgespec_mb and peer_mb:
            yield Goal(f"peak memory: {edgespec_runtime} / {peer}", edgespec_mb / peer_mb, 1.0)
