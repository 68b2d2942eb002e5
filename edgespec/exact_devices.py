"""Where exact numerics are known to hold."""

from __future__ import annotations

from edgespec.errors import SettingError
from edgespec.types import Numerics


def require_exact(numerics: Numerics | None, device: str) -> None:
    """Raises SettingError if numerics are to be exact on a device where that is not known to hold."""
    if numerics == "exact" and not device.startswith("CPU"):
        what = f"numerics exact is only known to hold on CPU; device {device}"
        raise SettingError(what, hint="use fast here", setting="numerics")
