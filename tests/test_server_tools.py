"""Calls of tools and reasoning: found in an answer's text, asked for by tool_choice, sent in OpenAI's shape."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from edgespec.server.answer_parts import Parts, PartScanner
from edgespec.server.app import application
from edgespec.server.prepare import Prepared
from edgespec.text.tool_calls import ToolCall
from tests.fake_server import fake_pipeline, service_of

CALL = '{"name": "add", "arguments": {"a": 1}}'
ADD = ToolCall("add", '{"a": 1}')
TEXTS: dict[str, tuple[str, str, str, list[ToolCall]]] = {
    "plain": ("Hello.", "Hello.", "", []),
    "tagged": (f"Sure.\n<tool_call>\n{CALL}\n</tool_call>", "Sure.\n", "", [ADD]),
    "two": (f"<tool_call>{CALL}</tool_call>\n<tool_call>{CALL}</tool_call>", "", "", [ADD, ADD]),
    "bare": (CALL.replace("arguments", "parameters"), "", "", [ADD]),
    "list": (f"[{CALL}, {CALL}]", "", "", [ADD, ADD]),
    "json that is no call": ('{"a": 1}', '{"a": 1}', "", []),
    "broken": ("<tool_call>{oops</tool_call> x", "<tool_call>{oops</tool_call> x", "", []),
    "without its end": (f"<tool_call>{CALL}", "", "", [ADD]),
    "cut short": ('<tool_call>{"name": "a', '<tool_call>{"name": "a', "", []),
    "nearly": ("a <tool b <tool_ca", "a <tool b <tool_ca", "", []),
    "reasoning": ("<think>\nHm.</think>\n\nYes.", "Yes.", "\nHm.", []),
    "reasoning and a call": (f"<think>Hm.</think><tool_call>{CALL}</tool_call>", "", "Hm.", [ADD]),
    "reasoning cut short": ("<think>Hm", "", "Hm", []),
    "not at the beginning": ("a <think>b</think>", "a <think>b</think>", "", []),
}


def sorted_parts(text: str, step: int, **options: Any) -> tuple[str, str, list[ToolCall]]:
    scan, found = PartScanner(Prepared(tokens=[1], has_tools=True, **options)), Parts()
    for part in (*(scan.push(text[i : i + step]) for i in range(0, len(text), step)), scan.flush()):
        found.content += part.content
        found.reasoning += part.reasoning
        found.calls += part.calls
    return found.content, found.reasoning, [call for _, call in found.calls]


@pytest.mark.parametrize("case", TEXTS)
@pytest.mark.parametrize("step", [1, 3, 1000])
def test_an_answer_is_sorted_however_it_is_cut(case: str, step: int) -> None:
    text, content, reasoning, calls = TEXTS[case]
    assert sorted_parts(text, step) == (content, reasoning, calls)


def test_a_prompt_that_opens_the_reasoning(tmp_path: Path) -> None:
    assert sorted_parts("Hm.</think>Yes", 2, is_reasoning=True) == ("Yes", "Hm.", [])


TEMPLATE = (
    "{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}<tool_call>"
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ m.tool_calls }}<|eos|>{% endfor %}<|assistant|>"
)
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}},
                "required": ["n"],
                "additionalProperties": False,
            },
        },
    }
    for name in ("add", "subtract")
]


def body(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "1 + 1"}], "tools": TOOLS, "max_tokens": 200} | fields


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    pipeline = fake_pipeline(tmp_path_factory.mktemp("tools"), template=TEMPLATE)
    return TestClient(application(service_of(pipeline)), base_url="http://127.0.0.1")


@pytest.mark.parametrize(
    ("choice", "names"),
    [("required", {"add", "subtract"}), ({"type": "function", "function": {"name": "subtract"}}, {"subtract"})],
)
def test_a_call_can_be_asked_for(client: TestClient, choice: Any, names: set[str]) -> None:
    [found] = client.post("/v1/chat/completions", json=body(tool_choice=choice)).json()["choices"]
    assert found["finish_reason"] == "tool_calls" and found["message"]["content"] is None
    [call] = found["message"]["tool_calls"]
    assert call["function"]["name"] in names and call["type"] == "function" and call["id"]
    assert json.loads(call["function"]["arguments"]).keys() == {"n"}

    answer = client.post("/v1/chat/completions", json=body(tool_choice=choice, stream=True))
    parts = [json.loads(line[6:]) for line in answer.text.split("\n\n") if line.startswith("data: {")]
    deltas = [part["choices"][0]["delta"] for part in parts]
    [streamed] = [call for delta in deltas for call in delta.get("tool_calls", ())]
    assert streamed["index"] == 0 and streamed["function"] == call["function"]
    assert parts[-1]["choices"][0]["finish_reason"] == "tool_calls"
    assert not any(delta.get("content") for delta in deltas)


def test_calls_of_earlier_turns_reach_the_template_as_objects(client: TestClient) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"n": 1}'}}
    messages = [
        {"role": "user", "content": "1 + 1"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "2"},
    ]
    assert client.post("/v1/chat/completions", json=body(messages=messages, max_tokens=2)).status_code == 200
    call["function"]["arguments"] = "{"  # type: ignore[index]
    answer = client.post("/v1/chat/completions", json=body(messages=messages))
    assert answer.status_code == 400 and "not JSON" in answer.json()["error"]["message"]


def test_tools_that_cannot_be_used_are_refused(client: TestClient, tmp_path: Path) -> None:
    for fields, said in (
        ({"tools": [{"type": "function"}]}, "names no function"),
        ({"tool_choice": {"type": "function", "function": {"name": "no"}}}, "names no tool"),
        ({"tool_choice": "required", "response_format": {"type": "json_object"}}, "response_format"),
    ):
        answer = client.post("/v1/chat/completions", json=body(**fields))
        assert answer.status_code == 400 and said in answer.json()["error"]["message"]
    other = TestClient(application(service_of(fake_pipeline(tmp_path))), base_url="http://127.0.0.1")
    answer = other.post("/v1/chat/completions", json=body())
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "tools"
    assert other.post("/v1/chat/completions", json=body(tool_choice="none", max_tokens=2)).status_code == 200


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/apply-template"])
def test_a_field_that_nests_without_end_is_named(client: TestClient, path: str) -> None:
    deep: list[Any] = []
    for _ in range(200):
        deep = [deep]
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": deep}}}
    hello = {"role": "user", "content": "Hello"}
    for field, value in {
        "tools": [tool],
        "chat_template_kwargs": {"documents": deep},
        "messages": [{**hello, "name": deep}],
    }.items():
        answer = client.post(path, json={"messages": [hello], "max_tokens": 2, field: value})
        error = answer.json()["error"]
        assert answer.status_code == 400
        assert error["message"] == f"{field}; got deeper than 64 levels; allowed: 64 levels of lists and objects"
        assert error.get("param", field) == field
