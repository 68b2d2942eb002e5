"""A bundle appears whole or not at all: it grows in a sibling of its destination and is renamed at the end.

Each temporary folder has a lock file beside it that its process holds for as long as it lives. A lock that can be had
belongs to a process that was killed, so the next one in the same place removes what it left.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub.utils import WeakFileLock

from edgespec import cache
from edgespec.bundle import MANIFEST
from edgespec.errors import BundleError, ConversionError

_SPARE_BYTES = 64 << 20
_PARTIAL = ".partial-"
_LOCK = ".edgespec-lock"
_OLD = ".old"
"""end of the name of what stood at the destination, for the moment between two renames"""


class NotPublished(ConversionError):
    """A folder is whole, but could not take its place. It stays where it was made."""

    def __init__(self, folder: Path, out: Path, why: str) -> None:
        super().__init__(f"cannot write {out}: {why}", hint=f"the result is whole: take it from {folder}")
        self.folder = folder


def check_destination(out: Path, *, force: bool) -> None:
    """Raises BundleError for a place that must not be written. Only a bundle or an empty folder is ever replaced."""
    sweep(out.parent)
    _require_free(out, force=force)


def _require_free(out: Path, *, force: bool) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise BundleError("destination is a file", got=str(out), allowed="a folder that does not exist yet")
    if any(out.iterdir()) and not (out / MANIFEST).is_file():
        raise BundleError("destination is a folder with other files", got=str(out), hint="name a new folder")
    if not force:
        raise BundleError("destination exists", got=str(out), hint="replace it with --force or name a new folder")


@contextlib.contextmanager
def staged(out: Path, *, force: bool | None = None) -> Iterator[Path]:
    """A folder that becomes ``out`` when the block ends well and vanishes when it does not.

    force: of ``check_destination``, which is done again at the end, hours later; None for a caller with rules of its
    own. Raises NotPublished, BundleError, ConversionError.
    """
    with contextlib.ExitStack() as stack:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            folder = stack.enter_context(_temporary(out.parent, f".{out.name}{_PARTIAL}"))
        except OSError as error:
            raise BundleError(f"cannot write to {out.parent}: {error.strerror}", hint="name another folder") from error
        try:
            yield folder
            _publish(folder, out, force)
        except OSError as error:
            raise ConversionError(f"cannot write {out}: {error.strerror or error}", hint="is the disk full?") from error


@contextlib.contextmanager
def scratch(beside: Path) -> Iterator[Path]:
    """A folder for uncompressed weights, on the same disk."""
    with _temporary(beside.parent, f"{beside.name}-raw-") as folder:
        yield folder


def sweep(parent: Path) -> None:
    """Remove what killed processes left in a folder; what a live one is writing to stays."""
    for lock in parent.glob(f"*{_LOCK}"):
        with contextlib.suppress(OSError):
            with WeakFileLock(lock, timeout=0.01):  # TimeoutError is an OSError
                _remove(_folder_of(lock))
            _unlock(lock)


@contextlib.contextmanager
def _temporary(parent: Path, prefix: str) -> Iterator[Path]:
    """A folder of this process, and the sweep of those that others left beside it."""
    sweep(parent)
    lock = parent / f"{prefix}{secrets.token_hex(4)}{_LOCK}"
    folder = _folder_of(lock)
    kept: Path | None = None
    try:
        with WeakFileLock(lock, timeout=5):  # nobody else has it, but Windows waits where a file cannot be made
            try:
                folder.mkdir()
                yield folder
            except NotPublished as error:
                kept = error.folder
                raise
            finally:
                (_put_back if kept == folder else _remove)(folder)
    finally:
        _unlock(lock, kept)


def _folder_of(lock: Path) -> Path:
    return lock.with_name(lock.name.removesuffix(_LOCK))


def _remove(folder: Path) -> None:
    """The folder, and what it was about to replace, unless that has to go back."""
    for leftover in (folder, _put_back(folder)):
        shutil.rmtree(leftover, ignore_errors=True)


def _put_back(folder: Path) -> Path:
    """What a folder was about to replace, if nothing is in its place. Returns where that was kept."""
    old = folder.with_name(folder.name + _OLD)
    out = folder.with_name(folder.name.removeprefix(".").rpartition(_PARTIAL)[0] or folder.name)
    if old.exists() and not out.exists():
        cache.rename(old, out)
    return old


def _unlock(lock: Path, kept: Path | None = None) -> None:
    """Remove a lock file whose folder is gone, or kept for the user: nobody sweeps one without. Windows keeps one that
    another process has open, and folders in use."""
    with contextlib.suppress(OSError):
        if kept == _folder_of(lock) or not _folder_of(lock).exists():
            lock.unlink()


def check_disk(folder: Path, weights_bytes: int, share: float) -> None:
    """Raises ConversionError unless uncompressed weights and a file of ``share`` their size fit side by side."""
    require_room(folder, int(weights_bytes * (1 + share)))


def require_room(folder: Path, wanted_bytes: int) -> None:
    """Raises ConversionError unless so much fits on the disk of a folder."""
    needed = wanted_bytes + _SPARE_BYTES
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ConversionError(
            "not enough space on the disk of the destination",
            got=f"{free / 1e9:.1f} GB free",
            allowed=f"{needed / 1e9:.1f} GB or more",
        )


def _publish(folder: Path, out: Path, force: bool | None) -> None:
    try:
        if force is not None:
            _require_free(out, force=force)
        if out.exists():
            cache.rename(out, folder.with_name(folder.name + _OLD))
        cache.rename(folder, out)
    except (OSError, BundleError) as error:
        raise NotPublished(folder, out, getattr(error, "strerror", None) or str(error)) from error
