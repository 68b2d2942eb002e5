"""The simulator against runs on this machine: measured forwards and acceptance in, the speed-up by drafts out.

Plain decoding shows how fast the machine is now, beside the time when its forwards were measured. So of runs with
drafts the speed-up over plain decoding is compared.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import mean, median
from typing import Any, get_args

from edgespec.adaptive.arbiter import Arbiter
from edgespec.adaptive.draft_cost import DraftCost
from edgespec.adaptive.forward_cost import ForwardCost
from edgespec.bench.prompts import Prompt, encode, read, read_before
from edgespec.decode.policy import FixedLength, Plain
from edgespec.errors import SettingError
from edgespec.pipeline import Pipeline
from edgespec.protocols import Policy
from edgespec.simulate.cases import chance_of
from edgespec.simulate.forwards import Forward
from edgespec.simulate.schedules import Placed, simulate
from edgespec.stats import Stats
from edgespec.types import Backend

WITHIN = 0.10
"""of the measured speed-up"""
_TURNS = 3
_TOKENS = 2000
"""simulated"""


@dataclass(frozen=True)
class Compared:
    """Decoding with k drafted tokens a round; k 0: without drafts. measured, simulated: tokens a second."""

    engine: str
    drafter: str
    k: int
    acceptance_rate: float
    measured: float
    simulated: float
    plain: Compared | None = None

    @property
    def off(self) -> float:
        """Share by which the simulated speed-up is too high, or too low if negative. Of plain decoding: the speed."""
        pace = self.plain.measured / self.plain.simulated if self.plain is not None else 1.0
        return self.simulated * pace / self.measured - 1

    @property
    def holds(self) -> bool | None:
        """None: of plain decoding, which gives the pace."""
        return None if self.plain is None else abs(self.off) <= WITHIN

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        names = ("engine", "drafter", "k", "acceptance_rate", "measured", "simulated", "off", "holds")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class _Costs:
    """A model whose forwards were measured."""

    costs: ForwardCost | DraftCost

    def __call__(self, width: int, context: int) -> Forward:
        return Forward(self.costs.seconds(width, context))


def compare_on_each_engine(ref: str, ks: tuple[int, ...] = (1, 2, 3)) -> list[Compared]:
    """Loads the pair on one engine after another."""
    from edgespec.loading import load

    found = []
    for backend in get_args(Backend):
        found += compare_here(load(ref, backend=backend, schedule="synchronous", progress=True), ks)
    return found


def compare_here(pipeline: Pipeline, ks: tuple[int, ...], *, new_tokens: int = 64) -> list[Compared]:
    """Plain decoding, and each number of drafted tokens, on one prompt of each category. Of a pipeline that knows its
    costs."""
    arbiter = pipeline.arbiter
    if arbiter is None:
        raise SettingError("the costs of this pair were not measured", hint="load it without -k, and with a draft")
    plain = _compare(pipeline, arbiter, 0, new_tokens)
    drafted = ks if arbiter.model is not None else ()
    return [plain, *(replace(_compare(pipeline, arbiter, k, new_tokens), plain=plain) for k in drafted)]


def _compare(pipeline: Pipeline, arbiter: Arbiter, k: int, new_tokens: int) -> Compared:
    target_s, draft_s, model = arbiter.target_s.fresh(), arbiter.draft_s, arbiter.model
    if k and model is not None:
        k = min(k, model.longest or k)
    runs = [_fastest(pipeline, prompt, k, new_tokens) for prompt in read(per_category=1)]
    rounds = [round_ for stats in runs for round_ in stats.decoding]
    proposed, accepted = sum(r.proposed for r in rounds), sum(r.accepted for r in rounds)
    context = round(mean(stats.prompt_tokens + stats.committed / 2 for stats in runs))
    draft = None
    if k and draft_s is not None:
        fresh = draft_s.fresh()
        draft = Placed("draft", _Costs(fresh), fresh.start_s)
    run = simulate(
        "synchronous",
        Placed("target", _Costs(target_s)),
        draft,
        k=k,
        acceptance=chance_of(accepted / proposed, k) if proposed else 0.0,
        context=context,
        tokens=_TOKENS,
        bus_gb_per_s=1.0,
        host_s=median(round_.host_s for round_ in rounds),
    )
    return Compared(
        pipeline.target.capabilities.backend,
        model.name if k and model is not None else "none",
        k,
        accepted / proposed if proposed else 0.0,
        sum(stats.decoded for stats in runs) / sum(stats.decode_s for stats in runs),
        run.tok_per_s,
    )


def _fastest(pipeline: Pipeline, prompt: Prompt, k: int, new_tokens: int) -> Stats:
    """Of some runs, the one that other programs disturbed least."""
    runs = []
    for _ in range(_TURNS):
        ids = read_before(pipeline, encode(pipeline, prompt))
        runs.append(pipeline.generate(ids, max_new_tokens=new_tokens, policy=_policy(pipeline, k)).stats)
    return min(runs, key=lambda stats: stats.decode_s / stats.decoded)


def _policy(pipeline: Pipeline, k: int) -> Policy:
    model = pipeline.arbiter.model if pipeline.arbiter is not None else None
    return FixedLength(model, k) if k and model is not None else Plain()
