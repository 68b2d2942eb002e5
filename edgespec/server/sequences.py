"""Saved sequences."""

from __future__ import annotations

from edgespec.pipeline import Pipeline
from edgespec.server.schema import Kind


class Sequences:
    """Nothing yet."""

    def __init__(self, budget_bytes: int) -> None:
        self.nbytes = 0

    def bring(self, pipeline: Pipeline, tokens: list[int], kind: Kind) -> None:
        return

    def forget(self, pipeline: Pipeline) -> None:
        return
