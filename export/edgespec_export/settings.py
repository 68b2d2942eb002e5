"""What to export and how: checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgespec.console import command_line
from edgespec.errors import SettingError

Kind = Literal["int8", "int4", "f16", "f32"]
Format = Literal["openvino", "onnx", "both"]
GROUP_SIZES = (128, 64, 32)
"""Tried in this order when none was asked for: the largest that divides every channel of the model is taken."""


@dataclass(frozen=True)
class Weights:
    """How weights are stored.

    kind: int8 is one scale (and zero point) a channel; int4 one a group, with embeddings and the output head in int8.
    group_size: weights that share a scale in int4; -1 is the whole channel, None the first fit of GROUP_SIZES.
    sym: no zero points. ratio: share of the int4-able weights that are int4, the rest int8.
    """

    kind: Kind = "int8"
    group_size: int | None = None
    sym: bool = False
    ratio: float = 1.0

    def __post_init__(self) -> None:
        size = self.group_size
        if size is not None and size != -1 and (size < 16 or size & (size - 1)):
            raise SettingError("--group-size", got=size, allowed="-1 (whole channel) or a power of two from 16 on")
        if not 0.0 <= self.ratio <= 1.0:
            raise SettingError("--ratio", got=self.ratio, allowed="a number from 0 to 1")

    @property
    def integer(self) -> bool:
        return self.kind in ("int8", "int4")


@dataclass(frozen=True)
class Request:
    """One run of the exporter.

    adaptive_tokens: ids of placeholders that the target was trained to guess at, and how many follow a token.
    """

    target: str
    out: Path
    weights: Weights
    draft: str | None = None
    draft_weights: Weights | None = None
    format: Format = "openvino"
    adaptive_tokens: tuple[int, ...] = ()
    adaptive_count: int | None = None
    trust_remote_code: bool = False
    force: bool = False
    verbose: bool = False

    def __post_init__(self) -> None:
        if bool(self.adaptive_tokens) != (self.adaptive_count is not None):
            given, missing = ("--adaptive-token", "--adaptive-count")[:: 1 if self.adaptive_tokens else -1]
            raise SettingError(f"{given} without {missing}", hint="give both, or none")

    def command(self, references: Sequence[str]) -> str:
        """The command line that repeats this, for the bundle's provenance; ``references`` name target and draft."""
        words = ["edgespec", "export", references[0]]
        words += ["--draft", references[1]] if len(references) > 1 else []
        words += ["-o", self.out.name, "--weights", self.weights.kind]
        if self.draft_weights and self.draft_weights.kind != self.weights.kind:
            words += ["--draft-weights", self.draft_weights.kind]
        settings = [weights for weights in (self.weights, self.draft_weights) if weights]
        for weights in [weights for weights in settings if weights.kind == "int4"][:1]:
            words += ["--group-size", str(weights.group_size)] if weights.group_size is not None else []
            words += ["--ratio", str(weights.ratio)] if weights.ratio != 1.0 else []
        words += ["--sym"] if any(weights.sym for weights in settings) else []
        for token in self.adaptive_tokens:
            words += ["--adaptive-token", str(token)]
        words += ["--adaptive-count", str(self.adaptive_count)] if self.adaptive_tokens else []
        words += ["--format", self.format] if self.format != "openvino" else []
        words += ["--trust-remote-code"] if self.trust_remote_code else []
        return command_line(words)


def split_weights(
    weights: Kind,
    draft_weights: Kind | None,
    *,
    has_draft: bool,
    group_size: int | None,
    sym: bool,
    ratio: float | None,
) -> tuple[Weights, Weights | None]:
    """Settings of target and draft from one set of flags; each flag goes to the models it means something for.

    Raises SettingError for a flag that would have no effect.
    """
    if draft_weights is not None and not has_draft:
        raise SettingError("--draft-weights without --draft", hint="name the draft with --draft SOURCE")
    kinds: list[Kind] = [weights, *([draft_weights or weights] if has_draft else [])]
    if (group_size is not None or ratio is not None) and "int4" not in kinds:
        raise SettingError("--group-size and --ratio are for int4 weights", got=", ".join(kinds), allowed="int4")
    if sym and not {"int4", "int8"} & set(kinds):
        raise SettingError("--sym is for int4 and int8 weights", got=", ".join(kinds), allowed="int4, int8")

    def one(kind: Kind) -> Weights:
        if kind == "int4":
            return Weights(kind, group_size, sym, 1.0 if ratio is None else ratio)
        return Weights(kind, sym=sym and kind == "int8")

    return one(kinds[0]), one(kinds[1]) if has_draft else None
