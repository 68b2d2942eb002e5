"""Numbers of a GGUF file's metadata that a model is built with, each within its range."""

from __future__ import annotations

from edgespec.errors import ConversionError
from edgespec.gguf.header import ELSE, Header

LARGEST = 2**31 - 1  # no model comes near
LARGEST_HEAD = 1 << 16
"""numbers: of each pair a frequency is computed, before any weight says how large a head is. 256 is usual"""
DAMAGED = "download it again"


def size(header: Header, key: str, default: int | None = None, *, least: int = 1, most: int = LARGEST) -> int:
    """A positive number of the metadata. Where layers may differ, they must not."""
    found = header.get(key, default)
    values = set(found) if isinstance(found, list) else {found}
    name = key.format(arch=header.architecture)
    if values == {None}:
        raise incomplete(header, name)
    if len(values) != 1:
        got = f"{min(values)} to {max(values)}" if values else "none"
        raise ConversionError(f"{name} of {header.path.name}", got=got, allowed="the same in all layers", hint=ELSE)
    value: int = values.pop()
    if not least <= value <= most:
        raise ConversionError(f"{name} of {header.path.name}", got=value, allowed=f"{least} to {most}", hint=DAMAGED)
    return value


def number(header: Header, key: str, default: float | None) -> float:
    value = header.get(key, default)
    name = key.format(arch=header.architecture)
    if value is None:
        raise incomplete(header, name)
    if not 0 < value < 1e12:
        raise ConversionError(f"{name} of {header.path.name}", got=value, allowed="0 to 1e12", hint=DAMAGED)
    return float(value)


def incomplete(header: Header, what: str) -> ConversionError:
    return ConversionError(f"{header.path.name} is not a whole language model", got=f"no {what}", hint=DAMAGED)
