"""The interface of a runtime: its input (weights, a prompt) and its output (one answer)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol


class Unavailable(Exception):
    """This runtime cannot run here; the message is one line for the report."""


@dataclass(frozen=True)
class WeightFormats:
    """The same weights in each format. A missing format is None; ``missing`` gives the reason, by field name.

    ref, draft: what ``edgespec.load`` takes; draft None: the pair's own.
    ir, draft_ir: folders of stateful OpenVINO IRs with OpenVINO tokenizers and a config.json. The draft has the
        target's vocabulary.
    gguf: the file that the IR was converted from.
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


@dataclass
class Run:
    """One answer.

    tokens: new tokens, the first included. ttft_s: from the call to the first token. total_s: to the last one.
    first: number of tokens that came with the first one.
    proposed, accepted: drafted tokens, if the runtime counts them.
    forwards: of the target, for the tokens after ``first``.
    reused: prompt tokens from the prefix cache, if the runtime reports them.
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
    """A runtime inside its process: one ``load``, then ``generate`` for one prompt at a time."""

    settings: str
    """settings that are not the default, in a few words for the report"""

    def load(self, weight_formats: WeightFormats, mode: str, threads: int, cache: Path | None) -> None:
        """cache: folder for compiled models, if the runtime has such a cache."""

    def generate(self, prompt: Sequence[int], new_tokens: int) -> Run:
        """Greedy, exactly ``new_tokens`` tokens, end tokens included. The runtime may use its own prefix cache."""

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
