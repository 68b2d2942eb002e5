"""Exact speculative decoding for language models on laptops."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgespec import telemetry as _telemetry  # noqa: F401 - first of all: it switches reports off

__version__ = "0.1.0"

__all__ = [
    "ContextFull",
    "DeviceError",
    "EdgespecError",
    "Generation",
    "LicenceError",
    "NoSuchModel",
    "Pipeline",
    "SamplingParams",
    "SettingError",
    "SourceError",
    "__version__",
    "load",
]

if TYPE_CHECKING:
    from edgespec.errors import (
        ContextFull,
        DeviceError,
        EdgespecError,
        LicenceError,
        NoSuchModel,
        SettingError,
        SourceError,
    )
    from edgespec.generation import Generation
    from edgespec.loading import load
    from edgespec.pipeline import Pipeline
    from edgespec.sampling_params import SamplingParams

_MODULES = {  # of each public name
    "ContextFull": "edgespec.errors",
    "DeviceError": "edgespec.errors",
    "EdgespecError": "edgespec.errors",
    "Generation": "edgespec.generation",
    "LicenceError": "edgespec.errors",
    "NoSuchModel": "edgespec.errors",
    "Pipeline": "edgespec.pipeline",
    "SamplingParams": "edgespec.sampling_params",
    "SettingError": "edgespec.errors",
    "SourceError": "edgespec.errors",
    "load": "edgespec.loading",
}


if not TYPE_CHECKING:

    def __dir__() -> list[str]:
        return __all__

    def __getattr__(name: str) -> Any:
        """Import a public name on first use, so that ``import edgespec`` costs nothing (PEP 562)."""
        if name not in _MODULES:
            raise AttributeError(f"module 'edgespec' has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module(_MODULES[name]), name)
