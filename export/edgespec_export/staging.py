"""A bundle appears whole or not at all: it grows in a sibling of its destination and is renamed at the end."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from edgespec.bundle import MANIFEST
from edgespec.errors import BundleError, ConversionError

_SPARE_BYTES = 64 << 20


def check_destination(out: Path, *, force: bool) -> None:
    """Raises BundleError for a place that must not be written. Only a bundle or an empty folder is ever replaced."""
    if not out.exists():
        return
    if not out.is_dir():
        raise BundleError("destination is a file", got=str(out), allowed="a folder that does not exist yet")
    if any(out.iterdir()) and not (out / MANIFEST).is_file():
        raise BundleError("destination is a folder with other files", got=str(out), hint="name a new folder")
    if not force:
        raise BundleError("destination exists", got=str(out), hint="replace it with --force or name a new folder")


@contextlib.contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A folder that becomes ``out`` when the block ends well and vanishes when it does not."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.partial-"))
    except OSError as error:
        raise BundleError(f"cannot write to {out.parent}: {error.strerror}", hint="name another folder") from error
    try:
        yield folder
        _publish(folder, out)
    except OSError as error:
        raise ConversionError(f"cannot write {out}: {error.strerror or error}", hint="is the disk full?") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def scratch(beside: Path) -> Iterator[Path]:
    """A folder for uncompressed weights, on the same disk."""
    prefix = f"{beside.name}-raw-"
    with tempfile.TemporaryDirectory(dir=beside.parent, prefix=prefix, ignore_cleanup_errors=True) as name:
        yield Path(name)


def check_disk(folder: Path, weights_bytes: int, share: float) -> None:
    """Raises ConversionError unless uncompressed weights and a file of ``share`` their size fit side by side."""
    needed = int(weights_bytes * (1 + share)) + _SPARE_BYTES
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ConversionError(
            "not enough space on the disk of the destination",
            got=f"{free / 1e9:.1f} GB free",
            allowed=f"{needed / 1e9:.1f} GB or more",
        )


def _publish(folder: Path, out: Path) -> None:
    old = folder.with_name(f"{folder.name}.old")
    # mkdtemp makes it private to the user; a bundle is an ordinary folder.
    folder.chmod(0o777 & ~_umask())
    try:
        if out.exists():
            out.replace(old)
        folder.replace(out)
    except BaseException:
        if old.exists() and not out.exists():
            old.replace(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
