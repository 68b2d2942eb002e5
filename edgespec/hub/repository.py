"""A repository of the Hugging Face hub on this disk: fetched into the hub's own cache, checked, and recorded in ours.

<cache>/hub/KEY.json           which snapshot a repository is, and the SHA-256 of each of its files when it was fetched
<cache>/downloads/SHA256.part  a large file as far as it has come; the next run goes on with it
"""

from __future__ import annotations

import glob
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from edgespec import bundle, cache, files
from edgespec.bundle import HubSource
from edgespec.console import note
from edgespec.errors import BundleError, IntegrityError, SourceError, foreign
from edgespec.hub import catalog
from edgespec.hub.download import fetch, forget, size_of
from edgespec.hub.progress import Bar, Watch, bars, shown, tell
from edgespec.manifest import RELATIVE_FILE, REVISION, SHA256, RelativeFile, Sha256, Strict

_FILES = ["*.json", "*.jinja", "*.xml", "*.bin", "*.npy"]
_NOT_FILES = ["openvino_tokenizer*", "openvino_detokenizer*", "pytorch_model*"]


class Fetched(Strict, frozen=True, kw_only=True):
    """A record. ``file``: the only one that was wanted, a GGUF file; None: all that a bundle needs."""

    source: HubSource
    file: RelativeFile | None = None
    folder: str
    sha256: dict[str, Sha256]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(RELATIVE_FILE.accepts(name) and SHA256.accepts(digest) for name, digest in self.sha256.items()):
            raise ValueError("sha256 does not map files to hashes")

    def __str__(self) -> str:
        file = f" {self.file}" if self.file else ""
        return f"{self.source.repo}@{self.source.revision}{file}"

    def check(self) -> None:
        """Raises BundleError, IntegrityError: a file is gone, or is not what was fetched."""
        hint = f"run: edgespec pull {catalog.ref_of(self.source.repo, self.file)}"
        for name, digest in self.sha256.items():
            path = Path(self.folder) / name
            files.check(path, digest, made_with=f"that was fetched from {self.source.repo}", hint=hint)


def recorded(source: HubSource, file: str | None) -> Fetched | None:
    return _read(_record_file(source, file))


def all_recorded() -> Iterator[Fetched]:
    for record in cache.cache_dir().glob("hub/*.json"):
        if found := _read(record):
            yield found


def record(fetched: Fetched) -> None:
    with cache.locked():
        _record_file(fetched.source, fetched.file).write_bytes(msgspec.json.encode(fetched))


def download(
    source: HubSource,
    file: str | None,
    progress: bool,
    *,
    before: Fetched | None,
    pinned: str | None = None,
    watch: Watch | None = None,
) -> Fetched:
    """Fetch what is not in the hub's cache, and hold all of it against the hashes that the hub lists.

    Without a network what is in the cache is held against what was fetched before, if anything was, and else taken as
    it is. pinned: SHA-256 of ``file``, which decides whatever the hub says. Raises SourceError, IntegrityError,
    BundleError.
    """
    if notice := catalog.notice(source.repo):
        note(notice)
    if os.path.expanduser("~") == "~":  # noqa: PTH111 - no home: the hub's library would make a folder of that name here
        os.environ.setdefault("HF_HOME", str(cache.cache_dir() / "huggingface"))

    import httpx
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError

    hint = "check the network and free disk space, then run the command again"
    with foreign(SourceError, f"cannot fetch {source.repo}", hint=hint):
        try:
            commit, listed = _listed(source, file)
            if listed is not None:
                if pinned and file and (large := listed[file].lfs) is not None:
                    _require_pinned(source, file, str(large.sha256), pinned)  # before it is fetched
                cache.require_space(_missing_bytes(source, listed), Path(constants.HF_HUB_CACHE), "HF_HOME")
                if not _fetch_large(source, commit, listed, progress, watch):
                    tell(source.repo, progress)
            names = None if listed is None else [glob.escape(name) for name in listed]
            folder = _snapshot(source, names or ([file] if file else _FILES), progress, local_only=listed is None)
            if wrong := _wrong(folder, listed or {}):  # the hub's cache was damaged, or filled by a cut download
                _snapshot(source, [glob.escape(name) for name in wrong], progress, again=True)
                wrong = _wrong(folder, listed or {})
        except (httpx.HTTPError, OSError, HFValidationError) as error:
            raise _explained(source, error) from error
        if listed is None and before is not None:
            before.check()
        if wrong:
            raise _not_as_listed(source, wrong[0])
        names = sorted(listed) if listed is not None else _found(folder)
        if file is not None and not (folder / file).is_file():
            raise SourceError(f"{file} of {source.repo} is not in the cache and the hub cannot be reached")
        hashes = {name: files.sha256(folder / name) for name in names if file in (None, name)}
        if pinned and file:
            _require_pinned(source, file, hashes[file], pinned)
        return Fetched(source=source, file=file, folder=str(folder), sha256=hashes)


def _require_pinned(source: HubSource, file: str, sha256: str, pinned: str) -> None:
    if sha256 != pinned:
        other = catalog.name_of(sha256)
        got = f"{sha256[:16]}, the file of {other}" if other else sha256[:16]
        raise IntegrityError(
            f"{file} of {source.repo} is not the file that edgespec knows by its name (SHA-256)",
            got=got,
            allowed=pinned[:16],
            hint="it was changed at its source, or on this disk: look at its page on the hub",
        )


def _not_as_listed(source: HubSource, name: str) -> IntegrityError:
    return IntegrityError(f"{name} of {source.repo} is not the file that the hub lists (SHA-256)")


def _listed(source: HubSource, file: str | None) -> tuple[str, dict[str, Any] | None]:
    """The commit, and what the hub says of the files that are wanted, by name; None if it cannot be reached."""
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        info = HfApi().model_info(source.repo, revision=source.revision, files_metadata=True)
    except (httpx.ConnectError, httpx.TimeoutException, OfflineModeIsEnabled):
        return "", None  # they may be in the hub's cache, put there by another program
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or []}
    _require(source.repo, file, list(siblings))
    wanted = {name: siblings[name] for name in _wanted(siblings, file)}
    if odd := [name for name in (*wanted, *_fitting(siblings)) if not RELATIVE_FILE.accepts(name)]:
        raise SourceError(f"a file name in {source.repo}", got=odd[0], allowed=RELATIVE_FILE.words)
    hashes = [str(sibling.lfs.sha256) for sibling in wanted.values() if sibling.lfs is not None]
    if odd := [digest for digest in hashes if not SHA256.accepts(digest)]:  # each becomes the name of a file
        raise SourceError(f"a SHA-256 in {source.repo}", got=odd[0], allowed=SHA256.words)
    if not REVISION.accepts(commit := str(info.sha)):
        raise SourceError(f"the commit of {source.repo}", got=commit, allowed=REVISION.words)
    return commit, wanted


def _fetch_large(source: HubSource, commit: str, listed: dict[str, Any], progress: bool, watch: Watch | None) -> bool:
    """Put the large files that are missing where huggingface_hub looks for them: what it fetches itself is begun again
    after each break. Returns whether there were any."""
    large = {name: sibling for name, sibling in listed.items() if sibling.lfs is not None}
    places = {name: _place(source, commit, name, str(sibling.lfs.sha256)) for name, sibling in large.items()}
    missing = [name for name, place in places.items() if not place.exists()]
    if not missing:
        return False
    cache.require_space(sum(large[name].size - size_of(_part(large[name])) for name in missing))
    with shown(source.repo, sum(large[name].size for name in missing), progress, watch) as bar:
        for name in missing:
            _fetch_one(source, commit, name, large[name], places[name], bar)
    return True


def _fetch_one(source: HubSource, commit: str, name: str, listed: Any, place: Path, bar: Bar) -> None:
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.file_download import repo_folder_name
    from huggingface_hub.utils import WeakFileLock, build_hf_headers

    sha256, part = str(listed.lfs.sha256), _part(listed)
    locks = Path(constants.HF_HUB_CACHE) / ".locks" / repo_folder_name(repo_id=source.repo, repo_type="model")
    for folder in (part.parent, place.parent, locks):
        folder.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(locks / f"{sha256}.lock"):  # the one of huggingface_hub, which may be fetching it elsewhere
        if place.exists():
            return
        url = hf_hub_url(source.repo, name, revision=commit)
        fetch(url, part, bar, what=f"{name} of {source.repo}", size=listed.size, headers=build_hf_headers())
        if files.sha256(part) != sha256:
            part.unlink()
            raise _not_as_listed(source, name)
        _put(part, place)
        forget(part.parent, sha256)


def _put(part: Path, place: Path) -> None:
    """Whole or not at all. Between two disks a move is a copy, which a kill cuts short."""
    near = place.with_name(f"{place.name}.incomplete")
    shutil.move(part, near)
    near.replace(place)


def _part(listed: Any) -> Path:
    return cache.cache_dir() / "downloads" / f"{listed.lfs.sha256}.part"


def _place(source: HubSource, commit: str, name: str, sha256: str) -> Path:
    """Of a large file in the hub's cache: among the blobs, or where there are no links to them, in the snapshot."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import are_symlinks_supported, repo_folder_name

    cached = Path(constants.HF_HUB_CACHE)
    folder = cached / str(repo_folder_name(repo_id=source.repo, repo_type="model"))
    cached.mkdir(parents=True, exist_ok=True)
    return folder / "blobs" / sha256 if are_symlinks_supported(cached) else folder / "snapshots" / commit / name


def _missing_bytes(source: HubSource, listed: dict[str, Any]) -> int:
    """Of the files that the hub's cache does not have."""
    from huggingface_hub import try_to_load_from_cache

    known = {name: try_to_load_from_cache(source.repo, name, revision=source.revision) for name in listed}
    return sum(sibling.size or 0 for name, sibling in listed.items() if not isinstance(known[name], str))


def _wanted(names: Iterable[str], file: str | None) -> list[str]:
    """A folder without a manifest is flat; what lies in folders of it may be checkpoints or data."""
    every = list(names)
    if file is not None:
        return [name for name in every if name == file]
    return [name for name in _fitting(every) if bundle.MANIFEST in every or "/" not in name]


def _fitting(names: Iterable[str]) -> list[str]:
    from huggingface_hub.utils import filter_repo_objects

    return list(filter_repo_objects(names, allow_patterns=_FILES, ignore_patterns=_NOT_FILES))


def _snapshot(
    source: HubSource, patterns: list[str], progress: bool, *, local_only: bool = False, again: bool = False
) -> Path:
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(
            source.repo,
            revision=source.revision,
            allow_patterns=patterns,
            ignore_patterns=_NOT_FILES,
            local_files_only=local_only,
            force_download=again,
            tqdm_class=bars(progress),
        )
    )


def _found(folder: Path) -> list[str]:
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in _wanted(names, None) if RELATIVE_FILE.accepts(name))


def _wrong(folder: Path, listed: dict[str, Any]) -> list[str]:
    """Names of the files that are not what the hub lists: by the SHA-256 of a large file, the git hash of a small."""
    return [name for name, sibling in listed.items() if not _matches(folder / name, sibling)]


def _matches(path: Path, sibling: Any) -> bool:
    if not path.is_file():
        return False
    if sibling.lfs is not None:
        return files.sha256(path) == str(sibling.lfs.sha256)
    if sibling.blob_id is not None:
        return _git_hash(path) == str(sibling.blob_id)
    return True


def _git_hash(path: Path) -> str:
    """As ``git hash-object`` prints it."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as content:
        while block := content.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _require(repo: str, file: str | None, names: list[str]) -> None:
    if file is not None:
        if file not in names:
            raise SourceError(f"{repo} does not have {file} any more", hint="look at its page on the hub for another")
        return
    if bundle.IR_FILE in names or bundle.MANIFEST in names:
        return
    if ggufs := [name for name in names if name.endswith(".gguf")]:
        hint = f"download {ggufs[0]} from it and name that file"
    else:
        hint = f"convert it: edgespec export {repo} -o DIR"
    raise SourceError(f"{repo} has neither {bundle.MANIFEST} nor {bundle.IR_FILE}", hint=hint)


def _explained(source: HubSource, error: Exception) -> SourceError:
    from huggingface_hub import errors

    what, where = f"cannot fetch {source.repo}", "check the name, or log in for a private one: hf auth login"
    match error:
        case errors.GatedRepoError():
            hint = f"accept its terms on its page of the hub, then: hf auth login (page: {source.repo})"
            return SourceError(f"{what}: access is restricted", hint=hint)
        case errors.RepositoryNotFoundError():
            return SourceError(f"{what}: no such folder here and no such repository on the hub", hint=where)
        case errors.RevisionNotFoundError():
            return SourceError(f"{what}: no such revision", got=source.revision)
        case errors.LocalEntryNotFoundError():
            hint = "check the network and HF_HUB_OFFLINE, or give a folder"
            return SourceError(f"{what}: it is not in the cache and the hub cannot be reached", hint=hint)
    reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return SourceError(f"{what}: {reason}", hint="check the network and free disk space, then run the command again")


def _record_file(source: HubSource, file: str | None) -> Path:
    key = hashlib.sha256("\n".join((source.repo, source.revision, file or "")).encode()).hexdigest()
    return cache.cache_dir() / "hub" / f"{key[:32]}.json"


def _read(record: Path) -> Fetched | None:
    """A record that makes sense and leads to a snapshot that is still there."""
    try:
        with foreign(BundleError, f"cannot read {record}"):
            found = msgspec.json.decode(files.read_bytes(record), type=Fetched)
            return found if Path(found.folder).is_dir() else None
    except BundleError:
        return None
