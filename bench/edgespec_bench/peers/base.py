"""The interface of a runtime: its input (weights, a prompt) and its output (one answer)."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Protocol, runtime_checkable


class Unavailable(Exception):
    """This runtime cannot run here; the message is one line for the report."""


@dataclass(frozen=True)
class WeightFormats:
    """The same weights in each format. A missing format is None; ``missing`` gives the reason, by field name.

    ref, draft: what ``edgespec.load`` takes; draft None: the pair's own.
    ir, draft_ir: folders of stateful OpenVINO IRs with OpenVINO tokenizers and a config.json. The draft has the
        target's vocabulary.
    gguf, gguf_draft: files for llama.cpp, and for edgespec on the same file. Without another file given, the first is
        the one that the IR was converted from.
    onnx, onnx_draft: folders of onnxruntime-genai models. The second holds target and draft.
    rows: capacity that a runtime needs, in tokens of prompt and text.
    precision: of the weights, by field name.
    """

    ref: str
    draft: str | None = None
    rows: int = 4096
    ir: str | None = None
    draft_ir: str | None = None
    gguf: str | None = None
    gguf_draft: str | None = None
    onnx: str | None = None
    onnx_draft: str | None = None
    precision: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def need(self, name: str) -> Path:
        """Path of a format. Raises Unavailable with the reason if it is missing."""
        path = getattr(self, name)
        if path is None:
            raise Unavailable(self.missing.get(name, f"no {name} of this model"))
        return Path(path)

    def as_json(self) -> str:
        return json.dumps(asdict(self))


LEAST_TOKENS = 8
"""an end token among the first ones does not cut an answer, since too little would be left to time"""

BURST_S = 1e-3
"""tokens that came nearer to each other are of one forward; the host took the time between them"""


@dataclass
class Run:
    """One answer.

    tokens: new tokens. at_s: when each came, in seconds after the call.
    proposed, accepted: drafted tokens, if the runtime counts them.
    forwards: of the target, for the tokens after the first ones.
    reused: prompt tokens from the prefix cache, if the runtime reports them.
    """

    tokens: list[int]
    at_s: list[float]
    proposed: int | None = None
    accepted: int | None = None
    forwards: int | None = None
    reused: int | None = None

    @property
    def ttft_s(self) -> float:
        return self.at_s[0]

    @property
    def total_s(self) -> float:
        return self.at_s[-1]

    @property
    def first(self) -> int:
        """Number of tokens that came with the first one."""
        return sum(at_s - self.at_s[0] < BURST_S for at_s in self.at_s)

    @property
    def gaps_s(self) -> list[float]:
        """Seconds between successive tokens: 0 within a burst."""
        gaps_s = (after - before for before, after in pairwise(self.at_s))
        return [gap_s if gap_s >= BURST_S else 0.0 for gap_s in gaps_s]

    def until(self, ends: Collection[int]) -> Run:
        """The answer up to its first end token.

        >>> Run([5, 6, 7] * 4, list(range(12))).until({7}).tokens
        [5, 6, 7, 5, 6, 7, 5, 6, 7]
        """
        places = range(LEAST_TOKENS, len(self.tokens))
        length = next((place + 1 for place in places if self.tokens[place] in ends), len(self.tokens))
        return replace(self, tokens=self.tokens[:length], at_s=self.at_s[:length])


class Peer(Protocol):
    """A runtime inside its process: one ``load``, then ``generate`` for one prompt at a time."""

    settings: str
    """settings that are not the default, in a few words for the report"""

    def load(self, weight_formats: WeightFormats, mode: str, threads: int, cache: Path | None) -> None:
        """cache: folder for compiled models, if the runtime has such a cache."""

    def generate(self, prompt: Sequence[int], new_tokens: int) -> Run:
        """Greedy, exactly ``new_tokens`` tokens, end tokens included. The runtime may use its own prefix cache."""

    def versions(self) -> dict[str, str]: ...


@dataclass
class Filled:
    """The text of one hole. seconds: to write it, from the first token on. prompt_tokens: read for it."""

    text: str
    tokens: int
    seconds: float
    prompt_tokens: int


@runtime_checkable
class Filler(Protocol):
    """A runtime that also fills holes, in its own format."""

    def infill(self, prefix: str, typed: str, suffix: str, new_tokens: int) -> Filled:
        """Greedy, at most ``new_tokens`` tokens. typed: the text on the hole's line, behind ``prefix``."""


def package_versions(*names: str) -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in names}


def describe(error: BaseException) -> str:
    """One line of an exception."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, Unavailable):
        return str(error)
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]
