"""Token shards: what the target wrote, on disk, a file of some hundred texts each.

A shard is an .npz of flat arrays:
    tokens          all texts one after the other, prompt and answer
    begins          ``(texts + 1,)`` where each text begins in ``tokens``
    answers         ``(texts,)`` where each answer begins in ``tokens``
    source, temperature   ``(texts,)`` index into the manifest's sources; 0 is greedy
    top_ids, top_logprobs ``(answer tokens, TOP)`` what the target thought where each answer token was chosen
    seconds         what it took to make
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgespec_train.writer import Written


def write_shard(path: Path, texts: Sequence[Written], sources: Sequence[int], vocab_size: int, seconds: float) -> None:
    """Write atomically: a shard is there whole or not at all."""
    ids = np.uint16 if vocab_size <= 1 << 16 else np.int32
    lengths = [len(text.job.prompt) + len(text.tokens) for text in texts]
    begins = np.concatenate([[0], np.cumsum(lengths)])
    arrays: dict[str, Any] = {
        "tokens": np.concatenate([[*text.job.prompt, *text.tokens] for text in texts]).astype(ids),
        "begins": begins.astype(np.int64),
        "answers": begins[:-1] + np.array([len(text.job.prompt) for text in texts]),
        "source": np.array(sources, np.uint8),
        "temperature": np.array([text.job.temperature for text in texts], np.float16),
        "top_ids": np.concatenate([text.top_ids for text in texts]).astype(ids),
        "top_logprobs": np.concatenate([text.top_logprobs for text in texts]).astype(np.float16),
        "seconds": np.array(seconds),
    }
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.npz"


def shard_paths(folder: Path) -> list[Path]:
    return sorted(folder.glob("shard-*.npz"))


def read_shards(paths: Iterable[Path], names: Sequence[str]) -> list[dict[str, NDArray[Any]]]:
    found = []
    for path in paths:
        with np.load(path) as data:
            found.append({name: data[name] for name in names if name in data})
    return found


def counts(path: Path) -> dict[str, Any]:
    """Texts and tokens of a shard, by source."""
    with np.load(path) as data:
        lengths = data["begins"][1:] - data["answers"]
        by_source = np.bincount(data["source"], weights=lengths).astype(int).tolist()
        return {
            "texts": len(lengths),
            "answer_tokens": int(lengths.sum()),
            "by_source": by_source,
            "greedy": round(float((data["temperature"] == 0).mean()), 3),
            "seconds": round(float(data["seconds"]), 1) if "seconds" in data else None,
        }


def token_counts(paths: Iterable[Path], vocab_size: int) -> NDArray[np.int64]:
    """``(vocab_size,)`` how often the target wrote each token."""
    total = np.zeros(vocab_size, np.int64)
    for shard in read_shards(paths, ("tokens", "begins", "answers")):
        for begin, end in zip(shard["answers"], shard["begins"][1:], strict=True):
            total += np.bincount(shard["tokens"][begin:end], minlength=vocab_size)
    return total
