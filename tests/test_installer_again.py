"""The installer where edgespec is already: newer and older, broken, running, or on a disk that is full."""

from __future__ import annotations

import json
import os
import runpy
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests import installer_machine
from tests.installer_machine import APPLY, Machine

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the stand-ins are shell scripts")
machine = installer_machine.machine


@pytest.mark.parametrize(
    ("one", "other"), [("1.10", "1.9"), ("1.0", "1.0rc2"), ("1.0", "1.0.dev3"), ("1.0rc1", "1.0b2"), ("1.0.1", "1.0")]
)
def test_a_release_is_newer_than_what_came_before_it(one: str, other: str) -> None:
    newer = runpy.run_path(str(APPLY))["_newer"]
    assert (newer(one, other), newer(other, one), newer(one, one)) == (True, False, False)
    assert not newer("1.0", "1.0.0") and not newer("1.0.0", "1.0")


def test_an_upgrade_keeps_models_and_a_downgrade_is_refused(machine: Machine) -> None:
    machine.install("1.9")
    model = machine.home / ".cache/edgespec/other"
    model.write_text("another model")
    assert machine.install("1.10").returncode == 0
    assert json.loads((machine.target / "installed.json").read_text())["version"] == "1.10"
    assert model.read_text() == "another model"
    before = machine.files()
    ran = machine.install("1.9")
    assert (ran.returncode, machine.files()) == (2, before)
    assert "1.10 is installed, which is newer than 1.9" in ran.stderr


def test_the_same_version_again_repairs(machine: Machine) -> None:
    machine.install("1.0")
    whole = machine.files()
    (machine.target / "app" / "python" / "edgespec").unlink()
    (machine.target / "bin" / "edgespec").write_text("broken")
    assert machine.install("1.0").returncode == 0
    assert machine.files() == whole


def test_a_disk_without_room_is_said_before_anything_is_written(machine: Machine) -> None:
    ran = machine.install("1.0", room=10**18)
    assert ran.returncode == 2
    assert "MB are needed" in ran.stderr
    assert machine.files() == {}


def test_a_disk_that_fills_up_leaves_what_was_there(machine: Machine) -> None:
    full = "#!/bin/sh\necho 'error: No space left on device (os error 28)' >&2\nexit 2\n"
    ran = machine.install("1.0", uv=full)
    assert ran.returncode == 2
    assert "no space left on the disk" in ran.stderr
    assert machine.files() == {}
    machine.install("1.0")
    before = machine.files()
    assert machine.install("1.1", uv=full).returncode == 2
    assert machine.files() == before


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_refused(machine: Machine) -> None:
    locked = machine.root / "locked"
    locked.mkdir(mode=0o500)
    ran = machine.install("1.0", locked / "edgespec")
    assert ran.returncode == 2
    assert "cannot be written" in ran.stderr


def test_a_kill_between_the_two_renames_is_mended(machine: Machine) -> None:
    machine.install("1.0")
    whole = machine.files()
    (machine.target / "app").rename(machine.target / "app.old")
    assert machine.install("1.0").returncode == 0
    assert machine.files() == whole


@pytest.fixture
def server(machine: Machine) -> Iterator[list[str]]:
    """A server that runs, as edgespec leaves word of it; what it was asked. It takes its time to end."""
    asked: list[str] = []
    data = machine.home / ".local/share/edgespec"

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(f"{self.path} {self.headers['Authorization']}")
            self.send_response(200)
            self.end_headers()
            threading.Thread(target=end_slowly).start()

        def do_GET(self) -> None:
            self.send_response(503)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    there = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def end() -> None:
        there.shutdown()
        there.server_close()

    def end_slowly() -> None:
        time.sleep(0.5)
        end()
        asked.append("ended")
        (data / "server.json").unlink()

    thread = threading.Thread(target=there.serve_forever, args=(0.01,))
    thread.start()
    data.mkdir(parents=True)
    found = {"url": f"http://127.0.0.1:{there.server_port}", "token": "secret"}
    (data / "server.json").write_text(json.dumps(found))
    yield asked
    end()
    thread.join()


def test_a_running_server_is_asked_to_end(machine: Machine, server: list[str]) -> None:
    """And nothing is changed before it has ended, as files in use cannot be replaced on Windows."""
    assert machine.apply("stop").returncode == 0
    assert server == ["/shutdown Bearer secret", "ended"]


def test_another_program_on_the_port_is_left_alone(machine: Machine) -> None:
    """It need not speak HTTP."""
    data = machine.home / ".local/share/edgespec"
    data.mkdir(parents=True)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        (data / "server.json").write_text(json.dumps({"url": url, "token": "x"}))

        def answer() -> None:
            with listening.accept()[0] as connection:
                connection.recv(1000)
                connection.sendall(b"220 mail\r\n")

        other = threading.Thread(target=answer)
        other.start()
        ran = machine.apply("stop")
        other.join()
    assert (ran.returncode, ran.stderr) == (0, "")


def test_word_of_a_server_elsewhere_is_not_followed(machine: Machine) -> None:
    data = machine.home / ".local/share/edgespec"
    data.mkdir(parents=True)
    (data / "server.json").write_text('{"url": "http://192.0.2.1:80", "token": "x"}')
    assert machine.apply("stop").returncode == 0
