"""Processes that tests start: none outlives its time, or the process that waits for it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests import processes
from tests.workers import end

ROOT = Path(__file__).parents[1]
STARTS = """
import subprocess, sys, time
from pathlib import Path
started = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
Path("unfinished").write_text(str(started.pid))
Path("unfinished").rename("pid")
time.sleep(600)
"""


def started_in(folder: Path) -> psutil.Process:
    deadline = time.monotonic() + 120
    while not (folder / "pid").is_file():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return psutil.Process(int((folder / "pid").read_text()))


def ends(process: psutil.Process) -> bool:
    for _ in range(600):
        if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def test_a_command_that_takes_too_long_is_ended_and_the_next_one_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "LONGEST_S", 3)
    with pytest.raises(subprocess.TimeoutExpired) as ended:
        processes.python("print('so far', flush=True)\n" + STARTS, cwd=tmp_path)
    assert ended.value.stdout == b"so far\n"
    if sys.platform == "linux":
        assert ends(started_in(tmp_path))
    monkeypatch.undo()
    assert processes.python("print('next')").stdout.split() == [b"next"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere commands are not forked")
def test_a_command_ends_with_its_starter(tmp_path: Path) -> None:
    code = f"from tests.processes import python; python({STARTS!r}, cwd={str(tmp_path)!r})"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE) as starter:
        started = started_in(tmp_path)
        command, server = started.parents()[:2]
        assert server.ppid() == starter.pid
        starter.kill()
        assert starter.communicate(timeout=60)[1] == b"", "nothing keeps the stream open"
    assert all(ends(process) for process in (started, command, server))


def test_what_a_worker_started_ends_with_it(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", STARTS], cwd=tmp_path, stderr=subprocess.PIPE) as worker:
        started = started_in(tmp_path)
        end(worker, shows=True)
        worker.communicate(timeout=60)
    assert ends(started)
