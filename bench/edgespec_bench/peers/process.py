"""The parent's end of a contender's process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, Queue
from typing import Any

from edgespec_bench.peers.base import Forms, Run
from edgespec_bench.peers.entries import Contender


class ContenderFailed(Exception):
    """It answered with an error, died, or said nothing in time. One line."""


class Process:
    """A running contender. Any method raises ContenderFailed; after a death every one does.

    module: of the adapter, by its whole name. patience_s: for one answer.
    """

    def __init__(self, module: str, *, patience_s: float = 900) -> None:
        self._patience_s = patience_s
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        quiet = {"TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}
        self._popen = subprocess.Popen(
            [sys.executable, "-m", "edgespec_bench.peers.worker", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=os.environ | {"PYTHONUNBUFFERED": "1"} | quiet,
        )
        self._answers: Queue[bytes] = Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def load(self, forms: Forms, mode: str, threads: int, cache: Path | None) -> dict[str, Any]:
        """Its versions and settings; ``load_s``: imports included."""
        forms_json = json.loads(forms.as_json())
        return self._ask(do="load", forms=forms_json, mode=mode, threads=threads, cache=cache and str(cache))

    def generate(self, prompt: Sequence[int], new_tokens: int) -> Run:
        run = Run(**self._ask(do="generate", prompt=list(prompt), new_tokens=new_tokens))
        if len(run.tokens) != new_tokens:
            raise ContenderFailed(f"{len(run.tokens)} tokens instead of {new_tokens}")
        return run

    def peak_bytes(self) -> int:
        return int(self._ask(do="memory")["peak_bytes"])

    def close(self) -> None:
        """End it; a stuck one is killed."""
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
            raise ContenderFailed(self._death()) from error
        try:
            line = self._answers.get(timeout=self._patience_s)
        except Empty:
            self._popen.kill()
            raise ContenderFailed(f"no answer in {self._patience_s:.0f} s") from None
        if not line:
            raise ContenderFailed(self._death())
        try:
            answer: dict[str, Any] = json.loads(line)
        except ValueError:
            self._popen.kill()
            raise ContenderFailed(f"not an answer: {line[:80]!r}") from None
        if "error" in answer:
            raise ContenderFailed(answer["error"])
        return answer

    def _death(self) -> str:
        try:
            code: int | None = self._popen.wait(10)
        except subprocess.TimeoutExpired:  # its pipes are closed and it hangs
            self._popen.kill()
            code = self._popen.wait()
        self._answers.put(b"")  # whoever asks again is told the same
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        last = f": {lines[-1].strip()[:200]}" if lines else ""
        return f"its process ended with code {code}{last}"


def start(contender: Contender) -> Process:
    return Process(f"edgespec_bench.peers.adapters.{contender.module}")


def missing(contender: Contender) -> str | None:
    """Why it cannot run: what of it is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    for name in contender.distributions:
        try:
            version(name)
        except PackageNotFoundError:
            return f"{name} is not installed"
    return None
