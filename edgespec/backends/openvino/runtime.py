"""OpenVINO, imported without its telemetry: its Python package would report the import to a statistics service.

It has a stub for machines without the telemetry package, and is given that one. Import OpenVINO from here.
"""

from __future__ import annotations

import sys
from functools import cache

_UNTOLD = "openvino" not in sys.modules and "openvino_telemetry" not in sys.modules
if _UNTOLD:
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
try:
    import openvino as ov
    from openvino import opset13 as ops
    from openvino._offline_transformations import paged_attention_transformation
finally:
    if _UNTOLD:
        del sys.modules["openvino_telemetry"]  # whoever wants it can import it from now on

__all__ = ["core", "cpu_name", "ops", "ov", "paged_attention_transformation"]


@cache
def core() -> ov.Core:
    """One for the process: it holds the plugins."""
    return ov.Core()


@cache
def cpu_name() -> str:
    return str(core().get_property("CPU", "FULL_DEVICE_NAME"))
