"""Parity through both engines: on a tiny target every drafter, mode and length gives plain decoding's tokens.

On the default pair, whose forwards take a thousand times as long: tests/test_parity_real.py, and most of it is slow.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import get_args

import pytest

from edgespec import bundle
from edgespec.decode.policy import FixedLength, Plain
from edgespec.drafters.first_match import FirstMatch
from edgespec.drafters.ngram import NGram
from edgespec.drafters.recycling import Recycling
from edgespec.drafters.retrieval import Retrieval
from edgespec.drafters.small_model import SmallModel
from edgespec.drafters.text_pool import Pool
from edgespec.loading import load
from edgespec.pipeline import Pipeline
from edgespec.protocols import Drafter
from edgespec.types import Backend
from tests.books import check_identities
from tests.conftest import load_ir
from tests.heads import write_head
from tests.test_parity_real import MODES, PROMPTS, TOKENS, MadeOnce, Plainly

REPEATED = "one, two, three, one, two, three, one, two, three, one, two"
"""it ends in words that have come before"""


@pytest.fixture(scope="module", params=get_args(Backend))
def tiny(request: pytest.FixtureRequest, tiny_ir: Path) -> Pipeline:
    return load(tiny_ir.parent, draft="ngram", num_draft_tokens=1, backend=request.param)


@pytest.fixture(scope="module")
def plain(tiny: Pipeline) -> Plainly:
    @cache
    def tokens(prompt: str, mode: str) -> list[int]:
        ids = tiny.tokenizer.encode(prompt)
        return tiny.generate(
            ids, policy=Plain(), sampling=MODES[mode], max_new_tokens=TOKENS, ignore_eos=True
        ).token_ids

    return tokens


@pytest.fixture(scope="module")
def drafters(tiny: Pipeline, plain: Plainly, tiny_ir: Path) -> dict[str, Drafter | None]:
    size = tiny.target.vocab_size
    return MadeOnce(
        ngram=NGram,
        itself=lambda: SmallModel(load_ir(tiny_ir, is_draft=True), size, name="itself"),
        recycling=lambda: Recycling(size),
        pool=lambda: Pool(4096, shortest=2),
        retrieval=lambda: Retrieval([tiny.tokenizer.encode(text) + plain(text, "greedy") for text in PROMPTS]),
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("k", [0, 1, 2, 8])
@pytest.mark.parametrize("name", ["ngram", "itself", "recycling", "pool", "retrieval"])
def test_exact_numerics_give_plain_decodings_tokens(
    tiny: Pipeline, drafters: dict[str, Drafter | None], plain: Plainly, name: str, k: int, mode: str
) -> None:
    accepted = 0
    for prompt in (*PROMPTS, REPEATED):
        result = tiny.generate(
            tiny.tokenizer.encode(prompt), sampling=MODES[mode], max_new_tokens=TOKENS, ignore_eos=True,
            num_draft_tokens=k, drafter=drafters[name],
        )  # fmt: skip
        assert result.token_ids == plain(prompt, mode) and result.numerics == "exact"
        check_identities(result.stats.rounds)
        repeats, knows = prompt == REPEATED, prompt in PROMPTS
        says = {"ngram": repeats, "pool": repeats, "retrieval": knows and mode == "greedy"}.get(name, True)
        assert not says or k == 0 or result.stats.proposed > 0
        accepted += result.stats.accepted
        right = name == "itself" or (name == "retrieval" and knows)
        assert not right or mode != "greedy" or k == 0 or result.stats.accepted > 0
    assert accepted > 0 or name != "recycling" or mode != "greedy" or k == 0


@pytest.fixture(scope="module", params=["block", "redrafter"])
def headed(
    tiny: Pipeline,
    plain: Plainly,
    tiny_ir: Path,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Pipeline:
    """The same target, which returns hidden states for a head."""
    texts = [tiny.tokenizer.encode(text) + plain(text, "greedy") for text in PROMPTS]
    folder = tmp_path_factory.mktemp("head") / "head"
    write_head(folder, bundle.read(tiny_ir.parent), texts, width=64, layers=(1, 2), kind=request.param)
    backend = next(name for name in get_args(Backend) if name == tiny.target.capabilities.backend)
    return load(tiny_ir.parent, draft=folder, num_draft_tokens=1, backend=backend)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("k", [1, 2, 4])
def test_heads_give_plain_decodings_tokens(headed: Pipeline, plain: Plainly, k: int, mode: str) -> None:
    assert isinstance(headed.drafter, FirstMatch) and headed.drafter.last is not None
    accepted, head = 0, headed.drafter.last
    for prompt in (*PROMPTS, REPEATED):
        result = headed.generate(
            headed.tokenizer.encode(prompt), sampling=MODES[mode], max_new_tokens=TOKENS, ignore_eos=True,
            policy=FixedLength(head, k),
        )  # fmt: skip
        assert result.token_ids == plain(prompt, mode) and result.numerics == "exact"
        check_identities(result.stats.rounds)
        assert any(r.drafter == "head" and r.proposed for r in result.stats.rounds)
        accepted += result.stats.accepted
    assert accepted > 0 or mode != "greedy"
