"""What a contender is asked to do, and what it hands back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol


class Unavailable(Exception):
    """This contender cannot run here; the message is one line for the report."""


@dataclass(frozen=True)
class Forms:
    """The same weights in each format. A form that there is not is None, and ``missing`` says why, by field name.

    ref, draft: what ``edgespec.load`` takes; draft None for the pair's own.
    ir, draft_ir: folders of stateful OpenVINO IRs with OpenVINO tokenizers and a config.json; the draft has the
        target's vocabulary.
    gguf: the file the IR was made from. onnx, onnx_draft: folders of onnxruntime-genai models, the second of both.
    rows: tokens of prompt and text that a contender must have room for.
    precision: of the weights, by field name.
    """

    ref: str
    draft: str | None = None
    rows: int = 4096
    ir: str | None = None
    draft_ir: str | None = None
    gguf: str | None = None
    onnx: str | None = None
    onnx_draft: str | None = None
    precision: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def need(self, name: str) -> Path:
        """Path of a form. Raises Unavailable with the reason why it is not there."""
        path = getattr(self, name)
        if path is None:
            raise Unavailable(self.missing.get(name, f"no {name} of this model"))
        return Path(path)

    def as_json(self) -> str:
        return json.dumps(asdict(self))


@dataclass
class Run:
    """One answer.

    tokens: new tokens, the first included. ttft_s: from the call to the first token. total_s: to the last one.
    first: how many tokens came together with the first one.
    proposed, accepted: drafted tokens, where the contender counts them. forwards: of the target,
        for the tokens behind those.
    reused: prompt tokens that it did not compute again, where it says so.
    """

    tokens: list[int]
    ttft_s: float
    total_s: float
    first: int = 1
    proposed: int | None = None
    accepted: int | None = None
    forwards: int | None = None
    reused: int | None = None


class Peer(Protocol):
    """A contender inside its process. ``load`` once, then ``generate`` for one prompt at a time."""

    settings: str
    """what is not the default, in a few words for the report"""

    def load(self, forms: Forms, mode: str, threads: int, cache: Path | None) -> None:
        """cache: a folder for compiled models, for a contender that has such a thing."""

    def generate(self, prompt: Sequence[int], new_tokens: int) -> Run:
        """Greedy, exactly ``new_tokens`` tokens whatever they are. The prefix cache is the contender's own matter."""

    def versions(self) -> dict[str, str]: ...


def package_versions(*names: str) -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in names}


def describe(error: BaseException) -> str:
    """One line of an exception."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, Unavailable):
        return str(error)
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]


Json = dict[str, Any]
