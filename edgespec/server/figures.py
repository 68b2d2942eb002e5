"""Counts and times of an answer, as clients of llama.cpp and OpenAI read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgespec.generation import Generation
from edgespec.types import Round


def usage(results: Sequence[Generation]) -> dict[str, Any]:
    """OpenAI's count of tokens. The prompt of several answers counts once."""
    first = results[0].stats
    completion = sum(len(result.token_ids) for result in results)
    accepted = sum(result.stats.accepted for result in results)
    proposed = sum(result.stats.proposed for result in results)
    return {
        "prompt_tokens": first.prompt_tokens,
        "completion_tokens": completion,
        "total_tokens": first.prompt_tokens + completion,
        "prompt_tokens_details": {"cached_tokens": first.reused_tokens},
        "completion_tokens_details": {
            "accepted_prediction_tokens": accepted,
            "rejected_prediction_tokens": proposed - accepted,
        },
    }


def timings(result: Generation) -> dict[str, Any]:
    """llama.cpp's times. The prompt's are of what was read for it, without the tokens that the cache held."""
    stats = result.stats
    read = [r for r in stats.rounds if r.read]
    prompt_ms = 1e3 * (stats.prefill_s + sum(r.draft_s + r.target_s + r.host_s for r in read))
    prompt_n = max(stats.prompt_tokens - stats.reused_tokens, 0)
    predicted_ms, predicted_n = 1e3 * stats.decode_s, len(result.token_ids)
    return {
        "cache_n": stats.reused_tokens,
        "prompt_n": prompt_n,
        "prompt_ms": prompt_ms,
        "prompt_per_token_ms": _per(prompt_ms, prompt_n),
        "prompt_per_second": _per(1e3 * prompt_n, prompt_ms),
        "predicted_n": predicted_n,
        "predicted_ms": predicted_ms,
        "predicted_per_token_ms": _per(predicted_ms, stats.decoded),
        "predicted_per_second": _per(1e3 * stats.decoded, predicted_ms),
        "draft_n": stats.proposed,
        "draft_n_accepted": stats.accepted,
    }


def rounds(each: Sequence[Round]) -> list[dict[str, Any]]:
    """What each round did: who drafted, how many tokens, how many were accepted and committed; its forward's width."""
    return [
        {
            "drafter": r.drafter if r.proposed else None,
            "proposed": r.proposed,
            "accepted": r.accepted,
            "forced": r.forced,
            "committed": r.committed,
            "width": r.width,
            "seconds": r.draft_s + r.target_s + r.host_s,
        }
        for r in each
    ]


def _per(amount: float, count: float) -> float:
    return amount / count if count else 0.0
