"""What the engines find on this machine: devices, with advice for each (``edgespec doctor`` prints them).

The user chooses a device with ``--device`` (CPU by default), and ``require_device`` checks that it is here. With
``--device auto`` the planner chooses (``planner``). ``machine`` describes the whole machine, for reports of
measurements.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgespec.backends.cores import kind_of, kinds
from edgespec.errors import DeviceError


@dataclass(frozen=True, slots=True)
class Device:
    """An OpenVINO device. ``driver`` and ``memory_bytes`` are None if the plugin does not tell them."""

    name: str
    full_name: str
    driver: str | None
    memory_bytes: int | None
    capabilities: tuple[str, ...]
    advice: str


AUTO = "AUTO"
"""in the place of a device: the planner chooses"""

_ADVICE = {
    "CPU": "default for target and draft; exact numerics hold here",
    "GPU": "for the target: --device GPU (numerics fast only: exactness is not established there)",
    "NPU": "for target, draft or head: --device NPU, --draft-device NPU (numerics fast only; see docs/devices.md)",
}


def devices() -> list[Device]:
    """All devices OpenVINO finds, CPU first."""
    from edgespec.backends.openvino import npu_settings
    from edgespec.backends.openvino.runtime import core

    found = []
    here = list(core().available_devices)
    if npu_settings.on_cpu():
        here.append(npu_settings.NPU)
    for name in sorted(here, key=lambda n: (n != "CPU", n)):
        found.append(
            Device(
                name=name,
                full_name=str(_property(name, "FULL_DEVICE_NAME") or name),
                driver=_text(_property(name, f"{name.split('.')[0]}_DRIVER_VERSION")),
                memory_bytes=_property(name, "GPU_DEVICE_TOTAL_MEM_SIZE"),
                capabilities=tuple(_property(name, "OPTIMIZATION_CAPABILITIES") or ()),
                advice=_ADVICE.get(name.split(".")[0], "not used by edgespec"),
            )
        )
    return found


def onnx_devices() -> dict[str, str]:
    """Devices of ONNX Runtime beside the CPU, each with "here" or the reason why it is not."""
    from edgespec.backends.onnx import providers

    names = [name for name in providers.PROVIDERS if name != providers.CPU]
    try:
        return {name: providers.missing(name) or "here" for name in names}
    except (ImportError, OSError) as error:
        return dict.fromkeys(names, f"onnxruntime cannot be imported: {error}")


_LEAST_NPU_DRIVER = 1_729_849_322
"""of Linux: version 1.10.0 of November 2024, the first that runs language models, by the number the plugin gives"""


def require_device(name: str) -> str:
    """``name`` if this machine has such a device. Else raises DeviceError with the devices it has."""
    from edgespec.backends.onnx import providers
    from edgespec.backends.openvino import npu_settings
    from edgespec.backends.openvino.runtime import core

    if kind := kind_of(name):
        if kind not in kinds():
            raise DeviceError("this CPU has cores of one kind", got=name, allowed="CPU", hint="see: edgespec doctor")
        return name
    if providers.is_other(name):
        providers.require(name)
        return name
    if npu_settings.is_npu(name):
        if npu_settings.on_cpu():
            return name
        _require_driver(_property(name, "NPU_DRIVER_VERSION"))
    here: list[str] = core().available_devices
    if name not in here and name.split(".")[0] not in {device.split(".")[0] for device in here}:
        raise DeviceError("no such device here", got=name, allowed=", ".join(here), hint="see: edgespec doctor")
    return name


def _require_driver(version: Any) -> None:
    """version: None where there is no driver. Numbers of Windows are counted in another way, and are not judged."""
    is_of_linux = isinstance(version, int) and version > 1_000_000_000
    if is_of_linux and version < _LEAST_NPU_DRIVER:
        hint = "install a newer one: https://github.com/intel/linux-npu-driver/releases"
        raise DeviceError("the driver of the NPU is too old", got=version, allowed=f"{_LEAST_NPU_DRIVER} on", hint=hint)


def _property(device: str, name: str) -> Any:
    """A property, or None where the plugin does not know it."""
    from edgespec.backends.openvino.runtime import core

    try:
        return core().get_property(device, name)
    except RuntimeError:
        return None


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def machine() -> dict[str, Any]:
    """CPU, cores, system and versions, as they stand in a report."""
    import os
    import platform

    from edgespec.backends.openvino.runtime import cpu_name, ov

    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "openvino": ov.get_version().split("-")[0],
    }
