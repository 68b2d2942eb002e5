"""Exact speculative decoding for language models on laptops."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgespec import telemetry as _telemetry  # noqa: F401 - first of all: it switches reports off

__version__ = "0.1.0"

__all__ = ["EdgespecError", "Generation", "Pipeline", "SamplingParams", "__version__", "load"]

if TYPE_CHECKING:
    from edgespec.assembly import load
    from edgespec.errors import EdgespecError
    from edgespec.pipeline import Generation, Pipeline
    from edgespec.types import SamplingParams

_HOMES = {
    "EdgespecError": "edgespec.errors",
    "Generation": "edgespec.pipeline",
    "Pipeline": "edgespec.pipeline",
    "SamplingParams": "edgespec.types",
    "load": "edgespec.assembly",
}


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Import a public name on first use, so that ``import edgespec`` costs nothing (PEP 562)."""
        if name not in _HOMES:
            raise AttributeError(f"module 'edgespec' has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
