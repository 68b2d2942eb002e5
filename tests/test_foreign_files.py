"""Readers of strangers' files: the sound file is read, and a mutated one raises our errors or none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import processes
from tests.foreign_files import READERS, SOUND

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("name", READERS)
def test_the_sound_file_is_read(name: str) -> None:
    """Else a mutation would prove nothing."""
    code = "import sys; from tests.foreign_files import main; main(*sys.argv[1:])"
    run = processes.decoded(processes.python(code, name, "0", str(SOUND), "0"))
    assert run.returncode == 0, run.stderr
    [result] = [json.loads(line) for line in run.stdout.splitlines()]
    if name == "wheel":  # read to its end, where the hash is another one
        assert result["outcome"] == "refused" and "SHA-256" in result["error"]
    else:
        assert result["outcome"] == "read", result


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_mutated_files_raise_our_errors_only(name: str) -> None:
    """A tenth of what ``scripts/try-files`` runs."""
    command = [sys.executable, "scripts/try-files", "--count", "110", "--seed", "1", "--reader", name]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout
    assert "110 files" in run.stdout
