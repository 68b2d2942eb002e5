"""The launcher of the chat window: which server it takes, and what it leaves behind."""

import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path

import httpx
import psutil
import pytest
from click.testing import CliRunner

from edgespec.errors import EdgespecError
from edgespec.server import door, found, window
from edgespec.server.chat.routes import ChatPage
from tests.fake_server import fake_pipeline, on_a_port, service_of


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGESPEC_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def browser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program in place of a browser, which notes how it was called. Returns its notes."""
    if os.name == "nt":
        pytest.skip("the stand-in is a shell script")
    programs = tmp_path / "programs"
    programs.mkdir()
    notes = tmp_path / "notes"
    script = programs / "chromium"
    script.write_text(f'#!/bin/sh\necho "$@" >> "{notes}"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setattr(window, "BROWSERS", ("chromium",))
    return notes


def test_a_server_that_runs_is_used_and_left_alone(data: Path, browser: Path, tmp_path: Path) -> None:
    with on_a_port(service_of(fake_pipeline(tmp_path / "model"))) as url:
        found.record(url)
        for _ in range(2):  # a second start shows the same chats
            assert CliRunner().invoke(window.command, ["--window", "app"], catch_exceptions=False).exit_code == 0
        assert found.answers(url)
    assert browser.read_text().splitlines() == 2 * [f"--app={url} --user-data-dir={data / 'window'} --no-first-run"]


def test_a_browser_is_not_looked_for_in_the_current_folder(
    browser: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be one that was unpacked from somebody else's archive."""
    monkeypatch.chdir(tmp_path)
    installed = tmp_path / "programs" / "chromium"
    stranger = shutil.copy(installed, tmp_path / "chromium")
    assert window._browser() == str(installed)
    monkeypatch.setenv("PATH", os.pathsep.join((".", "", "programs")))
    assert window._browser() is None
    assert os.access(stranger, os.X_OK)
    monkeypatch.setenv("PROGRAMFILES", str(tmp_path / "files"))
    edge = tmp_path / "files" / window._ON_WINDOWS[0]
    edge.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(installed, edge)
    assert window._browser() == str(edge)


def test_a_proxy_of_the_system_is_not_asked(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with on_a_port(service_of(fake_pipeline(tmp_path / "model"))) as url:
        recorded = found.record(url)
        assert found.running() == recorded
        assert recorded.parent == os.getppid()


@pytest.mark.parametrize("said", [b"220 mail\r\n", b"", b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200])
def test_another_program_on_the_port_is_no_server(said: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"

        def answer() -> None:
            for _ in range(2):
                connection = listening.accept()[0]
                connection.recv(1000)
                connection.sendall(said)
                connection.close()

        other = threading.Thread(target=answer)
        other.start()
        assert not found.answers(url)
        assert not found.shut_down(found.Found(url, 1, "token"))
        other.join()


def test_a_window_that_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a server is started for it."""
    monkeypatch.setattr(window, "_browser", lambda: None)
    monkeypatch.setattr(window, "find_spec", lambda name: None)
    monkeypatch.setattr(window, "_start", lambda model: pytest.fail("a server was started"))
    for kind, said in (("app", "no browser with windows of its own"), ("webview", "pywebview is not installed")):
        ran = CliRunner().invoke(window.command, ["--window", kind])
        assert isinstance(ran.exception, EdgespecError) and said in str(ran.exception)


@pytest.mark.parametrize(("opens", "said"), [(True, "is open in your browser"), (False, "no browser was found here")])
def test_where_there_is_no_window_the_address_is_said(
    opens: bool, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("webbrowser.open", lambda url: opens)
    monkeypatch.setattr(found, "answers", lambda url: False)
    window.show("http://127.0.0.1:9", "tab")
    assert said in (line := capsys.readouterr().err) and "http://127.0.0.1:9" in line


def test_a_door_leads_to_a_server_that_comes_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "_LOOK_S", 0.01)
    with door.Door() as open_door:
        assert "edgespec starts" in httpx.get(open_door.url).text
        assert httpx.get(f"{open_door.url}server").status_code == 204
        open_door.lead("http://127.0.0.1:1/")
        assert httpx.get(f"{open_door.url}server").text == "http://127.0.0.1:1/"
        open_door.lead(None)
        assert httpx.get(f"{open_door.url}server").status_code == 410


@pytest.mark.skipif(os.name == "nt", reason="how a connection is reset differs")
def is_asking(thread: threading.Thread) -> bool:
    """Whether it answers a request, and has begun: those that have not are listed too, and cannot be joined."""
    return "process_request" in thread.name and thread.is_alive()


def test_a_window_that_closes_early_leaves_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    with door.Door() as open_door:
        port = httpx.URL(open_door.url).port
        assert port is not None
        with socket.create_connection(("127.0.0.1", port)) as window_:
            window_.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            window_.sendall(b"GET /server HTTP/1.1\r\n\r\n")
            while not (asking := [each for each in threading.enumerate() if is_asking(each)]):
                time.sleep(0.01)
        open_door.lead("http://127.0.0.1:1/")
        for thread in asking:
            thread.join(20)
    assert capsys.readouterr().err == ""


IN_A_WINDOW = """
import sys, threading, time, webview
from edgespec.server import window

def look():
    while not webview.windows:
        time.sleep(0.1)
    shown = webview.windows[0]
    shown.events.loaded.wait(60)
    print(shown.run_js("document.title + ' ' + document.querySelectorAll('#question').length"))
    shown.destroy()

threading.Thread(target=look, daemon=True).start()
window.show(sys.argv[1], "webview")
print("closed")
"""


@pytest.mark.slow
@pytest.mark.skipif(find_spec("webview") is None, reason="pywebview is not installed")
@pytest.mark.skipif(shutil.which("xvfb-run") is None, reason="there is no screen to show a window on")
def test_the_page_runs_in_a_window_of_pywebview(data: Path, tmp_path: Path) -> None:
    service = service_of(fake_pipeline(tmp_path / "model"))
    page = ChatPage(service, tmp_path / "chats.sqlite")
    with on_a_port(service, more=page.routes()) as url:
        command = ["xvfb-run", "-a", sys.executable, "-c", IN_A_WINDOW, url]
        as_root = {"QTWEBENGINE_DISABLE_SANDBOX": "1"}  # Qt's browser refuses root otherwise
        ran = subprocess.run(command, env=os.environ | as_root, capture_output=True, text=True, timeout=300)
    assert ran.stdout.split() == ["edgespec", "1", "closed"], ran.stderr
    assert any((data / "window").iterdir())


WAITING = """
import re, sys, urllib.error, urllib.request
url = sys.argv[1].removeprefix("--app=")
server = urllib.request.urlopen(url).read() and ""
try:
    while not server:
        server = urllib.request.urlopen(url + "server").read().decode()
    found = urllib.request.urlopen(server).headers["server"]
except OSError as error:
    found = repr(error)
open(sys.argv[0] + ".seen", "w").write(str(found))
"""
"""a window in place of a browser's: it waits at the door until a server is there or none will be, then it closes"""


@pytest.fixture
def seen(browser: Path, tmp_path: Path) -> Path:
    """Where the window notes what it found."""
    script = tmp_path / "window.py"
    script.write_text(WAITING)
    (tmp_path / "programs" / "chromium").write_text(f'#!/bin/sh\nexec "{sys.executable}" "{script}" "$@"\n')
    return tmp_path / "window.py.seen"


def test_a_server_that_does_not_start_is_said(data: Path, seen: Path) -> None:
    command = [sys.executable, "-m", "edgespec.server.window", "--window", "app", "--model", "/no/such/model"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 2
    assert "/no/such/model" in ran.stderr
    assert "the server ended too early" in ran.stderr.splitlines()[-1]
    assert "Traceback" not in ran.stderr
    assert "Error" in seen.read_text()  # of the door, or of a server that ends again


@pytest.mark.real
def test_the_window_ends_the_server_that_it_started(data: Path, seen: Path) -> None:
    command = [sys.executable, "-m", "edgespec.server.window", "--window", "app"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    assert seen.read_text() == "edgespec"
    assert found.recorded() is None


def test_a_window_that_is_closed_at_once_leaves_no_server(data: Path, browser: Path) -> None:
    command = [sys.executable, "-m", "edgespec.server.window", "--window", "app"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (ran.returncode, found.running()) == (0, None), ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to send")
@pytest.mark.parametrize("number", ["SIGTERM", "SIGHUP"])
def test_a_window_that_is_ended_from_outside_leaves_no_server(data: Path, seen: Path, number: str) -> None:
    (seen.parent / "window.py").write_text("import time; time.sleep(300)")
    command = [sys.executable, "-m", "edgespec.server.window", "--window", "app"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as started:
        children = psutil.Process(started.pid).children
        while not any("serve" in child.cmdline() for child in children()):
            assert started.poll() is None
            time.sleep(0.05)
        server = next(child for child in children() if "serve" in child.cmdline())
        started.send_signal(getattr(signal, number))
        _, told = started.communicate(timeout=60)
    assert started.returncode == 0
    assert "Traceback" not in told
    assert not server.is_running()
