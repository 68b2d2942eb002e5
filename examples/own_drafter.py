"""A drafter of your own: it completes phrases that you write often. It can change the speed, never the text.

python examples/own_drafter.py
"""

from collections.abc import Sequence

import edgespec
from edgespec.protocols import Drafter
from edgespec.types import Allowed, Draft


class PhraseBook(Drafter):
    """Proposes the rest of a phrase once the text ends with its first two tokens, or more."""

    name = "phrases"

    def __init__(self, phrases: Sequence[Sequence[int]]) -> None:
        self._phrases = [tuple(phrase) for phrase in phrases]

    def propose(self, context: Sequence[int], k: int, allowed: Allowed | None = None) -> Draft:
        for phrase in self._phrases:
            for known in range(len(phrase) - 1, 1, -1):
                if tuple(context[-known:]) == phrase[:known]:
                    return Draft(phrase[known : known + k])
        return Draft()


pipeline = edgespec.load(draft="none")
phrase = pipeline.tokenizer.encode("The capital of France is Paris.", raw=True)
question = "What is the capital of France?"
plain = pipeline.generate(question, max_new_tokens=32)
drafted = pipeline.generate(question, max_new_tokens=32, drafter=PhraseBook([phrase]))
print(drafted.text)
print(f"{drafted.stats.accepted} of {drafted.stats.proposed} drafted tokens accepted")
print("the same tokens" if drafted.token_ids == plain.token_ids else "other tokens: that is a bug")
