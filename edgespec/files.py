"""Untrusted files: read up to a limit, and hashed again only if they have changed."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from threading import Lock
from typing import BinaryIO

import msgspec

from edgespec import cache
from edgespec.errors import BundleError, IntegrityError, foreign
from edgespec.own_files import replacing

MOST_TEXT_BYTES = 16 << 20
"""of a file that is read whole as text. The largest configuration files of known models have a few megabytes."""
MOST_TOKENIZER_BYTES = 256 << 20
"""of a tokenizer.json. The largest known one has 35 MB."""
_SMALL_BYTES = 4 << 20
"""A smaller file is hashed each time, which takes no longer than a look-up."""
_MOST_REMEMBERED = 500
"""files. The list is read and written whole."""
_SETTLED_NS = 100_000_000
"""A file may change again, with the same timestamps, within its file system's tick. A tick is up to 16 ms."""

_BLOCK_BYTES = 1 << 20

Stamp = tuple[int, int, int, int]
"""size, time of the last change of the content, time of the last change of anything (on Windows: of creation), inode"""
_Remembered = dict[str, tuple[int, int, int, int, str]]

_read_again: ContextVar[_Remembered | None] = ContextVar("read_again", default=None)
"""what was hashed inside ``reading_everything``"""
_writing = Lock()
_in_process: _Remembered = {}
"""the list of this process, which it has where the cache cannot be written, too"""


def read_bytes(path: Path, most: int = MOST_TEXT_BYTES) -> bytes:
    """Content of a file. Raises ValueError if it is larger than ``most`` bytes."""
    data = bytearray()
    with _opened(path) as file:
        while block := file.read(_BLOCK_BYTES):  # one read of ``most`` would allocate as much for a short file
            data += block
            if len(data) > most:
                raise ValueError(f"larger than {most >> 20} MiB")
    return bytes(data)


def _opened(path: Path) -> BinaryIO:
    """A file, opened. Raises ValueError for a pipe, which might never end."""
    if path.exists() and not path.is_file():
        raise ValueError("not a file")
    return path.open("rb")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file. Reads the whole file."""
    digest = hashlib.sha256()
    with _opened(path) as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def sha256(path: Path) -> str:
    """Like ``sha256_of``, but a large file is read only if it is new or has changed."""
    stamp = stamp_of(path)
    if stamp[0] < _SMALL_BYTES:
        return sha256_of(path)
    name, again = str(path.resolve()), _read_again.get()
    for known in (_in_process, _remembered()) if again is None else (again,):
        if name in known and known[name][:4] == stamp:
            return known[name][4]
    is_settled = max(stamp[1:3]) < time.time_ns() - _SETTLED_NS
    digest = sha256_of(path)
    if is_settled and stamp_of(path) == stamp:  # else the file was written to meanwhile
        _remember(name, (*stamp, digest))
        if again is not None:
            again[name] = (*stamp, digest)
    return digest


def is_listed(path: Path) -> bool:
    """Whether the hash of a file is remembered: those of small ones are not."""
    return path.stat().st_size >= _SMALL_BYTES


def is_somewhere(beginning: str) -> bool:
    """Whether a large file with such a SHA-256 still lies where it was hashed. beginning: of the SHA-256."""
    for name, entry in [*_in_process.items(), *_remembered().items()]:  # another process may know what is there now
        if entry[4].startswith(beginning):
            with suppress(OSError, ValueError):
                if sha256(Path(name)) == entry[4]:
                    return True
    return False


def check(path: Path, expected: str, *, made_with: str, hint: str) -> None:
    """Raises IntegrityError for a file with another SHA-256. made_with: whose file was expected, in words for the
    message."""
    with foreign(BundleError, f"cannot read {path}", hint=hint):
        actual = sha256(path)
    if actual != expected:
        raise IntegrityError(
            f"{path} is not the file {made_with} (SHA-256)", got=actual[:16], allowed=expected[:16], hint=hint
        )


@contextmanager
def reading_everything() -> Iterator[None]:
    """Inside this block remembered hashes do not count. A disk may lose bytes while size and times stay the same."""
    token = _read_again.set({})
    try:
        yield
    finally:
        _read_again.reset(token)


def stamp_of(path: Path) -> Stamp:
    """Size, times and inode. They change when a file is written to or replaced."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _hashes_file() -> Path:
    return cache.cache_dir() / "hashes.json"


def _remembered() -> _Remembered:
    """The list of hashes; empty if the file is missing or makes no sense."""
    try:
        return msgspec.json.decode(read_bytes(_hashes_file()), type=_Remembered)
    except (OSError, ValueError, RecursionError):
        return {}


def _remember(name: str, entry: tuple[int, int, int, int, str]) -> None:
    _in_process[name] = entry
    with _writing, suppress(OSError):  # a read-only cache only means that the next process reads the file again
        others = {key: value for key, value in _remembered().items() if key != name and os.path.exists(key)}  # noqa: PTH110
        kept = [*others.items(), (name, entry)][-_MOST_REMEMBERED:]
        file = _hashes_file()
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as out:
            out.write(msgspec.json.encode(dict(kept)))
