"""The process of one runtime: it reads a request as one line of JSON and writes its answer as another.

Native libraries may print on file descriptor 1. So the descriptor is pointed at standard error first, and answers go
through a private copy of standard output. Argument: the adapter's module.

    {"do": "load", "weight_formats": {...}, "mode": "plain", "threads": 2, "cache": null}
        -> {"load_s": ..., "versions": {...}, "settings": "..."}
    {"do": "generate", "prompt": [1, 2], "new_tokens": 4}
        -> {"tokens": [...], "at_s": [...], ...}
    {"do": "infill", "prefix": "...", "typed": "...", "suffix": "...", "new_tokens": 4}
        -> {"text": "...", "tokens": 4, "seconds": ..., "prompt_tokens": ...}
    {"do": "memory"}
        -> {"peak_bytes": ...}

An answer {"error": "..."} gives the failure in one line, and the process continues. It ends with its input.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import Any, BinaryIO

from edgespec import telemetry
from edgespec_bench.peers.base import Filler, Peer, WeightFormats, describe


def private_stdout() -> BinaryIO:
    """A private handle on standard output; file descriptor 1 becomes standard error."""
    private = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return private


def serve(peer: Peer, requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer until the input ends."""
    for line in iter(requests.readline, b""):
        try:
            answer = _answer(peer, json.loads(line))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a peer may raise anything, which is its answer
            answer = {"error": describe(error)}
        answers.write(json.dumps(answer).encode() + b"\n")


def _answer(peer: Peer, request: dict[str, Any]) -> dict[str, Any]:
    match request.pop("do"):
        case "load":
            cache = request["cache"]
            began = perf_counter()
            weight_formats = WeightFormats(**request["weight_formats"])
            peer.load(weight_formats, request["mode"], request["threads"], Path(cache) if cache else None)
            return {"load_s": perf_counter() - began, "versions": peer.versions(), "settings": peer.settings}
        case "generate":
            return asdict(peer.generate(request["prompt"], request["new_tokens"]))
        case "infill" if isinstance(peer, Filler):
            return asdict(peer.infill(**request))
        case "memory":
            return {"peak_bytes": peak_bytes()}
        case other:
            raise ValueError(f"no such request: {other}")


def peak_bytes() -> int:
    """Peak resident size of this process, the interpreter and all imports included."""
    import psutil

    info = psutil.Process().memory_info()
    if hasattr(info, "peak_wset"):  # Windows
        return int(info.peak_wset)
    with suppress(OSError):  # Linux. getrusage would include the parent's memory at the fork
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def main(module: str) -> None:
    telemetry.hide_openvino_telemetry()  # before any peer is imported
    answers = private_stdout()
    serve(import_module(module).Peer(), sys.stdin.buffer, answers)


if __name__ == "__main__":
    main(sys.argv[1])
