"""OpenAI's routes, on a fake model."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest
from click.testing import CliRunner
from starlette.testclient import TestClient

from edgespec.cli import cli
from edgespec.errors import NoSuchModel
from edgespec.pipeline import Pipeline
from edgespec.sampling_params import SamplingParams
from edgespec.server.app import application
from edgespec.server.offers import offers
from tests.fake_server import CAPACITY, service_of

HELLO = [{"role": "user", "content": "Say hello."}]


def ask(client: TestClient, **fields: Any) -> Any:
    answer = client.post("/v1/chat/completions", json={"messages": HELLO, "max_tokens": 12} | fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


def events(client: TestClient, path: str = "/v1/chat/completions", **fields: Any) -> list[dict[str, Any]]:
    body = {"messages": HELLO} if "chat" in path else {"prompt": "The lighthouse"}
    answer = client.post(path, json=body | {"max_tokens": 12, "stream": True} | fields)
    assert answer.headers["content-type"] == "text/event-stream"
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line and not line.startswith(":")]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def test_an_answer_is_what_the_library_writes(client: TestClient, served: Pipeline) -> None:
    alone = served.chat(HELLO, max_new_tokens=12)
    answer = ask(client)
    assert answer["object"] == "chat.completion" and answer["model"] == "tiny"
    [choice] = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": alone.text}
    assert choice["finish_reason"] == alone.finish_reason == "length"
    usage = answer["usage"]
    assert usage["completion_tokens"] == 12 and usage["prompt_tokens"] == alone.stats.prompt_tokens
    assert usage["total_tokens"] == usage["prompt_tokens"] + 12


def test_a_stream_has_the_role_first_and_the_usage_last(client: TestClient) -> None:
    whole = ask(client)["choices"][0]["message"]["content"]
    parts = events(client, stream_options={"include_usage": True})
    assert {part["id"] for part in parts} == {parts[0]["id"]}
    assert {part["object"] for part in parts} == {"chat.completion.chunk"}
    assert parts[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert parts[-1]["choices"] == [] and parts[-1]["usage"]["completion_tokens"] == 12
    assert parts[-2]["choices"][0]["finish_reason"] == "length"
    assert all(part["choices"][0]["finish_reason"] is None for part in parts[:-2])
    assert "".join(part["choices"][0]["delta"].get("content", "") for part in parts[:-1]) == whole


def test_json_has_no_spaces_between_its_parts(client: TestClient) -> None:
    """llama.vim looks for ``"content":"``."""
    assert '"content":"' in client.post("/v1/chat/completions", json={"messages": HELLO, "max_tokens": 2}).text


def test_a_seed_repeats_an_answer_and_several_answers_differ(client: TestClient, served: Pipeline) -> None:
    fields: dict[str, Any] = {"temperature": 1.0, "seed": 5}
    alone = [
        served.chat(HELLO, max_new_tokens=12, sampling=SamplingParams(temperature=1.0, seed=seed)).text
        for seed in (5, 6)
    ]
    assert ask(client, **fields)["choices"][0]["message"]["content"] == alone[0] != alone[1]
    found = ask(client, n=2, **fields)
    assert [choice["message"]["content"] for choice in found["choices"]] == alone
    assert found["usage"]["completion_tokens"] == 24
    parts = events(client, n=2, **fields)
    for index in (0, 1):
        chosen = [part["choices"][0] for part in parts if part["choices"][0]["index"] == index]
        assert "".join(choice["delta"].get("content", "") for choice in chosen) == alone[index]


def test_completions_continue_a_text_or_tokens(client: TestClient, served: Pipeline) -> None:
    alone = served.generate("The lighthouse", raw=True, max_new_tokens=12)
    ids = served.text_tokens("The lighthouse")
    for prompt in ("The lighthouse", ["The lighthouse"], ids):
        answer = client.post("/v1/completions", json={"prompt": prompt, "max_tokens": 12}).json()
        assert answer["object"] == "text_completion"
        assert answer["choices"][0]["text"] == alone.text
    parts = events(client, "/v1/completions")
    assert "".join(part["choices"][0]["text"] for part in parts) == alone.text


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "n_predict", "num_predict", "max_new_tokens"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v3/completions"])
def test_a_length_has_many_names(client: TestClient, name: str, path: str) -> None:
    body: dict[str, Any] = {"messages": HELLO} if "chat" in path else {"prompt": "The"}
    for fields in ({name: 3}, {"options": {name: 3}}):
        assert client.post(path, json=body | fields).json()["usage"]["completion_tokens"] == 3


def test_stop_ends_a_text_before_it(client: TestClient) -> None:
    whole = ask(client)["choices"][0]["message"]["content"]
    stop = whole[4:6]
    [choice] = ask(client, stop=[stop])["choices"]
    assert choice["message"]["content"] == whole[: whole.index(stop)] and choice["finish_reason"] == "stop"


def test_a_response_format_is_kept(client: TestClient) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 9}}, "required": ["n"]}
    given = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    [choice] = ask(client, response_format=given, max_tokens=60)["choices"]
    assert choice["finish_reason"] == "stop" and json.loads(choice["message"]["content"]).keys() >= {"n"}


def test_who_drafted_is_in_the_stream_if_it_is_asked_for(client: TestClient) -> None:
    parts = events(client, edgespec_rounds=True, max_tokens=40)
    rounds = [each for part in parts for each in part.get("edgespec", {}).get("rounds", ())]
    assert sum(each["committed"] for each in rounds) == 40
    assert {each["drafter"] for each in rounds} <= {"ngram", None}
    assert not any("edgespec" in part for part in events(client))


def test_models_are_listed_with_their_context(client: TestClient) -> None:
    ask(client)
    [model] = client.get("/v1/models").json()["data"]
    assert model["id"] == "tiny" and model["context_length"] == CAPACITY and model["loaded"]
    assert client.get("/v3/models/tiny").json() == model
    assert model["meta"]["size"] == 1000 and model["meta"]["drafter"] == "ngram"


def test_the_default_model_has_a_size_before_it_is_loaded() -> None:
    [first, *_] = offers(["default"], {}, keep_alive_s=None).values()
    assert first.size_bytes is not None and 50 << 20 < first.size_bytes < 500 << 20


def test_a_server_looks_for_its_model_before_it_takes_an_address() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ran = CliRunner().invoke(cli, ["serve", "no-such-model", "--port", str(taken.getsockname()[1])])
    assert isinstance(ran.exception, NoSuchModel)


BAD: dict[str, tuple[Any, str]] = {
    "no json": (b"{", "not JSON"),
    "no object": (b"[1]", "not a JSON object"),
    "no text": (b"\xff\xfe", "not JSON"),
    "too deep": (b"[" * 100_000, "not JSON"),
    "no messages": (b"{}", "messages"),
    "empty messages": ({"messages": []}, "messages is empty"),
    "a message without a role": ({"messages": [{"content": "x"}]}, "no role"),
    "an image": ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "image_url"),
    "a wrong type": ({"max_tokens": "many"}, "max_tokens"),
    "a wrong temperature": ({"temperature": -1}, "temperature"),
    "lengths that differ": ({"max_tokens": 1, "n_predict": 2}, "differ"),
    "too many answers": ({"n": 1000}, "n: got 1000"),
    "a penalty": ({"presence_penalty": 0.5}, "presence_penalty"),
    "a format of no kind": ({"response_format": {"type": "xml"}}, "response_format"),
    "a schema that nothing fits": (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "no"}}}},
        "response_format",
    ),
    "a bias on no token": ({"logit_bias": {"x": 1}}, "logit_bias"),
    "too many draft tokens": ({"num_draft_tokens": 1000}, "draft tokens"),
    "a wrong keep_alive": ({"keep_alive": "soon"}, "keep_alive"),
    "a long keep_alive": ({"keep_alive": "9" * 100_000}, "keep_alive"),
    "a variable of the server's": ({"chat_template_kwargs": {"allow_special": True}}, "allow_special"),
    "a wrong tool_choice": ({"tool_choice": "maybe"}, "tool_choice"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_wrong_is_said_in_the_shape_of_openai(client: TestClient, case: str, stream: bool) -> None:
    given, said = BAD[case]
    body = given if isinstance(given, bytes) else json.dumps({"messages": HELLO, "stream": stream} | given).encode()
    answer = client.post("/v1/chat/completions", content=body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert said in error["message"] and error["type"] == "invalid_request_error" and error.keys() >= {"param", "code"}
    ask(client, max_tokens=1)


def test_a_prompt_that_is_too_long_has_its_own_code(client: TestClient) -> None:
    for content in ("x y " * CAPACITY, "x" * (4 << 20)):
        answer = client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": content}]})
        assert answer.status_code == 400 and answer.json()["error"]["code"] == "context_length_exceeded"
        assert answer.json()["error"]["param"] == "messages"
    long = "x y " * CAPACITY
    for path, name in (("completions", "prompt"), ("responses", "input")):
        error = client.post(f"/v1/{path}", json={name: long}).json()["error"]
        assert (error["code"], error["param"]) == ("context_length_exceeded", name)


def test_unknown_models_routes_and_methods(client: TestClient) -> None:
    for answer in (
        client.post("/v1/chat/completions", json={"model": "gpt-9", "messages": HELLO}),
        client.get("/v1/models/gpt-9"),
    ):
        assert answer.status_code == 404 and answer.json()["error"]["code"] == "model_not_found"
    assert client.get("/v1/nothing").json()["error"]["code"] == "not_found"
    answer = client.get("/v1/chat/completions")
    assert answer.status_code == 405 and answer.json()["error"]["code"] == "method_not_allowed"


def test_a_body_that_is_too_large_is_refused(client: TestClient) -> None:
    answer = client.post("/v1/chat/completions", content=b" " * (17 << 20))
    assert answer.status_code == 413 and answer.json()["error"]["code"] == "body_too_large"


def test_health_is_ok_when_the_models_are_loaded(served: Pipeline) -> None:
    service = service_of(served)
    service.is_ready = False
    with TestClient(application(service), base_url="http://127.0.0.1") as client:
        answer = client.get("/health")
        assert answer.status_code == 503 and answer.json()["error"]["type"] == "unavailable_error"
        assert answer.json()["error"]["message"] == "Loading model"
        service.is_ready = True
        assert client.get("/health").json() == {"status": "ok"}
