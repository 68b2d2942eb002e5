"""``edgespec-chat``: the chat page in a window of its own.

It uses the server that runs already, or starts one and stops it with the window. The window is pywebview's if that is
installed, else a browser's window without its bars, else a tab of the browser.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import webbrowser
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import click

from edgespec import own_python
from edgespec.errors import EdgespecError
from edgespec.server import found
from edgespec.server.door import Door
from edgespec.server.found import Found

START_S = 3600.0
"""for a server to answer. It does so before its models are loaded, but after they were fetched."""
STOP_S = 20.0
"""for its last answers to end"""
_ENDING_S = 3.0
"""for a server that does not answer to end by itself"""
_LOOK_S = 0.05
BROWSERS = ("msedge", "microsoft-edge", "google-chrome", "chrome", "chromium", "chromium-browser", "brave")
_ON_WINDOWS = (
    r"Microsoft\Edge\Application\msedge.exe",
    r"Google\Chrome\Application\chrome.exe",
    r"Chromium\Application\chrome.exe",
    r"BraveSoftware\Brave-Browser\Application\brave.exe",
)
"""where they are installed: they are not on PATH"""


class NoServer(EdgespecError):
    """The server did not start."""


@click.command(name="edgespec-chat")
@click.option("--model", "-m", metavar="REF", help="The model of a server that is started. Default: the small one.")
@click.option("--window", type=click.Choice(("auto", "webview", "app", "tab")), default="auto", show_default=True)
@click.help_option("--help", "-h")
def command(model: str | None, window: str) -> None:
    """Chat with a model on this machine, in a window.

    It ends with its window. A server that was running before goes on.
    """
    kind = _kind(window)
    if (server := found.running()) is not None:
        with suppress(KeyboardInterrupt):
            show(server.url, kind)
        return
    _end_like_ctrl_c()
    started = _start(model)
    try:
        with suppress(KeyboardInterrupt):
            _show_started(started, kind)
    finally:
        failed = _stop(started)
    if failed:
        raise NoServer("the server ended too early", hint="its own message is above")


def show(url: str, kind: str) -> None:
    """Open the page, and return when its window is closed."""
    if kind == "webview":
        import webview  # type: ignore[import-not-found, unused-ignore]

        webview.create_window("edgespec", url, width=1100, height=800)
        webview.start(private_mode=False, storage_path=str(_profile()))
    elif kind == "app":
        subprocess.run(
            [str(_browser()), f"--app={url}", f"--user-data-dir={_profile()}", "--no-first-run"], check=False
        )
    else:
        opened = webbrowser.open(url)
        where = f"{url} is open in your browser" if opened else f"no browser was found here: open {url} in one"
        click.echo(f"edgespec: {where}. Ctrl-C ends it", err=True)
        while found.answers(url):
            time.sleep(1)


def _kind(window: str) -> str:
    """The kind of window that there is, of those that were asked for: webview, app, or tab."""
    if window in ("auto", "webview") and find_spec("webview"):
        return "webview"
    if window == "webview":
        raise EdgespecError("pywebview is not installed", hint="install it with pip, or use --window app")
    if window == "tab" or (window == "auto" and _browser() is None):
        return "tab"
    if _browser() is None:
        raise EdgespecError(
            "no browser with windows of its own is here", allowed=", ".join(BROWSERS), hint="--window tab"
        )
    return "app"


def _profile() -> Path:
    """A folder of the window's own: else it belongs to a browser that runs already, and nobody sees it close."""
    profile = found.data_dir() / "window"
    profile.mkdir(parents=True, exist_ok=True)
    return profile


def _browser() -> str | None:
    """Never one of the current folder, which may hold programs of somebody else's: Windows would look there first."""
    installed = [os.environ.get(name) for name in ("PROGRAMFILES(X86)", "PROGRAMFILES", "LOCALAPPDATA")]
    known = [Path(folder, name) for name in _ON_WINDOWS for folder in installed if folder]
    on_path = [Path(folder) for folder in os.get_exec_path() if Path(folder).is_absolute()]
    ending = ".exe" if os.name == "nt" else ""
    known += [folder / (name + ending) for name in BROWSERS for folder in on_path]
    return next((str(path) for path in known if shutil.which(str(path))), None)


def _end_like_ctrl_c() -> None:
    """Who ends this process from outside, or closes its terminal, ends the server with it."""

    def end(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_IGN)  # once: the server is being stopped
        raise KeyboardInterrupt

    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):  # SIGHUP is POSIX's
            signal.signal(getattr(signal, name), end)


def _start(model: str | None) -> subprocess.Popen[bytes]:
    """A server on any free port. It says on stderr what it does."""
    named = ["--model", model] if model else []
    return subprocess.Popen([*own_python.module("edgespec"), "serve", "--port", "0", "--yes", *named])


def _recorded(process: subprocess.Popen[bytes]) -> Found | None:
    server = found.recorded()
    return server if server is not None and process.pid in (server.pid, server.parent) else None


def _awaited(process: subprocess.Popen[bytes]) -> Found:
    """The server, once it answers. Raises NoServer."""
    deadline = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < deadline:
        server = _recorded(process)
        if server is not None and found.answers(server.url):
            return server
        time.sleep(_LOOK_S)
    process.kill()
    raise NoServer("the server did not start", hint="its own message is above; edgespec serve shows the same")


def _show_started(process: subprocess.Popen[bytes], kind: str) -> None:
    """As ``show``, for a server that does not answer yet. A tab is opened once it does."""
    if kind == "tab":
        show(_awaited(process).url, kind)
        return
    with Door() as door:
        threading.Thread(target=_lead, args=(door, process), daemon=True).start()
        show(door.url, kind)


def _lead(door: Door, process: subprocess.Popen[bytes]) -> None:
    try:
        door.lead(_awaited(process).url)
    except NoServer:
        door.lead(None)


def _stop(process: subprocess.Popen[bytes]) -> bool:
    """Returns whether it has failed by itself."""
    is_ours = False
    if process.poll() is None:
        server = _recorded(process)
        if server is None or not found.shut_down(server):
            with suppress(subprocess.TimeoutExpired):  # it ends by itself, or it has not begun to answer
                process.wait(_ENDING_S)
            is_ours = process.poll() is None
            process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
        process.kill()
    return process.wait() != 0 and not is_ours


def main() -> None:
    """The entry point, with errors as the command line has them."""
    try:
        command()
    except EdgespecError as error:
        click.echo(f"edgespec: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
