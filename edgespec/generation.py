"""What a pipeline returns: a finished generation, or a stream of its text."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from edgespec.errors import SettingError
from edgespec.stats import Stats
from edgespec.types import Numerics, TokenLogprobs, Verification


@dataclass(slots=True)
class Generation:
    """A finished (or abandoned) generation.

    token_ids: generated tokens, the stop token included, cut where a stop string was completed.
    finish_reason: "stop" (stop token or stop string), "length" (budget or context), None while running or abandoned.
    max_new_tokens: most that were asked for; a shorter text of reason "length" met the end of the context.
    verification: of a sampled run; None for a greedy one. compute_precision: the type of the target's activations.
    ttft_s: from the call to the first committed tokens. The wait for other texts is included.
    decode_tok_per_s: tokens per second, over the rounds that read no prompt.
    logprobs: of each of ``token_ids``, if they were asked for.
    stats: count whole rounds. So the last round may have committed tokens after a stop string.
    """

    model: str
    drafter: str
    numerics: Numerics
    compute_precision: str
    verification: Verification | None
    devices: dict[str, str]
    backend: str
    seed: int | None
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: str | None = None
    max_new_tokens: int | None = None
    stop_string: str | None = None
    ttft_s: float | None = None
    stats: Stats = field(default_factory=Stats, repr=False)

    @property
    def decode_tok_per_s(self) -> float | None:
        return self.stats.decoded / self.stats.decode_s if self.stats.decode_s else None

    def as_dict(self) -> dict[str, Any]:
        """The object ``edgespec run --json`` prints, without versions."""
        stats = self.stats
        return {
            "text": self.text,
            "token_ids": self.token_ids,
            "prompt_tokens": stats.prompt_tokens,
            "reused_tokens": stats.reused_tokens,
            "new_tokens": len(self.token_ids),
            "finish_reason": self.finish_reason,
            "stop_string": self.stop_string,
            "ttft_s": self.ttft_s,
            "decode_tok_per_s": self.decode_tok_per_s,
            "tpot_s": stats.tpot_s,
            "longest_gap_s": stats.longest_gap_s,
            "rounds": len(stats.rounds),
            "proposed": stats.proposed,
            "accepted": stats.accepted,
            "forced": stats.forced,
            "acceptance_rate": stats.acceptance_rate,
            "block_efficiency": stats.block_efficiency,
            "idle_row": asdict(stats.idle_row) if stats.idle_row else None,
            "rounds_by_drafter": {name: len(rounds) for name, rounds in stats.by_drafter.items()},
            "undrafted": dict(stats.reasons),
            "schedule": stats.schedule,
            "guesses": asdict(stats.guessed) if stats.guessed else None,
            "verification": self.verification,
            "seed": self.seed,
            "drafter": self.drafter,
            "numerics": self.numerics,
            "compute_precision": self.compute_precision,
            "devices": self.devices,
            "backend": self.backend,
            "model": self.model,
        }


class Stream(Iterator[str]):
    """Pieces of text as they are generated. ``result`` is updated with each piece.

    A stream may be abandoned early. Other threads wait until it is read to its end, closed, or garbage-collected.
    """

    def __init__(self, pieces: Generator[str, None, None], result: Generation) -> None:
        self._pieces = pieces
        self.result = result

    def __next__(self) -> str:
        try:
            return next(self._pieces)
        except ValueError as error:
            self._require_one_reader(error)
            raise

    def close(self) -> None:
        """End the text here, and free the pipeline for other threads."""
        try:
            self._pieces.close()
        except ValueError as error:
            self._require_one_reader(error)
            raise

    def _require_one_reader(self, error: ValueError) -> None:
        if getattr(self._pieces, "gi_running", False):  # every generator has it; the type does not say so
            raise SettingError(
                "this stream is being read already, by another thread or around this callback"
            ) from error
