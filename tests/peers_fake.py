"""An adapter for the tests of `edgespec bench peers`: it runs in a real worker process and fails on request."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from edgespec_bench.peers.base import Run, Unavailable, WeightFormats


class Peer:
    """mode "dies N" and "raises N": at its Nth answer, counted from 1."""

    settings = "none"

    def load(self, weight_formats: WeightFormats, mode: str, threads: int, cache: Path | None) -> None:
        os.write(1, b"native garbage\n{}\n")  # as a C library would
        print("python garbage")
        if mode == "does not load":
            raise Unavailable("no such model")
        self._what, _, at = mode.partition(" ")
        self._at = int(at or 0)
        self._answers = 0

    def generate(self, prompt: Sequence[int], new_tokens: int) -> Run:
        os.write(1, b"more garbage")
        self._answers += 1
        if self._answers == self._at:
            if self._what == "dies":
                os.write(2, b"out of luck\n")
                os._exit(3)
            if self._what == "raises":
                raise ValueError("what a peer\nmay say")
            return Run([1] * (new_tokens - 1), [0.1] * (new_tokens - 1))
        return Run([prompt[0] + i for i in range(new_tokens)], [0.25 + 0.125 * i for i in range(new_tokens)], 4, 3, 2)

    def versions(self) -> dict[str, str]:
        return {"fake": "1.0"}
