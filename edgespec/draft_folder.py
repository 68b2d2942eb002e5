"""A draft without its target: a folder with ``draft.json``, the IR of a small model or a head, and its id map.

A bundle holds the target too. This is the form of a draft that ships with edgespec: its target is fetched elsewhere.
``attach`` gives a bundle the draft as one more drafter. Both must mean the same tokens by the ids that the draft knows.
A head reads the target's hidden states too, so it must have been trained for this model.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec

from edgespec import files
from edgespec.bundle import Bundle
from edgespec.errors import BundleError, IncompatiblePair, foreign
from edgespec.manifest import (
    SHA256,
    Count,
    Drafter,
    DrafterNeeds,
    Line,
    Provenance,
    Sha256,
    Strict,
    WheelSource,
    check_drafter,
    data_files,
)

MANIFEST = "draft.json"
FORMAT = 1
_MOST_FILES = 64
"""of one target: its conversions and weight formats"""


class DraftManifest(Strict, frozen=True, kw_only=True):
    """``draft.json``."""

    format: int
    target: Line
    """short name of the model it was trained for"""
    target_names: tuple[Line, ...] = ()
    """how other files of that model are called, in lower case: what their names begin with"""
    target_weights: Annotated[tuple[Sha256, ...], msgspec.Meta(max_length=_MOST_FILES)] = ()
    """of the files that held that model's weights (a GGUF file, an IR's .bin). A head names one at least."""
    tokens: Count
    """All ids of the target that the draft knows are below this."""
    tokens_sha256: Sha256
    """of the texts of the ids below it, see ``tokens_sha256``"""
    drafter: Drafter
    provenance: Provenance = Provenance()
    measured: dict[str, Any] = msgspec.field(default_factory=dict)


@dataclass(frozen=True)
class DraftFolder:
    """A validated ``draft.json`` and its folder."""

    root: Path
    manifest: DraftManifest

    @property
    def name(self) -> str:
        return f"{self.manifest.target}-{self.manifest.drafter.name}"

    def is_of(self, target: Bundle) -> bool:
        """Whether it may read the hidden states of a bundle's target: it was trained for these weights, or for other
        weights of a model that is called like it."""
        return self.is_called_like(target) or not set(self.manifest.target_weights).isdisjoint(weights_of(target))

    def is_called_like(self, target: Bundle) -> bool:
        """Whether a bundle says that it is of this draft's target: by its own name, or by that of what it was made
        from."""
        source = (target.manifest.provenance.source or "").partition("@")[0]
        called = [Path(text).name.casefold() for text in (target.name, source)]
        return any(text.startswith(self.manifest.target_names) for text in called if text)


class _TokenizerModel(msgspec.Struct):
    vocab: dict[str, int]


class _AddedToken(msgspec.Struct):
    id: int
    content: str


class _TokenizerFile(msgspec.Struct):
    """The vocabulary of a ``tokenizer.json``."""

    model: _TokenizerModel
    added_tokens: list[_AddedToken] = []


def is_one(folder: Path) -> bool:
    return os.path.isfile(folder / MANIFEST)  # noqa: PTH113 - Path.is_file raises for a name that is too long


def read(folder: Path) -> DraftFolder:
    """Raises BundleError for a folder without a valid ``draft.json``."""
    path = folder / MANIFEST
    with foreign(BundleError, f"{path} is not a valid draft", hint="see docs/bundle.md"):
        found = msgspec.json.decode(files.read_bytes(path), type=DraftManifest)
        if found.format != FORMAT:
            raise ValueError(f"format {found.format}; allowed: {FORMAT}")
        check_drafter(drafter := found.drafter)
        if drafter.model is None or drafter.model.file is None or drafter.model.source or drafter.model.onnx:
            raise ValueError("a draft is an IR in its folder: a model with a file, without source and onnx")
        if drafter.is_head and not found.target_weights:
            raise ValueError(f"a {drafter.kind} draft names no target_weights")
        if not drafter.is_head and drafter.id_map is None:
            raise ValueError("a small model has an id map")
        if not drafter.is_head and drafter.needs != DrafterNeeds():
            raise ValueError("a small model has no needs")
        draft = DraftFolder(folder, found)
        if "/" in draft.name:  # it is the first part of the paths of its files
            raise ValueError(f"target and name are {draft.name}; allowed: no slash")
        _rooted(draft)
    return draft


def attach(target: Bundle, draft: DraftFolder, *, first: bool = False) -> Bundle:
    """The bundle with the draft, which fits it, as one more drafter. first: in front of its own.

    It takes the place of an attached one of its name, as one of the user's does of one that ships."""
    place, entry = _rooted(draft)
    files = ((other, other.model and other.model.file) for other in target.manifest.drafters)
    own = (other for other, file in files if not (file or "").startswith(f"{place}/"))
    changed = msgspec.structs.replace(target.manifest, drafters=(entry, *own) if first else (*own, entry))
    return Bundle(target.root, changed, target.inline_template, attached={**target.attached, place: draft.root})


def without_model(pair: Bundle) -> Bundle:
    """The bundle without its draft models and heads."""
    left = tuple(entry for entry in pair.manifest.drafters if entry.model is None)
    changed = msgspec.structs.replace(pair.manifest, drafters=left)
    return Bundle(pair.root, changed, pair.inline_template, attached=pair.attached)


def place_of(draft: DraftFolder) -> str:
    """The first part of the paths of its files in a bundle."""
    return f"{draft.name}.attached"


def _rooted(draft: DraftFolder) -> tuple[str, Drafter]:
    """The first part of the paths of its files in a bundle, and its entry with them. Raises ValueError for a name that
    is no part of a path."""
    place = place_of(draft)
    drafter = draft.manifest.drafter
    assert drafter.model is not None
    model = msgspec.structs.replace(drafter.model, file=f"{place}/{drafter.model.file}")
    id_map = drafter.id_map and f"{place}/{drafter.id_map}"
    return place, msgspec.structs.replace(drafter, model=model, id_map=id_map)


def require_fit(target: Bundle, draft: DraftFolder) -> None:
    """Raises IncompatiblePair unless the draft fits the target."""
    if not _knows_the_vocabulary(target, draft):
        raise IncompatiblePair(
            f"draft {draft.name} was trained for another vocabulary than that of {target.name}",
            allowed=f"the token ids of {draft.manifest.target}",
            hint="use a draft made for the target's tokenizer",
        )
    if draft.manifest.drafter.is_head and not draft.is_of(target):
        names, known = draft.manifest.target_names, draft.manifest.target_weights
        called = f", or a model whose name begins with {' or '.join(names)}" if names else ""
        raise IncompatiblePair(
            f"draft {draft.name} reads the hidden states of another model than {target.name}",
            got=f"weights of hash {', '.join(digest[:12] for digest in weights_of(target)) or 'unknown'}",
            allowed=f"{', '.join(digest[:12] for digest in known)}{called}",
            hint="train one for this target: edgespec train",
        )


def fits(target: Bundle, draft: DraftFolder) -> bool:
    """Whether the draft's ids are ids of the target, with the same texts, and a head's target is this one."""
    return (not draft.manifest.drafter.is_head or draft.is_of(target)) and _knows_the_vocabulary(target, draft)


def _knows_the_vocabulary(target: Bundle, draft: DraftFolder) -> bool:
    count = draft.manifest.tokens
    return count <= target.manifest.target.vocab_size and tokens_sha256(target, count) == draft.manifest.tokens_sha256


def weights_of(target: Bundle) -> tuple[str, ...]:
    """SHA-256 of the files that hold the target's weights, as far as its bundle tells: the weights themselves, and the
    GGUF file that they were made from."""
    model, made_from = target.manifest.target, (target.manifest.provenance.revision or "").removeprefix("sha256:")
    found = {model.sha256, made_from if SHA256.accepts(made_from) else None}
    if isinstance(model.source, WheelSource):
        found.add(model.source.member_sha256)
    if model.sha256 is None and model.file is not None:
        found |= {files.sha256(path) for path in data_files(target.path(model.file)) if path.is_file()}
    return tuple(sorted(filter(None, found)))


def tokens_sha256(target: Bundle, count: int) -> str:
    """SHA-256 of the texts of a bundle's first ``count`` ids, as JSON; null for an id without one."""
    path = target.hashed(target.manifest.tokenizer)
    with foreign(BundleError, f"{path} is not a tokenizer", hint="export or pull the model again"):
        content = files.read_bytes(path, files.MOST_TOKENIZER_BYTES)
        found = msgspec.json.decode(content, type=_TokenizerFile)
    texts = {number: text for text, number in found.model.vocab.items()}
    texts |= {token.id: token.content for token in found.added_tokens}
    return hashlib.sha256(msgspec.json.encode([texts.get(number) for number in range(count)])).hexdigest()
