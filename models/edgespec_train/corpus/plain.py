"""Plain text: what people wrote, for the stages before a draft learns what the target writes.

Text is documentation; code is source files. Both lie on this machine: the user's folders, Python's own library and
manual, and the packages of this environment whose licence is permissive.
"""

from __future__ import annotations

import ast
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from edgespec.errors import SettingError
from edgespec_train.corpus import sources
from edgespec_train.corpus.batches import Batch
from edgespec_train.corpus.decontaminate import Decontaminator
from edgespec_train.corpus.texts import TextId

Content = Literal["text", "code and text"]
WINDOW = 256
"""tokens that a draft reads at once"""
_LINES = 60
"""of a piece of code"""
_SHARE_OF_CODE = 2 / 3
"""of "code and text", as in FastDraft"""


@dataclass(frozen=True)
class PlainPlan:
    """What the tokens of a stage depend on.

    tokens: how many are asked for. folders: the user's own. exclude: files of benchmark prompts; a piece that shares
    ten words in a row with one is left out.
    """

    content: Content
    tokens: int
    folders: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        return sha256(json.dumps(asdict(self)).encode()).hexdigest()[:12]


def plain_tokens(
    plan: PlainPlan,
    encode: Callable[[str], Sequence[int]],
    folder: Path,
    *,
    unseen: Sequence[str] = (),
    end: int | None = None,
    tokenizer: str = "",
) -> NDArray[np.int32]:
    """At most ``plan.tokens`` target ids, pieces in a random order. They are kept in ``folder`` for a second run.

    unseen: held-out prompts, which are left out too. end: the id that follows each piece. tokenizer: its SHA-256.
    """
    without = [sha256(Path(file).read_bytes()).hexdigest() for file in plan.exclude if Path(file).is_file()]
    read_as = sha256(json.dumps([tokenizer, end, sorted(unseen), without]).encode()).hexdigest()[:12]
    path = folder / f"tokens-{plan.digest}-{read_as}.npy"
    if path.is_file():
        try:
            kept: NDArray[np.int32] = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise SettingError(f"{path} is damaged: {error}", hint="delete it to read the text again") from error
        return kept
    leave_out = Decontaminator(Path(file) for file in plan.exclude)
    for text in unseen:
        leave_out.add(text)
    code = round(plan.tokens * _SHARE_OF_CODE) if plan.content != "text" else 0
    stop = [] if end is None else [end]
    pieces: list[list[int]] = []
    for read, wanted in ((_code_pieces, code), (_text_pieces, plan.tokens - code)):
        for piece in _shuffled(read, plan.folders):
            if wanted <= 0:
                break
            if not leave_out.matches(piece):
                pieces.append([*encode(piece), *stop])
                wanted -= len(pieces[-1])
    order = np.random.default_rng(1).permutation(len(pieces))
    tokens = np.array([token for piece in order for token in pieces[piece]][: plan.tokens], np.int32)
    if len(tokens) <= WINDOW:
        raise SettingError("tokens of plain text", got=len(tokens), allowed=f"more than {WINDOW}", hint="more --folder")
    folder.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            np.save(file, tokens)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return tokens


class Windows:
    """Plain text in windows, each of whose tokens but the first is trained on. It has the methods of ``Texts`` that
    training calls."""

    def __init__(self, tokens: NDArray[np.int32], inverse: NDArray[np.int64], readable: NDArray[np.bool_]) -> None:
        """tokens: target ids. inverse: the draft id that stands for each. readable: which of them the draft has."""
        whole = len(tokens) // (WINDOW + 1) * (WINDOW + 1)
        if not whole:
            raise SettingError("tokens of plain text", got=len(tokens), allowed=f"more than {WINDOW}")
        self._windows = tokens[:whole].reshape(-1, WINDOW + 1)
        self._inverse, self._readable = inverse, readable

    def steps(self, tokens: int, tokens_per_batch: int, workers: int) -> int:
        """How many steps of all workers read so many tokens."""
        return max(1, round(tokens / (workers * WINDOW * max(1, tokens_per_batch // WINDOW))))

    def batches(self, seed: int, tokens_per_batch: int, first: int = 0) -> Iterator[list[TextId]]:
        """Batches without end, from number ``first`` on. Every pass has an order of its own."""
        at_once = max(1, tokens_per_batch // WINDOW)
        per_pass = -(-len(self._windows) // at_once)
        number = first
        while True:
            order = np.random.default_rng((seed, number // per_pass)).permutation(len(self._windows))
            begin = number % per_pass * at_once
            yield [(0, int(window)) for window in order[begin : begin + at_once]]
            number += 1

    def batch(self, texts: Sequence[TextId]) -> Batch:
        windows = self._windows[[window for _, window in texts]]
        labels = windows[:, 1:].reshape(-1)
        return Batch(
            tokens=torch.from_numpy(self._inverse[windows[:, :-1]]),
            rows=torch.arange(len(labels)),
            labels=torch.from_numpy(self._inverse[labels]),
            readable=torch.from_numpy(self._readable[labels]),
            top_ids=torch.zeros((len(labels), 0), dtype=torch.int64),
            top_probs=torch.zeros((len(labels), 0)),
        )


def _shuffled(read: Callable[[Path], Iterator[str]], folders: Sequence[str]) -> Iterator[str]:
    """Pieces of all files in a random order, the user's own files first."""
    own = [sources.folder(Path(path)) for path in folders]
    rest = [sources.standard_library(), sources.reference_manual(), *sources.installed_packages()]
    random = np.random.default_rng(0)
    for origins in (own, rest):
        files = [file for origin in origins for file in origin.files]
        for index in random.permutation(len(files)):
            yield from read(files[int(index)])


def _text_pieces(path: Path) -> Iterator[str]:
    yield from sources.paragraphs(path) if path.suffix not in sources.CODE - {".py"} else ()


def _code_pieces(path: Path) -> Iterator[str]:
    if path.suffix not in sources.CODE:
        return
    try:
        source = path.read_text(encoding="utf-8")
        if path.suffix == ".py":
            ast.parse(source)
    except (OSError, ValueError, SyntaxError, RecursionError, MemoryError):
        return
    lines = iter(source.splitlines(keepends=True))
    while part := list(islice(lines, _LINES)):
        yield "".join(part)
