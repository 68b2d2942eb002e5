"""Structured output on the fake model: the text is plain constrained decoding's, and it is what its format says."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from edgespec.backends.fake import FakeModel
from edgespec.decode.autoregressive import autoregressive
from edgespec.decode.constraint import masked
from edgespec.decode.forced_tokens import cut_forbidden, forced_run
from edgespec.decode.speculative import speculative
from edgespec.drafters.first_match import FirstMatch
from edgespec.drafters.none import NoDrafter
from edgespec.drafters.small_model import SmallModel
from edgespec.errors import SettingError
from edgespec.sampling_params import SamplingParams
from edgespec.stats import Stats
from edgespec.text.response_format import Grammars, grammar_of
from edgespec.text.tokenizer import Tokenizer
from edgespec.types import Allowed, Draft, DraftNote, Logits, Verification
from tests.books import check_identities
from tests.formats import END, FORMATS, MODES, OWN, REJECTION, Fake, says, small_tokenizer
from tests.policies import fixed

HEADS = ("block", "redrafter", "adaptive")
DRAFTERS = ("none", "ngram", "random", "close", "trimmed", *HEADS, "arbiter", "merged trees", "unruly trees")
CASES = [(drafter, k) for k in (0, 1, 3, 7) for drafter in DRAFTERS]


@pytest.fixture(scope="session")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Fake:
    return Fake(small_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", FORMATS)
def test_any_drafter_and_length_give_plain_constrained_decodings_text(fake: Fake, name: str, mode: str) -> None:
    expected = fake.plain(name, mode)
    turn = random.Random(f"{name} {mode}")
    for drafter, k in turn.sample(CASES, 5):
        tokens, stats, _ = fake.speculate(name, mode, fake.drafter(drafter), k)
        assert tokens == expected, (drafter, k)
        check_identities(stats.rounds)
        assert stats.committed == len(expected)
    if expected[-1] == fake.end:
        says(FORMATS[name], fake.tokenizer.decode(expected))


@pytest.mark.parametrize("name", FORMATS)
def test_rejection_writes_valid_texts_and_with_lookups_plain_ones(fake: Fake, name: str) -> None:
    turn = random.Random(name)
    for drafter, k in turn.sample([case for case in CASES if case[1]], 5):
        tokens, stats, _ = fake.speculate(name, REJECTION, fake.drafter(drafter), k)
        check_identities(stats.rounds)
        if drafter in ("none", "ngram", "unruly trees"):
            assert tokens == fake.plain(name, "sampled"), (drafter, k)
        read = fake.constraint(name)
        for token in tokens:
            assert read.allowed(())[token], (drafter, k)
            read.commit([token])
        if tokens[-1] == fake.end:
            says(FORMATS[name], fake.tokenizer.decode(tokens))


def test_what_is_certain_behind_a_drafted_token_costs_the_draft_model_no_forward(fake: Fake) -> None:
    for params in (MODES["greedy"], MODES["sampled"], REJECTION):
        model = fake.model()
        drafter = SmallModel(model, fake.vocab)
        constraint, context = fake.constraint("certain"), fake.prompt("")
        drafter.begin(context, params)
        model.widths.clear()
        draft = drafter.propose(context, 6, constraint.allowed)
        assert fake.tokenizer.decode(draft.tokens)[1:5] == "bbbb" and len(draft) == 6
        assert model.widths == [1, 5], "one forward for each letter that is free"
        assert draft.scores[1:5] == (1.0,) * 4
        if draft.kind == "sampled":
            assert [given.of(token) for given, token in zip(draft.probs, draft.tokens, strict=True)][1:5] == [1.0] * 4


def test_nothing_is_drafted_behind_a_forced_end(fake: Fake) -> None:
    lengths: list[int] = []

    class Asked(NoDrafter):
        def propose(self, context: Sequence[int], k: int, allowed: Allowed | None = None) -> Draft:
            lengths.append(k)
            return Draft()

    tokens, stats, _ = fake.speculate("const", "greedy", Asked(), 3)
    assert tokens[-1] == fake.end and stats.rounds[-1].forced and lengths[-1] == 0


def test_most_texts_came_to_their_end_so_the_formats_were_judged(fake: Fake) -> None:
    ended = [fake.plain(name, mode)[-1] == fake.end for name in FORMATS for mode in MODES]
    assert sum(ended) > 0.6 * len(ended)


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_allowed_is_a_function_of_the_text_however_the_matcher_came_there(fake: Fake, name: str) -> None:
    """Random paths are tried and given up, as drafts are; a fresh matcher that reads the text only says the same."""
    for seed in range(3):
        rng = random.Random(seed)
        tried, text = fake.constraint(name), []
        for _ in range(8):
            for _ in range(rng.randint(1, 3)):
                path: list[int] = []
                while len(path) < rng.randint(0, 6) and len(found := walkable(tried.allowed(path), fake)):
                    path.append(int(rng.choice(found)))
            path = path[: rng.randint(0, len(path))]
            tried.commit(path)
            text += path
            fresh = fake.constraint(name)
            fresh.commit(text)
            assert np.array_equal(tried.allowed(()), fresh.allowed(()))


def walkable(allowed: np.ndarray, fake: Fake) -> np.ndarray:
    tokens = np.flatnonzero(allowed)
    return tokens[tokens != fake.end]


@pytest.mark.parametrize("mode", MODES)
def test_forced_tokens_are_what_comes_next_and_no_stop_is_passed(fake: Fake, mode: str) -> None:
    seen = 0
    for name in FORMATS:
        text, constraint = fake.plain(name, mode), fake.constraint(name)
        for position, token in enumerate(text):
            run = forced_run(constraint, 9)
            assert run == text[position : position + len(run)]
            seen += len(run)
            constraint.commit([token])
    assert seen > 200


def test_forced_tokens_are_free_count_as_nobodys_drafts_and_keep_to_the_budget(fake: Fake) -> None:
    length = len(fake.plain("const", "greedy"))
    for k in (0, 3):
        tokens, stats, target = fake.speculate("const", "greedy", fake.drafter("none"), k)
        assert tokens == fake.plain("const", "greedy")
        assert len(stats.rounds) <= 3 < length
        assert stats.forced > length - 4
        assert (stats.proposed, stats.accepted, stats.acceptance_rate) == (0, 0, None)
        for budget in (1, 2, 7):
            tokens, stats, target = fake.speculate("const", "greedy", fake.drafter("none"), k, budget)
            assert tokens == fake.plain("const", "greedy")[:budget]
            assert max(target.widths[-len(stats.rounds) :]) <= budget


def test_a_draft_model_is_steered_and_what_others_propose_is_cut(fake: Fake) -> None:
    """The draft model proposes allowed tokens only, so nothing of it is cut, and more of it stands than unsteered."""
    for name in ("schema-1", "schema-4", "object"):
        _, steered, _ = fake.speculate(name, "sampled", fake.drafter("close"), 3)
        assert all(r.proposed == r.evaluated for r in steered.rounds)
        for mode in MODES:  # look-ups and runners-up are looked through before they are merged
            _, merged, _ = fake.speculate(name, mode, fake.drafter("merged trees"), OWN)
            assert all(r.proposed == r.evaluated for r in merged.rounds) and merged.accepted
        _, unruly, _ = fake.speculate(name, "sampled", fake.drafter("unruly trees"), 7)
        assert sum(r.proposed - r.evaluated for r in unruly.rounds) > len(unruly.rounds) / 2
        assert unruly.acceptance_rate is not None and unruly.acceptance_rate > 0


def test_a_perfect_draft_is_accepted_whole_behind_forced_tokens_too(fake: Fake) -> None:
    """Steered by the target's own masks and placed at its positions, the target's copy says what the target says."""
    forced = 0
    for name in FORMATS:
        for mode in MODES:
            _, stats, _ = fake.speculate(name, mode, fake.drafter("equal"), 3)
            behind_the_end = stats.rounds[-1]  # the copy drafts on behind the end, and that is in vain
            assert all(r.accepted == r.proposed for r in stats.rounds if r is not behind_the_end), (name, mode)
            forced += sum(r.forced for r in stats.rounds if r.accepted)
    assert forced > 50


def test_the_second_drafter_is_asked_where_the_first_proposes_what_is_forbidden() -> None:
    first, then = Says((4, 5)), Says((6,))
    for allowed, tokens in ((None, (4, 5)), ([4], (4, 5)), ([6], (6,))):
        only = None if allowed is None else Only(10, {(): allowed}).allowed
        assert FirstMatch([first, then]).propose([1], 2, only).tokens == tokens


class Says(NoDrafter):
    def __init__(self, tokens: tuple[int, ...]) -> None:
        self.tokens = tokens

    def propose(self, context: Sequence[int], k: int, allowed: Allowed | None = None) -> Draft:
        return Draft(self.tokens)


class Only:
    """A constraint for examples: after these tokens, those may follow; after any other, everything."""

    def __init__(self, vocab: int, table: dict[tuple[int, ...], Sequence[int]]) -> None:
        self.vocab = vocab
        self.table = table

    def allowed(self, ahead: Sequence[int]) -> np.ndarray:
        tokens = self.table.get(tuple(ahead))
        return np.ones(self.vocab, bool) if tokens is None else np.isin(np.arange(self.vocab), list(tokens))

    def commit(self, tokens: Sequence[int]) -> None:
        raise AssertionError("not asked for")


def test_forbidden_tokens_are_cut_with_what_hangs_on_them() -> None:
    forced = Only(10, {(): [7], (7,): [8], (7, 8): [5, 6, 9], (7, 8, 9): []})
    assert forced_run(forced, 1) == [7] and forced_run(forced, 5) == [7, 8]
    tree = cut_forbidden([7, 8], Draft((4, 5, 6), tree=(0, 0, 2)), forced)
    assert tree == Draft((7, 8, 5, 6), tree=(0, 1, 2, 3), note=DraftNote(forced=2, cut=1))
    assert cut_forbidden([7, 8], Draft((5, 4)), forced) == Draft((7, 8, 5, 4), note=DraftNote(forced=2))
    assert cut_forbidden([7, 8], Draft((4, 5)), forced) == Draft((7, 8), note=DraftNote(forced=2, cut=2))
    assert cut_forbidden([7, 8], Draft((9, 5)), forced) == Draft(
        (7, 8), note=DraftNote(forced=2, cut=2)
    )  # 9 leads to a dead end
    assert cut_forbidden([7, 8], Draft((5, 4), tree=(0, 1)), forced).tree == (0, 1, 2, 3)


def test_every_row_gets_the_mask_of_its_own_path() -> None:
    logits = np.arange(12, dtype=np.float32).reshape(3, 4)
    only = Only(4, {(): [0, 1], (1,): [2], (0,): [3]})
    chain = masked(logits, Draft((1, 2)), only)
    assert np.isfinite(chain).tolist() == [[True, True, False, False], [False, False, True, False], [True] * 4]
    tree = masked(logits, Draft((1, 0), tree=(0, 0)), only)
    assert np.isfinite(tree)[2].tolist() == [False, False, False, True]
    assert (tree[np.isfinite(tree)] == logits[np.isfinite(tree)]).all()
    for nothing in (None, Only(4, {})):
        assert masked(logits, Draft((1, 2)), nothing) is logits
    assert np.isfinite(logits).all()


def prefer(tokenizer: Tokenizer, text: str) -> FakeModel:
    """A model that wants to write ``text`` after the prompt "b", letter by letter."""
    wanted = [*tokenizer.encode(text), tokenizer.engine.token_to_id(END)]

    def table(seen: tuple[int, ...]) -> Logits:
        logits = np.zeros(tokenizer.vocab_size, np.float32)
        logits[wanted[min(len(seen) - 1, len(wanted) - 1)]] = 5
        return logits

    return FakeModel(table, tokenizer.vocab_size)


def test_a_dead_end_in_a_draft_harms_nothing_and_one_in_the_text_is_told(tmp_path: Path) -> None:
    """The vocabulary has no y and no z, so "a" leads nowhere; a matcher that was there does not come back by itself."""
    tokenizer = small_tokenizer(tmp_path, without="yz")
    end = tokenizer.engine.token_to_id(END)
    grammars = Grammars(tokenizer, tokenizer.vocab_size, [end])
    grammar = grammar_of({"type": "grammar", "grammar": 'start: step+ "."\nstep: "b" | "a" /[yz]/'})
    assert grammar is not None
    params, prompt = SamplingParams(), tokenizer.encode("b")
    loop: Iterator[list[int]]

    context, draft = list(prompt), SmallModel(prefer(tokenizer, "bab"), tokenizer.vocab_size)
    loop = speculative(
        prefer(tokenizer, "bbb."), fixed(draft, 3), context, params, stop=[end], budget=9, stats=Stats(),
        constraint=grammars.constraint(grammar),
    )  # fmt: skip
    list(loop)
    assert tokenizer.decode(context[1:]) == "bbb." and context[-1] == end

    told = []
    for speculation in (False, True):
        context, target, constraint = list(prompt), prefer(tokenizer, "bba."), grammars.constraint(grammar)
        if speculation:
            draft = SmallModel(prefer(tokenizer, "bba."), tokenizer.vocab_size)
            loop = speculative(
                target, fixed(draft, 5), context, params, stop=[end], budget=9, stats=Stats(),
                constraint=constraint,
            )  # fmt: skip
        else:
            loop = autoregressive(target, context, params, stop=[end], budget=9, constraint=constraint)
        with pytest.raises(SettingError, match="allows no token here") as error:
            list(loop)
        told.append((str(error.value), context))
    assert told[0] == told[1] and tokenizer.decode(told[0][1][1:]) == "bba"


def test_a_bias_that_leaves_nothing_is_told_greedy_and_sampled(fake: Fake) -> None:
    for temperature in (0.0, 1.0):
        params = SamplingParams(temperature=temperature, logit_bias={fake.end: -np.inf}, seed=1)
        context = fake.prompt("")
        loop = autoregressive(fake.model(), context, params, stop=(), budget=40, constraint=fake.constraint("const"))
        with pytest.raises(SettingError, match="no token is left to choose"):
            list(loop)
        assert fake.tokenizer.decode(context).endswith('"a long text that is forced"')


@pytest.mark.parametrize("drafter", ["none", "ngram", "close", "trimmed", *HEADS, "arbiter"])
@pytest.mark.parametrize("verification", ["coupled", "rejection"])
def test_a_bias_that_leaves_nothing_is_told_with_any_drafter(
    fake: Fake, drafter: str, verification: Verification
) -> None:
    """Also where the draft already went on with what the format asks for and the bias forbids."""
    letter = fake.tokenizer.engine.token_to_id("b")
    for temperature in (0.0, 1.0):
        params = SamplingParams(temperature, verification=verification, seed=1, logit_bias={letter: -np.inf})
        with pytest.raises(SettingError, match="no token is left to choose"):
            fake.speculate("certain", params, fake.drafter(drafter), 6)
        nothing = replace(params, logit_bias=dict.fromkeys(range(fake.vocab), -np.inf))
        with pytest.raises(SettingError, match="no token is left to choose"):
            fake.speculate("object", nothing, fake.drafter(drafter), 6)


def test_an_abandoned_generation_leaves_the_next_one_right(fake: Fake) -> None:
    name, drafter, target = "schema-4", fake.drafter("close"), fake.model()
    for rounds in (1, 2, 3):
        context = fake.prompt(name)
        loop = speculative(
            target, fixed(drafter, 3), context, MODES["greedy"], stop=[fake.end], budget=55,
            stats=Stats(), constraint=fake.constraint(name),
        )  # fmt: skip
        list(islice(loop, rounds))
        loop.close()  # type: ignore[attr-defined]
        assert list(target.cache.tokens) == context[:-1]
        begun = len(context) - len(fake.prompt(name))
        assert context[-begun:] == fake.plain(name, "greedy")[:begun]
