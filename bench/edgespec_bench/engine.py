"""The engine alone, and how close our loop comes to it.

Two tables. What a forward takes, by width and context, of the bare graph: every time is taken as a ratio to a forward
of the narrowest width just before it, since machines change their speed within seconds. And what a speculative run
loses against the same forwards at their best (``edgespec_bench.ideal`` defines it).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from statistics import median
from time import perf_counter
from typing import Any

from edgespec.backends.engine_model import LONGEST_PAD
from edgespec.bench.prompts import Prompt, encode, read, read_before
from edgespec.bench.report import show, show_table
from edgespec.decode.policy import Heuristic, Plain
from edgespec.drafters.ngram import NGram
from edgespec.errors import SettingError
from edgespec.pipeline import Pipeline
from edgespec.protocols import Model, Policy
from edgespec.stats import Stats
from edgespec.types import Round
from edgespec_bench.bandwidth import forward_s
from edgespec_bench.bare import BareLoop, bare_loop
from edgespec_bench.ideal import Parts, again, parts, watched

WIDTHS = (1, 2, 3, 4, 5, 6, 8, 12, 16, 17, 24, 32)
CONTEXTS = (64, 512, 2048, 4096)


def bench_engine(pipeline: Pipeline, *, new_tokens: int = 96, pairs: int = 3, per_category: int | None = None) -> None:
    """Print both tables. pairs: repetitions of each measurement. per_category: take that many prompts of each."""
    target = pipeline.target
    prompts = read(per_category=per_category)
    room = target.cache.capacity - max(WIDTHS)
    contexts = [context for context in CONTEXTS if context <= room]
    needed = max(len(encode(pipeline, prompt)) for prompt in prompts) + new_tokens
    if not contexts or needed > room:
        raise SettingError(
            "context too short to measure", got=target.cache.capacity, allowed=max(CONTEXTS[0], needed) + max(WIDTHS)
        )
    models: dict[str, Model] = {"target": target}
    if pipeline.draft_model is not None:
        models["draft"] = pipeline.draft_model
    rows = max([*contexts, needed]) + max(*WIDTHS, LONGEST_PAD)
    bare = {
        name: bare_loop(model, rows=min(rows, model.cache.capacity + LONGEST_PAD)) for name, model in models.items()
    }
    forwards = _forwards(target, bare, contexts, pairs)
    crops = {str(context): _crop_us(target.cache, context) for context in contexts}
    rounds = _Loss(pipeline, models, bare).run(prompts, new_tokens, pairs)
    show(
        f"engine, {pipeline.drafter.name} drafts",
        ["the loop", "measured"],
        [
            ("speed-up of decoding", rounds["speed_up"]),
            ("speed-up of the same rounds, ideal", rounds["ideal_speed_up"]),
            ("measured / ideal", rounds["measured_over_ideal"]),
            *((f"lost: {name}", f"{rounds['lost'][name]:.1%}") for name in rounds["lost"]),
            ("trials of a draft model, beyond their worth (in both)", f"{rounds['trials']:.1%}"),
            ("plain decoding, bare loop / ours", rounds["plain_bare_over_ours"]),
            ("host time of a round, µs, plain", rounds["host_us_plain"]),
            ("host time of a round, µs, with drafts", rounds["host_us"]),
            *((f"crop of four rows at {context}, µs", us) for context, us in crops.items()),
        ],
        {"forwards": forwards, "crop_us": crops, "rounds": rounds, "new_tokens": new_tokens, "pairs": pairs},
    )


def _forwards(
    target: Model, bare: dict[str, BareLoop], contexts: Sequence[int], turns: int
) -> dict[str, dict[str, dict[str, float]]]:
    """By context and what was run: milliseconds, and the ratio to a forward of the target's narrowest width."""
    least = target.capabilities.min_width
    kinds = [("target", width) for width in WIDTHS] + [("draft", 1)] * ("draft" in bare)
    found: dict[str, dict[str, dict[str, float]]] = {}
    rows = []
    for context in contexts:
        kinds = [(name, width) for name, width in kinds if context + width <= bare[name].rows]
        seconds: dict[tuple[str, int], list[float]] = {kind: [] for kind in kinds}
        ratios: dict[tuple[str, int], list[float]] = {kind: [] for kind in kinds}
        for _ in range(turns):
            for name, width in kinds:
                narrowest_s = forward_s(bare["target"], least, context)
                own_s = forward_s(bare[name], width, context) if (name, width) != ("target", least) else narrowest_s
                seconds[name, width].append(own_s)
                ratios[name, width].append(own_s / narrowest_s)
        found[str(context)] = {
            _label(*kind): {"ms": 1e3 * median(seconds[kind]), "ratio": median(ratios[kind])} for kind in kinds
        }
        for kind in kinds:
            rows.append((context, _label(*kind), *found[str(context)][_label(*kind)].values()))
    show_table("a forward of the bare graph", ["context", "rows", "ms", f"ratio to {least} rows"], rows)
    return found


def _label(name: str, width: int) -> str:
    return str(width) if name == "target" else f"{name} {width}"


def _crop_us(cache: Any, context: int) -> float:
    """Of books only: no forward computed these rows, so they are forgotten afterwards. cache: of an engine."""
    crops = []
    cache.reset()
    cache.append([0] * context)
    for _ in range(200):
        cache.append([0] * 4)
        began = perf_counter()
        cache.crop(context)
        crops.append(1e6 * (perf_counter() - began))
    cache.reset()
    return median(crops)


class _Loss:
    """Plain and speculative runs in turns, and the forwards of both again."""

    def __init__(self, pipeline: Pipeline, models: dict[str, Model], bare: dict[str, BareLoop]) -> None:
        self._pipeline = pipeline
        self._models, self._bare = models, bare
        self._policy: Policy | None = Heuristic(NGram()) if pipeline.drafter.name == "none" else None

    def run(self, prompts: Sequence[Prompt], new_tokens: int, pairs: int) -> dict[str, Any]:
        drafted, plain = Parts(), Parts()
        speed_ups, closeness, plain_closeness = [], [], []
        rounds: list[tuple[Round, bool]] = []
        plain_rounds = 0
        self._one(prompts[0], new_tokens, Plain())  # the first of all sets things up
        for number, prompt in enumerate(prompts, 1):
            print(f"\rprompt {number} of {len(prompts)}", end="", file=sys.stderr, flush=True)
            for _ in range(pairs):
                own, own_parts, bare_s, _ = self._one(prompt, new_tokens, Plain())
                stats, its_parts, _, trials = self._one(prompt, new_tokens, self._policy)
                speed_ups.append(own.decode_s / own.decoded / (stats.decode_s / stats.decoded))
                closeness.append(its_parts.ideal_s / its_parts.run_s)
                plain_closeness.append(bare_s / own.decode_s)
                plain.add(own_parts)
                drafted.add(its_parts)
                plain_rounds += len(own.decoding)
                rounds += zip(stats.decoding, trials, strict=True)
        print(file=sys.stderr)
        shares = drafted.shares
        measured, over_ideal = median(speed_ups), median(closeness)
        return {
            "speed_up": measured,
            "ideal_speed_up": measured / over_ideal,
            "measured_over_ideal": over_ideal,
            "lost": {name: shares[name] for name in ("host", "width_switch", "cache_refill", "other")},
            "trials": lost_to_trials(rounds),
            "plain_bare_over_ours": median(plain_closeness),
            "host_us_plain": 1e6 * plain.host_s / plain_rounds,
            "host_us": 1e6 * drafted.host_s / len(rounds),
        }

    def _one(self, prompt: Prompt, new_tokens: int, policy: Policy | None) -> tuple[Stats, Parts, float, list[bool]]:
        """A run and its forwards again: its books, its parts, the bare loops' seconds, which rounds were trials.

        policy: None is the pipeline's own.
        """
        ids = read_before(self._pipeline, encode(self._pipeline, prompt))
        arbiter = self._pipeline.arbiter if policy is None else None
        with watched(self._models, lambda: arbiter is not None and arbiter.probing) as calls:
            stream = self._pipeline.stream_tokens(ids, max_new_tokens=new_tokens, policy=policy)
            for _ in stream:
                pass
        stats = stream.result.stats
        trials = [call.trial for call in calls if call.model == "target"]  # one a round
        again_s, bare_s = again(calls, self._bare)
        return stats, parts(stats.decode_s, calls, again_s), bare_s, trials


def lost_to_trials(rounds: Sequence[tuple[Round, bool]]) -> float:
    """Share of all time that trials took beyond what their tokens take in the other rounds."""

    def seconds(round_: Round) -> float:
        return round_.draft_s + round_.target_s + round_.host_s

    trials = [round_ for round_, trial in rounds if trial]
    others = [round_ for round_, trial in rounds if not trial]
    if not trials or not others:
        return 0.0
    a_token_s = sum(map(seconds, others)) / sum(round_.committed for round_ in others)
    lost_s = sum(seconds(round_) - round_.committed * a_token_s for round_ in trials)
    return lost_s / sum(seconds(round_) for round_, _ in rounds)
