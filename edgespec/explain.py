"""``edgespec run --explain``: says in words why a generation was fast or slow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import mean

from edgespec.stats import Stats, accepted_by_place
from edgespec.types import Round

_FEW = 32


def explain(stats: Stats, plain_s: float | None) -> list[str]:
    """Lines of text. plain_s: expected seconds of a token without drafts, if known."""
    return list(_lines(stats, plain_s))


def _lines(stats: Stats, plain_s: float | None) -> Iterator[str]:
    if not stats.rounds:
        yield "Nothing was decoded."
        return
    efficiency = stats.committed / len(stats.rounds)
    each_s = stats.decode_s / stats.decoded if stats.decoded else None
    pace = "" if each_s is None else f", {_ms(each_s)} a token"
    yield (
        f"{stats.committed} tokens in {_count(len(stats.rounds), 'forward')} of the target: "
        f"{efficiency:.2f} tokens each{pace}."
    )
    if plain_s is not None and each_s is not None:
        ratio = plain_s / each_s
        verdict = f"{ratio:.2f} times as fast" if ratio >= 1 else f"{1 / ratio:.2f} times slower"
        little = " (so few tokens say little)" if stats.decoded < _FEW else ""
        yield f"Without drafting a token is expected to take {_ms(plain_s)}: this was {verdict}{little}."
    for name, rounds in sorted(stats.by_drafter.items(), key=lambda item: -len(item[1])):
        yield _drafter(name, rounds, len(stats.rounds))
    if (guessed := stats.guessed) is not None:
        yield (
            f"While the target verified, the draft wrote {_count(guessed.kept + guessed.stale, 'guess', 'guesses')}: "
            f"{guessed.kept} were kept, {guessed.stale} were behind or at another token and were dropped."
        )
    if (idle := stats.idle_row) is not None:
        yield (
            f"A plain step has {_count(stats.plain_width, 'row')} here. What is idle of them carried a guess in "
            f"{_count(idle.forwards, 'forward')}: {_count(idle.accepted, 'token')} accepted, in {idle.share:.0%} of "
            f"all forwards, which adds {idle.tok_per_s:.1f} tokens a second."
        )
    if stats.reasons:
        reasons = ", ".join(f"{reason} ({times})" for reason, times in stats.reasons.most_common())
        yield f"{_count(stats.reasons.total(), 'round')} without a draft: {reasons}."
    if stats.forced:
        yield f"The response format forced {_count(stats.forced, 'token')}, which nobody had to draft."
    if foreseen := [r for r in stats.rounds if r.expected is not None]:
        expected, accepted = sum(r.expected or 0.0 for r in foreseen), sum(r.accepted for r in foreseen)
        yield f"It expected {expected:.0f} drafted tokens to be accepted, and {accepted} were."
    parts = {
        "the target" + (" and the draft beside it" if stats.guessed else ""): sum(r.target_s for r in stats.decoding),
        "drafting": sum(r.draft_s for r in stats.decoding),
        "the rest": sum(r.host_s for r in stats.decoding),
    }
    if stats.decode_s:
        shares = ", ".join(f"{name} {seconds / stats.decode_s:.0%}" for name, seconds in parts.items())
        yield f"Time: {shares}."
    first = stats.rounds[0]
    prompt_s = stats.prefill_s + (first.target_s if first.read else 0.0)
    apart = ", part of it with the first round, which the times above leave out" if first.read else ""
    yield f"The prompt was read in {prompt_s:.2f} s ({_prompt(stats)}){apart}."


def _drafter(name: str, rounds: Sequence[Round], of: int) -> str:
    proposed, accepted = sum(r.proposed for r in rounds), sum(r.accepted for r in rounds)
    timed = [r for r in rounds if not r.read] or rounds
    places = " ".join(f"{share:.0%}" for share in accepted_by_place(rounds)[:6])
    return (
        f"{name} drafted in {len(rounds)} of {of}: {proposed / len(rounds):.1f} tokens at a time, "
        f"{accepted / proposed:.0%} accepted (of those reached, by place: {places}); "
        f"{_ms(mean(r.draft_s for r in timed))} to draft, {_ms(mean(r.target_s for r in timed))} to verify."
    )


def _prompt(stats: Stats) -> str:
    kept = f", {stats.reused_tokens} of them kept from before" if stats.reused_tokens else ""
    return f"{_count(stats.prompt_tokens, 'token')}{kept}"


def _count(number: int, noun: str, plural: str = "") -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {plural or noun + 's'}"


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms"
