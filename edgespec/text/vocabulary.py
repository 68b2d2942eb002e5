"""Checks that a draft and its target mean the same token by the same id.

Vocabularies are compared id by id. Equal sizes prove nothing: Llama 2 and Mistral both have 32000 and share few ids.
Different sizes are normal: rows are padded to a multiple, and one side may have more added tokens.

Ordinary tokens that both have must be equal. Three kinds of ids may differ: ids that only one side has, padding rows,
and added tokens with another name. The draft must never propose them: ``Pairing.blocked``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgespec.errors import IncompatiblePair

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class Vocabulary:
    """What a model can read and write.

    tokens: text of each id. added: ids that were added to the trained vocabulary. logits: rows of the output head.
    """

    name: str
    tokens: Mapping[int, str]
    added: Collection[int]
    logits: int

    @classmethod
    def of(cls, tokenizer: Tokenizer, name: str, logits: int) -> Vocabulary:
        added = tokenizer.get_added_tokens_decoder()
        return cls(name, {index: text for text, index in tokenizer.get_vocab().items()}, frozenset(added), logits)

    def usable(self) -> set[int]:
        """Ids that name a token and have a row in the model."""
        return {index for index in self.tokens if index < self.logits}


@dataclass(frozen=True)
class Pairing:
    """The result for a draft that fits.

    shared: how many ids name the same token in both.
    blocked: ids the draft has a logit for and must not propose.
    notes: what differs, one sentence each; empty for a perfect fit.
    """

    shared: int
    blocked: frozenset[int]
    notes: tuple[str, ...]


def check_pair(target: Vocabulary, draft: Vocabulary) -> Pairing:
    """Compare two vocabularies. Raises IncompatiblePair with the first difference.

    >>> a = Vocabulary("a", {0: "x", 1: "y"}, (), logits=4)
    >>> b = Vocabulary("b", {0: "x", 1: "y", 2: "<tool>"}, (2,), logits=3)
    >>> check_pair(a, b).blocked
    frozenset({2})
    """
    readable, proposable = target.usable(), draft.usable()
    both = sorted(readable & proposable)
    different = [index for index in both if target.tokens[index] != draft.tokens[index]]
    renamed = [index for index in different if index in target.added and index in draft.added]
    wrong = sorted(set(different) - set(renamed))
    if wrong or not both:
        raise IncompatiblePair(
            f"draft {draft.name} does not fit target {target.name}: {_explain(target, draft, wrong, len(both))}",
            hint="use a draft made for the target's tokenizer",
        )
    shared = set(both) - set(renamed)
    foreign = sorted(proposable - readable)
    unknown = sorted(readable - proposable)
    blocked = frozenset(range(draft.logits)) - shared
    notes = []
    if target.logits != draft.logits:
        notes.append(f"the target has {target.logits} logits and the draft {draft.logits}; ids beyond both are padding")
    if renamed:
        notes.append(f"{_some(renamed, draft)} named differently by the target; the draft never proposes them")
    if foreign:
        notes.append(f"{_some(foreign, draft)} known to the draft only; it never proposes them")
    if unknown:
        notes.append(f"{_some(unknown, target)} known to the target only; the draft never proposes them")
    return Pairing(len(shared), blocked, tuple(notes))


def _explain(target: Vocabulary, draft: Vocabulary, wrong: list[int], both: int) -> str:
    if not wrong:
        return "they have no token id in common"
    shown = [f"id {i} is {target.tokens[i]!r} in the target and {draft.tokens[i]!r} in the draft" for i in wrong[:3]]
    return f"{'; '.join(shown)}; {len(wrong)} of {both} ids differ"


def _some(ids: list[int], vocabulary: Vocabulary) -> str:
    shown = ", ".join(repr(vocabulary.tokens[index]) for index in ids[:3])
    more = ", ..." if len(ids) > 3 else ""
    return f"{len(ids)} token{'s' if len(ids) > 1 else ''} ({shown}{more}) {'are' if len(ids) > 1 else 'is'}"
