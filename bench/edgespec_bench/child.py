"""A Python process of its own for what a bench measures in a fresh one."""

from __future__ import annotations

import subprocess
import sys

from edgespec.errors import BackendError


def run_python(*arguments: str) -> str:
    """What it prints. Raises BackendError with its own last line if it fails."""
    ran = subprocess.run(
        [sys.executable, *arguments],
        check=False,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        stdin=subprocess.DEVNULL,
    )
    if ran.returncode:
        lines = [line.strip() for line in ran.stderr.splitlines() if line.strip()]
        kind, colon, reason = (lines or [f"it ended with code {ran.returncode}"])[-1].partition(": ")
        ours = colon and (kind == "error" or kind.startswith("edgespec.errors."))
        raise BackendError(f"the process that is measured failed: {reason if ours else kind + colon + reason}")
    return ran.stdout
