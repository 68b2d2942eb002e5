"""Token recycling: what the table learns, from which rows, what is drafted from it, and its file."""

from __future__ import annotations

import gc
import io
import os
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgespec
from edgespec.backends.fake import FakeModel, random_table
from edgespec.decode.speculative import speculative
from edgespec.drafters.first_match import FirstMatch
from edgespec.drafters.ngram import NGram
from edgespec.drafters.none import NoDrafter
from edgespec.drafters.recycling import Recycling, likeliest
from edgespec.drafters.recycling_file import read_table
from edgespec.errors import SettingError
from edgespec.protocols import Drafter
from edgespec.sampling_params import SamplingParams
from edgespec.stats import Stats
from edgespec.types import Allowed, Draft, Logits, Step, Tree, Verdict, tree_depths
from tests.policies import fixed

VOCAB = 40
BIGRAM = random_table(VOCAB, seed=4, order=1)
LIKELIEST = [np.argsort(-BIGRAM((token,)))[:4].tolist() for token in range(VOCAB)]
PROMPT = [1, 2, 3, 1, 2]
GREEDY = SamplingParams()


def says(*tokens: int) -> Step:
    return Step(np.eye(VOCAB, dtype=np.float32)[list(tokens)])


def generate(drafter: Drafter, target: FakeModel, *, k: int = 4, budget: int = 40, prompt: Sequence[int] = PROMPT,
             params: SamplingParams = GREEDY) -> Stats:  # fmt: skip
    stats = Stats()
    for _ in speculative(target, fixed(drafter, k), list(prompt), params, stop=(), budget=budget, stats=stats):
        pass
    return stats


def lines(drafter: Recycling) -> dict[int, list[int]]:
    """What the drafter would say next after each token, likeliest first."""
    drafts = {token: drafter.propose([token], 64) for token in range(VOCAB)}
    found = {}
    for token, draft in drafts.items():
        tree = draft.tree or tuple(range(len(draft)))
        found[token] = [t for t, parent in zip(draft.tokens, tree, strict=True) if parent == 0]
    return {token: line for token, line in found.items() if line}


class Listening(FakeModel):
    """Remembers which tokens it gave logits for."""

    fed: set[int]

    def start(
        self, tokens: Sequence[int], tree: Tree | None = None, *, num_logits: int | None = None, width: int = 1
    ) -> None:
        if num_logits != 0:
            self.fed = getattr(self, "fed", set()) | set(tokens)
        super().start(tokens, tree, num_logits=num_logits, width=width)


class Junk(NoDrafter):
    name = "junk"

    def propose(self, context: Sequence[int], k: int, allowed: Allowed | None = None) -> Draft:
        return Draft(tuple((len(context) * 7 + i) % VOCAB for i in range(k)))


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("turns", ["alone", "after ngram", "after junk", "before junk"])
def test_every_token_fed_has_the_line_the_target_gave_it_whoever_drafted(width: int, turns: str) -> None:
    """The target's logits depend on the last token alone, so a line is right or it belongs to another token."""
    recycling = Recycling(VOCAB, width=width)
    drafters: dict[str, Drafter] = {
        "alone": recycling,
        "after ngram": FirstMatch([NGram(), recycling]),
        "after junk": FirstMatch([Junk(), recycling]),
        "before junk": FirstMatch([recycling, Junk()]),
    }
    target = Listening(BIGRAM, VOCAB)
    stats = generate(drafters[turns], target, params=SamplingParams(temperature=1.5, seed=5))
    assert stats.proposed > stats.accepted > 0
    prompts = {1: [2], 2: [3], 3: [1]}  # of the tokens that were not fed
    assert lines(recycling) == prompts | {token: LIKELIEST[token][:width] for token in target.fed}


def test_a_token_that_was_never_fed_gets_what_last_followed_it_in_the_prompt() -> None:
    drafter = Recycling(VOCAB, width=2)
    drafter.commit([1, 5, 9], Draft(), Verdict(0, (9,), (0,)), says(9))
    drafter.begin([5, 6, 7, 6, 8], GREEDY)
    assert {token: line[0] for token, line in lines(drafter).items()} == {5: 9, 6: 8, 7: 6}
    assert lines(drafter)[6] == [8]
    drafter.begin([6], GREEDY)  # a prompt of one token has no pair


def test_rejected_rows_teach_too() -> None:
    drafter = Recycling(VOCAB)
    drafter.commit([1, 5, 9], Draft((6, 7)), Verdict(0, (9,), (0,)), says(9, 20, 30))
    assert lines(drafter) == {5: [9], 6: [20], 7: [30]}


def test_of_a_token_fed_twice_the_row_that_stands_is_kept() -> None:
    draft = Draft((6, 6, 7, 6), tree=(0, 1, 1, 3))
    for path, kept in (((0, 1, 3), 21), ((0, 1, 2), 22), ((0, 1, 3, 4), 24)):
        drafter = Recycling(VOCAB)
        verdict = Verdict(len(path) - 1, tuple([8] * len(path)), path)
        drafter.commit([1, 5, *verdict.tokens], draft, verdict, says(6, 21, 22, 23, 24))
        if path == (0, 1, 3):
            assert lines(drafter)[6] == [21]
        else:  # two of them stand: the later one
            assert lines(drafter)[6] == [kept]


@pytest.mark.parametrize("width", [1, 4])
def test_it_learns_from_one_request_for_the_next_until_it_is_reset(width: int) -> None:
    table = random_table(VOCAB, seed=8, order=2)
    drafter, target = Recycling(VOCAB, width=width), FakeModel(table, VOCAB)
    first, second = (generate(drafter, target, prompt=[1, 2], budget=25).block_efficiency or 0 for _ in range(2))
    assert second > first + 0.1
    drafter.reset()
    assert generate(drafter, target, prompt=[1, 2], budget=25).block_efficiency == first


def test_a_tree_finds_what_a_chain_of_as_many_tokens_misses() -> None:
    efficiency = {}
    for width in (1, 4):
        drafter, target = Recycling(VOCAB, width=width), FakeModel(BIGRAM, VOCAB)
        for seed in range(4):
            stats = generate(drafter, target, k=8, params=SamplingParams(temperature=1.0, seed=seed))
        efficiency[width] = stats.block_efficiency or 0
    assert efficiency[4] > efficiency[1] + 0.3


def test_drafts_are_chains_unless_told_and_trees_stay_in_their_bounds() -> None:
    chain, tree = Recycling(VOCAB), Recycling(VOCAB, width=3)
    for drafter in (chain, tree):
        assert drafter.propose(PROMPT, 5) == Draft()  # knows nothing, says nothing
        generate(drafter, FakeModel(BIGRAM, VOCAB), k=6, budget=200, params=SamplingParams(temperature=2.0, seed=1))
    for last in range(VOCAB):
        for k in (0, 1, 2, 5, 30, 100):
            assert chain.propose([last], k).tree is None and len(chain.propose([last], k)) <= k
            draft = tree.propose([last], k)
            assert len(draft) <= k
            parents = draft.tree or tuple(range(len(draft)))
            children: dict[int, list[int]] = {}
            for row, (parent, token) in enumerate(zip(parents, draft.tokens, strict=True), 1):
                assert parent < row
                children.setdefault(parent, []).append(token)
            for parent, found in children.items():
                above = last if parent == 0 else draft.tokens[parent - 1]
                assert found == LIKELIEST[above][:3][: len(found)]
    assert max(tree_depths(tree.propose([1], 30).tree or ())) >= 3


def test_a_tree_has_the_nodes_with_the_best_products_of_scores() -> None:
    drafter = Recycling(VOCAB, width=3)
    generate(drafter, FakeModel(BIGRAM, VOCAB), k=6, budget=300, params=SamplingParams(temperature=3.0, seed=1))
    for last in range(VOCAB):
        whole = drafter.propose([0, last], 60)
        worth = [1.0]
        for row, score in zip(whole.parents, whole.scores, strict=True):
            worth.append(worth[row] * score)
        assert len(whole) == 60 and worth == sorted(worth, reverse=True)
        fewer = drafter.propose([0, last], 9)
        assert (fewer.tokens, fewer.parents, fewer.scores) == (whole.tokens[:9], whole.parents[:9], whole.scores[:9])


def test_a_score_is_the_share_of_the_likeliest_and_less_behind_another_token() -> None:
    for width in (1, 2):
        drafter = Recycling(VOCAB, width=width)
        logits = np.full((3, VOCAB), -30, np.float32)
        logits[0, [9, 8, 7]] = np.log([0.6, 0.3, 0.1])
        logits[1, [4, 5]] = np.log([0.9, 0.1])
        logits[2, [5, 4]] = np.log([0.8, 0.2])
        drafter.commit([1, 5, 9], Draft((6, 7), tree=(0, 0)), Verdict(0, (9,), (0,)), Step(logits))

        def score(*context: int, drafter: Recycling = drafter) -> float:
            return drafter.propose(context, 1).scores[0]

        assert score(1, 5) == pytest.approx(0.6 / (0.9 if width == 1 else 1.0))
        assert score(5, 6) == pytest.approx(0.9) and score(5, 7) == pytest.approx(0.8), "both hang on the root"
        assert score(2, 5) < 0.5 * score(1, 5) and score(6, 7) < 0.5 * score(5, 7)
        chain = drafter.propose([1, 5], 2)
        if width == 1:
            assert chain.tokens == (9,)
        assert score(5) < 0.5 * score(1, 5), "nothing stands before it"


@pytest.mark.parametrize("vocab", [5, 127, 300, 128 * 9, 5000])
def test_the_likeliest_are_those_of_a_full_sort(vocab: int) -> None:
    rng = np.random.default_rng(vocab)
    rows = np.array([rng.permutation(vocab) for _ in range(7)], np.float32)
    rows[0] = np.arange(vocab)  # all the best in one block, the last
    rows[1] = -rows[0]
    for count in (1, 2, 4, 5):
        assert likeliest(rows, count).tolist() == np.argsort(-rows, axis=1)[:, :count].tolist()
        view: Logits = np.concatenate([rows, rows])[:, None][3:8, 0]
        assert likeliest(view, count).tolist() == np.argsort(-view, axis=1)[:, :count].tolist()


def test_a_width_that_cannot_be_is_refused() -> None:
    for width, vocab in ((0, VOCAB), (9, VOCAB), (3, 3)):
        with pytest.raises(SettingError, match="recycling width; got"):
            Recycling(vocab, width=width)


def taught(file: Path, about: str = "this") -> dict[int, list[int]]:
    """A drafter with a file learns a few lines and goes."""
    drafter = Recycling(VOCAB, width=2)
    drafter.remember(file, about)
    drafter.commit([1, 5, 9], Draft((6, 7)), Verdict(0, (9,), (0,)), says(9, 20, 30))
    return lines(drafter)


def remembered(file: Path, about: str = "this", *, width: int = 2, vocab: int = VOCAB) -> dict[int, list[int]]:
    drafter = Recycling(vocab, width=width)
    drafter.remember(file, about)
    return lines(drafter)


def test_a_table_comes_back_from_its_file(tmp_path: Path) -> None:
    file = tmp_path / "new folder" / "table.npz"
    known = taught(file)
    assert len(known) == 3
    assert remembered(file) == known
    assert remembered(file) == known  # going without having learnt keeps it
    assert [path.name for path in file.parent.iterdir()] == ["table.npz"]


def test_what_was_reset_is_gone_from_the_file_too(tmp_path: Path) -> None:
    file = tmp_path / "table.npz"
    taught(file)
    drafter = Recycling(VOCAB, width=2)
    drafter.remember(file, "this")
    drafter.reset()
    del drafter
    assert file.is_file() and remembered(file) == {}


def test_it_is_written_when_the_process_ends(tmp_path: Path) -> None:
    file = tmp_path / "table.npz"
    code = (
        "from pathlib import Path; from tests.test_recycling import *\n"
        f"keep = Recycling(VOCAB, width=2); keep.remember(Path({str(file)!r}), 'this')\n"
        "keep.commit([1, 5, 9], Draft(), Verdict(0, (9,), (0,)), says(9))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
    assert remembered(file)[5][0] == 9


def test_another_targets_file_or_a_damaged_one_is_ignored_and_replaced(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "table.npz"
    known = taught(file)
    good = file.read_bytes()
    fits: dict[str, Any] = {"about": "this", "width": 2, "vocab": VOCAB}
    for other in ({}, {"about": "that"}, {"width": 3}, {"width": 1}, {"vocab": VOCAB + 1}):
        file.write_bytes(good)
        assert remembered(file, **fits | other) == ({} if other else known)
    flipped = bytearray(good)
    flipped[good.index(b"successors") + 300] ^= 0xFF

    def with_other(write: Callable[..., None] = np.savez, **changed: Any) -> bytes:
        table: dict[str, Any] = {"lines": [3], "successors": [[4, -1]], "scores": [[0.5, 0.0]], "before": [2]}
        out = io.BytesIO()
        write(out, about="this", shape=(VOCAB, 2), **table | changed)
        return out.getvalue()

    file.write_bytes(with_other())
    assert remembered(file) == {3: [4]}
    foreign = [
        with_other(successors=[[VOCAB, -1]]), with_other(scores=[[np.nan, 0.0]]), with_other(lines=[-1]),
        with_other(lines=[VOCAB]), with_other(before=[1, 2]), with_other(more=bytes(1 << 18)),
        with_other(scores=[[2.0, 0.0]]), with_other(write=np.savez_compressed, about_it=np.zeros(1 << 16)),
    ]  # fmt: skip
    others: tuple[bytes | bytearray, ...] = (b"", good[: len(good) // 2], good[100:], b"\x93NUMPY junk", flipped)
    for damaged in (*others, *foreign):
        file.write_bytes(damaged)
        assert remembered(file) == {}, damaged[:20]
        assert f"dropped {file}" in capfd.readouterr().err
        file.write_bytes(damaged)
        assert taught(file) == remembered(file) == known


def test_a_pair_loaded_again_goes_on_with_what_it_remembers(
    tiny_ir: Path, tiny_fast_ir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGESPEC_CACHE", str(tmp_path))

    def accepted(xml: Path) -> int:
        pipeline = edgespec.load(xml.parent, draft="recycling", remember=True, num_draft_tokens=1, numerics="fast")
        found = pipeline.generate([5, 6, 7], max_new_tokens=12, ignore_eos=True).stats.accepted
        del pipeline
        gc.collect()
        return found

    assert accepted(tiny_ir) < accepted(tiny_ir)
    accepted(tiny_fast_ir)
    assert len(list((tmp_path / "recycling").iterdir())) == 2  # one for each target
    for draft in (None, "ngram"):
        with pytest.raises(SettingError, match="only the draft recycling can be remembered"):
            edgespec.load(tiny_ir.parent, draft=draft, remember=True)


def test_a_mutated_table_is_usable_or_dropped(tmp_path: Path) -> None:
    file, known = tmp_path / "table.npz", 0
    taught(file)
    good = file.read_bytes()
    for seed in range(200):
        draw, data = random.Random(seed), bytearray(good)
        for _ in range(draw.randint(1, 3)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        file.write_bytes(data)
        found = Recycling(VOCAB, width=2)
        read_table(file, "this", found._successors, found._scores, found._before)
        known += bool(lines(found))
        for token in range(VOCAB):
            assert all(0 <= drafted < VOCAB for drafted in found.propose([1, token], 8).tokens)
    assert 0 < known < 200, "some of both"


@pytest.mark.skipif(os.name != "posix", reason="modes are those of POSIX")
def test_a_table_is_the_users_alone(tmp_path: Path) -> None:
    """It chains back to parts of the texts. One that an earlier version left open is closed."""
    file = tmp_path / "recycling" / "table.npz"
    for _ in range(2):
        taught(file)
        assert [path.stat().st_mode & 0o777 for path in (file.parent, file)] == [0o700, 0o600]
        file.parent.chmod(0o755)
        file.chmod(0o644)


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    assert taught(blocked / "table.npz")
    (tmp_path / "folder.npz").mkdir()
    assert taught(tmp_path / "folder.npz")
    assert not list(tmp_path.glob("*.tmp"))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_an_overflow_teaches_nothing(wrong: float) -> None:
    table = Recycling(VOCAB)
    table.commit([1, 2], Draft((3,)), Verdict(0, (2,), (0,)), says(5, 6))
    logits = np.array(says(7, 8).logits)
    logits[0, 9] = wrong
    table.commit([1, 2], Draft((3,)), Verdict(0, (2,), (0,)), Step(logits))
    assert table.propose([0, 1], 1).tokens == (5,), "of its row the earlier line stands"
    assert table.propose([1, 3], 1).tokens == (8,), "the other row is as good as ever"
    assert all(np.isfinite(table.propose([1, token], 4).scores).all() for token in range(VOCAB))
