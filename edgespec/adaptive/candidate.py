"""What is known of one drafter under the arbiter: what it proposes this round, and what its tokens are worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from edgespec.adaptive.acceptance import ByPosition, ByScore
from edgespec.adaptive.draft_tree import Branch
from edgespec.protocols import Drafter
from edgespec.types import Draft


@dataclass
class Candidate:
    """What is known of a drafter."""

    drafter: Drafter
    by_score: ByScore = field(default_factory=ByScore)
    of_alternatives: ByScore = field(default_factory=ByScore)
    by_position: ByPosition = field(default_factory=ByPosition)
    proposed: Draft = field(default_factory=Draft)

    def chances(self, draft: Draft) -> list[float]:
        """For each token: the chance that it and all above it stand."""
        found: list[float] = []
        depths: list[int] = []
        for index, row in enumerate(draft.parents):
            depths.append(depths[row - 1] + 1 if row else 0)
            own = self.by_score.chance(draft.scores[index]) if draft.scores else self.by_position.chance(depths[index])
            found.append(own * (found[row - 1] if row else 1.0))
        return found

    def branches(self, draft: Draft) -> list[Branch]:
        """A draft, chain or tree, as chains from the root; runners-up of a chain are chains of their own."""
        chances = self.chances(draft)
        paths: list[list[int]] = []
        for index, row in enumerate(draft.parents):
            paths.append([*paths[row - 1], index] if row else [index])
        inner = {row - 1 for row in draft.parents}
        leaves = [path for index, path in enumerate(paths) if index not in inner]
        found = [Branch(tuple(draft.tokens[i] for i in path), tuple(chances[i] for i in path)) for path in leaves]
        for place, (token, score) in enumerate(draft.alternatives):
            if score == 0.0:  # a constraint allows nothing else here
                continue
            above = chances[place - 1] if place else 1.0
            found.append(
                Branch((*draft.tokens[:place], token), (*chances[:place], above * self.of_alternatives.chance(score)))
            )
        return found

    def learn(self, committed: Sequence[int]) -> None:
        """What the target said of ``proposed``: of every token that stands right behind what was committed."""
        draft, self.proposed = self.proposed, Draft()
        stands: list[int | None] = []  # how deep an accepted token is; None for the others
        for index, (token, row) in enumerate(zip(draft.tokens, draft.parents, strict=True)):
            above = stands[row - 1] if row else 0
            stands.append(None)
            if above is None or above >= len(committed):
                continue
            accepted = token == committed[above]
            stands[index] = above + 1 if accepted else None
            if draft.scores:
                self.by_score.update(draft.scores[index], accepted)
            if draft.tree is None:
                self.by_position.update(above, accepted)
                if draft.alternatives:
                    other, score = draft.alternatives[index]
                    if score > 0.0:
                        self.of_alternatives.update(score, other == committed[above])
