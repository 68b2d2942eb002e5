"""The chat page and pages of others in a real browser with the real model, and the bundle that is committed."""

import os
import shutil
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from edgespec.pipeline import Pipeline
from edgespec.server import found
from tests.fake_server import on_a_port, service_of

PAGE = Path(__file__).parent.parent / "apps" / "chat"
BUILT = Path(__file__).parent.parent / "edgespec" / "server" / "chat" / "page"
NPM = shutil.which("npm")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")

pytestmark = [pytest.mark.slow, pytest.mark.skipif(NPM is None, reason="node is not installed")]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("apps") / "chat"
    shutil.copytree(PAGE, folder, ignore=shutil.ignore_patterns("node_modules", "out"))
    run(folder, "ci", "--no-audit", "--no-fund")
    return folder


def run(folder: Path, *command: str, **environment: str) -> str:
    ran = subprocess.run(
        [str(NPM), *command],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_its_parts_pass_their_tests(work: Path) -> None:
    run(work, "test")


def test_the_committed_bundle_is_what_the_sources_build(work: Path, tmp_path: Path) -> None:
    run(work, "run", "check")
    subprocess.run([str(shutil.which("node")), "build.mjs", str(tmp_path / "page")], cwd=work, check=True)
    names = sorted(path.name for path in BUILT.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "page").iterdir())
    for name in names:
        assert (BUILT / name).read_bytes() == (tmp_path / "page" / name).read_bytes(), f"npm run build: {name}"
    assert sum((BUILT / name).stat().st_size for name in names) < 300_000


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_the_page_works_in_a_browser(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGESPEC_DATA", str(tmp_path / "data"))
    command = [sys.executable, "-m", "edgespec", "serve", "--port", "0", "--yes"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
        try:
            deadline = time.monotonic() + 120
            while (there := found.recorded()) is None or there.pid != server.pid or not found.answers(there.url):
                assert server.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
            run(work, "run", "e2e", URL=there.url, CHROMIUM=str(CHROMIUM))
        finally:
            server.terminate()


class Page(BaseHTTPRequestHandler):
    """An empty page of somebody else."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.mark.real
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_pages_of_others_get_nothing_out_of_a_browser(work: Path, pipeline: Pipeline) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as pages:
        threading.Thread(target=pages.serve_forever, daemon=True).start()
        port = str(pages.server_port)
        try:
            with on_a_port(service_of(pipeline), origins=[f"http://friend.example:{port}"]) as url:
                run(work, "exec", "--", "node", "e2e/foreign.mjs", URL=url, PAGES=port, CHROMIUM=str(CHROMIUM))
        finally:
            pages.shutdown()  # else its end waits for the thread
