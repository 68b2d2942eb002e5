"""The server with clients that others wrote, on the default pair."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from edgespec.hub.sizes import bytes_of
from edgespec.pipeline import Pipeline
from edgespec.server import found
from edgespec.server.sequences import Sequences
from tests.conftest import FRANCE
from tests.fake_server import on_a_port, service_of

pytestmark = [pytest.mark.slow, pytest.mark.real]
WHEEL_BYTES = 92_871_040
"""of the default model, as it is fetched"""
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "letters": {"type": "integer", "maximum": 99}},
    "required": ["city", "letters"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def url(pipeline: Pipeline) -> Iterator[str]:
    with on_a_port(service_of(pipeline, size_of=partial(bytes_of, "default"), sequences=Sequences(64 << 20))) as url:
        yield url


def test_openai(url: str, pipeline: Pipeline, paris: str) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    name = pipeline.bundle.name
    assert [model.id for model in client.models.list()] == [name]

    answer = client.chat.completions.create(model=name, messages=FRANCE, max_completion_tokens=40)
    assert answer.choices[0].message.content == paris and answer.choices[0].finish_reason == "stop"
    stream = client.chat.completions.create(
        model=name, messages=FRANCE, max_tokens=40, stream=True, stream_options={"include_usage": True}
    )
    parts = list(stream)
    assert "".join(part.choices[0].delta.content or "" for part in parts if part.choices) == paris
    assert parts[-1].usage.completion_tokens == answer.usage.completion_tokens

    given: Any = {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA, "strict": True}}
    made = client.chat.completions.create(model=name, messages=FRANCE, response_format=given)
    assert json.loads(made.choices[0].message.content).keys() == {"city", "letters"}

    text = client.completions.create(model=name, prompt="The sea is", max_tokens=8).choices[0].text
    assert text == pipeline.generate("The sea is", raw=True, max_new_tokens=8).text
    seeded = [
        client.chat.completions.create(model=name, messages=FRANCE, temperature=0.9, seed=7, max_tokens=20)
        for _ in range(2)
    ]
    assert seeded[0].choices[0].message.content == seeded[1].choices[0].message.content

    with pytest.raises(openai.NotFoundError, match="no model 'gpt-9'"):
        client.chat.completions.create(model="gpt-9", messages=FRANCE)
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model=name, messages=[{"role": "user", "content": "x y " * 9000}])
    assert error.value.code == "context_length_exceeded"

    scored = client.chat.completions.create(model=name, messages=FRANCE, max_tokens=40, logprobs=True, top_logprobs=2)
    tokens = scored.choices[0].logprobs.content
    assert b"".join(bytes(token.bytes) for token in tokens).decode() == paris
    assert all(token.top_logprobs[0].logprob >= token.logprob for token in tokens)
    plain = pipeline.chat(FRANCE, max_new_tokens=40, num_draft_tokens=0, logprobs=2).logprobs
    assert plain is not None and [token.logprob for token in tokens] == [each.logprob for each in plain[: len(tokens)]]
    assert client.responses.create(model=name, input=FRANCE[0]["content"], max_output_tokens=40).output_text == paris
    model = client.models.retrieve(name).to_dict()
    assert model["meta"]["size"] == WHEEL_BYTES and "recycling" in model["meta"]["drafter"]


def test_ollama(url: str, pipeline: Pipeline, paris: str) -> None:
    ollama = pytest.importorskip("ollama")
    client, name = ollama.Client(host=url), pipeline.bundle.name
    assert [model.model for model in client.list().models] == [name]
    assert "completion" in client.show(name).capabilities
    options = {"num_predict": 40}
    assert client.chat(name, FRANCE, options=options).message.content == paris
    parts = list(client.chat(name, FRANCE, options=options, stream=True))
    assert "".join(part.message.content for part in parts) == paris
    assert parts[-1].done and parts[-1].eval_count > 0 and parts[-1].eval_duration > 0
    assert client.generate(name, FRANCE[0]["content"], options=options).response == paris
    made = client.chat(name, FRANCE, format=SCHEMA)
    assert json.loads(made.message.content).keys() == {"city", "letters"}
    assert [model.model for model in client.ps().models] == [name]
    for call in (lambda: client.embed(name, "x"), lambda: client.pull("no such model"), lambda: client.show("no")):
        with pytest.raises(ollama.ResponseError):
            call()


def test_chats_and_completions_take_turns_without_reading_again(url: str, pipeline: Pipeline) -> None:
    system = {"role": "system", "content": "You are a helpful assistant. " * 20}
    first = [system, {"role": "user", "content": "Hello."}]

    def held(messages: Any) -> int:
        answer = httpx.post(f"{url}/v1/chat/completions", json={"messages": messages, "max_tokens": 4}, timeout=60)
        return int(answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"])

    held(first)
    httpx.post(f"{url}/v1/completions", json={"prompt": "def add(a, b):" * 20, "max_tokens": 4}, timeout=60)
    assert held(first) >= len(pipeline.chat_tokens(first)) - 2
    httpx.post(f"{url}/v1/completions", json={"prompt": "def add(a, b):" * 20, "max_tokens": 4}, timeout=60)
    assert held([system, {"role": "user", "content": "Another question."}]) > 100


def test_prometheus(url: str) -> None:
    parser = pytest.importorskip("prometheus_client.parser")

    def counted() -> dict[str, float]:
        text = httpx.get(f"{url}/metrics").text
        samples = [each for family in parser.text_string_to_metric_families(text) for each in family.samples]
        return {each.name: sum(other.value for other in samples if other.name == each.name) for each in samples}

    before = counted()
    body = {"messages": [{"role": "user", "content": "Say: one two three, one two three."}], "max_tokens": 24}
    timings = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).json()["timings"]
    httpx.get(f"{url}/health")  # answers are counted behind their last byte
    added = {name: value - before.get(name, 0.0) for name, value in counted().items()}
    assert added["llamacpp:tokens_predicted_total"] == timings["predicted_n"] > 0
    assert added["edgespec_ttft_seconds_count"] == 1
    assert added["llamacpp:spec_decode_num_draft_tokens_total"] == timings["draft_n"] > 0
    assert added["llamacpp:spec_decode_num_accepted_tokens_total"] == timings["draft_n_accepted"]


def test_the_command_serves_says_where_and_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGESPEC_DATA", str(tmp_path))
    command = [sys.executable, "-m", "edgespec", "serve", "--backend", "openvino", "--draft", "ngram", "-k", "3"]
    with subprocess.Popen([*command, "--port", "0"], stderr=subprocess.PIPE, text=True) as server:
        deadline = time.monotonic() + 300
        while (running := found.running()) is None:
            assert time.monotonic() < deadline and server.poll() is None
            time.sleep(0.1)
        assert running.pid == server.pid
        while (answer := httpx.get(f"{running.url}/health")).status_code == 503:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert answer.json() == {"status": "ok"}
        port = running.url.rsplit(":", 1)[1]
        second = subprocess.run([*command, "--port", port], capture_output=True, text=True)
        assert second.returncode == 2 and "An edgespec server is running there" in second.stderr
        assert "Traceback" not in second.stderr
        body = {"model": "default", "messages": FRANCE, "max_tokens": 20}
        said = httpx.post(f"{running.url}/v1/chat/completions", json=body, timeout=60).json()
        assert "Paris" in said["choices"][0]["message"]["content"]
        assert found.shut_down(running)
        _, err = server.communicate(timeout=60)
    assert server.returncode == 0 and "ready" in err and "France" not in err and "Traceback" not in err
    assert found.recorded() is None
