"""Peak memory of a long prefill, in a process of its own."""

from __future__ import annotations

import json
import sys
from typing import Any

from edgespec.bench.report import show
from edgespec_bench.child import run_python

TOKENS = 4000


def bench_memory(load_options: dict[str, Any]) -> None:
    """Peak resident memory against weights + KV + 300 MB."""
    figures = json.loads(run_python("-m", __name__, json.dumps(load_options)).splitlines()[-1])
    goal = figures["weights_mb"] + figures["kv_mb"] + 300
    rows = [
        ("weights on disk", figures["weights_mb"], ""),
        (f"KV cache, {TOKENS} tokens", figures["kv_mb"], ""),
        ("peak after loading", figures["loaded_mb"], ""),
        (f"peak after a prefill of {TOKENS} tokens", figures["peak_mb"], f"<= {goal:.0f}"),
    ]
    show("memory", ["figure", "MB", "goal"], [(a, round(b), c) for a, b, c in rows], figures | {"goal_mb": goal})


def _measure(options: dict[str, Any]) -> dict[str, float]:
    from edgespec.hub.resolve import model_path
    from edgespec.loading import load

    pipeline = load(**options, draft="none")
    xml = model_path(pipeline.bundle, pipeline.bundle.manifest.target)
    loaded = _peak_bytes()
    pipeline.target.prefill([(i * 31) % 1000 + 100 for i in range(TOKENS)])
    return {
        "weights_mb": xml.with_suffix(".bin").stat().st_size / 1e6,
        "kv_mb": pipeline.target.cache.nbytes / 1e6,
        "loaded_mb": loaded / 1e6,
        "peak_mb": _peak_bytes() / 1e6,
    }


def _peak_bytes() -> float:
    """Peak resident size of this process."""
    import psutil

    info = psutil.Process().memory_info()
    if hasattr(info, "peak_wset"):  # Windows
        return float(info.peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else peak * 1024)


if __name__ == "__main__":
    print(json.dumps(_measure(json.loads(sys.argv[1]))))
