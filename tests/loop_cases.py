"""Every drafter and mode of sampling on fake models, the oracle, and a run of the loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from edgespec.adaptive.arbiter import Arbiter
from edgespec.adaptive.calibration import ForwardTimes
from edgespec.adaptive.draft_cost import CallCost, DraftCost
from edgespec.adaptive.forward_cost import ForwardCost
from edgespec.backends.fake import FakeModel, random_table
from edgespec.decode.autoregressive import autoregressive
from edgespec.decode.speculative import speculative
from edgespec.drafters.adaptive_tokens import AdaptiveTokens
from edgespec.drafters.ngram import NGram
from edgespec.drafters.none import NoDrafter
from edgespec.drafters.recycling import Recycling
from edgespec.drafters.retrieval import Retrieval
from edgespec.drafters.small_model import SmallModel
from edgespec.drafters.text_pool import Pool
from edgespec.protocols import Drafter, StepwiseDrafter
from edgespec.sampling_params import SamplingParams
from edgespec.stats import Stats
from edgespec.types import Allowed, Draft, Logits
from tests.heads import FakeHead, HeadKind, KnowingGraph, knowing
from tests.policies import fixed, own_length

VOCAB = 24
TABLE = random_table(VOCAB, seed=3)
PROMPT = [1, 2, 3, 1, 2]
LAYERS = (1,)
"""of the target, for heads"""

MODES = {
    "greedy": SamplingParams(),
    "penalty": SamplingParams(repetition_penalty=1.3, logit_bias={4: 2.0, 5: -50.0}),
    "sampled": SamplingParams(temperature=0.8, seed=7),
    "truncated": SamplingParams(temperature=1.2, top_k=9, top_p=0.9, min_p=0.02, seed=11),
    "sampled-penalty": SamplingParams(temperature=1.0, repetition_penalty=1.5, seed=2),
}


class Junk(NoDrafter):
    """Proposes nonsense, sometimes less than asked."""

    name = "junk"

    def propose(self, context: Sequence[int], k: int, allowed: Allowed | None = None) -> Draft:
        return Draft(tuple((len(context) * 7 + i) % VOCAB for i in range(min(k, len(context) % 5))))


class Trees(NoDrafter):
    """A comb with side branches; the true continuation often hides in a side branch."""

    name = "trees"

    def propose(self, context: Sequence[int], k: int, allowed: Allowed | None = None) -> Draft:
        if k < 3:
            return Draft()
        best = int(TABLE(tuple(context)).argmax())
        after = int(TABLE((*context, best)).argmax())
        return Draft(((best + 1) % VOCAB, best, after), tree=(0, 0, 2))


def close_to(table_seed: int) -> FakeModel:
    noise = random_table(VOCAB, seed=table_seed)
    return FakeModel(lambda text: (TABLE(text) + 0.3 * noise(text)).astype(np.float32), VOCAB)


def trimmed() -> SmallModel:
    ids = np.array([0, 3, 4, 7, 9, 11, 20, 23], np.int32)
    return SmallModel(FakeModel(lambda text: TABLE(text)[ids], len(ids)), VOCAB, id_map=ids, name="trimmed")


def trimmed_on_both_sides() -> SmallModel:
    """Reads by its own ids too; its last row stands for every token it has no id for."""
    ids = np.array([0, 3, 4, 7, 9, 11, 20, -1], np.int32)
    reads = np.full(VOCAB, 7)
    reads[ids[:7]] = np.arange(7)
    model = FakeModel(lambda text: TABLE(tuple(int(ids[token]) for token in text))[ids], len(ids))
    return SmallModel(model, VOCAB, id_map=ids, reads=reads, name="trimmed on both sides")


def padded() -> SmallModel:
    wide = FakeModel(lambda text: np.concatenate([TABLE(text), np.full(8, 99.0, np.float32)]), VOCAB + 8)
    return SmallModel(wide, VOCAB, blocked=(3,), name="padded")


def head_of(kind: HeadKind) -> StepwiseDrafter:
    """Right about half of the time, and without some ids."""
    ids = np.array([token for token in range(VOCAB) if token not in (6, 17)], np.int32)
    return knowing(kind, KnowingGraph(TABLE, ids, LAYERS, kind=kind, error=1.0), LAYERS, VOCAB)


DRAFTERS: dict[str, Callable[[], Drafter | Arbiter]] = {
    "none": NoDrafter,
    "junk": Junk,
    "trees": Trees,
    "ngram": NGram,
    "equal": lambda: SmallModel(FakeModel(TABLE, VOCAB), VOCAB),
    "close": lambda: SmallModel(close_to(5), VOCAB),
    "opposite": lambda: SmallModel(FakeModel(lambda text: -TABLE(text), VOCAB), VOCAB),
    "short-context": lambda: SmallModel(FakeModel(TABLE, VOCAB, capacity=20), VOCAB),
    "trimmed": trimmed,
    "trimmed on both sides": trimmed_on_both_sides,
    "padded": padded,
    "head": lambda: FakeHead(TABLE, VOCAB),
    "block": lambda: head_of("block"),
    "redrafter": lambda: head_of("redrafter"),
    "adaptive": lambda: AdaptiveTokens([VOCAB], VOCAB, count=3),
    "adaptive, one forward": lambda: AdaptiveTokens([VOCAB], VOCAB, count=3, one_forward=True),
    "pool": lambda: Pool(32, shortest=2),
    "recycling": lambda: Recycling(VOCAB),
    "recycling tree": lambda: Recycling(VOCAB, width=3),
    "retrieval": lambda: retrieval(),
    "arbiter": lambda: arbiter(close_to(5)),
    "arbiter with trees": lambda: arbiter(close_to(5), trees=True),
    "arbiter with a useless model": lambda: arbiter(FakeModel(lambda text: -TABLE(text), VOCAB)),
    "arbiter with a head": lambda: arbiter_of(FakeHead(TABLE, VOCAB), [NGram(), Junk()], CallCost(0.1)),
    "arbiter with a block": lambda: arbiter_of(head_of("block"), [NGram(), Junk()], CallCost(0.1)),
    "arbiter with a head and trees": lambda: arbiter_of(FakeHead(TABLE, VOCAB), [Trees()], CallCost(0.1), trees=True),
    "arbiter with look-ups": lambda: arbiter(
        close_to(5), [retrieval(), NGram(), Pool(32, shortest=2), Recycling(VOCAB)]
    ),
    "arbiter with a table alone": lambda: arbiter(None, [Recycling(VOCAB, width=3)], trees=True),
}


def retrieval() -> Retrieval:
    return Retrieval([oracle(MODES["greedy"]), oracle(MODES["sampled"])])


def arbiter(model: FakeModel | None, free: Sequence[Drafter] | None = None, *, trees: bool = False) -> Arbiter:
    free = [NGram(), Junk()] if free is None else free
    if model is None:
        return arbiter_of(None, free, None, trees=trees)
    draft_s = ForwardCost(ForwardTimes((1,), 0, 0, (0.1,), (0.1,)))
    return arbiter_of(SmallModel(model, VOCAB), free, draft_s, trees=trees)


def arbiter_of(
    model: StepwiseDrafter | None, free: Sequence[Drafter], draft_s: DraftCost | None, *, trees: bool = False
) -> Arbiter:
    target_s = ForwardCost(ForwardTimes((1, 8), 0, 0, (1.0, 1.5), (1.0, 1.5)))
    if model is not None:
        model.alternatives = trees
    return Arbiter(free, model, target_s=target_s, draft_s=draft_s, trees=trees)


def oracle(params: SamplingParams, budget: int = 40, stop: Sequence[int] = ()) -> list[int]:
    context = list(PROMPT)
    for _ in autoregressive(FakeModel(TABLE, VOCAB), context, params, stop=stop, budget=budget):
        pass
    return context


def run(
    drafter: Drafter | Arbiter,
    params: SamplingParams,
    k: int | None,
    *,
    target: FakeModel | None = None,
    budget: int = 40,
    stop: Sequence[int] = (),
) -> tuple[list[int], Stats, FakeModel]:
    target = target or FakeModel(TABLE, VOCAB, layers=LAYERS)
    policy = own_length(drafter) if k is None else fixed(drafter, k)
    context, stats = list(PROMPT), Stats(clock=target.clock)
    for _ in speculative(target, policy, context, params, stop=stop, budget=budget, stats=stats):
        pass
    return context, stats, target


REJECTION = {
    "sampled": SamplingParams(temperature=0.8, verification="rejection", seed=7),
    "penalty": SamplingParams(temperature=1.1, top_p=0.9, repetition_penalty=1.5, verification="rejection", seed=2),
}


def softmax(logits: Logits) -> np.ndarray:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()
