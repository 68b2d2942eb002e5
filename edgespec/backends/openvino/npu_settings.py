"""How a language model is compiled for an NPU: through NPUW, the layer of OpenVINO's NPU plugin that runs LLMs.

An NPU runs graphs of fixed shapes. NPUW makes two of a model: one that reads a prompt in chunks, and one that runs a
few rows behind a cache. It does the same on a CPU where it is told to, which shows what it does, but never how fast.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

NPU = "NPU"
ON_CPU = "EDGESPEC_NPU_ON_CPU"
"""Set to 1, it lets the device NPU be this machine's CPU, for tests: the plugin's own code, on another processor."""
MOST_ROWS = 4096
"""of KV cache. Every forward computes over all of them, and the plugin holds them twice: once for each graph."""
ROWS = 8
"""of a forward behind a cache, always: a target verifies drafts of one less. The plugin rounds fewer up to this."""
CHUNK = 256
"""rows of a prompt that are read at once, a power of two. A prompt of one token costs as much."""
_ROUND = 64
"""The plugin rounds its windows up to multiples of this."""


def is_npu(device: str) -> bool:
    return device.split(".")[0] == NPU


def on_cpu() -> bool:
    return os.environ.get(ON_CPU) == "1"


@dataclass(frozen=True, slots=True)
class Windows:
    """The fixed shapes of a model.

    prompt: most rows of a prompt. chunk: rows of it that are read at once. forward: rows of a forward behind a cache.
    beyond: rows of cache behind the prompt, so that the pads of a last forward have room.
    """

    prompt: int
    chunk: int
    forward: int

    @classmethod
    def of(cls, capacity: int, *, chunk: int = CHUNK) -> Windows:
        """capacity: rows of KV cache that are wanted."""
        rows = min(capacity, MOST_ROWS)
        prompt = -(-rows // chunk) * chunk
        return cls(max(prompt, 2 * chunk), chunk, ROWS)

    @property
    def beyond(self) -> int:
        return -(-(_ROUND + 2 * self.forward) // _ROUND) * _ROUND

    @property
    def past(self) -> int:
        """Rows of cache that a forward may have before it."""
        return self.prompt + self.beyond - self.forward

    def properties(self) -> dict[str, object]:
        """What the plugin is told to make these of a model."""
        return plugin_properties() | {
            "NPUW_LLM": "YES",
            "NPUW_LLM_BATCH_DIM": 0,
            "NPUW_LLM_SEQ_LEN_DIM": 2,
            "NPUW_LLM_MAX_PROMPT_LEN": self.prompt,
            "NPUW_LLM_MIN_RESPONSE_LEN": self.beyond,
            "NPUW_LLM_MAX_GENERATION_TOKEN_LEN": self.forward,
            "NPUW_LLM_PREFILL_CHUNK_SIZE": self.chunk,
            # Without it the chunks give logits for the last row only, and a first forward needs those of all its rows.
            "NPUW_LLM_SHARED_HEAD": "YES",
            "NPUW_LLM_ENABLE_CONTINUOUS_PREFILL": "YES",
            # With graphs of several lengths, a mask of the whole window would be written past the end of a shorter one.
            "NPUW_LLM_GENERATE_PYRAMID": "NO",
        }


def plugin_properties() -> dict[str, object]:
    """Of any graph. On an NPU activations are f16, and there is nothing to choose. On a CPU they would be what that CPU
    likes, and NPUW's search for parts that repeat fails on small models."""
    found: dict[str, object] = {"NPU_USE_NPUW": "YES"}
    if on_cpu():
        # f16 between graphs is refused by a CPU whose graphs are in f32, as those of 30 layers are.
        numeric = {"NPUW_F16IC": "NO", "INFERENCE_PRECISION_HINT": "f32"}
        found |= {"NPUW_DEVICES": "CPU", "NPUW_ONLINE_PIPELINE": "NONE", **numeric}
    return found
