"""Vocabularies are compared id by id."""

from __future__ import annotations

import pytest

from edgespec.errors import IncompatiblePair
from edgespec.text.vocabulary import Vocabulary, check_pair

WORDS = {0: "<eos>", 1: "a", 2: "b", 3: "c"}


def vocabulary(name: str = "t", logits: int = 4, added: tuple[int, ...] = (0,), **changes: str | None) -> Vocabulary:
    tokens = WORDS | {int(key[1:]): text for key, text in changes.items()}
    return Vocabulary(name, {index: text for index, text in tokens.items() if text is not None}, added, logits)


def test_equal_vocabularies_fit_without_notes() -> None:
    pairing = check_pair(vocabulary(), vocabulary())
    assert (pairing.shared, pairing.blocked, pairing.notes) == (4, frozenset(), ())


def test_padding_is_noted_and_never_proposed() -> None:
    pairing = check_pair(vocabulary(logits=6), vocabulary(logits=8))
    assert pairing.blocked == {4, 5, 6, 7}
    assert pairing.notes == ("the target has 6 logits and the draft 8; ids beyond both are padding",)


def test_tokens_only_one_side_has_are_never_proposed() -> None:
    target, draft = vocabulary(logits=8, _5="<tool>"), vocabulary(logits=5, _4="<think>")
    pairing = check_pair(target, draft)
    assert (pairing.shared, pairing.blocked) == (4, frozenset({4}))
    assert "'<think>') is known to the draft only" in pairing.notes[1]
    assert "'<tool>') is known to the target only" in pairing.notes[2]


def test_renamed_added_tokens_are_never_proposed() -> None:
    pairing = check_pair(vocabulary(), vocabulary(_0="<|end|>"))
    assert (pairing.shared, pairing.blocked) == (3, frozenset({0}))
    assert "1 token ('<|end|>') is named differently" in pairing.notes[0]


def test_a_tokenizer_id_without_a_row_does_not_count() -> None:
    assert check_pair(vocabulary(), vocabulary(logits=3)).shared == 3


@pytest.mark.parametrize("draft", [vocabulary("d", _2="x", _3="y"), vocabulary("d", _2="x", _3="y", logits=3)])
def test_a_different_ordinary_token_is_explained(draft: Vocabulary) -> None:
    with pytest.raises(IncompatiblePair, match="id 2 is 'b' in the target and 'x' in the draft") as caught:
        check_pair(vocabulary(), draft)
    assert "draft d does not fit target t" in str(caught.value)
    assert f"{draft.logits - 2} of {draft.logits} ids differ" in str(caught.value)


def test_nothing_in_common() -> None:
    with pytest.raises(IncompatiblePair, match="no token id in common"):
        check_pair(vocabulary(), Vocabulary("d", {9: "z"}, (), 10))


def test_real_tokenizers() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    plain = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    plain.add_special_tokens(["<s>"])
    assert check_pair(Vocabulary.of(plain, "t", 3), Vocabulary.of(plain, "d", 3)).shared == 3
    assert Vocabulary.of(plain, "t", 3).added == {2}
