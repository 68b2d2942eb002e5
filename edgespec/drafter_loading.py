"""The drafters of a pair, constructed: its lookups, and a small model or a drafting head. New kinds are added here."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from edgespec import adaptive_loading, cache
from edgespec.bundle import Bundle
from edgespec.bundle import Drafter as DrafterEntry
from edgespec.console import note
from edgespec.drafters.block import Block
from edgespec.drafters.ngram import NGram
from edgespec.drafters.recycling import Recycling
from edgespec.drafters.redrafter import ReDrafter
from edgespec.drafters.retrieval import Retrieval
from edgespec.drafters.retrieval_folder import read_folder
from edgespec.drafters.small_model import SmallModel
from edgespec.drafters.text_pool import Pool
from edgespec.drafters.vocabulary_map import input_map, read_id_map
from edgespec.errors import BundleError, IncompatiblePair, NoSuchModel, foreign
from edgespec.hub import catalog
from edgespec.hub.resolve import FORMS, model_path, resolve
from edgespec.machine.loader import Machine
from edgespec.protocols import Drafter, HeadDrafter, StaticGraph, StepwiseDrafter
from edgespec.text.tokenizer import Tokenizer
from edgespec.text.vocabulary import Vocabulary, check_pair
from edgespec.types import Backend, Needs

if TYPE_CHECKING:
    from edgespec.adaptive.draft_cost import DraftCost
    from edgespec.adaptive.forward_cost import ForwardCost
    from edgespec.backends.engine_model import PaddedModel

_BRANCHES = 4
"""successors per token that recycling keeps if the target verifies trees"""
_AGAIN = "export or train the draft again"


class HeadKind(Protocol):
    """Makes a head of its graph. ids: target id of each head id; -1: none."""

    def __call__(
        self,
        graph: StaticGraph,
        ids: NDArray[np.int32],
        layers: tuple[int, ...],
        /,
        *,
        vocab_size: int,
        blocked: Collection[int],
        name: str,
    ) -> StepwiseDrafter: ...


HEADS: dict[str, HeadKind] = {"redrafter": ReDrafter, "block": Block}
"""by the ``kind`` in a manifest"""


@dataclass(frozen=True)
class Modelled:
    """A drafter with a model or a head.

    costs: measures what its drafts take, given its target and the costs of that. call: of a head, one run of its graph.
    device: where it runs.
    """

    drafter: StepwiseDrafter
    costs: Callable[[PaddedModel, ForwardCost], DraftCost]
    call: Callable[[], None] | None = None
    device: str = "CPU"


def without_model(pair: Bundle) -> set[str]:
    """Names of drafters that need no draft model."""
    named = {entry.name for entry in pair.manifest.drafters if entry.model is None}
    return {"none", NGram.name, Recycling.name, *named}


def is_own(pair: Bundle, draft: str) -> bool:
    """Whether a name means drafters of the pair."""
    return draft in without_model(pair) or any(entry.is_called(draft) for entry in pair.manifest.drafters)


def other_model(machine: Machine, pair: Bundle, draft: str | None) -> Bundle | None:
    """The fetched bundle of a draft model that is not one of the pair's own."""
    other = other_bundle(pair, draft, accept_licence=machine.accept_licence, progress=machine.progress)
    if other is not None:
        model_path(other, other.manifest.target, accept_licence=machine.accept_licence, progress=machine.progress)
    return other


def other_bundle(pair: Bundle, draft: str | None, *, accept_licence: bool, progress: bool) -> Bundle | None:
    """Like ``other_model``, but a model that it only names may not be here yet."""
    if draft is None or is_own(pair, draft):
        return None
    try:
        return resolve(draft, accept_licence=accept_licence, progress=progress)
    except NoSuchModel as error:
        own = (entry.name for entry in pair.manifest.drafters)
        names = ", ".join(dict.fromkeys(("auto", "none", NGram.name, Recycling.name, *own)))
        raise NoSuchModel("no such draft", got=draft, allowed=f"{names}, or {FORMS}", setting="draft") from error


def drafters(
    machine: Machine,
    pair: Bundle,
    draft: str | None,
    other: Bundle | None,
    device: str,
    backend: Backend,
    head_device: str = "CPU",
) -> tuple[list[Drafter], Modelled | None]:
    """The drafters asked for: the lookups that do not need the target, and the one with a model or a head.

    draft: a name of the pair's drafters, or None for all. other: a draft model that is not of the pair. device,
    backend: of a draft model.
    """
    if draft in ("none", Recycling.name) or adaptive_loading.named(pair, draft):
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
        small = SmallModel(model, vocab_size, blocked=pairing.blocked, reads=reads, name=name)
        return lookups(), Modelled(small, partial(machine.draft_costs, model), device=model.capabilities.device)
    free, own = planned(pair, draft)
    if own is None:
        return free, None
    if own.is_head:
        return free, _head(machine, pair, own, head_device)
    return free, _small_model(machine, pair, own, device, backend)


def planned(pair: Bundle, draft: str | None) -> tuple[list[Drafter], DrafterEntry | None]:
    """The bundle's own drafters: those without a model, constructed, and the entry of the one with a model or head."""
    own = [entry for entry in pair.manifest.drafters if draft is None or entry.is_called(draft)]
    entry = next((entry for entry in own if entry.model is not None), None)
    if draft is None:
        return lookups(), entry
    return ([], entry) if entry else ([NGram()], None)


def layers_for(pair: Bundle, draft: str | None, other: Bundle | None) -> Needs:
    """What the drafters of ``drafters`` need from the target, known before any is loaded."""
    entry = None if other is not None or draft in ("none", Recycling.name) else planned(pair, draft)[1]
    return Needs() if entry is None else Needs(entry.needs.layers, entry.needs.extra, entry.needs.trees)


def require_states(drafter: StepwiseDrafter, target: PaddedModel, name: str) -> None:
    """Raises IncompatiblePair unless a head was made for states as long as those of the target ``name``."""
    if not isinstance(drafter, HeadDrafter):
        return
    sizes = {layer: target.state_sizes[layer] for layer in drafter.needs.layers}
    if {*sizes.values()} != {drafter.hidden_size}:
        raise IncompatiblePair(
            f"draft {drafter.name} reads the hidden states of another model than {name}",
            got=f"states of {', '.join(map(str, dict.fromkeys(sizes.values())))} numbers",
            allowed=f"{drafter.hidden_size}",
            hint="train one for this target: edgespec train",
        )


def lookups() -> list[Drafter]:
    """The lookups of every pair. They need no model, and cost next to nothing."""
    return [NGram(), Pool()]


def recycling(pair: Bundle, target: PaddedModel, remember: bool) -> Recycling:
    width = _BRANCHES if target.capabilities.tree else 1
    table = Recycling(target.vocab_size, width=width)
    if remember:
        file = cache.cache_dir() / "recycling" / f"{target.fingerprint}-{width}.npz"
        table.remember(file, pair.manifest.tokenizer.sha256)
    return table


def retrieval(pair: Bundle, folder: str | Path, progress: bool) -> Retrieval:
    found = read_folder(folder, tokenizer_of(pair))
    if progress:
        note(f"to draft from {folder}: {found}")
    return Retrieval(found.texts)


def _small_model(machine: Machine, pair: Bundle, own: DrafterEntry, device: str, backend: Backend) -> Modelled:
    """A draft model from the bundle itself."""
    assert own.model is not None
    vocab_size, id_map = pair.manifest.target.vocab_size, _id_map(pair, own)
    model = machine.model(pair, own.model, device, backend=backend, is_draft=True, context_length=own.context_length)
    reads = input_map(own, id_map, own.model.vocab_size, vocab_size)
    small = SmallModel(model, vocab_size, id_map=id_map, blocked=own.blocked, reads=reads, name=own.name)
    return Modelled(small, partial(machine.draft_costs, model), device=model.capabilities.device)


def _head(machine: Machine, pair: Bundle, own: DrafterEntry, device: str) -> Modelled:
    """A drafting head from the bundle itself."""
    assert own.model is not None
    vocab_size, id_map = pair.manifest.target.vocab_size, _id_map(pair, own)
    graph = machine.head(pair, own.model, device)
    ids = np.arange(own.model.vocab_size, dtype=np.int32) if id_map is None else id_map
    with foreign(BundleError, f"{own.name} is not a head of kind {own.kind}", hint=_AGAIN):
        if ids.max() >= vocab_size:
            raise ValueError(f"{len(ids)} ids; allowed: {vocab_size}")
        made = HEADS[own.kind](graph, ids, own.needs.layers, vocab_size=vocab_size, blocked=own.blocked, name=own.name)
    return Modelled(made, partial(machine.call_costs, graph), graph.repeat, graph.device)


def tokenizer_of(bundle: Bundle) -> Tokenizer:
    return Tokenizer(bundle.hashed(bundle.manifest.tokenizer))


def _vocabulary(bundle: Bundle) -> Vocabulary:
    return Vocabulary.of(tokenizer_of(bundle).engine, bundle.name, bundle.manifest.target.vocab_size)


def _id_map(pair: Bundle, own: DrafterEntry) -> NDArray[np.int32] | None:
    assert own.model is not None
    path = pair.id_map_path(own)
    return None if path is None else read_id_map(path, own.model.vocab_size, pair.manifest.target.vocab_size)
