"""Ids that may stand for nothing."""

from __future__ import annotations

import pytest

from edgespec.errors import SettingError
from edgespec.text.placeholder_ids import require_placeholders
from edgespec.text.vocabulary import Vocabulary

TOKENS = {
    0: "a",
    1: "<|im_end|>",
    2: "<|reserved_special_token_3|>",
    3: "reserved",
    4: "<SAT>",
    5: "[PAD5]",
    6: "<pad>",
}
VOCABULARY = Vocabulary("a model", TOKENS, added={1, 2, 4, 5, 6}, logits=8)


@pytest.mark.parametrize("token", [2, 4, 5, 7, 8])
def test_ids_without_a_use_are_free(token: int) -> None:
    require_placeholders([token], 5, VOCABULARY, rows=1)


@pytest.mark.parametrize(
    ("token", "said"),
    [
        (0, "the tokenizer uses: it is 'a'"),
        (1, "it is '<|im_end|>'"),
        (3, "it is 'reserved'"),  # a word of a text, and no added token
        (6, "it is '<pad>'"),
        (7, "a text ends with it"),
        (9, "outside the vocabulary of a model; got 9; allowed: 0 to 8"),
        (-1, "got -1"),
    ],
)
def test_ids_with_a_use_are_refused(token: int, said: str) -> None:
    with pytest.raises(SettingError) as refused:
        require_placeholders([2, token], 5, VOCABULARY, rows=1, ends={7})
    assert said in str(refused.value)


@pytest.mark.parametrize("count", [0, 65])
def test_their_number_has_a_limit(count: int) -> None:
    with pytest.raises(SettingError, match="number of adaptive tokens"):
        require_placeholders([2], count, VOCABULARY)
