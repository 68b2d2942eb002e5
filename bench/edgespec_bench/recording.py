"""A recording: texts that a pair wrote, what its draft model says at every place of them, what forwards cost there.

With exact numerics a text is the same with any draft, so this is all that a policy can find out about these texts on
that machine. ``replay`` runs policies against it. The file is JSON in gzip.
"""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import msgspec

from edgespec.adaptive.calibration import ForwardTimes
from edgespec.adaptive.forward_cost import ForwardCost
from edgespec.bench.prompts import Prompt, encode
from edgespec.errors import SettingError, foreign, wrap_errors
from edgespec.machine.devices import machine
from edgespec.pipeline import Pipeline
from edgespec.sampling_params import SamplingParams

LONGEST_DRAFT = 12
"""tokens of the model's draft at each place: nobody drafts as far as that for long"""


@dataclass(frozen=True)
class Chain:
    """What the draft model says after a text, greedily, and how sure it is of each token."""

    tokens: tuple[int, ...]
    scores: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.scores) or not all(0 <= score <= 1 for score in self.scores):
            raise ValueError("not a score in 0..1 for each token")


@dataclass(frozen=True)
class Recorded:
    """A text. drafts: the model's, in front of each written token; none without a draft model."""

    category: str
    prompt: tuple[int, ...]
    written: tuple[int, ...]
    drafts: tuple[Chain, ...] = ()

    def __post_init__(self) -> None:
        if not self.prompt or not self.written or len(self.drafts) not in (0, len(self.written)):
            raise ValueError("a text without tokens, or not a draft for each of them")
        if min(self.prompt + self.written) < 0:
            raise ValueError("a negative token id")


@dataclass(frozen=True)
class Recording:
    """Texts in the order in which they were written, and the costs of forwards.

    exact: a forward may be padded, since no bit depends on its width. host_s: of a round, beside target and draft.
    """

    model: str
    machine: dict[str, str | int | float | None]
    exact: bool
    target: ForwardTimes
    draft: ForwardTimes | None
    host_s: float
    texts: tuple[Recorded, ...]

    def __post_init__(self) -> None:
        if not self.texts or self.host_s < 0:
            raise ValueError("no text, or a time below nothing")
        if self.draft is not None and not all(text.drafts for text in self.texts):
            raise ValueError("a draft model that says nothing")


def record(pipeline: Pipeline, prompts: Sequence[Prompt], *, new_tokens: int) -> Recording:
    """Write each text with the pipeline's own policy, then ask its draft model at every place of it."""
    arbiter = pipeline.arbiter
    if arbiter is None:
        raise SettingError("nothing to record: no drafter of its own length", hint="leave --draft and -k out")
    draft_s = arbiter.draft_s
    if draft_s is not None and not isinstance(draft_s, ForwardCost):
        raise SettingError("only lookups and a draft model are recorded", got=f"drafts of {arbiter.name}")
    texts, hosts_s = [], []
    for prompt in prompts:
        ids = encode(pipeline, prompt)
        run = pipeline.generate(ids, max_new_tokens=new_tokens)
        hosts_s += [round_.host_s for round_ in run.stats.decoding]
        drafts = []
        for place in range(len(run.token_ids) if arbiter.model is not None else 0):
            context = [*ids, *run.token_ids[:place]]
            assert arbiter.model
            arbiter.model.begin(context, SamplingParams())
            said = arbiter.model.propose(context, LONGEST_DRAFT)
            drafts.append(Chain(said.tokens, tuple(round(score, 4) for score in said.scores)))
        texts.append(Recorded(prompt.category, tuple(ids), tuple(run.token_ids), tuple(drafts)))
    return Recording(
        model=pipeline.bundle.name,
        machine=machine(),
        exact=pipeline.target.capabilities.numerics == "exact",
        target=arbiter.target_s.times,
        draft=draft_s.times if draft_s else None,
        host_s=median(hosts_s),
        texts=_renumbered(texts),
    )


def at_costs_of(recording: Recording, other: Recording) -> Recording:
    """Its texts and drafts, on the machine and engine of another recording: no text depends on what a forward takes."""
    if (recording.draft is None) != (other.draft is None):
        got = "with and without one" if recording.draft else "without and with one"
        raise SettingError("texts and costs of different draft models", got=got, allowed="both with, or both without")
    return replace(other, model=f"{recording.model} at the costs of {other.model}", texts=recording.texts)


def save(recording: Recording, file: Path) -> None:
    with wrap_errors(SettingError, f"cannot write {file}"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(gzip.compress(msgspec.json.encode(recording), mtime=0))


def read(file: Path) -> Recording:
    """Raises SettingError for a file that is no recording."""
    with foreign(SettingError, f"cannot read the recording {file}", hint="make one: edgespec bench record"):
        return msgspec.json.decode(gzip.decompress(file.read_bytes()), type=Recording)


def _renumbered(texts: Sequence[Recorded]) -> tuple[Recorded, ...]:
    """The same with small token ids, so that a replay's logits are short. Lookups do not mind."""
    ids: dict[int, int] = {}

    def new(tokens: Sequence[int]) -> tuple[int, ...]:
        return tuple(ids.setdefault(token, len(ids)) for token in tokens)

    return tuple(
        replace(
            text,
            prompt=new(text.prompt),
            written=new(text.written),
            drafts=tuple(replace(chain, tokens=new(chain.tokens)) for chain in text.drafts),
        )
        for text in texts
    )
