"""A prompt that is read and two short answers with drafts, as ``auto`` writes them: engines are compared by it.

It takes the loop, the arbiter and the drafters that a run takes. Only the costs are measured shortly, since an engine
that is not chosen should not cost a whole calibration.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any, cast

import numpy as np

from edgespec.adaptive.arbiter import Arbiter
from edgespec.adaptive.calibration import glance, lengthened
from edgespec.adaptive.draft_cost import CallCost, DraftCost
from edgespec.adaptive.forward_cost import ForwardCost
from edgespec.decode.speculative import speculative
from edgespec.errors import BackendError
from edgespec.protocols import Drafter, Model, StepwiseDrafter
from edgespec.sampling_params import SamplingParams
from edgespec.stats import Stats
from edgespec.types import Step, Tree

_CODE = """def total(items, rate):
    # price of all items, with tax
    result = 0
    for item in items:
        if item.count > 0:
            result += item.price * item.count
    return result * (1 + rate)
"""
PROMPT = f"""# Python: total price

```python
{_CODE}```

Explain in two or three sentences what it does, and when it would be wrong. Then write it again with `total` renamed to
`amount`, and change nothing else.

Answer: """
"""asks for a free text and for an edit"""
EDIT = f"""
```python
{_CODE.replace("total", "amount")}"""
"""An answer that copies from the prompt. It is given, since a small model may write something else."""
LONGEST_PROMPT = 128
"""tokens: a vocabulary may spell code letter by letter"""
LONGEST_EDIT = 40
_WIDTHS = (1, 2, 4, 12)
"""whose times are measured; those between lie near a line"""
_DRAFT_WIDTHS = (1, 2, 4)
ROWS_NEEDED = 2 * LONGEST_PROMPT
"""of cache: a prompt, an answer, and the drafts behind it"""


class Trial:
    """A target and its drafters on one engine (see ``engine_comparison.Engine``).

    least, step: exact numerics runs the target at multiples of ``step`` from ``least`` on.
    call: one run of the head, if one drafts.
    """

    def __init__(
        self,
        target: Model,
        lookups: Sequence[Drafter],
        draft: StepwiseDrafter | None,
        prompt: Sequence[int],
        edit: Sequence[int],
        *,
        call: Callable[[], None] | None = None,
        least: int = 1,
        step: int = 1,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self.prompt = list(prompt[:LONGEST_PROMPT])
        self.edit = list(edit[:LONGEST_EDIT])
        if len(self.prompt) < 2 or not self.edit:
            raise BackendError("this tokenizer reads no text to compare engines by")
        self._target, self._clock = target, clock
        self.read()  # the first forward of a width sets things up
        exact = sorted({-(-max(width, least) // step) * step for width in _WIDTHS})
        target_s = glance(target, clock, exact, step=step)
        self._arbiter = Arbiter(
            lookups,
            draft,
            target_s=ForwardCost(target_s, pins_width=target.capabilities.numerics == "exact"),
            draft_s=self._costs_of(draft, call, exact[0]) if draft else None,
            trees=target.capabilities.tree,
        )

    def read(self) -> float:
        """Read the prompt. Returns the seconds of a token of it."""
        return self._read_s(self._target, self.prompt[:-1])

    def write(self, text: Sequence[int], tokens: int, most_s: float) -> tuple[list[int], float]:
        """An answer to the prompt, which was read, of so many tokens, or as many as ``most_s`` allow, and the seconds
        of a token. It begins with ``text``, whatever this engine rounds to: then all engines get the same drafts right.
        """
        self._arbiter.reset()
        arbiter = self._arbiter.only(*self._arbiter.drafters)
        self._target.cache.crop(len(self.prompt) - 1)
        context, stats = list(self.prompt), Stats(clock=self._clock)
        target = cast("Model", Following(self._target, [*self.prompt, *text]))
        ends_s = self._clock() + most_s
        for _ in speculative(target, arbiter, context, SamplingParams(), stop=(), budget=tokens, stats=stats):
            if self._clock() > ends_s:
                break
        return context[len(self.prompt) :], stats.decode_s / stats.decoded

    def _costs_of(self, draft: StepwiseDrafter, call: Callable[[], None] | None, least: int) -> DraftCost:
        if draft.model is not None:
            return self._draft_costs(draft.model, least)
        assert call is not None
        return CallCost(min(self._beside(lambda: self._seconds(call), least)))

    def _draft_costs(self, draft: Model, least: int) -> ForwardCost:
        """In turns with the target, whose weights drive the draft's out of the CPU's caches."""
        read = self.prompt[: max(2, draft.cache.capacity - _DRAFT_WIDTHS[-1])][:-1]
        tokens = [token % draft.vocab_size for token in read]  # it may have fewer ids, and any cost as much
        self._read_s(draft, tokens)
        times = glance(draft, self._clock, _DRAFT_WIDTHS, read_s=self._read_s(draft, tokens))
        beside = self._beside(lambda: self._forward_s(draft, 1), least)
        draft.cache.reset()
        return ForwardCost(lengthened(times, beside), pins_width=False)

    def _beside(self, run_s: Callable[[], float], least: int) -> list[float]:
        """What a draft takes that runs in turns with the target."""
        found = []
        for _ in range(3):
            self._forward_s(self._target, least)
            found.append(run_s())
        return found

    def _read_s(self, model: Model, tokens: Sequence[int]) -> float:
        """Of a token of a prompt, which is in the cache then."""
        model.cache.reset()
        return self._seconds(lambda: model.prefill(tokens)) / len(tokens)

    def _forward_s(self, model: Model, width: int) -> float:
        length = model.cache.length
        seconds = self._seconds(lambda: model.forward([0] * width))
        model.cache.crop(length)
        return seconds

    def _seconds(self, run: Callable[[], object]) -> float:
        began = self._clock()
        run()
        return self._clock() - began


class Following:
    """A model that goes on with a given text as long as there is one.

    The engine computes all that it would compute. Only where another token is likelier than the text's, the text's gets
    a logit just above it.
    """

    def __init__(self, model: Model, text: list[int]) -> None:
        self._model, self._text = model, text
        self._started: tuple[Sequence[int], Tree | None] = (), None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def forward(
        self, tokens: Sequence[int], tree: Tree | None = None, *, num_logits: int | None = None, width: int = 1
    ) -> Step:
        return self._led(self._model.forward(tokens, tree, num_logits=num_logits, width=width), tokens, tree)

    def start(
        self, tokens: Sequence[int], tree: Tree | None = None, *, num_logits: int | None = None, width: int = 1
    ) -> None:
        self._started = tokens, tree
        self._model.start(tokens, tree, num_logits=num_logits, width=width)

    def wait(self) -> Step:
        return self._led(self._model.wait(), *self._started)

    def _led(self, step: Step, tokens: Sequence[int], tree: Tree | None) -> Step:
        logits = step.logits
        parents = range(len(tokens) - 1) if tree is None else tree
        places: list[int | None] = [self._model.cache.length - len(tokens)]  # of each row in the text; None: not in it
        for token, parent in zip(tokens[1:], parents, strict=True):
            above = places[parent]
            follows = above is not None and self._text[above + 1 : above + 2] == [token]
            places.append(above + 1 if above is not None and follows else None)
        for row, place in enumerate(places[len(tokens) - len(logits) :]):
            if place is None or place + 1 >= len(self._text):
                continue
            best, token = int(logits[row].argmax()), self._text[place + 1]
            if best != token:
                if logits is step.logits:
                    logits = logits.copy()  # it is the engine's
                logits[row, token] = np.nextafter(logits[row, best], np.float32(np.inf))
        return replace(step, logits=logits)
