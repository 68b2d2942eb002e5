"""FastDraft's two stages before alignment: a draft reads plain text, then code mixed with text.

pretrain/, continue/    each stage's tokens, checkpoint and curve.json, in the folder of the run

They are for a draft that begins with random weights. Both train on the next token, and are judged as alignment is: by
agreement with held-out text of the target. An interrupted stage resumes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator, PartialState
from numpy.typing import NDArray
from transformers import PreTrainedModel

from edgespec.errors import SettingError
from edgespec_train.corpus.batches import Texts
from edgespec_train.corpus.build import write_json
from edgespec_train.corpus.plain import Content, PlainPlan, Windows, plain_tokens
from edgespec_train.progress import progress_bar
from edgespec_train.trainer import Point, Recipe, has_checkpoint, train

_CONTENT: dict[str, Content] = {"pretrain": "text", "continue": "code and text"}
_CURVE = "curve.json"


@dataclass(frozen=True)
class EarlierStages:
    """How many tokens of plain text each stage trains on; 0: no such stage.

    folders: the user's own text. exclude: files of benchmark prompts that must not be trained on.
    """

    pretrain_tokens: int = 0
    continue_tokens: int = 0
    folders: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    @property
    def tokens(self) -> dict[str, int]:
        """Of each stage that there is, in order."""
        asked = {"pretrain": self.pretrain_tokens, "continue": self.continue_tokens}
        return {name: tokens for name, tokens in asked.items() if tokens}

    def begun(self, folder: Path) -> bool:
        return any(has_checkpoint(folder / name) for name in self.tokens)


@dataclass(frozen=True)
class PlainReader:
    """How plain text becomes the draft's ids.

    encode: a text's target ids. unseen: the held-out prompts. end: the target's id for the end of a text. tokenizer:
    its SHA-256. inverse, readable: see ``Windows``.
    """

    encode: Callable[[str], Sequence[int]]
    unseen: Sequence[str]
    end: int | None
    tokenizer: str
    inverse: NDArray[np.int64]
    readable: NDArray[np.bool_]


def run(
    earlier: EarlierStages,
    draft: PreTrainedModel,
    reader: PlainReader,
    held_out: Texts,
    recipe: Recipe,
    folder: Path,
    *,
    say: Callable[[str], None],
    same: dict[str, Any],
    accelerator: Accelerator,
) -> dict[str, list[Point]]:
    """Train in place; the learning curve of each stage. Nothing is left to do where alignment has a checkpoint.

    recipe: of alignment. same: see ``train``.
    """
    if has_checkpoint(folder):
        return {name: _curve(folder / name) for name in earlier.tokens}
    curves: dict[str, list[Point]] = {}
    names = list(earlier.tokens)
    for place, (name, asked) in enumerate(earlier.tokens.items()):
        work = folder / name
        if any(has_checkpoint(folder / later) for later in names[place + 1 :]):
            curves[name] = _curve(work)  # ended before: the later stage began with its weights
            continue
        with PartialState().main_process_first():
            plan = PlainPlan(_CONTENT[name], asked, earlier.folders, earlier.exclude)
            what: dict[str, Any] = {"unseen": reader.unseen, "end": reader.end, "tokenizer": reader.tokenizer}
            tokens = plain_tokens(plan, reader.encode, work, **what)
        passes = asked / len(tokens)
        again = f", read {passes:.1f} times: there is no more of it" if passes > 1.01 else ""
        say(f"{name}: {len(tokens)} tokens of {_CONTENT[name]}{again}")
        windows = Windows(tokens, reader.inverse, reader.readable)
        own = replace(recipe, loss="ce", steps=windows.steps(asked, recipe.tokens_per_batch, accelerator.num_processes))
        with progress_bar(own.steps) as advance:
            curves[name] = train(
                draft,
                windows,
                held_out,
                own,
                work,
                say=lambda point, name=name: say(f"{name}: {point}"),  # type: ignore[misc]
                advance=advance,
                accelerator=accelerator,
                same=same | {"text": sha256(tokens.tobytes()).hexdigest(), "after": list(curves)},
            )
        if accelerator.is_main_process:
            write_json(work / _CURVE, {"curve": [asdict(point) for point in curves[name]]})
    return curves


def _curve(folder: Path) -> list[Point]:
    try:
        found = json.loads((folder / _CURVE).read_text(encoding="utf-8"))
        return [Point(**point) for point in found["curve"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SettingError(f"{folder / _CURVE} is damaged: {error}", hint="begin again in another folder") from error
