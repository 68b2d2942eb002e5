"""The cache on disk: its location, its lock, and folders that appear complete or not at all.

<cache>/ir/KEY/          a converted model: a bundle folder
<cache>/onnx/KEY/        a model for ONNX Runtime, made from its IR
<cache>/downloads/KEY    a file in download, kept so that the download can go on; removed once it is whole and used
<cache>/gguf/KEY/        a GGUF file from a mirror
<cache>/hub/KEY.json     path of a hub repository in the cache of huggingface_hub, and the hashes of its files
<cache>/hashes.json      hashes of large files, so that they are not read again
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from edgespec.console import note
from edgespec.errors import ConversionError, SourceError

_ELSEWHERE = "free some space, or set {} to a folder on another disk"
_PARTIAL = ".partial"
VERSIONS = {
    "ir": 6,
    "paged_graph": 2,
    "onnx_form": 10,
    "exact_widths": 6,
    "forward_times": 7,
    "call": 2,
    "engines": 3,
    "schedules": 3,
    "plans": 6,
}
"""Part of the keys of cached results. Raise a version when a change of ours makes its cached results wrong: the same
file gives another IR, the same IR another graph or refusal, or the same machine other widths, times or engine"""


def cache_dir() -> Path:
    """EDGESPEC_CACHE, or the user's cache folder of this system."""
    try:
        if chosen := os.environ.get("EDGESPEC_CACHE"):
            return Path(chosen).expanduser().absolute()
        from platformdirs import user_cache_path

        return user_cache_path("edgespec", appauthor=False)
    except (RuntimeError, KeyError) as error:  # a container: no HOME, and a user without an entry in passwd
        hint = "set EDGESPEC_CACHE to a folder for models (a whole path), or HOME"
        raise SourceError("no folder for models: this user has no home folder", hint=hint) from error


@contextmanager
def locked(of: str = "", *, wait: bool = True) -> Iterator[Path]:
    """The cache folder, which only this process may write. Readers need no lock. The system frees it if we die.

    of: the one file that is locked, where it is fetched for long; all others may be written meanwhile.
    wait: for another process that holds it; else TimeoutError.
    """
    from huggingface_hub.utils import WeakFileLock

    root = cache_dir()
    lock = root / f".lock{of}"
    try:
        for name in ("ir", "onnx", "downloads", "hub"):
            (root / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        hint = "set EDGESPEC_CACHE to a folder you can write to"
        raise SourceError(f"cannot write to the cache {root}: {error.strerror}", hint=hint) from error
    with ExitStack() as stack:
        try:
            stack.enter_context(WeakFileLock(lock, timeout=1))
        except TimeoutError:
            if not wait:
                raise
            note("waiting for another edgespec that is writing to the cache")
            stack.enter_context(WeakFileLock(lock))
        yield root


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A temporary folder. It becomes ``folder`` if the block succeeds. Otherwise it is removed. Needs ``locked``.

    Because of the lock, any other unfinished folder belongs to a process that was killed. It is removed.
    """
    for leftover in folder.parent.glob(f"*{_PARTIAL}"):
        shutil.rmtree(leftover, ignore_errors=True)
    partial = folder.with_name(folder.name + _PARTIAL)
    try:
        partial.mkdir()
        yield partial
        discard(folder)
        rename(partial, folder)
    except OSError as error:
        reason = error.strerror or error
        raise ConversionError(
            f"cannot write the model to the cache: {reason}", hint=_ELSEWHERE.format("EDGESPEC_CACHE")
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def discard(path: Path) -> bool:
    """Remove a folder or a file, or leave it whole. False: Windows removes nothing that a process has open. Needs
    ``locked``."""
    try:
        if path.is_dir():
            aside = path.with_name(f"{path.name}.{secrets.token_hex(4)}{_PARTIAL}")
            path.replace(aside)  # all of it or nothing: a folder that lost some files would look like a whole one
            shutil.rmtree(aside, ignore_errors=True)  # else the next ``staged`` removes it
        else:
            path.unlink(missing_ok=True)
    except OSError:
        return False
    return True


def require_space(needed_bytes: int, folder: Path | None = None, setting: str = "EDGESPEC_CACHE") -> None:
    """Raises ConversionError if the disk of a folder, by default the cache's, has less free space.

    setting: the variable that moves the folder, for the hint.
    """
    folder = folder or cache_dir()
    there = next((path for path in (folder, *folder.absolute().parents) if path.exists()), None)
    if there is None:
        hint = f"set {setting} to a folder on a disk that is there"
        raise SourceError(f"there is no disk {folder.absolute().anchor}", got=str(folder), hint=hint)
    free = shutil.disk_usage(there).free
    if free < needed_bytes:
        raise ConversionError(
            f"not enough disk space at {folder}",
            got=f"{free >> 20} MiB free",
            allowed=f"{-(-needed_bytes >> 20)} MiB or more",
            hint=_ELSEWHERE.format(setting),
        )


def size_on_disk(path: Path) -> int:
    """Bytes of a file, or of all files in a folder. A link counts as its target, a missing file as nothing."""
    found = 0
    for file in [path] if path.is_file() else path.rglob("*"):
        with suppress(OSError):
            found += file.stat().st_size if file.is_file() else 0
    return found


def rename(old: Path, new: Path) -> None:
    """Rename, with retries: on Windows a virus scanner may hold a new file for a moment."""
    for pause_s in (0.1, 0.3, 1.0, 3.0):
        try:
            old.replace(new)
        except PermissionError:
            time.sleep(pause_s)
        else:
            return
    old.replace(new)
