"""What lies here of a model, for who asks about it and does not load it: nothing is fetched, converted or hashed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgespec import bundle
from edgespec.bundle import Bundle, Generation
from edgespec.hub import catalog
from edgespec.hub import resolve as hub
from edgespec.types import GGUFWeights


@dataclass(frozen=True)
class Texts:
    """Of a GGUF file. template: "" where it has none. tokens: by id. vocab_size: number of logits."""

    generation: Generation
    template: str
    tokens: Sequence[str]
    vocab_size: int


def converted(ref: str, weights: GGUFWeights | None) -> Bundle | None:
    """A bundle as it lies here; a load holds it against its hashes. Raises BundleError."""
    if ref in catalog.shipped_names():
        return bundle.read(catalog.default_folder())
    if (wanted := hub.on_hub(ref)) is None:
        path = hub.on_disk(ref)
        return bundle.read(path) if path is not None and path.is_dir() else None
    if (found := hub.recorded(wanted)) is None or not hub.is_here(wanted):
        return None
    if found.file is None:
        return bundle.read(Path(found.folder))
    folder = hub.converted_folder(Path(found.file), found.sha256[found.file], weights or "faithful")
    return bundle.read(folder) if (folder / bundle.MANIFEST).is_file() else None


def texts_of_file(ref: str) -> Texts | None:
    """Of a file that was fetched, and that nobody has loaded yet. Raises ConversionError."""
    wanted = hub.on_hub(ref)
    found = hub.recorded(wanted) if wanted is not None and hub.is_here(wanted) else None
    if found is None or found.file is None:
        return None

    from edgespec.gguf.convert import generation, read_header

    header = read_header(Path(found.folder) / found.file)
    template = header.get("tokenizer.chat_template") or ""
    return Texts(generation(header), template, header.get("tokenizer.ggml.tokens"), header.vocab_size)
