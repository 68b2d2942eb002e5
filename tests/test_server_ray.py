"""The server on Ray Serve: two copies on this machine answer as one server does."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from edgespec.errors import SettingError
from edgespec.server import ray_serve

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.real]
os.environ["RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"] = "60"  # a busy machine starts it in more than the 5 of Ray's own
serve: Any = pytest.importorskip("ray.serve", reason="Ray Serve is not installed: pip install edgespec[ray]")
KEY = {"authorization": "Bearer a-long-key"}
BODY = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "max_tokens": 20}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    serve.run(ray_serve.deployment(["default"], replicas=2, api_key="a-long-key", num_draft_tokens=3), route_prefix="/")
    yield "http://127.0.0.1:8000"
    serve.shutdown()


def test_two_copies_give_the_same_answers(url: str) -> None:
    states = serve.status().applications["default"].deployments["edgespec"].replica_states
    assert states["RUNNING"] == 2
    with ThreadPoolExecutor(8) as clients:
        found = list(clients.map(lambda _: ask(url), range(8)))
    assert len(set(found)) == 1 and "Paris" in found[0]
    ids = {httpx.get(f"{url}/metrics", headers=KEY).text.split("process_start_time_seconds ")[-1] for _ in range(30)}
    assert len(ids) > 1, "one copy answers all"


def ask(url: str) -> str:
    answer = httpx.post(f"{url}/v1/chat/completions", json=BODY, headers=KEY, timeout=120)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def test_streams_keys_and_refusals_pass_through(url: str) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="a-long-key", max_retries=0)
    parts = list(client.chat.completions.create(model="default", stream=True, **BODY))
    assert len(parts) > 3 and "".join(part.choices[0].delta.content or "" for part in parts) == ask(url)
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(model="default", temperature=-1, **BODY)
    assert httpx.post(f"{url}/v1/chat/completions", json=BODY).status_code == 401


def test_what_is_wrong_is_said_before_a_copy_starts() -> None:
    with pytest.raises(SettingError, match="memory"):
        ray_serve.deployment(memory_gb=-1)
