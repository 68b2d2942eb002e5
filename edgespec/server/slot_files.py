"""What a cache holds, in a file: so that a prompt need not be read again after a restart of the server.

A file means one model on one engine. Another model, engine version or numerics refuses it. Clients choose a plain name;
the files lie in the user's data folder.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgespec.backends.kv_blocks import BlockCopies
from edgespec.errors import SettingError, foreign
from edgespec.own_files import replacing
from edgespec.pipeline import Pipeline
from edgespec.server.found import data_dir
from edgespec.server.refusals import BadRequest, NotOffered

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_DEVICE = re.compile(r"(con|nul|aux|prn|com\d|lpt\d)(\..*)?", re.IGNORECASE)
"""names that Windows gives to devices, in every folder"""
_MOST_FILES = 64
_HEADER = "header"


@dataclass(frozen=True)
class Moved:
    """tokens and bytes of a file that was written or read."""

    tokens: int
    nbytes: int


def path_of(name: object) -> Path:
    """Raises BadRequest for a name that is no plain one."""
    if not isinstance(name, str) or not _NAME.fullmatch(name) or _DEVICE.fullmatch(name):
        raise BadRequest("filename: allowed: letters, digits and . _ - (no folders)", param="filename")
    return data_dir() / "slots" / f"{name}.npz"


def save(pipeline: Pipeline, path: Path) -> Moved:
    """Write the rows of a pipeline's cache. Call it between texts, on the model's thread."""
    cache = _copies(pipeline)
    cache.drop_unverified_tree()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not path.exists() and sum(1 for _ in path.parent.glob("*.npz")) >= _MOST_FILES:
            raise BadRequest(f"{_MOST_FILES} slots are saved already; save over one of them", param="filename")
        blocks = [cache.copy_block(index) for index in range(-(-cache.length // cache.block_rows))]
        arrays = {f"block{row}_{part}": each for row, block in enumerate(blocks) for part, each in enumerate(block)}
        header = json.dumps(_identity(pipeline) | {"tokens": list(cache.tokens)})
        with replacing(path, private=True) as file:
            np.savez(file, **{_HEADER: np.frombuffer(header.encode(), np.uint8)}, **arrays)  # type: ignore[arg-type]
        return Moved(cache.length, path.stat().st_size)
    except OSError as error:
        raise NotOffered(f"the slot cannot be saved: {error.strerror or error}") from error


def restore(pipeline: Pipeline, path: Path) -> Moved:
    """Make a pipeline's cache hold the rows of a file. Raises BadRequest, SettingError."""
    cache = _copies(pipeline)
    if not path.is_file():
        raise BadRequest(f"no slot was saved as {path.stem}", param="filename")
    damaged = f"the slot saved as {path.stem} is damaged"
    # Opened here: numpy leaves a file open that is no archive, and Windows deletes no open file.
    with foreign(SettingError, damaged), path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
        header = json.loads(file[_HEADER].tobytes())
        tokens = [int(token) for token in header.pop("tokens")]
        identity = _identity(pipeline)
        if {key: header.get(key) for key in identity} != identity:
            raise BadRequest(f"the slot saved as {path.stem} is of another model or engine", param="filename")
        pipeline.require_prompt([*tokens[:-1], 0])
        count = -(-len(tokens) // cache.block_rows)
        parts = sum(name.startswith("block0_") for name in file.files)
        blocks = [[file[f"block{row}_{part}"] for part in range(parts)] for row in range(count)]
        cache.reset()
        cache.restore(tokens, blocks)
    return Moved(len(tokens), path.stat().st_size)


def erase(pipeline: Pipeline) -> int:
    """Forget what a cache holds. Returns how many tokens that was."""
    held = pipeline.target.cache.length
    pipeline.target.cache.reset()
    return held


def _copies(pipeline: Pipeline) -> BlockCopies:
    cache = pipeline.target.cache
    if not isinstance(cache, BlockCopies) or not cache.can_copy:
        raise NotOffered("slots of this model cannot be saved: its engine keeps the rows to itself")
    return cache


def _identity(pipeline: Pipeline) -> dict[str, str]:
    """All that the rows of a cache depend on, besides the tokens. A fingerprint says which weights, whatever they are
    called; an engine without one is known by the model's name."""
    target = pipeline.target
    engine = getattr(target, "fingerprint", None)
    model = {} if engine else {"model": pipeline.bundle.name}
    return model | {"numerics": target.capabilities.numerics, "engine": engine or target.capabilities.backend}
