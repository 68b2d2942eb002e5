"""Every drafter alone, all of them under the arbiter, and fixed lengths, in turns: who is worth what, and where."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from edgespec.bench.prompts import Prompt, behind, read_before
from edgespec.bench.report import show
from edgespec.decode.policy import Plain
from edgespec.drafters.text_pool import Pool
from edgespec.errors import SettingError
from edgespec.pipeline import Pipeline
from edgespec.protocols import Policy
from edgespec.sampling_params import SamplingParams
from edgespec.types import Round

PLAIN, AUTO = "none", "auto"


@dataclass
class _Runs:
    """What one policy did on the prompts of one category."""

    rounds: list[Round] = field(default_factory=list)
    seconds: float = 0.0
    ratios: list[float] = field(default_factory=list)
    """plain decode time a token over own, one for each prompt: the median of its pairs"""
    same: int = 0

    @property
    def figures(self) -> dict[str, float]:
        proposed = sum(r.proposed for r in self.rounds)
        committed = sum(r.committed for r in self.rounds)
        return {
            "acceptance_rate": sum(r.accepted for r in self.rounds) / proposed if proposed else 0.0,
            "block_efficiency": committed / len(self.rounds),
            "tok_per_s": committed / self.seconds,
            "ratio_to_plain": median(self.ratios),
            "drafted_rounds": sum(r.proposed > 0 for r in self.rounds) / len(self.rounds),
        }


def bench_drafters(
    pipeline: Pipeline,
    prompts: Sequence[Prompt],
    *,
    new_tokens: int,
    pairs: int,
    context: int,
    lengths: Sequence[int],
    alone: bool,
    sampling: SamplingParams,
    beside: Mapping[str, Pipeline] | None = None,
) -> None:
    """Print a line for each category and policy.

    context: tokens to put before each prompt. lengths: fixed k. alone: each drafter alone, too. beside: the same target
    with other drafts, by name.
    """
    if not sampling.greedy:
        sampling = sampling.seeded(0)  # one seed for all policies, or their texts could not be compared
    policies: dict[str, Policy] = {PLAIN: Plain()}
    policies |= _own(pipeline, alone) | {f"k = {k}": pipeline.fixed_length(k) for k in lengths}
    arms = {name: (pipeline, policy) for name, policy in policies.items()}
    for name, other in (beside or {}).items():
        arms |= {f"--draft {name}": (other, policy) for policy in _own(other, alone=False).values()}
    found: dict[str, dict[str, _Runs]] = defaultdict(lambda: {name: _Runs() for name in arms})
    for number, prompt in enumerate(prompts):
        ids = behind(pipeline, prompt, context)
        _measure(ids, arms, found[prompt.category], new_tokens, pairs, sampling, number)
        print(f"\r{number + 1} of {len(prompts)} prompts", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    found["all"] = {name: _merged([runs[name] for runs in found.values()]) for name in arms}
    total = len(prompts) * pairs
    show(
        f"drafters of {pipeline.bundle.name}",
        ["prompts", "drafter", "accepted", "tokens per forward", "tok/s", "ratio to plain", "drafted", "who drafted"],
        [
            (category, name, *own.figures.values(), _shares(own.rounds))
            for category, runs in found.items()
            for name, own in runs.items()
        ],
        {
            "categories": {c: {name: r.figures for name, r in runs.items()} for c, runs in found.items()},
            "same_tokens": {name: f"{own.same} of {total}" for name, own in found["all"].items()},
            "new_tokens": new_tokens,
            "pairs": pairs,
            "context": context,
            "temperature": sampling.temperature,
        },
    )


def _measure(
    ids: list[int],
    arms: dict[str, tuple[Pipeline, Policy]],
    found: dict[str, _Runs],
    new_tokens: int,
    pairs: int,
    sampling: SamplingParams,
    number: int,
) -> None:
    """One prompt, the first policy another one in each turn. number: of the prompt."""
    each_s: dict[str, list[float]] = {name: [] for name in arms}
    for pair in range(pairs):
        order = list(arms)
        turn = (number + pair) % len(order)
        texts = {}
        for name in order[turn:] + order[:turn]:
            pipeline, policy = arms[name]
            run = pipeline.generate(
                read_before(pipeline, ids), max_new_tokens=new_tokens, sampling=sampling, policy=policy
            )
            texts[name] = run.token_ids
            each_s[name].append(run.stats.decode_s / run.stats.decoded)
            found[name].rounds += run.stats.rounds
            found[name].seconds += run.stats.decode_s
        for name, text in texts.items():
            found[name].same += text == texts[PLAIN]
    for name, own in each_s.items():
        found[name].ratios.append(median(plain / other for plain, other in zip(each_s[PLAIN], own, strict=True)))


def _own(pipeline: Pipeline, alone: bool) -> dict[str, Policy]:
    """The arbiter and its drafters; or a drafter that drafts alone, at the number of its bundle."""
    auto, drafter, k = pipeline.arbiter, pipeline.drafter.name, pipeline.num_draft_tokens
    if auto is not None:
        several = alone and len(auto.drafters) > 1
        names = [name for name in auto.drafters if several and name != Pool.name]  # which is empty in each turn
        own: dict[str, Policy] = {name: auto.only(name) for name in names}
        return own | {AUTO: auto}
    if k is None or drafter == "none":
        raise SettingError("nothing to compare: no drafter", hint="leave --draft out, or name one")
    return {drafter: pipeline.fixed_length(k)}


def _merged(parts: Sequence[_Runs]) -> _Runs:
    whole = _Runs()
    for part in parts:
        whole.rounds += part.rounds
        whole.seconds += part.seconds
        whole.ratios += part.ratios
        whole.same += part.same
    return whole


def _shares(rounds: Sequence[Round]) -> str:
    counts: dict[str, int] = defaultdict(int)
    for r in rounds:
        if r.proposed:
            counts[r.drafter] += 1
    return ", ".join(f"{name} {count / len(rounds):.0%}" for name, count in sorted(counts.items()))
