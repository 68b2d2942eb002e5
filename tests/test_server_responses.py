"""OpenAI's ``/v1/responses``, as its own client reads it, on a fake model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from edgespec.pipeline import Pipeline
from edgespec.server.service import Service
from tests.fake_server import fake_pipeline, on_a_port, service_of
from tests.tiny_models import SPECIAL, train_tokenizer

openai = pytest.importorskip("openai")

THINKING = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|eos|>{% endfor %}<|assistant|><think>\n"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return fake_pipeline(tmp_path_factory.mktemp("responses"))


@pytest.fixture(scope="module")
def service(served: Pipeline) -> Service:
    return service_of(served)


@pytest.fixture(scope="module")
def url(service: Service) -> Iterator[str]:
    with on_a_port(service) as url:
        yield f"{url}/v1"


@pytest.fixture(scope="module")
def client(url: str) -> Any:
    return openai.OpenAI(base_url=url, api_key="none", max_retries=0)


def test_an_answer_is_what_the_library_writes(client: Any, served: Pipeline) -> None:
    alone = served.chat([{"role": "user", "content": "Hello."}], max_new_tokens=12)
    for given in (
        "Hello.",
        [{"role": "user", "content": "Hello."}],
        [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello."}]}],
    ):
        answer = client.responses.create(model="tiny", input=given, max_output_tokens=12, store=False)
        assert answer.output_text == alone.text
        assert answer.status == "incomplete" and answer.incomplete_details.reason == "max_output_tokens"
        assert answer.usage.output_tokens == 12 and answer.usage.input_tokens == alone.stats.prompt_tokens
        assert answer.model == "tiny" and answer.store is False and answer.id.startswith("resp_")
    whole = client.responses.create(model="tiny", input="Hello.")
    assert whole.status == "completed" and whole.output_text.startswith(alone.text)


def test_instructions_stand_in_front_and_a_conversation_goes_on(client: Any, served: Pipeline) -> None:
    first = client.responses.create(model="tiny", input="Hello.", instructions="Be brief.", max_output_tokens=8)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello."}]
    assert first.output_text == served.chat(messages, max_new_tokens=8).text
    spoken = [{"role": "user", "content": "Hello."}, *(item.to_dict() for item in first.output)]
    second = client.responses.create(
        model="tiny",
        input=[*spoken, {"role": "user", "content": "Go on."}],
        instructions="Be brief.",
        max_output_tokens=8,
    )
    messages += [{"role": "assistant", "content": first.output_text}, {"role": "user", "content": "Go on."}]
    assert second.output_text == served.chat(messages, max_new_tokens=8).text


def test_a_stream_is_the_same_answer_in_events_that_the_client_knows(client: Any) -> None:
    whole = client.responses.create(model="tiny", input="Hello.")
    with client.responses.stream(model="tiny", input="Hello.") as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole.output_text
    assert final.output_text == whole.output_text and final.usage.output_tokens == whole.usage.output_tokens
    kinds = [event.type for event in events if event.type != "response.output_text.delta"]
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]


def test_reasoning_is_an_item_of_its_own(tmp_path: Path) -> None:
    train_tokenizer(tmp_path / "tokenizer.json", special=(*SPECIAL, "<think>"))
    served = fake_pipeline(tmp_path, template=THINKING)
    with on_a_port(service_of(served)) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        answer = client.responses.create(model="tiny", input="Hello.", max_output_tokens=8)
        assert [item.type for item in answer.output] == ["reasoning", "message"]
        assert answer.output[0].content[0].text and answer.output_text == ""
        events = list(client.responses.create(model="tiny", input="Hello.", max_output_tokens=8, stream=True))
        told = "".join(event.delta for event in events if event.type == "response.reasoning_text.delta")
        assert told == answer.output[0].content[0].text
        assert events[-1].type == "response.incomplete"
        again = [item.to_dict() for item in answer.output]  # a client sends all of it back
        client.responses.create(model="tiny", input=[*again, {"role": "user", "content": "x"}], max_output_tokens=2)


def test_an_answer_has_the_form_that_was_asked_for(client: Any) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 9}}, "required": ["n"]}
    form = {"format": {"type": "json_schema", "name": "n", "schema": schema, "strict": True}}
    answer = client.responses.create(model="tiny", input="Hello.", text=form, max_output_tokens=60)
    assert answer.status == "completed" and answer.output_text.startswith("{")


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_not_offered_is_said(client: Any, url: str, stream: bool) -> None:
    for fields, said in (
        ({"previous_response_id": "resp_1"}, "no answer is kept"),
        ({"tools": [{"type": "function", "name": "f", "parameters": {}}]}, "tools are not supported"),
        ({"input": [{"type": "function_call_output", "call_id": "1", "output": "x"}]}, "function_call_output"),
        ({"input": []}, "messages is empty"),
        ({"include": ["message.output_text.logprobs"]}, "include"),
        ({"background": True}, "background"),
        ({"max_output_tokens": 3, "max_tokens": 4}, "differ"),
    ):
        with pytest.raises(openai.BadRequestError, match=said):
            client.post("/responses", body={"input": "x", "stream": stream} | fields, cast_to=object)
    assert httpx.get(f"{url}/responses/resp_1").status_code == 404


def test_a_failure_within_a_stream_is_an_error_of_the_client(client: Any, served: Pipeline) -> None:
    engine: Any = served.target
    engine.error = RuntimeError("no more")
    with pytest.raises(openai.APIError, match="server failed"):
        list(client.responses.create(model="tiny", input="Another text.", stream=True))
    assert client.responses.create(model="tiny", input="Hello.", max_output_tokens=2).output_text


def test_a_failure_within_a_stream_is_an_event_like_the_others(url: str, served: Pipeline) -> None:
    engine: Any = served.target
    engine.error = RuntimeError("no more")
    fields = {"model": "tiny", "input": "Another.", "max_output_tokens": 8, "stream": True}
    answer = httpx.post(f"{url}/responses", json=fields, timeout=30)
    events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    *_, before, last = map(json.loads, events)
    assert answer.text.rstrip().splitlines()[-2] == "event: error"
    assert (last["type"], last["code"], last["error"]["type"]) == ("error", "engine_failed", "server_error")
    assert last["message"] == last["error"]["message"] and last["sequence_number"] == before["sequence_number"] + 1
