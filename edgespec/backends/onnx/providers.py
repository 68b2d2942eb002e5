"""ONNX Runtime's execution providers, as devices: CPU, and those that other packages of ONNX Runtime bring.

    CPU        onnxruntime
    OPENVINO   onnxruntime-openvino; .CPU, .GPU or .NPU says where, its CPU by default
    DML        onnxruntime-directml: any GPU under Windows; .1 is the second one
    CUDA       onnxruntime-gpu: GPUs of NVIDIA; .1 is the second one

These packages overwrite each other's files, so one of them is installed. Each runs on the CPU too. Importing this
module does not import ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgespec.errors import DeviceError


@dataclass(frozen=True, slots=True)
class Provider:
    """memory: how ONNX Runtime names the memory that it reads without a copy. option: of a part of its name."""

    name: str
    package: str
    memory: str = "cpu"
    option: str = "device_id"
    parts: tuple[str, ...] = ()
    where: str = ""


CPU = "CPU"
PROVIDERS = {
    CPU: Provider("CPUExecutionProvider", "onnxruntime"),
    "OPENVINO": Provider(
        "OpenVINOExecutionProvider",
        "onnxruntime-openvino",
        option="device_type",
        parts=("CPU", "GPU", "NPU"),
        where="Intel",
    ),
    "DML": Provider("DmlExecutionProvider", "onnxruntime-directml", memory="dml", where="Windows"),
    "CUDA": Provider("CUDAExecutionProvider", "onnxruntime-gpu", memory="cuda", where="NVIDIA"),
}
"""by the name of the device"""


def of(device: str) -> Provider | None:
    return PROVIDERS.get(device.split(".")[0])


def is_other(device: str) -> bool:
    """Whether a device belongs to ONNX Runtime alone."""
    return device.split(".")[0] != CPU and of(device) is not None


def missing(device: str) -> str | None:
    """Why a device is not here, as far as can be told without a model."""
    import onnxruntime

    provider, here = PROVIDERS[device.split(".")[0]], onnxruntime.get_available_providers()
    if provider.name in here:
        return None
    names = ", ".join(name for name, other in PROVIDERS.items() if other.name in here)
    return f"the installed onnxruntime {onnxruntime.__version__} has {names}"


def require(device: str) -> None:
    """Raises DeviceError unless the installed ONNX Runtime has a device."""
    name, _, part = device.partition(".")
    provider = PROVIDERS[name]
    known = part in provider.parts if provider.parts else part.isdecimal()
    if part and not (known and name != CPU):
        allowed = ", ".join(f"{name}.{each}" for each in provider.parts or ("0", "1"))
        raise DeviceError("no such device of ONNX Runtime", got=device, allowed=allowed, hint="see: edgespec doctor")
    if reason := missing(device):
        packages = f"pip uninstall onnxruntime, then pip install {provider.package}, which runs on the CPU too"
        raise DeviceError(f"device {device} is not here: {reason}", hint=f"for {provider.where}: {packages}")


def session_providers(device: str) -> list[tuple[str, dict[str, str]]]:
    """For an InferenceSession. What a provider does not know runs on the CPU."""
    name, _, part = device.partition(".")
    provider = PROVIDERS[name]
    options = {provider.option: part or (provider.parts[0] if provider.parts else "0")}
    cpu = PROVIDERS[CPU].name
    return [(cpu, {})] if name == CPU else [(provider.name, options), (cpu, {})]


def tune(options: Any, device: str) -> None:
    """options: of a session. DirectML refuses memory that is planned ahead."""
    if device.split(".")[0] == "DML":
        options.enable_mem_pattern = False


def require_taken(session: Any, device: str) -> None:
    """Raises DeviceError if a session runs elsewhere: a provider whose libraries are missing gives way unasked."""
    taken: Sequence[str] = session.get_providers()
    name = PROVIDERS[device.split(".")[0]].name
    if name not in taken:
        raise DeviceError(
            f"device {device} does not start: its driver or its libraries are missing",
            got=", ".join(taken),
            allowed=name,
            hint="use --device CPU, or see: edgespec doctor",
        )
