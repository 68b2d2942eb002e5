"""Names that need no path: what they are and where the default pair's folder lies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

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
