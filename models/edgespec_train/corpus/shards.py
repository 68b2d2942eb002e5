"""Token shards: generated texts on disk, some hundred texts a file.

A shard is an .npz of flat arrays:
    tokens          all texts one after the other, prompt and answer
    begins          ``(texts + 1,)`` where each text begins in ``tokens``
    answers         ``(texts,)`` where each answer begins in ``tokens``
    source, origin        ``(texts,)`` index into ``corpus.SOURCES``; name of the package or folder
    temperature           ``(texts,)`` 0 is greedy
    top_ids, top_logprobs ``(answer tokens, TOP)`` the target's best tokens at each answer token; a shard made elsewhere
                          may lack both, and trains on the chosen tokens only
    seconds               the time to make the shard
"""

from __future__ import annotations

import os
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from edgespec.errors import SettingError, foreign
from edgespec_train.corpus.generate import Generated

_NEEDED = ("tokens", "begins", "answers")
_HELD_OUT, _HELD_OUT_TEXTS = 0.04, 20
"""share of the texts that is not trained on, and how many at least"""


def write_shard(path: Path, texts: Sequence[tuple[int, str, Generated]], vocab_size: int, seconds: float) -> None:
    """Write (source, origin, text) atomically: a shard is there whole or not at all."""
    generated = [text for _, _, text in texts]
    ids = np.uint16 if vocab_size <= 1 << 16 else np.int32
    begins = np.concatenate([[0], np.cumsum([len(text.job.prompt) + len(text.tokens) for text in generated])])
    arrays: dict[str, Any] = {
        "tokens": np.concatenate([[*text.job.prompt, *text.tokens] for text in generated]).astype(ids),
        "begins": begins.astype(np.int64),
        "answers": begins[:-1] + np.array([len(text.job.prompt) for text in generated]),
        "source": np.array([source for source, _, _ in texts], np.uint8),
        "origin": np.array([origin for _, origin, _ in texts]),
        "temperature": np.array([text.job.temperature for text in generated], np.float16),
        "top_ids": np.concatenate([text.top_ids for text in generated]).astype(ids),
        "top_logprobs": np.concatenate([text.top_logprobs for text in generated]).astype(np.float16),
        "seconds": np.array(seconds),
    }
    with written(path) as file:
        np.savez(file, **arrays)


@contextmanager
def written(path: Path) -> Iterator[BinaryIO]:
    """A file to write that is at ``path`` when all is well, and nowhere otherwise."""
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
        temporary.replace(path)
    except OSError as error:
        raise SettingError(f"cannot write {path}: {error.strerror or error}", hint="is the disk full?") from error
    finally:
        temporary.unlink(missing_ok=True)


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.npz"


def shard_paths(folder: Path) -> list[Path]:
    """Those of a corpus, or of a folder of states, whose meta files are shards."""
    return sorted(folder.glob("shard-*.npz")) or sorted(folder.glob("meta-*.npz"))


def require_shards(folder: Path) -> list[Path]:
    """Raises SettingError for a folder without shards."""
    if found := shard_paths(folder):
        return found
    raise SettingError("no shards in the corpus", got=str(folder), hint="make them: edgespec train corpus")


def read_shards(paths: Iterable[Path], names: Sequence[str]) -> list[dict[str, NDArray[Any]]]:
    """The texts of each shard, and those of the arrays ``names`` that it has.

    Raises SettingError for a shard that is cut or whose arrays disagree.
    """
    found = []
    for path in paths:
        with _opened(path) as data:
            shard = {name: data[name] for name in _NEEDED}
            shard |= {name: data[name] for name in names if name in data and name not in shard}
            _check(shard)
            found.append(shard)
    return found


def held_out_share(texts: int) -> float:
    """Share of a corpus of so many texts that is not trained on."""
    return max(_HELD_OUT, min(0.5, _HELD_OUT_TEXTS / max(1, texts)))


def is_held_out(prompt: NDArray[np.integer], share: float) -> bool:
    """Decided by a text's prompt: answers to one stay together. Ids in 64 bits count as in 32, in which shards keep
    them."""
    if prompt.dtype.itemsize == 8:
        prompt = prompt.astype(np.int32)
    return zlib.crc32(prompt.tobytes()) < share * 2**32


def has_top(paths: Iterable[Path]) -> bool:
    """Whether all shards have the target's log-probabilities."""
    return all(_names(path) >= {"top_ids", "top_logprobs"} for path in paths)


def _names(path: Path) -> set[str]:
    with _opened(path) as data:
        return set(data.files)


def _check(shard: dict[str, NDArray[Any]]) -> None:
    """Raises ValueError for arrays that do not belong together."""
    tokens, begins, answers = (shard[name] for name in _NEEDED)
    if any(array.ndim != 1 or array.dtype.kind not in "iu" for array in (tokens, begins, answers)):
        raise ValueError("tokens, begins and answers are lists of whole numbers")
    if len(begins) != len(answers) + 1 or begins[0] != 0 or begins[-1] != len(tokens):
        raise ValueError(f"{len(answers)} texts do not fill {len(tokens)} tokens")
    if (answers <= begins[:-1]).any() or (answers > begins[1:]).any():
        raise ValueError("an answer begins outside its text")
    rows = int((begins[1:] - answers).sum())
    for name in ("top_ids", "top_logprobs"):
        if name in shard and (shard[name].ndim != 2 or len(shard[name]) != rows):
            raise ValueError(f"{name} has {len(shard[name])} rows for {rows} answer tokens")
    if "top_logprobs" in shard and np.isnan(shard["top_logprobs"]).any():
        raise ValueError("top_logprobs has values that are no numbers")


def counts(path: Path) -> dict[str, Any]:
    """Texts and tokens of a shard: tokens by source, texts by temperature and origin."""
    with _opened(path) as data:
        lengths = data["begins"][1:] - data["answers"]
        by_source = np.bincount(data["source"], weights=lengths).astype(int)
        return {
            "texts": len(lengths),
            "answer_tokens": int(lengths.sum()),
            "seconds": round(float(data["seconds"]), 1),
            "sources": {str(source): int(tokens) for source, tokens in enumerate(by_source)},
            "temperatures": dict(Counter(f"{t:.1f}" for t in data["temperature"])),
            "origins": dict(Counter(data["origin"].tolist())),
        }


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    hint = "delete it: edgespec train corpus makes its own again"
    whole = foreign(SettingError, f"{path} is not a whole shard", hint=hint)
    with whole, path.open("rb") as file, np.load(file, allow_pickle=False) as data:
        yield data


def answer_tokens(shard: dict[str, NDArray[Any]]) -> NDArray[np.integer]:
    """What the target wrote, all texts one after the other."""
    inside = np.zeros(len(shard["tokens"]) + 1, np.int8)
    np.add.at(inside, shard["answers"], 1)
    np.add.at(inside, shard["begins"][1:], -1)
    tokens: NDArray[np.integer] = shard["tokens"][np.cumsum(inside)[:-1] > 0]
    return tokens


def check_ids(shard: dict[str, NDArray[Any]], vocab_size: int) -> None:
    """Raises SettingError for ids that the target does not have, in prompts, answers, or its best ones."""
    for name in ("tokens", "top_ids"):
        ids = shard.get(name, np.zeros(0, np.int64))
        wrong = ids[(ids < 0) | (ids >= vocab_size)]
        if len(wrong):
            allowed = f"0 to {vocab_size - 1}"
            raise SettingError("the corpus is another target's: token id", got=int(wrong[0]), allowed=allowed)
