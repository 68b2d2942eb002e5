"""The smallest drafting head: on a graph, and on a fake model whose states it holds against the text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgespec import draft_folder
from edgespec.backends.fake import Table, VirtualClock, hidden_state
from edgespec.backends.openvino.runtime import ops, ov
from edgespec.bundle import IR_FILE, Bundle, model_file
from edgespec.bundle import Drafter as DrafterEntry
from edgespec.draft_folder import DraftManifest
from edgespec.drafters.last_state import LastState
from edgespec.drafters.token_choice import TokenChoice
from edgespec.manifest import DrafterNeeds
from edgespec.protocols import StaticGraph, StepwiseDrafter
from edgespec.sampling_params import SamplingParams
from edgespec.types import Allowed, Draft, Hidden, Logits, Needs


class Head(StepwiseDrafter):
    """Logits of the next tokens from one state and the last token, none of them knowing what was drafted before it.

    graph: ``state`` ``(1, d)`` and ``token`` ``(1,)`` -> ``logits`` ``(longest, ids)``.
    """

    def __init__(
        self, graph: StaticGraph, ids: NDArray[np.integer], layer: int, *, vocab_size: int, name: str = "head"
    ) -> None:
        self.graph = graph
        self._prepare(ids, layer, graph.outputs["logits"][0], vocab_size, name)

    def _prepare(self, ids: NDArray[np.integer], layer: int, longest: int, vocab_size: int, name: str) -> None:
        self.name, self.needs, self.longest, self.layer = name, Needs((layer,)), longest, layer
        self._states = LastState((layer,))
        self._choice = TokenChoice(ids, vocab_size, name=name)

    @property
    def hidden_size(self) -> int:
        return self.graph.inputs["state"][-1]

    def begin(self, context: Sequence[int], params: SamplingParams, *, read: bool = True) -> None:
        self._states.begin(context, params)
        self._choice.begin(params)

    def read(self, context: Sequence[int]) -> None:
        return

    def unread_tokens(self, length: int) -> int:
        return self._states.unread_tokens(length)

    def propose_while(
        self,
        context: Sequence[int],
        k: int,
        go_on: Callable[[Sequence[float]], bool],
        allowed: Allowed | None = None,
    ) -> Draft:
        states = self._states.after(context)
        if states is None or k == 0:
            return Draft()
        logits = self._logits(states[self.layer], context)  # (longest, ids)
        return self._choice.draft(
            lambda drafted: logits[len(drafted)] if len(drafted) < len(logits) else None, context, k, go_on, allowed
        )

    def observe(self, start: int, tokens: Sequence[int], hidden: Hidden) -> None:
        self._states.observe(start, tokens, hidden)

    def reset(self) -> None:
        self._states.reset()

    def _logits(self, state: NDArray[np.float32], context: Sequence[int]) -> Logits:
        return self.graph.run({"state": state[None], "token": np.array(context[-1:])})["logits"]


class FakeHead(Head):
    """On a fake model: says what ``table`` says along its own greedy path. Each call takes ``call_s`` on the clock."""

    def __init__(
        self,
        table: Table,
        vocab_size: int,
        *,
        longest: int = 4,
        layer: int = 1,
        call_s: float = 0.0,
        clock: VirtualClock | None = None,
    ) -> None:
        self._table, self.call_s, self._clock = table, call_s, clock or VirtualClock()
        self.calls = 0
        self._prepare(np.arange(vocab_size), layer, longest, vocab_size, "head")

    def _logits(self, state: NDArray[np.float32], context: Sequence[int]) -> Logits:
        assert np.array_equal(state, hidden_state(self.layer, tuple(context[:-1]))), "a state of another text"
        self.calls += 1
        self._clock.now_s += self.call_s
        text, rows = tuple(context), []
        for _ in range(self.longest or 0):
            rows.append(self._table(text))
            text = (*text, int(rows[-1].argmax()))
        return np.array(rows)


def write_head(
    folder: Path,
    target: Bundle,
    texts: Sequence[Sequence[int]],
    /,
    *,
    width: int,
    layers: Sequence[int],
    kind: Literal["redrafter", "block"] = "redrafter",
    longest: int = 4,
    trimmed: bool = True,
    **changes: Any,
) -> Path:
    """A draft folder for ``target`` whose head says what most often followed a token in ``texts``, and a little of the
    state beside it. width: of the states. changes: of draft.json."""
    vocab_size = target.manifest.target.vocab_size
    ids = np.array(sorted({token for text in texts for token in text}), np.int32)
    ids = ids if trimmed else np.arange(vocab_size, dtype=np.int32)
    counts: dict[int, Counter[int]] = {}
    for text in texts:
        for token, after in pairwise(text):
            counts.setdefault(token, Counter())[after] += 1
    place = {int(token): index for index, token in enumerate(ids)}
    follow = np.zeros((vocab_size, longest), np.int64)  # of each token, the head ids that follow it
    for token in counts:
        at = token
        for depth in range(longest):
            at = counts[at].most_common(1)[0][0] if at in counts else at
            follow[token, depth] = place[at]
    (folder / "draft").mkdir(parents=True)
    xml = folder / "draft" / IR_FILE
    ov.serialize(_bigrams(follow, len(ids), width), xml)
    np.save(folder / "draft" / "id_map.npy", ids)
    model = model_file(folder, f"draft/{IR_FILE}", precision="f32", vocab_size=len(ids))
    entry = DrafterEntry(
        name="head",
        kind=kind,
        model=model,
        id_map="draft/id_map.npy" if trimmed else None,
        needs=DrafterNeeds(layers=tuple(layers)),
    )
    tokens = int(ids.max()) + 1
    manifest = DraftManifest(
        format=draft_folder.FORMAT,
        target="tiny",
        target_weights=draft_folder.weights_of(target),
        tokens=tokens,
        tokens_sha256=draft_folder.tokens_sha256(target, tokens),
        drafter=entry,
    )
    manifest = msgspec.structs.replace(manifest, **changes)
    (folder / draft_folder.MANIFEST).write_bytes(msgspec.json.encode(manifest))
    return folder


def _bigrams(after: NDArray[np.int64], vocab: int, width: int) -> ov.Model:
    longest = after.shape[1]
    state, token = ops.parameter([1, width], np.float32), ops.parameter([1], np.int32)
    said = ops.reshape(ops.gather(ops.constant(after), token, ops.constant(0)), ops.constant([longest]), False)
    sure = ops.one_hot(said, ops.constant(vocab), ops.constant(np.float32(9)), ops.constant(np.float32(0)), -1)
    random = np.random.default_rng(0)
    first, second = (random.standard_normal(shape).astype(np.float32) for shape in ((width, 1), (1, vocab)))
    doubt = ops.tanh(ops.matmul(state, ops.constant(first), False, False))
    logits = ops.result(ops.add(sure, ops.matmul(doubt, ops.constant(second), False, False)))
    for node, name in ((state, "state"), (token, "token"), (logits, "logits")):
        node.output(0).get_tensor().set_names({name})
    return ov.Model([logits], [state, token], "head")


def small_head(
    graph: StaticGraph, ids: NDArray[np.int32], layers: tuple[int, ...], *, vocab_size: int, name: str, **_: Any
) -> Head:
    """What stands for each kind of head in the tests of the runtime."""
    return Head(graph, ids, layers[-1], vocab_size=vocab_size, name=name)
