"""The draft model that ships is worth having: a broken one, or one that is wired up wrongly, would still be exact."""

from __future__ import annotations

import numpy as np
import pytest

from edgespec.bench.prompts import encode, read
from edgespec.drafters.first_match import FirstMatch
from edgespec.drafters.small_model import SmallModel
from edgespec.drafters.vocabulary_map import input_map, read_id_map
from edgespec.pipeline import Pipeline
from edgespec.protocols import Drafter

K = 4
NEW_TOKENS = 64

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def least(pipeline: Pipeline) -> float:
    """Block efficiency of a draft that agrees half as often as the bundle declares: 1 + a + a^2 + ... + a^K.

    Another CPU rounds differently, and then the texts differ. That moves an acceptance rate by hundredths, not by half.
    """
    declared = pipeline.bundle.manifest.measured["draft"]["held_out"]["agreement"]
    return sum((declared / 2) ** tokens for tokens in range(K + 1))


def block_efficiency(pipeline: Pipeline, drafter: Drafter, per_category: int) -> float:
    """Greedy, on prompts of every category, without lookups."""
    runs = [
        pipeline.generate(encode(pipeline, prompt), max_new_tokens=NEW_TOKENS, drafter=drafter, num_draft_tokens=K)
        for prompt in read(per_category=per_category)
    ]
    return sum(run.stats.committed for run in runs) / sum(len(run.stats.rounds) for run in runs)


def shipped(pipeline: Pipeline) -> SmallModel:
    assert isinstance(pipeline.drafter, FirstMatch) and isinstance(pipeline.drafter.last, SmallModel)
    return pipeline.drafter.last


def test_the_shipped_draft_is_accepted_as_often_as_its_bundle_says(pipeline: Pipeline, least: float) -> None:
    assert block_efficiency(pipeline, shipped(pipeline), per_category=2) > least > 1.4


@pytest.mark.parametrize("wrong", ["id map", "what it reads", "weights"])
def test_a_draft_that_is_wired_up_wrongly_would_be_noticed(
    pipeline: Pipeline, least: float, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its ids shuffled, or the ids of its input alone, or the opposite of its logits."""
    model, size = shipped(pipeline).model, pipeline.target.vocab_size
    own = next(entry for entry in pipeline.bundle.manifest.drafters if entry.model is not None)
    path = pipeline.bundle.id_map_path(own)
    assert path is not None
    id_map = read_id_map(path, model.vocab_size, size)
    shuffled = np.random.default_rng(0).permutation(id_map)
    reads = input_map(own, id_map if wrong == "weights" else shuffled, model.vocab_size, size)
    drafter = SmallModel(model, size, id_map=shuffled if wrong == "id map" else id_map, reads=reads, name="wrong")
    if wrong == "weights":
        row_of = drafter._choice._row_of
        monkeypatch.setattr(drafter._choice, "_row_of", lambda logits, *rest: row_of(-logits, *rest))
    model.cache.reset()
    assert block_efficiency(pipeline, drafter, per_category=1) < least
