"""Heads for tests: on a fake model whose text they know, and as small graphs that an engine runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
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
from edgespec.drafters.block import Block
from edgespec.drafters.last_state import LastState
from edgespec.drafters.redrafter import ReDrafter
from edgespec.drafters.token_choice import TokenChoice
from edgespec.manifest import DrafterNeeds
from edgespec.protocols import StepwiseDrafter
from edgespec.sampling_params import SamplingParams
from edgespec.types import Allowed, Draft, Hidden, Logits, Needs

HeadKind = Literal["block", "redrafter"]


class FakeHead(StepwiseDrafter):
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
        self.name, self.needs, self.longest, self.layer = "head", Needs((layer,)), longest, layer
        self._states = LastState((layer,))
        self._choice = TokenChoice(np.arange(vocab_size), vocab_size, name=self.name)
        self._table, self.call_s, self._clock = table, call_s, clock or VirtualClock()
        self.calls = 0

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
        assert np.array_equal(state, hidden_state(self.layer, tuple(context[:-1]))), "a state of another text"
        self.calls += 1
        self._clock.now_s += self.call_s
        text, rows = tuple(context), []
        for _ in range(self.longest or 0):
            rows.append(self._table(text))
            text = (*text, int(rows[-1].argmax()))
        return np.array(rows)


class KnowingGraph:
    """The graph of a block drafter or of a chain, on a fake model: it has the logits of ``table`` behind the text that
    it is told, spoiled by ``error``."""

    def __init__(
        self,
        table: Table,
        ids: NDArray[np.int32],
        layers: Sequence[int],
        *,
        kind: HeadKind = "block",
        k: int = 4,
        window: int = 3,
        error: float = 0.0,
    ) -> None:
        self.table, self.ids, self.k, self.error = table, ids, k, error
        m, width = len(ids), len(hidden_state(layers[0], (0,)))
        states: dict[str, tuple[int, ...]] = {"states": (1, len(layers) * width)}
        if kind == "block":
            states = {"states": (window, len(layers), width), "count": (1,)}
        self.inputs: Mapping[str, tuple[int, ...]] = {**states, "token": (1,), "noise": (k, m)}
        self.outputs: Mapping[str, tuple[int, ...]] = {"logits": (k, m), "tokens": (k,)}
        self.text: list[int] = []
        self.texts: list[list[int]] = []
        self.read: list[Mapping[str, NDArray[Any]]] = []

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        assert {name: array.shape for name, array in inputs.items()} == self.inputs
        self.texts.append(list(self.text))
        self.read.append({name: array.copy() for name, array in inputs.items()})
        text, logits, tokens = list(self.text), [], []
        for noise in inputs["noise"]:
            doubt = np.random.default_rng([*text, 7]).standard_normal(len(self.ids)).astype(np.float32)
            logits.append(self.table(tuple(text))[self.ids] + self.error * doubt)
            tokens.append(int((logits[-1] + noise).argmax()))
            text.append(int(self.ids[tokens[-1]]))
        self.chosen = tokens
        return {"logits": np.array(logits, np.float32), "tokens": np.array(tokens, np.int32)}


def knowing(kind: HeadKind, graph: KnowingGraph, layers: tuple[int, ...], vocab_size: int) -> Block | ReDrafter:
    """A drafter that tells its graph the text, which a real one reads from the states."""
    make = Block if kind == "block" else ReDrafter
    drafter = make(graph, graph.ids, layers, vocab_size=vocab_size)
    propose = drafter.propose_while

    def told(context: Sequence[int], *rest: Any) -> Draft:
        graph.text = list(context)
        return propose(context, *rest)

    drafter.propose_while = told  # type: ignore[assignment,method-assign]
    return drafter


def write_head(
    folder: Path,
    target: Bundle,
    texts: Sequence[Sequence[int]],
    /,
    *,
    width: int,
    layers: Sequence[int],
    kind: HeadKind = "redrafter",
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
    follow = np.zeros((len(ids) + 1, longest), np.int64)  # of each head id, and of all other tokens: those that follow
    for token in counts:
        at = token
        for depth in range(longest):
            at = counts[at].most_common(1)[0][0] if at in counts else at
            follow[place[token], depth] = place[at]
    (folder / "draft").mkdir(parents=True)
    xml = folder / "draft" / IR_FILE
    ov.serialize(_bigrams(kind, follow, len(ids), (len(layers), width)), xml)
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


def _bigrams(kind: HeadKind, after: NDArray[np.int64], vocab: int, states: tuple[int, int]) -> ov.Model:
    """A graph of that kind. after: ``(ids, longest)``. states: layers, and width of each."""
    longest, layers, width = after.shape[1], *states
    token, noise = ops.parameter([1], np.int32), ops.parameter([longest, vocab], np.float32)
    inputs = {"token": token, "noise": noise}
    if kind == "block":
        inputs |= {"states": ops.parameter([8, layers, width], np.float32), "count": ops.parameter([1], np.int32)}
    else:
        inputs["states"] = ops.parameter([1, layers * width], np.float32)
    last = ops.reshape(inputs["states"], ops.constant([-1, layers * width]), False)
    last = ops.gather(last, ops.constant([-1]), ops.constant(0))
    said = ops.reshape(ops.gather(ops.constant(after), token, ops.constant(0)), ops.constant([longest]), False)
    sure = ops.one_hot(said, ops.constant(vocab), ops.constant(np.float32(9)), ops.constant(np.float32(0)), -1)
    random = np.random.default_rng(0)
    first, second = (random.standard_normal(shape).astype(np.float32) for shape in ((layers * width, 1), (1, vocab)))
    doubt = ops.tanh(ops.matmul(last, ops.constant(first), False, False))
    logits = ops.add(sure, ops.matmul(doubt, ops.constant(second), False, False))
    chosen = ops.topk(ops.add(logits, noise), ops.constant(1), -1, "max", "value", index_element_type="i32")
    outputs = {"logits": logits, "tokens": ops.reshape(chosen.output(1), ops.constant([longest]), False)}
    if kind == "block":  # as graphs of old have them
        counted = ops.convert(ops.reduce_max(inputs["count"], ops.constant(0), False), "f32")
        outputs["scores"] = ops.multiply(ops.constant(np.full(longest, 0.5, np.float32)), counted)
    results = {name: ops.result(node) for name, node in outputs.items()}
    for name, node in (inputs | results).items():
        node.output(0).get_tensor().set_names({name})
    return ov.Model(list(results.values()), list(inputs.values()), kind)
