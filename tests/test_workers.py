"""Workers that die, or whose test never ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.test_check import loaded
from tests.workers import DIES_S, GONE_S, LONGEST_S, STOP, Stop, Watch

ROOT = Path(__file__).parents[1]
DIES = """
import os, time
from pathlib import Path

def test_before():
    pass

def test_dies():
    if os.environ.get("FORKS") and (child := os.fork()) == 0:
        time.sleep(600)
    elif os.environ.get("FORKS"):
        Path("child").write_text(str(child))
    os._exit(3)

def test_behind():
    pass
"""
OTHERS = """
import time
import pytest

@pytest.mark.parametrize("number", range(200))
def test_another(number):
    time.sleep(0.2)
"""


class Process:
    pid = 1 << 30
    """of none"""

    def __init__(self) -> None:
        self.status: int | None = None
        self.signals: list[int] = []

    def poll(self) -> int | None:
        return self.status

    def send_signal(self, number: int) -> None:
        self.signals.append(number)

    def kill(self) -> None:
        self.signals.append(-1)


class Node:
    """A worker, as its starter sees it."""

    def __init__(self) -> None:
        self.process = Process()
        self.gateway = SimpleNamespace(id="gw0", _io=SimpleNamespace(popen=self.process))
        self.workerinput: dict[str, Any] = {}
        self.heard: list[Any] = []

    def __hash__(self) -> int:
        return id(self)

    def process_from_remote(self, event: Any) -> None:
        self.heard.append(event)


def watched(tmp_path: Path) -> tuple[Watch, Node]:
    watch, node = Watch(tmp_path / "stop", LONGEST_S), Node()
    watch.pytest_configure_node(node)
    return watch, node


def test_a_test_may_take_long_and_not_for_ever(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    watch, node = watched(tmp_path)
    for heard in ("testnodeready", "xdist_node_collection_finished", "runtest_logreport"):
        for _ in range(LONGEST_S - 1):
            watch.second()
        assert not node.process.signals
        getattr(watch, f"pytest_{heard}")(SimpleNamespace(node=node) if heard == "runtest_logreport" else node)
    for _ in range(LONGEST_S):
        watch.second()
    ends = -1 if os.name == "nt" else signal.SIGABRT
    assert node.process.signals == [ends] and f"gw0 is silent for {LONGEST_S} s" in capfd.readouterr().err
    for _ in range(DIES_S):
        watch.second()
    assert node.process.signals == [ends, -1] and not node.heard


def test_a_worker_is_gone_when_its_process_is(tmp_path: Path) -> None:
    xdist = pytest.importorskip("xdist.workermanage")
    watch, node = watched(tmp_path)
    node.process.status = 3
    for _ in range(2 * GONE_S):
        watch.second()
    assert node.heard == [xdist.Marker.END]


@pytest.mark.parametrize("error", [None, "Not properly terminated"])
def test_the_others_take_no_further_test_once_one_died(tmp_path: Path, error: str | None) -> None:
    watch, node = watched(tmp_path)
    session = SimpleNamespace(shouldstop=False, exitstatus=0)
    stop = Stop(Path(node.workerinput[STOP]))
    watch.pytest_testnodedown(node, error)
    hook = stop.pytest_runtest_protocol(SimpleNamespace(session=session))  # type: ignore[arg-type]
    next(hook)
    with pytest.raises(StopIteration, match="True"):
        hook.send(True)
    watch.pytest_sessionfinish(session)  # type: ignore[arg-type]
    assert (session.shouldstop, session.exitstatus) == (("another worker died", 1) if error else (False, 0))
    watch.second()
    assert not node.heard and not node.process.signals, "what is down is watched no longer"


@pytest.mark.parametrize(
    "forks",
    [False, pytest.param(True, marks=[pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="no fork")])],
)
def test_a_dying_worker_ends_the_run_as_failed(tmp_path: Path, forks: bool) -> None:
    """Forks: a process of the test lives on and keeps the worker's pipe open."""
    pytest.importorskip("xdist")
    (tmp_path / "conftest.py").write_text("from tests.workers import configure as pytest_configure\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_a.py").write_text(DIES)
    (tmp_path / "test_b.py").write_text(OTHERS)
    options = [option.replace("auto", "2") for option in loaded().WORKERS]
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | ({"FORKS": "1"} if forks else {})
    environment = {name: value for name, value in environment.items() if not name.startswith("PYTEST_")}
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # of plugins that are installed here
    try:
        with (tmp_path / "out").open("wb") as out:
            code = subprocess.run(
                [sys.executable, "-m", "pytest", "-p", "xdist", "-p", "no:cacheprovider", *options],
                cwd=tmp_path, env=environment, stdout=out, stderr=subprocess.STDOUT, timeout=300,
            ).returncode  # fmt: skip
    finally:
        if (tmp_path / "child").is_file():
            with suppress(ProcessLookupError):
                os.kill(int((tmp_path / "child").read_text()), signal.SIGTERM)
    said = (tmp_path / "out").read_text()
    assert code != 0 and "crashed while running 'test_a.py::test_dies'" in said, said
    assert "another worker died" in said and said.count("node down") == 1, said
    assert (tmp_path / "child").is_file() == forks
