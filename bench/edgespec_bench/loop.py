"""What does our loop cost on top of the engine? Plain decoding against a bare loop, and host time in a round."""

from __future__ import annotations

from statistics import median

from edgespec.bench.prompts import read_before
from edgespec.bench.report import paired_ratio, show
from edgespec.decode.policy import Heuristic, Plain
from edgespec.drafters.ngram import NGram
from edgespec.errors import SettingError
from edgespec.pipeline import Pipeline
from edgespec.protocols import Policy
from edgespec_bench.bare import BARE_ROWS, bare_loop
from edgespec_bench.ideal import watched

PROMPT = "Write a Python function that merges two sorted lists, then explain every line of it."


def bench_loop(pipeline: Pipeline, *, new_tokens: int = 128, pairs: int = 7) -> None:
    """Interleaved: bare loop of the same width, ours, bare loop of one row alone, each ``pairs`` times."""
    target = pipeline.target
    template = pipeline.template
    text = template.render([{"role": "user", "content": PROMPT}]) if template else PROMPT
    prompt = pipeline.tokenizer.encode(text)
    width = target.capabilities.min_width
    longest = min(BARE_ROWS, target.cache.capacity) - len(prompt)
    if new_tokens > longest:
        raise SettingError(
            "new tokens", got=new_tokens, allowed=f"1 to {longest} with this prompt and context", setting="new_tokens"
        )
    same, narrow = bare_loop(target, width), bare_loop(target, 1, alone=True)
    bare_s: list[float] = []
    narrow_s: list[float] = []
    plain_s: list[float] = []
    host_plain: list[float] = []
    host_draft: list[float] = []
    own = None if pipeline.drafter.name != "none" else Heuristic(NGram())
    drafter = own.name if own else pipeline.drafter.name
    for round_ in range(pairs + 1):
        bare_tokens, seconds = same.run(prompt, new_tokens)
        decode_s, host, tokens = _ours(pipeline, prompt, Plain(), new_tokens)
        _, narrow_seconds = narrow.run(prompt, new_tokens)
        _, drafted_host, _ = _ours(pipeline, prompt, own, new_tokens)
        if tokens != bare_tokens:
            raise AssertionError("the bare loop and ours disagree")
        if round_:  # the first round warms up
            bare_s.append(seconds)
            plain_s.append(decode_s)
            narrow_s.append(narrow_seconds)
            host_plain.append(host)
            host_draft.append(drafted_host)
    figures = {
        "plain_over_bare": paired_ratio(bare_s, plain_s),
        "exact_over_width_1": paired_ratio(narrow_s, bare_s),
        "host_share_plain": median(host_plain),
        f"host_share_{drafter}": median(host_draft),
        "bare_ms_per_token": 1e3 * median(bare_s) / new_tokens,
        "plain_ms_per_token": 1e3 * median(plain_s) / new_tokens,
        "width_1_ms_per_token": 1e3 * median(narrow_s) / new_tokens,
    }
    rows = [
        ("plain decoding / bare loop, same graph and width", figures["plain_over_bare"], ">= 0.97"),
        ("host share of plain decoding", figures["host_share_plain"], "<= 0.03"),
        (f"host share with {drafter} drafts", figures[f"host_share_{drafter}"], "<= 0.03"),
        (f"bare loop, width {width} / one row alone: what exact numerics cost", figures["exact_over_width_1"], ""),
        ("ms per token, bare loop", figures["bare_ms_per_token"], ""),
        ("ms per token, plain decoding", figures["plain_ms_per_token"], ""),
    ]
    show("loop", ["figure", "measured", "goal"], rows, figures | {"pairs": pairs, "new_tokens": new_tokens})


def _ours(
    pipeline: Pipeline, prompt: list[int], policy: Policy | None, new_tokens: int
) -> tuple[float, float, list[int]]:
    """Decode seconds, share of them outside the engine, tokens. The target has read the prompt already."""
    models = {"target": pipeline.target} | ({"draft": pipeline.draft_model} if pipeline.draft_model else {})
    ids = read_before(pipeline, prompt)
    with watched(models, lambda: False) as calls:  # what a draft model reads before the first round is none of them
        result = pipeline.generate(ids, max_new_tokens=new_tokens, ignore_eos=True, policy=policy)
    inside = sum(call.engine_s for call in calls)
    return result.stats.decode_s, 1 - inside / result.stats.decode_s, result.token_ids
