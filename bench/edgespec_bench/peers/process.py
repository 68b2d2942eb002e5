"""The parent's end of a runtime's process."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, Queue
from typing import Any

from edgespec import own_python
from edgespec_bench.peers.base import Filled, Run, WeightFormats
from edgespec_bench.peers.entries import Runtime


class RuntimeFailed(Exception):
    """The runtime answered with an error, died or timed out. The message is one line."""


class Process:
    """A running runtime. Any method may raise RuntimeFailed; after a death every call does.

    module: full name of the adapter's module. patience_s: time limit of one answer.
    """

    def __init__(self, module: str, *, patience_s: float = 900) -> None:
        self._patience_s = patience_s
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        quiet = {"TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}
        self._popen = subprocess.Popen(
            [*own_python.module("edgespec_bench.peers.worker"), module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=os.environ | {"PYTHONUNBUFFERED": "1"} | quiet,
        )
        self._answers: Queue[bytes] = Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def load(self, weight_formats: WeightFormats, mode: str, threads: int, cache: Path | None) -> dict[str, Any]:
        """Returns ``versions``, ``settings`` and ``load_s``, which includes imports."""
        formats_json = json.loads(weight_formats.as_json())
        return self._ask(do="load", weight_formats=formats_json, mode=mode, threads=threads, cache=cache and str(cache))

    def generate(self, prompt: Sequence[int], new_tokens: int) -> Run:
        run = Run(**self._ask(do="generate", prompt=list(prompt), new_tokens=new_tokens))
        if len(run.tokens) != new_tokens:
            raise RuntimeFailed(f"{len(run.tokens)} tokens instead of {new_tokens}")
        return run

    def infill(self, prefix: str, typed: str, suffix: str, new_tokens: int) -> Filled:
        return Filled(**self._ask(do="infill", prefix=prefix, typed=typed, suffix=suffix, new_tokens=new_tokens))

    def peak_bytes(self) -> int:
        return int(self._ask(do="memory")["peak_bytes"])

    def close(self) -> None:
        """End the process; kill it if it does not end in time."""
        if self._popen.stdin and not self._popen.stdin.closed:
            with suppress(OSError):
                self._popen.stdin.close()
        try:
            self._popen.wait(5)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
        self._errors.close()

    def _read(self) -> None:
        assert self._popen.stdout is not None
        with self._popen.stdout as stdout:
            for line in stdout:
                self._answers.put(line)
        self._answers.put(b"")

    def _ask(self, **request: Any) -> dict[str, Any]:
        assert self._popen.stdin is not None
        try:
            self._popen.stdin.write(json.dumps(request).encode() + b"\n")
            self._popen.stdin.flush()
        except (OSError, ValueError) as error:
            raise RuntimeFailed(self._death()) from error
        try:
            line = self._answers.get(timeout=self._patience_s)
        except Empty:
            self._popen.kill()
            raise RuntimeFailed(f"no answer in {self._patience_s:.0f} s") from None
        if not line:
            raise RuntimeFailed(self._death())
        try:
            answer: dict[str, Any] = json.loads(line)
        except ValueError:
            self._popen.kill()
            raise RuntimeFailed(f"not an answer: {line[:80]!r}") from None
        if "error" in answer:
            raise RuntimeFailed(answer["error"])
        return answer

    def _death(self) -> str:
        try:
            code: int | None = self._popen.wait(10)
        except subprocess.TimeoutExpired:  # it closed its pipes but hangs
            self._popen.kill()
            code = self._popen.wait()
        self._answers.put(b"")  # the next request gets the same reason
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        last = f": {lines[-1].strip()[:200]}" if lines else ""
        return f"its process ended with code {code}{last}"


def start(runtime: Runtime) -> Process:
    return Process(f"edgespec_bench.peers.adapters.{runtime.module}")


def missing(runtime: Runtime) -> str | None:
    """The reason why it cannot run: the first package that is not installed; else None."""
    return next((f"{name} is not installed" for name in runtime.distributions if not installed(name)), None)


def installed(package: str) -> bool:
    from importlib.metadata import PackageNotFoundError, version

    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True
