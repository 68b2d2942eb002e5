"""Hidden states and log-probabilities that ``replay`` kept, and what a head is trained on: batches of places.

A place is an answer token x_n that the target wrote, with the states of the row before it, which gave it. That is what
a head knows in a round: it drafts x_n+1, x_n+2, ... from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgespec.errors import SettingError, foreign
from edgespec_train.corpus import shards
from edgespec_train.corpus.build import read_manifest
from edgespec_train.corpus.replay import MANIFEST, states_path
from edgespec_train.corpus.texts import TargetTexts, TextId

NONE = -1
"""in the place of a token behind the end of a text"""


@dataclass(frozen=True)
class Places:
    """p places, all of the texts asked for, in order. Target ids.

    states: ``(p, layers, d)`` of the row before x_n, in 32 bits. tokens: ``(p,)`` x_n. ahead: ``(p, k)`` x_n+1 ...
    x_n+k, ``NONE`` behind the end. top_ids, top_logprobs: ``(p, k, TOP)`` the target's best for each of these, ``NONE``
    and -inf behind the end. texts: ``(p,)`` which of the asked texts.
    """

    states: NDArray[np.float32]
    tokens: NDArray[np.int64]
    ahead: NDArray[np.int64]
    top_ids: NDArray[np.int64]
    top_logprobs: NDArray[np.float32]
    texts: NDArray[np.int64]


class States(TargetTexts):
    """The texts of a folder that ``replay`` filled, with their states. They stay on disk until they are used."""

    def __init__(self, folder: Path, layers: Sequence[int] | None = None) -> None:
        """layers: those to read, of the folder's; None: all. Raises SettingError for a damaged folder."""
        manifest = read_manifest(folder, MANIFEST)
        self.paths = shards.shard_paths(folder)
        if not manifest or not self.paths:
            raise SettingError("no hidden states there", got=str(folder), hint="make them: edgespec train states")
        with foreign(SettingError, f"{folder / MANIFEST} is damaged"):
            self.target = str(manifest["target"])
            there = [int(layer) for layer in manifest["layers"]]
        self.layers = tuple(there if layers is None else layers)
        if missing := set(self.layers) - set(there):
            raise SettingError("no hidden states of these layers", got=sorted(missing), allowed=there)
        self._columns = [there.index(layer) for layer in self.layers]
        super().__init__(self.paths)
        if not self.has_top:
            raise SettingError("states without the target's log-probabilities", got=str(folder))
        self._states = [self._opened(states_path(path), i, len(there)) for i, path in enumerate(self.paths)]
        widths = {states.shape[-1] for states in self._states}
        if len(widths) != 1:
            raise SettingError("the states of the shards have several widths", got=sorted(widths))
        (self.hidden_size,) = widths

    def _opened(self, path: Path, number: int, layers: int) -> NDArray[np.float16]:
        hint = f"delete {self.paths[number].name}: edgespec train states makes both again"
        with foreign(SettingError, f"{path} holds no whole hidden states", hint=hint):
            states: NDArray[np.float16] = np.load(path, mmap_mode="r", allow_pickle=False)
            rows = len(self._shards[number]["tokens"])
            if states.ndim != 3 or states.shape[:2] != (rows, layers) or states.dtype != np.float16:
                raise ValueError(f"{states.shape} of {states.dtype} for {rows} tokens and {layers} layers")
        return states

    def states(self, text: TextId) -> NDArray[np.float16]:
        """``(tokens of the text, layers, d)``. Raises SettingError if there is one that is no number."""
        number, index = text
        begin, end = self._shards[number]["begins"][index : index + 2]
        found: NDArray[np.float16] = self._states[number][begin:end][:, self._columns]
        if not np.isfinite(found).all():
            path = states_path(self.paths[number])
            raise SettingError(
                f"{path} holds states that are no numbers",
                got=f"text {index}",
                hint=f"delete {self.paths[number].name}: edgespec train states makes both again",
            )
        return found

    def places(self, texts: Sequence[TextId], k: int) -> Places:
        """All places of some texts that have a token ahead; k: tokens ahead to give."""
        parts = [self._places(text, k) for text in texts]
        states, tokens, ahead, top_ids, top_logprobs = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        counts = [len(part[1]) for part in parts]
        return Places(states, tokens, ahead, top_ids, top_logprobs, np.repeat(np.arange(len(texts)), counts))

    def _places(self, text: TextId, k: int) -> tuple[NDArray[np.generic], ...]:
        answer, whole = self.answer(text), self.tokens(text).astype(np.int64)
        ids, logprobs = self.top(text)
        wrote = whole[answer:]
        count = len(wrote) - 1
        after = np.arange(count)[:, None] + np.arange(1, k + 1)  # of the answer's tokens
        inside = after < len(wrote)
        after = np.where(inside, after, 0)
        return (
            self.states(text)[answer - 1 : answer - 1 + count].astype(np.float32),
            wrote[:-1],
            np.where(inside, wrote[after], NONE),
            np.where(inside[..., None], ids[after].astype(np.int64), NONE),
            np.where(inside[..., None], logprobs[after].astype(np.float32), -np.inf),
        )
