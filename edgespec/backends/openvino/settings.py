"""What OpenVINO is told when it compiles a graph. No numeric property is inherited: each one is named, here.

Unnamed, a property is what the device or the model's file would choose. A CPU with bf16 computes in bf16 then, and one
without it in f32: the same model writes another text, and a check of full precision is none.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from edgespec.backends.cores import kind_of, kinds
from edgespec.errors import SettingError
from edgespec.exact_devices import require_exact
from edgespec.types import Numerics

if TYPE_CHECKING:
    from edgespec.backends.openvino.runtime import ov

NUMERIC = ("INFERENCE_PRECISION_HINT", "KV_CACHE_PRECISION", "DYNAMIC_QUANTIZATION_GROUP_SIZE")
"""properties that change what is computed: the type of activations, the type of keys and values, and how many
activations share a step when they are rounded to 8 bits (0: they are not rounded)"""
FULL_PRECISION = dict(zip(NUMERIC, ("f32", "f32", "0"), strict=True))
"""to hold another engine or a torch model against, and for sums that become constants"""
_ON_CPU, _ELSEWHERE = "f32", "f16"
_ROUNDED_TOGETHER = "32"
"""8-bit products of the plugins take activations in blocks of this size; larger ones cost accuracy"""


@dataclass(frozen=True, slots=True)
class Settings:
    """How a graph is compiled and fed.

    numerics "exact" (see docs/exactness.md):
        prefill_chunk: at most; wide matrix products may run other kernels again (``exact_widths``).
        KV in 16 bits: by-channel 8-bit keys change when a rejected token is written beside them.
    """

    numerics: Numerics
    prefill_chunk: int
    properties: dict[str, str]

    @classmethod
    def make(cls, device: str, numerics: Numerics | None, *, trees: bool = False) -> Settings:
        """Settings of a target. numerics None: exact on CPU, where it is known to hold, fast elsewhere. trees: its rows
        must be able to move, which those of 8-bit keys by channel cannot."""
        if numerics not in (None, "exact", "fast"):
            raise SettingError("numerics", got=numerics, allowed="exact, fast")
        on_cpu = device.startswith("CPU")
        require_exact(numerics, device)
        if on_cpu and numerics != "fast":
            return cls("exact", 256, _latency(device, "f16"))
        return cls("fast", 512, _latency(device, "u8" if on_cpu and not trees else "f16"))

    @classmethod
    def of_draft(cls, device: str) -> Settings:
        """Settings of a draft: speed first (its numerics never reach the output), but keys that survive a rollback."""
        return cls("fast", 512, _latency(device, "f16"))

    def with_threads(self, threads: int) -> Settings:
        """On so many threads of the CPU, beside another model. They are not pinned: each model would pin its threads to
        the first cores."""
        own = {"INFERENCE_NUM_THREADS": str(threads), "ENABLE_CPU_PINNING": "NO"}
        return replace(self, properties=self.properties | own)

    def with_cores(self, device: str) -> Settings:
        """On the cores that a device names: CPU.P or CPU.E of a hybrid CPU."""
        kind = kind_of(device)
        if kind is None:
            return self
        threads = min(len(kinds()[kind]), int(self.properties.get("INFERENCE_NUM_THREADS", len(kinds()[kind]))))
        own = {"SCHEDULING_CORE_TYPE": f"{kind}CORE_ONLY", "INFERENCE_NUM_THREADS": str(threads)}
        return replace(self, properties=self.properties | own)

    @classmethod
    def over_states(cls, device: str) -> Settings:
        """Settings of a model whose cache is inside the engine: fast, with keys that survive a rollback. A chunk's mask
        has a number for each row of the text."""
        return cls("fast", 256, _latency(device, "f16"))

    @classmethod
    def in_full_precision(cls) -> Settings:
        """On CPU, with activations, keys and values as they are: what another engine is held against."""
        return cls("exact", 256, _latency("CPU", "f16") | FULL_PRECISION)


def compute_precision(device: str) -> str:
    """The type that activations have on a device, as OpenVINO calls it."""
    return _ON_CPU if device.startswith("CPU") else _ELSEWHERE


def reported(compiled: ov.CompiledModel, names: Iterable[str] = NUMERIC) -> dict[str, str]:
    """What a compiled model says of its properties, spelled as in settings; without those its device does not know."""
    known = compiled.get_property("SUPPORTED_PROPERTIES")
    return {name: spelled(compiled.get_property(name)) for name in names if name in known}


def spelled(value: Any) -> str:
    return str(value.get_type_name() if hasattr(value, "get_type_name") else value)


def _latency(device: str, kv: str) -> dict[str, str]:
    numeric = dict(zip(NUMERIC, (compute_precision(device), kv, _ROUNDED_TOGETHER), strict=True))
    streams = {} if device.startswith("GPU") else {"NUM_STREAMS": "1"}
    return {"PERFORMANCE_HINT": "LATENCY", **streams, **numeric}
