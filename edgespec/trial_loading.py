"""A target with the drafters of ``auto`` on any engine, loaded to compare engines by (see ``engine_trial``)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING

from edgespec import drafter_loading
from edgespec.bundle import Bundle
from edgespec.drafter_loading import Modelled
from edgespec.engine_trial import EDIT, PROMPT, ROWS_NEEDED, Trial
from edgespec.load_options import LoadOptions
from edgespec.machine.loader import Machine
from edgespec.types import Backend

if TYPE_CHECKING:
    from edgespec.backends.engine_model import PaddedModel


def with_room(context_length: int, longest: int) -> int:
    """A context that holds the texts of a trial, as far as the model's own longest one does."""
    return min(max(context_length, ROWS_NEEDED), longest)


class Trials:
    """draft, other: what ``auto`` drafts with."""

    def __init__(
        self, machine: Machine, pair: Bundle, options: LoadOptions, draft: str | None, other: Bundle | None
    ) -> None:
        self._machine, self._pair, self._numerics = machine, pair, options.numerics
        self._draft, self._other = draft, other
        self._layers = (options.needs | drafter_loading.layers_for(pair, draft, other)).layers

    @cached_property
    def _texts(self) -> tuple[list[int], list[int]]:
        tokenizer = drafter_loading.tokenizer_of(self._pair)
        return tokenizer.encode(PROMPT, raw=True), tokenizer.encode(EDIT)

    def __call__(self, engine: Backend) -> Trial:
        machine = Machine(ROWS_NEEDED, self._machine.progress, self._machine.accept_licence)
        with ThreadPoolExecutor(1) as beside:  # as they are loaded to run
            load = drafter_loading.drafters
            drafting = beside.submit(load, machine, self._pair, self._draft, self._other, "CPU", engine)
            target = machine.for_trial(self._pair, self._numerics, engine, self._layers)
            lookups, modelled = drafting.result()
        fit(modelled, target, self._pair)
        lookups.append(drafter_loading.recycling(self._pair, target, remember=False))
        model, call = (modelled.drafter, modelled.call) if modelled else (None, None)
        least, step = target.min_width, target.width_step
        return Trial(target, lookups, model, *self._texts, call=call, least=least, step=step)


def fit(modelled: Modelled | None, target: PaddedModel, pair: Bundle) -> None:
    """Connect a draft model with its target. Raises IncompatiblePair."""
    if modelled:
        drafter_loading.require_states(modelled.drafter, target, pair.name)
        modelled.drafter.alternatives = target.capabilities.tree
