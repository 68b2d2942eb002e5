"""What edgespec wants to be beside each of the others, and where it is not, so that the page says so by itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edgespec_bench.peers.entries import OWN_PLAIN, YARDSTICK
from edgespec_bench.peers.measure import TTFT_TOKENS, Measured, Race
from edgespec_bench.peers.summary import ALL, Line, seconds

_GENAI, _GENAI_DRAFT = "openvino-genai plain", "openvino-genai draft_model"
_SPEED: Sequence[tuple[str, str, float]] = (
    (_GENAI_DRAFT, ALL, 1.25),
    (_GENAI, "chat", 1.4),
    (_GENAI, "code", 1.6),
    ("optimum-intel assistant_model", ALL, 1.5),
    ("onnxruntime-genai draft", ALL, 1.5),
    ("onnxruntime-genai ngram", ALL, 1.5),
    ("llama-cpp-python plain", ALL, 1.5),
    ("llama-cpp-python prompt_lookup", ALL, 1.5),
)
"""of edgespec auto over this contender on these prompts, at least"""
_FIRST_TOKEN, _REUSED = 1.05, 0.5


@dataclass(frozen=True)
class Goal:
    """what: a ratio. goal: it should be at least that, or at most."""

    what: str
    measured: float
    goal: float
    at_least: bool = False

    @property
    def reached(self) -> bool:
        return self.measured >= self.goal if self.at_least else self.measured <= self.goal

    @property
    def row(self) -> tuple[str, str, str, str]:
        """To be shown: a figure that rounds to the goal has reached it only if it has."""
        bound = f"{'>=' if self.at_least else '<='} {self.goal:g}"
        return self.what, f"{self.measured:.2f}", bound, "yes" if self.reached else "no"


def goals(race: Race, found: Sequence[Line]) -> list[Goal]:
    """Those whose contenders ran. found: ``figures.lines`` of the race."""
    return [*_speeds(found), *_first_tokens(race), *_memory(race)]


def _speeds(found: Sequence[Line]) -> Iterator[Goal]:
    by = {(line.name, line.category): line for line in found}
    for name, category, goal in _SPEED:
        if (line := by.get((name, category))) and (YARDSTICK, category) in by:
            prompts = "" if category == ALL else f", {category}"
            yield Goal(f"decoding: {YARDSTICK} / {name}{prompts}", 1 / line.to_auto, goal, at_least=True)
    if (line := by.get((_GENAI, ALL))) and line.to_plain:
        yield Goal(f"decoding: {OWN_PLAIN} / {_GENAI}", 1 / line.to_plain, 1.0, at_least=True)


def _first_tokens(race: Race) -> Iterator[Goal]:
    ours, theirs = (race.measured.get(name) or Measured() for name in (YARDSTICK, _GENAI))
    for tokens in TTFT_TOKENS:
        mine, other = seconds(ours, str(tokens)), seconds(theirs, str(tokens))
        if mine and other:
            yield Goal(f"first token after {tokens}: {YARDSTICK} / {_GENAI}", mine / other, _FIRST_TOKEN)
    reused, anew = seconds(ours, "turn 5"), seconds(ours, "turn 5 anew")
    if reused and anew:
        yield Goal(f"first token of turn 5: {YARDSTICK} / the same prompt anew", reused / anew, _REUSED)


def _memory(race: Race) -> Iterator[Goal]:
    for ours, theirs in ((YARDSTICK, _GENAI_DRAFT), (OWN_PLAIN, _GENAI)):
        mine, other = ((race.measured.get(name) or Measured()).peak_mb for name in (ours, theirs))
        if mine and other:
            yield Goal(f"peak memory: {ours} / {theirs}", mine / other, 1.0)
