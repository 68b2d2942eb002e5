"""A server that is killed while an answer streams: what the page had shown is in the file, but for the last moment."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from edgespec.server.chat.routes import WRITE_S
from edgespec.server.chat.store import Store

SLACK_S = 0.25
"""for one round, one write, and a machine that does other things too"""
SERVER = """
import sys, time
from pathlib import Path
from edgespec.server.chat.routes import ChatPage
from tests.fake_server import fake_pipeline, on_a_port, service_of
folder = Path(sys.argv[1])
service = service_of(fake_pipeline(folder / "model", pace_s=0.01))
with on_a_port(service, more=ChatPage(service, folder / "chats.sqlite").routes()) as url:
    print(url, flush=True)
    time.sleep(60)
"""


def killed(folder: Path, after_s: float) -> None:
    server = subprocess.Popen([sys.executable, "-c", SERVER, folder], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    url = server.stdout.readline().strip()
    seen: list[tuple[float, str]] = []
    try:
        chat = httpx.post(f"{url}/app/chats", json={"options": {"temperature": 1.0, "seed": 3}}).json()["id"]
        turn = httpx.post(f"{url}/app/chats/{chat}/turns", json={"content": "Hello there"}).json()["id"]
        began = time.monotonic()
        with httpx.stream("POST", f"{url}/app/chats/{chat}/answer", json={"parent": turn}, timeout=30) as stream:
            for line in stream.iter_lines():
                if line.startswith("data: "):
                    seen.append((time.monotonic(), json.loads(line[6:]).get("text", "")))
                if time.monotonic() - began > after_s:
                    break
            server.kill()
            end = time.monotonic()
    finally:
        server.kill()
        server.wait()
        server.stdout.close()
    store = Store(folder / "chats.sqlite")
    question, answer = store.turns(chat)
    store.close()
    assert store.mended == ""
    assert question.content == "Hello there"
    shown = "".join(text for _, text in seen)
    old = "".join(text for at, text in seen if at < end - WRITE_S - SLACK_S)
    assert answer.content.startswith(old)
    assert answer.content.startswith(shown) or shown.startswith(answer.content)


@pytest.mark.parametrize("seed", range(2))
def test_a_kill_loses_the_last_moment_alone(tmp_path: Path, seed: int) -> None:
    killed(tmp_path, random.Random(seed).uniform(0.2, 2.0))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 50))
def test_a_kill_at_any_moment_loses_no_more(tmp_path: Path, seed: int) -> None:
    killed(tmp_path, random.Random(seed).uniform(0.0, 2.0))
