"""Texts by the target, from shards: which there are, what is held out, and in which order they are trained on.

The order is a function of (seed, step): a run that is resumed at step n sees what an uninterrupted one would have.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgespec_train.corpus import shards

TextId = tuple[int, int]
"""number of the shard, number of the text in it"""
Own = TypeVar("Own", bound="TargetTexts")
_WANTED = ("tokens", "begins", "answers", "source", "temperature", "top_ids", "top_logprobs")


class TargetTexts:
    """Texts of some shards, without those that repeat an earlier one. All ids are the target's."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._shards = shards.read_shards(paths, _WANTED)
        self.has_top = all("top_ids" in shard and "top_logprobs" in shard for shard in self._shards)
        self.texts: list[TextId] = []
        seen: set[bytes] = set()
        for number, shard in enumerate(self._shards):
            for text in range(len(shard["answers"])):
                content = shard["tokens"][shard["begins"][text] : shard["begins"][text + 1]].tobytes()
                if content not in seen:
                    seen.add(content)
                    self.texts.append((number, text))
            lengths = shard["begins"][1:] - shard["answers"]
            shard["rows"] = np.concatenate([[0], np.cumsum(lengths)])

    def split(self: Own, share: float) -> tuple[Own, Own]:
        """(the rest, about ``share`` of the texts): see ``shards.is_held_out``."""
        parts: tuple[list[TextId], list[TextId]] = ([], [])
        for text in self.texts:
            parts[shards.is_held_out(self.prompt(text), share)].append(text)
        views = []
        for part in parts:
            view = copy.copy(self)
            view.texts = part
            views.append(view)
        return views[0], views[1]

    def check_ids(self, vocab_size: int) -> None:
        """Raises SettingError for texts of another vocabulary."""
        for shard in self._shards:
            shards.check_ids(shard, vocab_size)

    @property
    def answer_tokens(self) -> int:
        return sum(self.span(text)[1] - self.span(text)[0] for text in self.texts)

    def token_counts(self, vocab_size: int) -> NDArray[np.int64]:
        """``(vocab_size,)`` how often the target wrote each token in these texts."""
        wrote = [self.tokens(text)[self.answer(text) :] for text in self.texts]
        return np.bincount(np.concatenate([np.zeros(0, np.int64), *wrote]), minlength=vocab_size)

    def length(self, text: TextId) -> int:
        shard = self._shards[text[0]]
        return int(shard["begins"][text[1] + 1] - shard["begins"][text[1]])

    def prompt(self, text: TextId) -> NDArray[np.integer]:
        """Target ids of what the target was asked."""
        shard = self._shards[text[0]]
        tokens: NDArray[np.integer] = shard["tokens"][shard["begins"][text[1]] : shard["answers"][text[1]]]
        return tokens

    def temperature(self, text: TextId) -> float:
        """0 for a text whose shard does not say."""
        shard = self._shards[text[0]]
        return float(shard["temperature"][text[1]]) if "temperature" in shard else 0.0

    def tokens(self, text: TextId) -> NDArray[np.integer]:
        """Target ids of prompt and answer."""
        shard = self._shards[text[0]]
        tokens: NDArray[np.integer] = shard["tokens"][shard["begins"][text[1]] : shard["begins"][text[1] + 1]]
        return tokens

    def answer(self, text: TextId) -> int:
        """Where the answer begins in ``tokens``."""
        shard = self._shards[text[0]]
        return int(shard["answers"][text[1]] - shard["begins"][text[1]])

    def top(self, text: TextId) -> tuple[NDArray[np.integer], NDArray[np.floating]]:
        """``(answer tokens, TOP)`` the target's best ids before each answer token, and their log-probabilities."""
        first, last = self.span(text)
        shard = self._shards[text[0]]
        return shard["top_ids"][first:last], shard["top_logprobs"][first:last]

    def source(self, text: TextId) -> int | None:
        """Index into ``corpus.SOURCES``; None for a text whose shard does not say."""
        shard = self._shards[text[0]]
        return int(shard["source"][text[1]]) if "source" in shard else None

    def padded(self, texts: Sequence[TextId]) -> NDArray[np.int64]:
        """``(b, n)`` target ids, zeros behind each text."""
        tokens = np.zeros((len(texts), max(self.length(text) for text in texts)), np.int64)
        for line, (number, text) in enumerate(texts):
            shard = self._shards[number]
            whole = shard["tokens"][shard["begins"][text] : shard["begins"][text + 1]]
            tokens[line, : len(whole)] = whole
        return tokens

    def epoch(self, seed: int, epoch: int, tokens_per_batch: int) -> list[list[TextId]]:
        """Batches of one pass over the texts, in a random order, each of texts about as long as each other."""
        random = np.random.default_rng((seed, epoch))
        noise = random.uniform(0.9, 1.1, len(self.texts))
        lengths = np.array([self.length(text) for text in self.texts])
        order = np.argsort(lengths * noise)
        batches: list[list[TextId]] = [[]]
        longest = 0
        for index in order:
            longest = max(longest, lengths[index])
            if batches[-1] and longest * (len(batches[-1]) + 1) > tokens_per_batch:
                batches.append([])
                longest = lengths[index]
            batches[-1].append(self.texts[index])
        return [batches[i] for i in random.permutation(len(batches))]

    def batches(self, seed: int, tokens_per_batch: int, first: int = 0) -> Iterator[list[TextId]]:
        """Batches without end, from number ``first`` on."""
        epoch, number = 0, 0
        while True:
            planned = self.epoch(seed, epoch, tokens_per_batch)
            yield from planned[max(0, first - number) :]
            number += len(planned)
            epoch += 1

    def span(self, text: TextId) -> tuple[int, int]:
        """Where the answer of a text lies among all answer rows of its shard."""
        rows: NDArray[Any] = self._shards[text[0]]["rows"]
        return int(rows[text[1]]), int(rows[text[1] + 1])
