"""When a draft model stops: as soon as one more token is not worth its step and a wider forward.

After each token it is asked how sure it is; what that means is learned from outcomes (``acceptance``). So a draft ends
where the model becomes unsure. Its time is known afterwards: a step for each token, and before the first what it takes
to read what it has not read yet. A head has no steps to save: its draft ends where the wider forward is not worth it.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from edgespec.adaptive.candidate import Candidate
from edgespec.adaptive.draft_cost import DraftCost
from edgespec.adaptive.round_worth import RoundWorth


class StopRule:
    """One draft of ``model``. unread_tokens: of the context, one at least; 0: there is no room for a step."""

    def __init__(self, worth: RoundWorth, model: Candidate, draft_s: DraftCost, unread_tokens: int) -> None:
        self._worth, self._model, self._draft_s = worth, model, draft_s
        self._unread_tokens = unread_tokens
        self.steps = 1 if unread_tokens else 0

    def is_worth_step(self, scores: Sequence[float]) -> bool:
        """Whether to draft another token behind tokens with these scores."""
        worth, n = self._worth, len(scores)
        chance = prod(self._model.by_score.chance(score) for score in scores) * self._model.by_position.chance(n)
        more_s = self._draft_s.seconds(1, worth.length) + worth.round_s(1 + n) - worth.round_s(n)
        pays = chance > worth.rate * more_s
        self.steps += pays
        return pays

    def learn_cost(self, seconds: float) -> float:
        """The draft took so long. Returns how much of it was reading that is not done every round."""
        costs, context = self._draft_s, self._worth.length
        read_s = costs.read_s(self._unread_tokens - 1, context)
        expected_s = costs.start_s + read_s + self.steps * costs.seconds(1, context)
        unusual_s = seconds * costs.read_s(max(0, self._unread_tokens - 2), context) / expected_s
        costs.scale(seconds / expected_s)
        return unusual_s
