"""Libraries that report their use to their makers are told not to, before any of them can be imported.

``import edgespec`` comes first in every process of ours, and imports this. A variable that the user has set stands, and
the processes that we start inherit all of them. OpenVINO and nncf know no such variable: they report through a package
of their own, and take a stub where it cannot be imported. ``edgespec.backends.openvino.runtime`` hides it while it
imports OpenVINO.
"""

from __future__ import annotations

import os
import sys

VARIABLES = {
    "ORT_DISABLE_TELEMETRY": "1",  # onnxruntime and onnxruntime-genai: a device id in the home folder, uploads
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub: versions and the names of libraries, with every request
    "RAY_USAGE_STATS_ENABLED": "0",  # ray, which makes shards for training
}

for _name, _value in VARIABLES.items():
    os.environ.setdefault(_name, _value)


def hide_openvino_telemetry() -> None:
    """From now on no import in this process finds the package."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
