"""What this machine offers to run on, and what edgespec would do with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Device:
    """An OpenVINO device. ``driver`` and ``memory_bytes`` where the plugin tells them."""

    name: str
    full_name: str
    driver: str | None
    memory_bytes: int | None
    capabilities: tuple[str, ...]
    advice: str


_ADVICE = {
    "CPU": "default for target and draft; exact numerics hold here",
    "GPU": "for the target: --device GPU (numerics fast only: exactness is not established there)",
    "NPU": "not used: it runs static graphs, and edgespec has no backend for them yet",
}


def devices() -> list[Device]:
    """All devices OpenVINO finds, CPU first."""
    from edgespec.backends.openvino.runtime import ov

    core = ov.Core()
    found = []
    for name in sorted(core.available_devices, key=lambda n: (n != "CPU", n)):
        found.append(
            Device(
                name=name,
                full_name=str(_property(core, name, "FULL_DEVICE_NAME") or name),
                driver=_text(_property(core, name, f"{name.split('.')[0]}_DRIVER_VERSION")),
                memory_bytes=_property(core, name, "GPU_DEVICE_TOTAL_MEM_SIZE"),
                capabilities=tuple(_property(core, name, "OPTIMIZATION_CAPABILITIES") or ()),
                advice=_ADVICE.get(name.split(".")[0], "not used by edgespec"),
            )
        )
    return found


def _property(core: Any, device: str, name: str) -> Any:
    """A property, or None where the plugin does not know it."""
    try:
        return core.get_property(device, name)
    except RuntimeError:
        return None


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def machine() -> dict[str, Any]:
    import os
    import platform

    from edgespec.backends.openvino.runtime import ov

    return {
        "cpu": ov.Core().get_property("CPU", "FULL_DEVICE_NAME"),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "openvino": ov.get_version().split("-")[0],
    }
