"""What the cache holds, for ``edgespec models``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgespec import bundle, cache
from edgespec.bundle import Bundle
from edgespec.errors import EdgespecError
from edgespec.hub import catalog, mirrors, repository
from edgespec.hub.download import UNFINISHED, size_of

_OTHER_FORMS = {"onnx": "for ONNX Runtime", "compiled": "for a GPU or NPU", "peers": "for bench peers"}
"""folder of the cache: the kind of what lies in it. Listed as one: what is made from models has no names there."""


@dataclass(frozen=True)
class Cached:
    """A thing in the cache. kind: "converted", "hub", "mirror", "unfinished download", or one of ``_OTHER_FORMS``.
    bytes: of all in its folder, on this disk. The size of a model is another number (``hub.sizes``)."""

    name: str
    kind: str
    bytes: int
    path: Path


def cached() -> list[Cached]:
    """What the cache holds, sorted by name."""
    return sorted(_scan(cache.cache_dir()), key=lambda entry: entry.name)


def unfinished_bytes(sha256: str) -> int:
    """How much of a file is here that is still to be fetched to its end: from the hub, or its mirror."""
    downloads = cache.cache_dir() / "downloads"
    return max(size_of(downloads / f"{sha256}{end}") for end in UNFINISHED)


def _scan(root: Path) -> Iterator[Cached]:
    for folder in root.glob(f"ir/*/{bundle.MANIFEST}"):
        try:
            name = _name_of(bundle.read(folder.parent))
        except EdgespecError as error:
            name = f"{folder.parent.name} (damaged: {error})"
        yield Cached(name, "converted", cache.size_on_disk(folder.parent), folder.parent)
    for record in repository.all_recorded():
        folder = Path(record.folder)
        kind = "mirror" if folder.is_relative_to(root / "gguf") else "hub"
        called = catalog.ref_of(record.source.repo, record.file)
        at_another = str(record) if called == record.source.repo else called
        name = catalog.name_of_source(record.source, record.file) or at_another
        yield Cached(name, kind, cache.size_on_disk(folder), folder)
    names = _names_by_hash() if any(root.glob("downloads/*")) else {}
    for file in root.glob("downloads/*"):
        yield Cached(names.get(file.stem, file.name), "unfinished download", cache.size_on_disk(file), file)
    for folder_name, kind in _OTHER_FORMS.items():
        folder = root / folder_name
        if size := cache.size_on_disk(folder):
            yield Cached(f"models {kind}", kind, size, folder)


def _name_of(converted: Bundle) -> str:
    """What was converted before its model had a short name says another one."""
    made_from = (converted.manifest.provenance.revision or "").removeprefix("sha256:")
    packages = {source.member_sha256: catalog.name_of_package(source) for source in catalog.packages()}
    return catalog.name_of(made_from) or packages.get(made_from, converted.name)


def _names_by_hash() -> dict[str, str]:
    """What a download is, by the SHA-256 that its file is called."""
    packages = {source.sha256: catalog.name_of_package(source) for source in catalog.packages()}
    parts = {part.sha256: name for name, parts in mirrors.load().items() for part in parts}
    return packages | parts | {model.sha256: name for name, model in catalog.load().models.items() if model.sha256}
