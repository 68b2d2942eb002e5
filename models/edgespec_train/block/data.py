"""Batches of anchors: some consecutive tokens of a text, the states in front of them, and what followed each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgespec_train.corpus.shards import is_held_out


@dataclass(frozen=True)
class Text:
    """A text by the target. states: ``(n, layers, d)`` float16. top_ids, top_logprobs: ``(n - answer, t)``."""

    tokens: NDArray[np.int64]
    answer: int
    states: NDArray[np.float16]
    top_ids: NDArray[np.int32]
    top_logprobs: NDArray[np.float16]
    temperature: float

    @property
    def anchors(self) -> range:
        """The tokens that a draft can begin after: those of the answer, but for the last one."""
        return range(self.answer, len(self.tokens) - 1)


class Reader:
    """Texts with states in a folder. layers: those to read."""

    def __init__(self, folder: Path, layers: Sequence[int], known: Sequence[int], numbers: Sequence[int] | None = None) -> None:
        self._shards: list[tuple[dict[str, NDArray[Any]], NDArray[np.float16]]] = []
        self._columns = [list(known).index(layer) for layer in layers]
        self.train: list[tuple[int, int]] = []
        self.held_out: list[tuple[int, int]] = []
        for path in sorted(folder.glob("meta-*.npz")):
            number = path.stem.rpartition("-")[2]
            if numbers is not None and int(number) not in numbers:
                continue
            meta = dict(np.load(path))
            meta["offsets"] = np.concatenate([[0], np.cumsum(meta["begins"][1:] - meta["answers"])])
            states = np.load(folder / f"states-{number}.npy", mmap_mode="r")
            for text, (begin, answer) in enumerate(zip(meta["begins"], meta["answers"])):
                held_out = is_held_out(meta["tokens"][begin:answer].astype(np.int32), 0.04)
                (self.held_out if held_out else self.train).append((len(self._shards), text))
            self._shards.append((meta, states))

    def __getitem__(self, key: tuple[int, int]) -> Text:
        meta, states = self._shards[key[0]]
        begin, answer, end = meta["begins"][key[1]], meta["answers"][key[1]], meta["begins"][key[1] + 1]
        first = meta["offsets"][key[1]]
        rows = slice(first, first + end - answer)
        return Text(
            meta["tokens"][begin:end],
            int(answer - begin),
            states[begin:end],
            meta["top_ids"][rows],
            meta["top_logprobs"][rows],
            float(meta["temperature"][key[1]]),
        )

    def rows(self, text: Text, begin: int, end: int) -> NDArray[np.float16]:
        """``(end - begin, layers, d)``; zeros in front of the text."""
        found = text.states[max(0, begin) : end][:, self._columns]
        return np.concatenate([np.zeros((max(0, -begin), *found.shape[1:]), found.dtype), found])


@dataclass(frozen=True)
class Batch:
    """b texts with a anchors each.

    states: ``(b, window + a - 1, layers, d)``; the row in front of anchor j is row ``window - 1 + j``. there: ``(b, r)``
    whether a row exists. tokens: ``(b, a + k)`` head ids of the anchors and what followed. top_ids, top_probs: ``(b, a +
    k, t)`` the target's choice of each of ``tokens``; probabilities are 0 for those that the head cannot propose.
    known: ``(b, a + k)`` whether that token of the text exists. greedy: ``(b,)``.
    """

    states: torch.Tensor
    there: torch.Tensor
    tokens: torch.Tensor
    top_ids: torch.Tensor
    top_probs: torch.Tensor
    known: torch.Tensor
    greedy: torch.Tensor

    def to(self, device: torch.device) -> Batch:
        return replace(self, **{name: getattr(self, name).to(device) for name in self.__dataclass_fields__})


class Batches:
    """inverse: ``(target vocabulary,)`` head id of each target id; ``unknown`` where there is none."""

    def __init__(self, reader: Reader, inverse: NDArray[np.int64], unknown: int, window: int, block: int) -> None:
        self.reader, self._inverse, self._unknown = reader, inverse, unknown
        self._window, self._block = window, block

    def planned(self, seed: int, texts: int, anchors: int, skip: int = 0) -> Iterator[Batch]:
        """Endless. The order depends on the seed only. skip: how many batches to leave out at the beginning."""
        generator = np.random.default_rng(seed)
        order: list[int] = []
        while True:
            chosen = []
            while len(chosen) < texts:
                if not order:
                    order = generator.permutation(len(self.reader.train)).tolist()
                key = self.reader.train[order.pop()]
                place = generator.random()
                chosen.append((key, place))
            if skip:
                skip -= 1
                continue
            some = [self.reader[key] for key, _ in chosen]
            begins = [
                text.answer + int(place * max(1, len(text.anchors) - anchors // 2))
                for text, (_, place) in zip(some, chosen, strict=True)
            ]
            yield self.batch(some, begins, anchors)

    def batch(self, texts: Sequence[Text], begins: Sequence[int], anchors: int) -> Batch:
        rows = self._window + anchors - 1
        length = anchors + self._block
        states, there, tokens, ids, probs, known = [], [], [], [], [], []
        for text, begin in zip(texts, begins, strict=True):
            first = begin - self._window
            found = self.reader.rows(text, first, min(first + rows, len(text.tokens)))
            states.append(np.concatenate([found, np.zeros((rows - len(found), *found.shape[1:]), found.dtype)]))
            place = np.arange(first, first + rows)
            there.append((place >= 0) & (place < len(text.tokens)))
            place = np.arange(begin, begin + length)
            known.append(place < len(text.tokens))
            place = np.minimum(place, len(text.tokens) - 1)
            tokens.append(self._inverse[text.tokens[place]])
            top = self._inverse[text.top_ids[place - text.answer]]
            p = np.exp(text.top_logprobs[place - text.answer].astype(np.float32))
            probs.append(np.where(top == self._unknown, 0, p))
            ids.append(np.where(top == self._unknown, 0, top))
        return Batch(
            torch.from_numpy(np.stack(states)).float(),
            torch.from_numpy(np.stack(there)),
            torch.from_numpy(np.stack(tokens)),
            torch.from_numpy(np.stack(ids)),
            torch.from_numpy(np.stack(probs).astype(np.float32)),
            torch.from_numpy(np.stack(known)),
            torch.tensor([text.temperature == 0 for text in texts]),
        )
