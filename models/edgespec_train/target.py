"""The target of a recipe: as a bundle that edgespec runs, and as a checkpoint whose weights torch reads.

Some targets are only one of the two. A checkpoint is exported; for a bundle another source of weights has to be named.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from transformers import PreTrainedModel

from edgespec import bundle
from edgespec.bundle import Bundle
from edgespec.errors import EdgespecError, SettingError
from edgespec.hub import catalog
from edgespec.hub.resolve import path_here, resolve
from edgespec.text.tokenizer import Tokenizer
from edgespec.text.vocabulary import Vocabulary, check_pair
from edgespec_export import Request, Weights, convert, export
from edgespec_export import sources as models
from edgespec_export.texts import read as texts_of
from edgespec_train.corpus.paged_texts import require_ir

Say = Callable[[str], None]


def target_bundle(reference: str, folder: Path, say: Say) -> Bundle:
    """The target as a bundle: what edgespec runs as it is, and a checkpoint for transformers exported to
    ``folder/target``. Raises SettingError for a target without an OpenVINO IR, and others."""
    folder.mkdir(parents=True, exist_ok=True)
    if not is_checkpoint(reference):
        found = resolve(reference)
        if here := path_here(found, found.manifest.target):
            require_ir(found, here)
        return found
    out = folder / "target"
    if not (out / bundle.MANIFEST).is_file():
        export(Request(target=reference, out=out, weights=Weights("int8")), say)
    found = bundle.read(out)
    source = source_of(reference)
    made_from = found.manifest.provenance.source
    if made_from != source.reference:
        raise SettingError(f"{out} is another target", got=source.reference, allowed=made_from, hint="another -o")
    return found


def is_checkpoint(reference: str) -> bool:
    """Whether a reference is a transformers folder, or may be one on the hub. edgespec runs anything else as it is."""
    if reference in (*catalog.shipped_names(), *catalog.listed_names()):
        return False
    path = Path(reference).expanduser()
    if path.is_dir():
        return not any((path / name).is_file() for name in (bundle.MANIFEST, bundle.IR_FILE, "genai_config.json"))
    return not path.is_file()


def checkpoint_of(target: str, named: str | None, what: str, hint: str) -> models.Source:
    """A checkpoint that torch reads: the one that was named, else the target's own. what: is read from it. hint: where
    the target has none."""
    try:
        return source_of(named or target)
    except EdgespecError as error:
        if named is not None or is_checkpoint(target):
            raise
        raise SettingError(f"{target} has no {what} that torch can read: {error}", hint=hint) from error


@cache
def source_of(reference: str) -> models.Source:
    """A model's own checkpoint, fetched once; what had to be unpacked for it lives as long as this process."""
    scratch = TemporaryDirectory(prefix="edgespec-", ignore_cleanup_errors=True)
    atexit.register(scratch.cleanup)
    return models.resolve(reference, Path(scratch.name))


def torch_model(reference: str) -> PreTrainedModel:
    """A model as torch reads it, in float32. Raises SettingError where torch cannot."""
    hint = "name its transformers folder or .gguf file, or OWNER/NAME on the hub"
    source = checkpoint_of(reference, None, "weights", hint)
    model: PreTrainedModel = convert.load(source, Weights("f32"), convert.read_config(source))
    return model


def check_vocabulary(source: models.Source, target: Bundle) -> None:
    """Raises IncompatiblePair unless a checkpoint has the target's vocabulary."""
    rows = convert.read_config(source).vocab_size
    tokenizer = Tokenizer(target.hashed(target.manifest.tokenizer))
    own = Vocabulary.of(tokenizer.engine, target.name, target.manifest.target.vocab_size)
    check_pair(own, Vocabulary.of(texts_of(source).tokenizer, source.name, rows))
