"""Workers of pytest-xdist: one that dies, or whose test never ends, ends the run as failed.

By itself pytest-xdist notices the end of a worker by that of its pipe, which a process forked from the worker keeps
open; it starts another worker, which dies of the same test; and it waits for a test without a limit.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from tests.processes import PATIENCE, kill, started_by

LONGEST_S, LONGEST_SLOW_S = round(900 * PATIENCE), round(2400 * PATIENCE)
"""that a worker may take until it next reports something of a test, and of one that is marked slow"""
GONE_S = 3
"""that a pipe may stay open behind its process"""
DIES_S = 20
"""that a process may take to show where it is and end"""
STOP = "edgespec_stop"
"""what a worker calls the file that says: take no further test"""


def configure(config: pytest.Config) -> None:
    """Of the process that starts workers, or of one of them. It is no matter of any other."""
    given: dict[str, Any] | None = getattr(config, "workerinput", None)
    if given is not None:
        config.pluginmanager.register(Stop(Path(given[STOP])))
    elif config.getoption("numprocesses", None):
        folder = TemporaryDirectory(prefix="edgespec-tests-", ignore_cleanup_errors=True)
        config.add_cleanup(folder.cleanup)
        slow = config.getoption("markexpr").startswith("slow")
        config.pluginmanager.register(Watch(Path(folder.name) / "stop", LONGEST_SLOW_S if slow else LONGEST_S))


class Stop:
    """In a worker."""

    def __init__(self, file: Path) -> None:
        self._file = file

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        done = yield
        if self._file.exists():
            item.session.shouldstop = "another worker died"
        return done


class Watch:
    """Where workers are started. Seconds are those in which this process ran: one that is stopped, as its workers are,
    counts none."""

    def __init__(self, stop: Path, longest_s: int) -> None:
        self._stop, self._longest_s = stop, longest_s
        self._silent_s: dict[Any, int] = {}
        self._gone_s: dict[Any, int] = {}
        self._turn = threading.Lock()
        """to count: one thread does, and one hears of tests"""
        self._over = threading.Event()

    def pytest_sessionstart(self) -> None:
        threading.Thread(target=self._watch, name="watch of workers", daemon=True).start()

    def pytest_configure_node(self, node: Any) -> None:
        node.workerinput[STOP] = str(self._stop)
        with self._turn:
            self._silent_s[node] = self._gone_s[node] = 0

    def pytest_testnodeready(self, node: Any) -> None:
        self._heard_of(node)

    def pytest_xdist_node_collection_finished(self, node: Any) -> None:
        self._heard_of(node)

    def pytest_runtest_logreport(self, report: Any) -> None:
        self._heard_of(getattr(report, "node", None))

    def _heard_of(self, node: Any) -> None:
        with self._turn:
            if node in self._silent_s:
                self._silent_s[node] = 0

    def pytest_testnodedown(self, node: Any, error: object) -> None:
        with self._turn:
            self._silent_s.pop(node, None)
        if error:
            self._stop.touch()

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        self._over.set()
        if self._stop.exists() and not session.exitstatus:  # it died between two tests
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _watch(self) -> None:
        while not self._over.wait(1):
            self.second()

    def second(self) -> None:
        """Another one has passed."""
        with self._turn:
            for node in self._silent_s:
                self._second_of(node)

    def _second_of(self, node: Any) -> None:
        process = node.gateway._io.popen
        if process.poll() is not None:
            self._gone_s[node] += 1
            if self._gone_s[node] == GONE_S:
                self._pipe_is_closed(node)
            return
        self._silent_s[node] = silent_s = self._silent_s[node] + 1
        if silent_s == self._longest_s:
            print(f"\n{node.gateway.id} is silent for {silent_s} s and ended", file=sys.stderr, flush=True)
            end(process, shows=True)
        elif silent_s == self._longest_s + DIES_S:
            end(process, shows=False)

    @staticmethod
    def _pipe_is_closed(node: Any) -> None:
        """What the thread that reads it would say."""
        from xdist.workermanage import Marker  # type: ignore[import-untyped]

        node.process_from_remote(Marker.END)


def end(process: Any, *, shows: bool) -> None:
    """And all that it started, which would keep open what it writes into. shows: where each thread is, which is for
    pytest's faulthandler to do."""
    started = started_by(process.pid)
    with suppress(OSError):
        if shows and os.name != "nt":
            process.send_signal(signal.SIGABRT)
        else:
            process.kill()
    kill(started)
