"""Compiles a graph in a process of its own, with a time limit, into a blob that this process then imports.

A compiler of a device may hang, or end its process. Here it takes only the child with it. A blob holds no weights: it
reads those of the graph it was made from. So its name is a hash of that graph and all that it was made with.

    python -m edgespec.backends.openvino.compile_apart     reads a job, as JSON, from its standard input
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgespec import own_python
from edgespec.errors import BackendError, DeviceError, SettingError

LIMIT_S = 900.0
"""An NPU takes one to two minutes for a model of 8 billion parameters."""
LIMIT = "EDGESPEC_COMPILE_LIMIT"
_COMMAND = own_python.module("edgespec.backends.openvino.compile_apart")
_CHANGES = ["states named", "broadcasts both ways"]
"""made in a graph before it is compiled: without one it is another blob"""
_SAMPLES, _SAMPLE_BYTES = 64, 1 << 16
"""parts of the weights that are hashed, spread over the file: all of it would take seconds"""
_KEPT_TEXT = 2000
"""characters of what a child says at its end"""
_HINT = "use --device CPU, or see: edgespec doctor"


def blob_name(xml: Path, properties: Mapping[str, object], plugin: str) -> str:
    """plugin: its version, that of its driver and the name of the device."""
    digest = hashlib.sha256(xml.read_bytes())
    weights = xml.with_suffix(".bin")
    size = weights.stat().st_size
    with weights.open("rb") as file:
        for index in range(_SAMPLES):
            file.seek(index * max(0, size - _SAMPLE_BYTES) // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE_BYTES))
    digest.update(json.dumps([size, sorted(properties.items()), plugin, _CHANGES], default=str).encode())
    return f"npu-{digest.hexdigest()[:24]}.blob"


def limit_s() -> float:
    """EDGESPEC_COMPILE_LIMIT, in seconds. Raises SettingError."""
    given = os.environ.get(LIMIT)
    try:
        found = LIMIT_S if given is None else float(given)
    except ValueError:
        found = 0.0
    if not 0 < found < 1e6:
        raise SettingError(LIMIT, got=given, allowed="seconds, above 0")
    return found


def compile_apart(
    xml: Path,
    device: str,
    properties: Mapping[str, object],
    blob: Path,
    *,
    limit: float | None = None,
    command: Sequence[str] = _COMMAND,
    say: Callable[[str], None] = lambda text: None,
) -> bool:
    """Make ``blob``. False: the graph compiles, and the plugin cannot write a blob.

    Raises DeviceError if the compiler hangs or dies, and BackendError if it refuses the graph.
    """
    limit = limit_s() if limit is None else limit
    blob.parent.mkdir(parents=True, exist_ok=True)
    say(f"compiling {xml.parent.name} for {device} (one-time, {limit:.0f} s at most)")
    job = json.dumps({"xml": str(xml), "device": device, "properties": dict(properties), "blob": str(blob)})
    try:
        done = subprocess.run(command, input=job.encode(), capture_output=True, timeout=limit)
    except subprocess.TimeoutExpired as error:
        what = f"compiling {xml} for {device} did not end"
        hint = f"{_HINT}; {LIMIT} sets the limit"
        raise DeviceError(what, got=f"{limit:g} s", hint=hint) from error
    except OSError as error:
        raise DeviceError(f"cannot start a process to compile for {device}", got=str(error), hint=_HINT) from error
    if done.returncode not in (0, 1):
        how = f"signal {-done.returncode}" if done.returncode < 0 else f"exit status {done.returncode}"
        raise DeviceError(f"the compiler of {device} ended its process at {xml}", got=how, hint=_HINT)
    found = _report(done.stdout)
    if done.returncode or found is None:
        told = found or done.stderr.decode("utf-8", "replace")[-_KEPT_TEXT:]
        raise BackendError(f"cannot compile {xml} for {device}: {told}", hint=_HINT)
    return blob.is_file()


def _report(out: bytes) -> str | None:
    """The last line, if it is one of ours: what went wrong, or ""."""
    lines = out.decode("utf-8", "replace").splitlines()
    try:
        found = json.loads(lines[-1])["error"] if lines else None
    except (ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) else None


def _work(job: dict[str, Any]) -> None:
    from edgespec.backends.openvino.npu_graph import read_for_npu
    from edgespec.backends.openvino.runtime import core
    from edgespec.errors import wrap_errors

    blob = Path(job["blob"])
    graph = read_for_npu(core(), Path(job["xml"]))
    with wrap_errors(BackendError, "the plugin refuses it"):
        compiled = core().compile_model(graph, job["device"], job["properties"])
    try:
        made = blob.with_name(f"{blob.name}.{os.getpid()}.partial")
        stream = io.BytesIO()  # without one, releases differ in what they return
        compiled.export_model(stream)
        made.write_bytes(stream.getvalue())
        made.replace(blob)
    except (RuntimeError, OSError) as error:  # it compiles: that is what the process was for
        sys.stderr.write(f"{error}\n")


def main() -> int:
    error = ""
    try:
        _work(json.load(sys.stdin))
    except BackendError as refusal:
        error = str(refusal)
    sys.stdout.write(json.dumps({"error": error}) + "\n")
    return 1 if error else 0


if __name__ == "__main__":
    sys.exit(main())
