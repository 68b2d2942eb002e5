"""What ships with edgespec: names that need no path, the default pair's folder, the packages it may be fetched from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from edgespec import bundle
from edgespec.bundle import WheelSource
from edgespec.errors import BundleError

DEFAULT = "default"


@dataclass(frozen=True)
class Known:
    """name: what to type. aliases: other spellings. about, licence: one line for ``edgespec models``."""

    name: str
    aliases: tuple[str, ...]
    about: str
    licence: str


KNOWN = (
    Known(
        name="smollm2-135m",
        aliases=(DEFAULT, "smollm2-135m-instruct"),
        about="SmolLM2 135M Instruct, 8 bits (from a 4-bit file), a trained draft and prompt lookup; fetches 93 MB",
        licence="Apache-2.0",
    ),
)


def names() -> list[str]:
    return [name for known in KNOWN for name in (known.name, *known.aliases)]


def default_folder() -> Path:
    """Inside the installed package, or in the source tree it runs from."""
    here = Path(__file__).resolve().parent
    shipped = here / "_models" / "default"
    return shipped if shipped.is_dir() else here.parent / "models" / "default"


@cache
def packages() -> frozenset[WheelSource]:
    """The models in Python packages that may be fetched."""
    models = bundle.read(default_folder()).manifest.models
    return frozenset(model.source for model in models if isinstance(model.source, WheelSource))


def require_package(source: WheelSource) -> None:
    """A bundle may name one of ``packages``, to the letter. Raises BundleError for any other.

    A package index serves anybody's packages, and pip may run what is in them.
    """
    if source not in packages():
        raise BundleError(
            "the bundle takes a model from a Python package that edgespec does not know",
            got=f"{source.package} {source.version}",
            allowed=", ".join(f"{package.package} {package.version}, with its hashes" for package in packages()),
            hint="get the model as a folder or a .gguf file",
        )
