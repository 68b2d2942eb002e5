"""The metrics, read by Prometheus' own client, and the lines on the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from edgespec.pipeline import Pipeline
from edgespec.server import terminal
from edgespec.server.app import application
from tests.fake_server import fake_pipeline, service_of

SECRET = "a very private question"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return fake_pipeline(tmp_path_factory.mktemp("metrics"), order=1, seed=1)  # repeats itself, so that lookups draft


@pytest.fixture
def client(served: Pipeline) -> TestClient:
    service = service_of(served)
    service.listeners.append(terminal.ended)
    return TestClient(terminal.RefusedLines(application(service)), base_url="http://127.0.0.1")


def ask(client: TestClient, **fields: Any) -> Any:
    body = {"messages": [{"role": "user", "content": SECRET}], "max_tokens": 40, "ignore_eos": True} | fields
    return client.post("/v1/chat/completions", json=body)


def values(client: TestClient) -> dict[str, float]:
    """By name and labels."""
    families = text_string_to_metric_families(client.get("/metrics").text)
    return {
        f"{sample.name}{sorted(sample.labels.items()) if sample.labels else ''}": sample.value
        for family in families
        for sample in family.samples
    }


def test_metrics_count_what_the_answers_say(client: TestClient) -> None:
    proposed = accepted = 0
    for _ in range(3):
        timings = ask(client).json()["timings"]
        proposed, accepted = proposed + timings["draft_n"], accepted + timings["draft_n_accepted"]
    assert ask(client, max_tokens="x").status_code == 400
    found = values(client)
    model = [("model", "tiny")]
    assert found[f"edgespec_generated_tokens_total{model}"] == found["llamacpp:tokens_predicted_total"] == 120
    assert found[f"edgespec_ttft_seconds_count{model}"] == 3
    assert found[f"edgespec_tpot_seconds_count{model}"] == 3 and found[f"edgespec_tpot_seconds_sum{model}"] > 0
    assert found["llamacpp:spec_decode_num_draft_tokens_total"] == proposed > 0
    assert found["llamacpp:spec_decode_num_accepted_tokens_total"] == accepted
    assert found[f"edgespec_proposed_tokens_total{[('drafter', 'ngram'), *model]}"] == proposed
    assert found[f"edgespec_requests_total{[('kind', 'chat'), *model, ('outcome', 'length')]}"] == 3
    by_position = [value for name, value in found.items() if "accepted_tokens_per_pos_total" in name]
    assert sum(by_position) == accepted
    assert found[f"edgespec_kv_cache_bytes{model}"] > 0 and found["llamacpp:requests_processing"] == 0


def test_the_terminal_shows_a_line_a_request_and_no_text(
    client: TestClient, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = ask(client).json()["choices"][0]["message"]["content"]
    ask(client, model="no\x1b[2J")
    client.get("/v1/nothing%1b]0;title")
    client.get("/health")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and not any(SECRET in line or answer in line or "\x1b" in line for line in lines)
    assert "tiny chat:" in lines[0] and "40 written" in lines[0]
    assert "404" in lines[1] and "404" in lines[2]


def test_nothing_heavy_is_loaded_to_find_a_server() -> None:
    from tests.test_imports import HEAVY, loaded_after

    assert not loaded_after("import edgespec.server.found") & HEAVY


def test_a_server_is_found_and_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, served: Pipeline) -> None:
    import os

    from edgespec.server import found
    from edgespec.server.app import Shutdown
    from tests.fake_server import on_a_port

    monkeypatch.setenv("EDGESPEC_DATA", str(tmp_path / "data"))
    assert found.running() is None
    stopped: list[bool] = []
    with on_a_port(service_of(served), shutdown=Shutdown("token", lambda: stopped.append(True))) as url:
        first = found.record(url)
        assert found.running() == first == found.recorded()
        if os.name == "posix":
            assert (tmp_path / "data/server.json").stat().st_mode & 0o777 == 0o600
        assert not found.shut_down(first) and not stopped  # another server's token
        assert found.shut_down(found.Found(url, 1, "token")) and stopped
        second = found.record(url)
        found.forget(first)
        assert found.recorded() == second
    assert found.running() is None
    found.forget(second)
    assert found.recorded() is None
    (tmp_path / "data/server.json").write_text("{")
    assert found.recorded() is None
