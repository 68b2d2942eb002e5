"""Which layers of a target have their hidden states kept. They are numbered as transformers' hidden_states: 0 is the
embedding, and the last one is what the output head reads."""

from __future__ import annotations

from collections.abc import Sequence

from edgespec.errors import SettingError

_SHARES = (0.5, 0.9, 1.0)
"""of the depth. Nobody has tried others: see docs/log/block.md."""


def layers_in(text: str | None) -> tuple[int, ...]:
    """Of an option; () if it was not given. Raises SettingError."""
    try:
        return tuple(int(layer) for layer in text.split(",")) if text is not None else ()
    except ValueError as error:
        raise SettingError("layers of the target", got=text, allowed="numbers with commas, as 2,14,28") from error


def usual_layers(depth: int) -> tuple[int, ...]:
    """Half the way, nine tenths, and the last.

    >>> usual_layers(28), usual_layers(3), usual_layers(1)
    ((14, 25, 28), (2, 3), (1,))
    """
    return tuple(dict.fromkeys(max(1, round(share * depth)) for share in _SHARES))


def check_layers(layers: Sequence[int], depth: int) -> None:
    """Raises SettingError for a layer that a target of this depth does not have, or that is named twice."""
    require_distinct(layers)
    if wrong := [layer for layer in layers if not 0 <= layer <= depth]:
        raise SettingError("no such layer of the target", got=wrong[0], allowed=f"0 to {depth}", setting="layers")


def require_distinct(layers: Sequence[int]) -> None:
    """Raises SettingError."""
    if len(set(layers)) < len(layers):
        raise SettingError("a layer is named twice", got=",".join(map(str, layers)), setting="layers")
