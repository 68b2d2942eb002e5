"""Models with a short name: where they lie on the hub, the draft that goes with each, and what their licences ask.

The list is ``models/pairs.toml``; its format is in docs/bundle.md. It is read when a name is looked up, not on import.
"""

from __future__ import annotations

import difflib
import re
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from edgespec import bundle, draft_folder
from edgespec.bundle import Bundle, HubSource, WheelSource
from edgespec.draft_folder import DraftFolder
from edgespec.errors import BundleError, LicenceError, NoSuchModel, foreign
from edgespec.manifest import RelativeFile, Repo, Revision, Sha256, Strict

DEFAULT = "default"


@dataclass(frozen=True)
class Known:
    """name: what to type. aliases: other spellings. about, licence: one line for ``edgespec models``."""

    name: str
    aliases: tuple[str, ...]
    about: str
    licence: str


KNOWN = (
    Known(
        name="smollm2-135m",
        aliases=(DEFAULT, "smollm2-135m-instruct"),
        about="SmolLM2 135M Instruct, 8 bits (from a 4-bit file), a trained draft and prompt lookup; fetches 93 MB",
        licence="Apache-2.0",
    ),
)


def shipped_names() -> list[str]:
    return [name for known in KNOWN for name in (known.name, *known.aliases)]


def default_folder() -> Path:
    """Inside the installed package, or in the source tree it runs from."""
    here = Path(__file__).resolve().parent.parent
    shipped = here / "_models" / "default"
    return shipped if shipped.is_dir() else here.parent / "models" / "default"


@cache
def packages() -> frozenset[WheelSource]:
    """The models in Python packages that may be fetched."""
    models = bundle.read(default_folder()).manifest.models
    return frozenset(model.source for model in models if isinstance(model.source, WheelSource))


def require_package(source: WheelSource) -> WheelSource:
    """A bundle may name one of ``packages``, to the letter, with its size or without. Returns the one that ships.
    Raises BundleError for any other.

    A package index serves anybody's packages, and pip may run what is in them.
    """
    same = [known for known in packages() if msgspec.structs.replace(source, wheel_bytes=known.wheel_bytes) == known]
    if not same:
        raise BundleError(
            "the bundle takes a model from a Python package that edgespec does not know",
            got=f"{source.package} {source.version}",
            allowed=", ".join(f"{package.package} {package.version}, with its hashes" for package in packages()),
            hint="get the model as a folder or a .gguf file",
        )
    return same[0]


FILE = "pairs.toml"

Bytes = Annotated[int, msgspec.Meta(gt=0, lt=1 << 44)]

_COMMIT = re.compile(r"[0-9a-f]{40}")


class Licence(Strict, frozen=True, kw_only=True):
    """What a licence allows: anything, anything on conditions, or research only."""

    use: Literal["any", "conditions", "research"]
    url: str
    terms: str | None = None
    """what it asks, in one line; for every use but ``any``"""


class Model(Strict, frozen=True, kw_only=True):
    """A repository on the Hugging Face hub: an OpenVINO IR, or one GGUF ``file`` of it."""

    repo: Repo
    licence: str
    """a key of ``Pairs.licences``: an SPDX id, or its name where it has none"""
    file: RelativeFile | None = None
    sha256: Sha256 | None = None
    """of ``file``: whatever else is served under its name is refused"""
    bytes: Bytes | None = None
    """of ``file``; given with ``sha256``"""
    revision: Revision = "main"
    draft: str | None = None
    """name of the draft it runs with by default; None: prompt lookup"""
    other_drafts: tuple[str, ...] = ()
    """drafts made for it that have to be asked for"""
    trained_draft: RelativeFile | None = None
    """folder of a draft that ships with edgespec (``draft_folder``), beside this list; it drafts by default"""

    @property
    def pinned(self) -> bool:
        """Whether it means the same files for good: its revision is a commit, or its file has a known hash."""
        return self.sha256 is not None or _COMMIT.fullmatch(self.revision) is not None

    @property
    def source(self) -> HubSource:
        return HubSource(repo=self.repo, revision=self.revision)


class Pairs(Strict, frozen=True, kw_only=True):
    """``pairs.toml``."""

    licences: dict[str, Licence]
    models: dict[str, Model]


@lru_cache(maxsize=1)
def load() -> Pairs:
    """The list of this installation, or of the source tree it runs from."""
    return read(shipped_file(FILE))


def shipped_file(name: str) -> Path:
    """Path of a list of this installation, or of the source tree it runs from."""
    here = Path(__file__).resolve().parent.parent
    shipped = here / "_models" / name
    return shipped if shipped.is_file() else here.parent / "models" / name


def read(path: Path) -> Pairs:
    """Read and validate a list. Raises BundleError."""
    with foreign(BundleError, f"cannot read {path}", hint="install edgespec again"):
        pairs = msgspec.toml.decode(path.read_bytes(), type=Pairs)
    if problem := _problem(pairs):
        raise BundleError(f"{path} is not valid: {problem}", hint="install edgespec again")
    return pairs


def _problem(pairs: Pairs) -> str | None:
    """What the types do not say: names that lead nowhere or mean two things, a research licence as a default."""
    taken = set(shipped_names())
    for name, licence in pairs.licences.items():
        if licence.use != "any" and not licence.terms:
            return f"licence {name} has no terms"
    for name, model in pairs.models.items():
        drafts = [*([model.draft] if model.draft else []), *model.other_drafts]
        if name in taken or not re.fullmatch(r"[a-z0-9.-]+", name):
            return f"{name} cannot be a name"
        if (model.sha256 is None) != (model.bytes is None) or (model.sha256 and not model.file):
            return f"{name}: sha256 and bytes are of a file, and come together"
        if model.trained_draft and model.draft:
            return f"{name}: it has two drafts by default"
        if model.licence not in pairs.licences:
            return f"{name}: no licence {model.licence}"
        if unknown := [draft for draft in drafts if draft not in pairs.models and draft not in taken]:
            return f"{name}: no draft {unknown[0]}"
        if model.draft in pairs.models and pairs.licences[pairs.models[model.draft].licence].use == "research":
            return f"{name}: {model.draft} is for research only and cannot be the default"
    return None


def listed_names() -> list[str]:
    return list(load().models)


def no_such(ref: str, forms: str) -> NoSuchModel:
    """The error for a reference that is no name, nothing on this disk, and no repository of the hub."""
    if ref.startswith(("~", ".")) or "/" in ref or "\\" in ref or ref.lower().endswith((".gguf", ".xml", ".onnx")):
        hint = "check the path; names of models: edgespec models"
        return NoSuchModel("no such model: there is no such file or folder", got=ref, hint=hint)
    near = difflib.get_close_matches(ref[:100], [*shipped_names(), *listed_names()], n=2)
    near.sort(key=lambda name: name not in shipped_names())
    hint = f"did you mean {' or '.join(near)}?" if near else "known names: edgespec models"
    return NoSuchModel("no such model", got=ref, allowed=forms, hint=hint)


def find(name: str) -> Model | None:
    """The model of a short name."""
    return None if name in shipped_names() else load().models.get(name)


def name_of_package(source: WheelSource) -> str:
    """The name of the model that a package holds."""
    default = bundle.read(default_folder())
    return default.name if default.manifest.target.source == source else Path(source.member).stem


def name_of(sha256: str) -> str | None:
    """The name whose file has this hash."""
    return next((name for name, model in load().models.items() if model.sha256 == sha256), None)


def name_of_source(source: HubSource, file: str | None) -> str | None:
    """The name of a repository at this revision, or of one file of it."""
    found = (name for name, model in load().models.items() if (model.source, model.file) == (source, file))
    return next(found, None)


def ref_of(repo: str, file: str | None) -> str:
    """What to type for a repository: itself, or the name of one file of it."""
    named = (name for name, model in load().models.items() if file and (model.repo, model.file) == (repo, file))
    return next(named, repo)


def default_draft(name: str) -> str | None:
    """Name of the draft that a short name brings along."""
    model = find(name)
    return model.draft if model else None


def trained_drafts() -> dict[str, DraftFolder]:
    """The drafts that ship with edgespec, by the short name of the target of each."""
    folders = {name: model.trained_draft for name, model in load().models.items() if model.trained_draft}
    return {name: _trained_draft(shipped_file(f"{folder}/{draft_folder.MANIFEST}")) for name, folder in folders.items()}


def trained_draft_named(name: str) -> DraftFolder | None:
    """The draft that ships with edgespec under a name of its own: TARGET-DRAFTER."""
    return next((draft for draft in trained_drafts().values() if draft.name == name), None)


def with_trained_draft(target: Bundle) -> Bundle:
    """A target, and the draft that ships for it as one more drafter, if there is one.

    A target is known by the SHA-256 of the listed file that it was converted from, and any other by what it is called.
    It must have the draft's vocabulary too.
    """
    made_from = (target.manifest.provenance.revision or "").removeprefix("sha256:")
    for name, draft in trained_drafts().items():
        known = load().models[name].sha256 == made_from or draft.is_called_like(target)
        with suppress(BundleError):  # a tokenizer of another kind: not this draft's, and its own loader's to judge
            if known and draft_folder.fits(target, draft):
                return draft_folder.attach(target, draft)
    return target


@cache
def _trained_draft(file: Path) -> DraftFolder:
    return draft_folder.read(file.parent)


def require_consent(ref: str, *, accepted: bool) -> None:
    """Raises LicenceError for a model that is for research only, by its short name or its repository."""
    found = _licence(ref)
    if found is not None and found[1].use == "research" and not accepted:
        name, licence = found
        raise LicenceError(
            f"{ref} needs your consent to its licence: {name}, {licence.terms}",
            hint=f"read {licence.url} and repeat with --accept-licence (accept_licence=True in Python)",
        )


def notice(repo: str) -> str | None:
    """One line to show before a repository is fetched, if its licence has conditions."""
    found = _licence(repo)
    if found is None or found[1].use == "any":
        return None
    name, licence = found
    return f"{repo} comes under the {name}: {licence.terms} ({licence.url})"


def _licence(ref: str) -> tuple[str, Licence] | None:
    """Name and text of the licence of a short name, or of OWNER/NAME[@REVISION]; the hub ignores case."""
    model = find(ref)
    if model is None and "/" in ref:
        repo = ref.partition("@")[0].casefold()
        model = next((model for model in load().models.values() if model.repo.casefold() == repo), None)
    return (model.licence, load().licences[model.licence]) if model else None
