"""From a reference to a loaded pair: fetch, check, compile. The only file that knows every drafter and backend."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgespec import cache, hub, pairs
from edgespec.bundle import Bundle, ModelFile
from edgespec.bundle import Drafter as DrafterEntry
from edgespec.drafters.base import Drafter, NoDrafter
from edgespec.drafters.fallback import Fallback
from edgespec.drafters.ngram import NGram
from edgespec.drafters.recycling import Recycling
from edgespec.drafters.retrieval import Retrieval
from edgespec.drafters.small_model import SmallModel
from edgespec.errors import BundleError, SettingError
from edgespec.pairing import Vocabulary, check_pair
from edgespec.pipeline import Pipeline
from edgespec.tokenizer import Tokenizer
from edgespec.types import Numerics

if TYPE_CHECKING:
    from edgespec.backends.openvino_exact import ExactWidths
    from edgespec.backends.openvino_paged import OpenVINOPagedModel


def load(
    ref: str | Path = "default",
    *,
    draft: str | None = None,
    draft_from: str | Path | None = None,
    remember: bool = False,
    device: str = "CPU",
    draft_device: str | None = None,
    numerics: Numerics | None = None,
    num_draft_tokens: int | None = None,
    context_length: int | None = None,
    accept_licence: bool = False,
    progress: bool = False,
) -> Pipeline:
    """Load a pair: fetch it if needed, compile its models, wire them.

    ref: a known name, a bundle or IR folder, a .gguf file, or a hub id (see docs/bundle.md).
    draft: None takes the bundle's or the pair's own drafter; "none", "ngram", "recycling", or a reference to a draft
        model.
    draft_from: a folder of the user's own texts to look up first (see drafters.retrieval); then the drafter's turn.
    remember: with draft "recycling", keep what it learns in the cache for the next process.
    device, draft_device: OpenVINO device names; the draft runs beside the target unless told.
    numerics: "exact", "fast", or None: exact where it is known to hold.
    num_draft_tokens: k of every round; None takes the bundle's own, else leaves it to the heuristic.
    context_length: rows of KV cache at most; None takes the model's own.
    accept_licence: consent to a licence that allows research only, for the models that are under one.
    progress: show progress bars of downloads on stderr.
    """
    if num_draft_tokens is not None and num_draft_tokens < 0:
        raise SettingError("number of draft tokens", got=num_draft_tokens, allowed="0 or more")
    if draft == "none" and num_draft_tokens:
        raise SettingError("without a drafter there is nothing to draft: number of draft tokens", got=num_draft_tokens)
    if draft == "none" and draft_from is not None:
        raise SettingError("without a drafter there is nothing to draft from a folder", got=str(draft_from))
    if remember and draft != "recycling":
        raise SettingError("only the draft recycling can be remembered", got=f"draft {draft or 'of the pair'}")
    ref = str(ref)
    for named in filter(None, (ref, draft)):  # of both, before the first of them is fetched
        pairs.require_consent(named, accepted=accept_licence)
    pair = hub.resolve(ref, accept_licence=accept_licence, progress=progress)
    longest = pair.manifest.generation.context_length
    if context_length is not None and not 1 <= context_length <= longest:
        raise SettingError(
            "context_length", got=context_length, allowed=f"1 to {longest}, what {pair.name} was made for"
        )
    if draft is None:
        draft = pairs.default_draft(ref)
    files = None if draft_from is None else Retrieval.of_folder(draft_from, _tokenizer(pair))
    engine = _Engine(context_length or longest, progress, accept_licence)
    device = device.upper()
    target = engine.model(pair, pair.manifest.target, device, numerics=numerics)
    drafter, draft_on = _drafter(engine, pair, target.vocab_size, draft, (draft_device or device).upper())
    if draft_device is not None and draft_on is None:
        raise SettingError(f"only a draft model has a draft device, and {drafter.name} is none", got=draft_device)
    if remember and isinstance(drafter, Recycling):
        drafter.remember(*_recycling_file(pair))
    if files is not None:
        drafter = Fallback(files, drafter)
    devices = {"target": device} | ({"draft": draft_on} if draft_on else {})
    if num_draft_tokens is None:
        own = [entry for entry in pair.manifest.drafters if draft in (None, entry.name)]
        num_draft_tokens = next((entry.num_draft_tokens for entry in own if entry.num_draft_tokens is not None), None)
    return Pipeline(pair, target, drafter, num_draft_tokens=num_draft_tokens, devices=devices)


class _Engine:
    """OpenVINO, imported when the first model is loaded."""

    def __init__(self, capacity: int, progress: bool, accept_licence: bool = False) -> None:
        from edgespec.engine import ov

        self.core = ov.Core()
        self.capacity = capacity
        self.progress = progress
        self.accept_licence = accept_licence

    def model(
        self,
        bundle: Bundle,
        model: ModelFile,
        device: str,
        *,
        numerics: Numerics | None = None,
        is_draft: bool = False,
        context_length: int | None = None,
    ) -> OpenVINOPagedModel:
        from edgespec.backends.openvino_exact import ROWS_NEEDED
        from edgespec.backends.openvino_graph import Settings, available
        from edgespec.backends.openvino_paged import OpenVINOPagedModel

        device = available(self.core, device)
        capacity = min(self.capacity, context_length or self.capacity)
        xml = hub.model_path(bundle, model, accept_licence=self.accept_licence, progress=self.progress)
        settings = Settings.of_draft(self.core, device) if is_draft else Settings.make(self.core, device, numerics)
        # On CPU the engine's model cache saves nothing (docs/log.md); on GPU it keeps compiled kernels.
        kernels = None if device.startswith("CPU") else cache.cache_dir() / "compiled"
        # The search for exact widths needs some room, whatever the context is limited to afterwards.
        room = max(capacity, ROWS_NEEDED) if settings.numerics == "exact" else capacity
        loaded = OpenVINOPagedModel(self.core, xml, device, settings, capacity=room, cache_dir=kernels)
        if loaded.vocab_size != model.vocab_size:
            raise BundleError(
                f"{xml} does not fit its manifest: logits", got=loaded.vocab_size, allowed=model.vocab_size
            )
        if settings.numerics == "exact":
            loaded.set_exact_widths(self._exact_widths(loaded, xml, device))
            loaded.cache.capacity = capacity
        return loaded

    def _exact_widths(self, model: OpenVINOPagedModel, xml: Path, device: str) -> ExactWidths:
        """Found once for each model, machine and engine version, then remembered."""
        from edgespec.backends.openvino_exact import ExactWidths, find_exact_widths

        identity = [
            *_weights(xml),
            self.core.get_property(device, "FULL_DEVICE_NAME"),
            self.core.get_versions(device)[device].build_number,
            *(str(model.compiled.get_property(name)) for name in ("INFERENCE_NUM_THREADS", "INFERENCE_PRECISION_HINT")),
            str(model.compiled.get_property("KV_CACHE_PRECISION")),
        ]
        key = hashlib.sha256(repr(identity).encode()).hexdigest()[:24]
        path = cache.cache_dir() / "exact_widths" / f"{key}.json"
        try:
            return msgspec.json.decode(path.read_bytes(), type=ExactWidths)
        except (OSError, msgspec.DecodeError):
            found = find_exact_widths(model)
        with suppress(OSError):  # a read-only cache only means that the next load tries again
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(f".{os.getpid()}.tmp")
            temporary.write_bytes(msgspec.json.encode(found))
            temporary.replace(path)
        return found


def _drafter(
    engine: _Engine, pair: Bundle, vocab_size: int, draft: str | None, device: str
) -> tuple[Drafter, str | None]:
    """The drafter asked for, and the device it runs on if it is a model."""
    if draft == "none":
        return NoDrafter(), None
    if draft == "recycling":
        return Recycling(vocab_size), None
    own = [entry for entry in pair.manifest.drafters if draft in (None, entry.name)]
    lookup = next((NGram() for entry in own if entry.kind == "ngram"), None)
    small = next((entry for entry in own if entry.model is not None), None)
    if small is not None:
        drafter = _small_model(engine, pair, small, vocab_size, device)
        return drafter if lookup is None else Fallback(lookup, drafter), device
    if own or draft in (None, "ngram"):
        return lookup or NGram(), None
    other = hub.resolve(draft, accept_licence=engine.accept_licence, progress=engine.progress)
    pairing = check_pair(_vocabulary(pair), _vocabulary(other))
    length = other.manifest.generation.context_length
    model = engine.model(other, other.manifest.target, device, is_draft=True, context_length=length)
    reads = _reads(None, None, other.manifest.target.vocab_size, vocab_size)
    return SmallModel(model, vocab_size, blocked=pairing.blocked, reads=reads, name=other.name), device


def _small_model(engine: _Engine, pair: Bundle, own: DrafterEntry, vocab_size: int, device: str) -> SmallModel:
    """A draft model of the bundle's own."""
    assert own.model is not None
    id_map = _id_map(pair, own.id_map, own.model.vocab_size, vocab_size)
    model = engine.model(pair, own.model, device, is_draft=True, context_length=own.context_length)
    reads = _reads(own, id_map, own.model.vocab_size, vocab_size)
    return SmallModel(model, vocab_size, id_map=id_map, blocked=own.blocked, reads=reads, name=own.name)


def _recycling_file(pair: Bundle) -> tuple[Path, str]:
    """Where the table of this target is kept, and what it is about: these weights, these tokens."""
    about = [pair.manifest.tokenizer.sha256, *_weights(hub.model_path(pair, pair.manifest.target))]
    identity = hashlib.sha256(repr(about).encode()).hexdigest()
    return cache.cache_dir() / "recycling" / f"{identity[:24]}.npz", identity


def _weights(xml: Path) -> list[int]:
    """What tells one IR from another without reading it."""
    weights = xml.with_suffix(".bin").stat()
    return [xml.stat().st_size, weights.st_size, weights.st_mtime_ns]


def _tokenizer(bundle: Bundle) -> Tokenizer:
    return Tokenizer(bundle.hashed(bundle.manifest.tokenizer))


def _vocabulary(bundle: Bundle) -> Vocabulary:
    return Vocabulary.of(_tokenizer(bundle).engine, bundle.name, bundle.manifest.target.vocab_size)


def _id_map(pair: Bundle, file: str | None, draft_vocab: int, target_vocab: int) -> NDArray[np.int32] | None:
    if file is None:
        return None
    path = pair.path(file)
    try:
        ids: NDArray[np.int32] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise BundleError(f"cannot read {path}: {error}", hint="export or pull the model again") from error
    if (
        ids.shape != (draft_vocab,)
        or ids.dtype != np.int32
        or not len(ids)
        or ids.min() < -1
        or ids.max() >= target_vocab
    ):
        raise BundleError(
            f"{file} is not a map from draft logits to target ids",
            got=f"{ids.dtype} {ids.shape}",
            allowed=f"int32 ({draft_vocab},), values -1..{target_vocab - 1}",
        )
    return ids


def _reads(
    own: DrafterEntry | None, id_map: NDArray[np.int32] | None, draft_vocab: int, target_vocab: int
) -> NDArray[np.intp] | None:
    """What the draft reads for each target id; None if it is the id itself."""
    if own is not None and own.unknown is not None:
        if id_map is None:
            raise BundleError(f"drafter {own.name} has unknown and no id_map", hint="see docs/bundle.md")
        if not 0 <= own.unknown < draft_vocab:
            raise BundleError(f"drafter {own.name}: unknown", got=own.unknown, allowed=f"0..{draft_vocab - 1}")
        reads = np.full(target_vocab, own.unknown)
        reads[id_map[id_map >= 0]] = np.flatnonzero(id_map >= 0)
        return reads
    if id_map is not None or draft_vocab >= target_vocab:  # a head trimmed alone reads every id
        return None
    return np.where(np.arange(target_vocab) < draft_vocab, np.arange(target_vocab), 0)
