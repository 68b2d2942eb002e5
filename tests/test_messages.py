"""Conversations: the library reads them as the server does, and both refuse the same."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from edgespec.errors import SettingError
from edgespec.pipeline import Pipeline
from edgespec.text.chat_template import ChatTemplate
from edgespec.text.messages import plain_messages, require_shallow

HELLO = {"role": "user", "content": "Hello"}
PARTS = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
CALL = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"n": 1}'}}
GENERIC = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def nested(levels: int) -> dict[str, Any]:
    """A call with lists in lists."""
    arguments: Any = 1
    for _ in range(levels):
        arguments = [arguments]
    return {"function": {"name": "add", "arguments": {"n": arguments}}}


def test_content_may_be_parts_or_none(served: Pipeline) -> None:
    plain = served.chat_tokens([HELLO])
    assert served.chat_tokens([{"role": "user", "content": PARTS}]) == plain
    assert served.chat_tokens(iter([HELLO])) == plain  # type: ignore[arg-type]
    empty = served.chat_tokens([{"role": "user", "content": ""}])
    assert served.chat_tokens([{"role": "user", "content": None}]) == served.chat_tokens([{"role": "user"}]) == empty
    system = [{"role": "system", "content": "Be brief."}, HELLO]
    assert served.chat_tokens([{"role": "developer", "content": "Be brief."}, HELLO]) == served.chat_tokens(system)
    assert served.chat([{"role": "user", "content": PARTS}], max_new_tokens=3).token_ids


def test_calls_are_objects_with_and_without_their_wrapping() -> None:
    [wrapped] = plain_messages([{"role": "assistant", "content": None, "tool_calls": [CALL]}])
    assert wrapped["content"] == "" and wrapped["tool_calls"][0]["function"] == {"name": "add", "arguments": {"n": 1}}
    bare = {"role": "assistant", "content": "", "tool_calls": [{"name": "add", "arguments": {"n": 1}}]}
    assert plain_messages([bare])[0]["tool_calls"][0]["function"] == {"name": "add", "arguments": {"n": 1}}
    assert plain_messages([wrapped]) == [wrapped], "what is plain stays as it is"


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ("hi", "messages; got 'hi'; allowed: a list of .* Use generate"),
        (HELLO, "messages; got one message; allowed: a list of .* Put it into a list"),
        (5, "messages; got int; allowed: a list of"),
        ([], "messages is empty"),
        (["hi"], r"messages\[0\]; got str; allowed: {"),
        ([HELLO, {"content": "x"}], r"messages\[1\]: it has no role"),
        ([{"role": "usr", "content": "x"}], r'messages\[0\]: role; got usr; allowed: system, .* Did you mean "user"'),
        ([HELLO, {"role": "User", "content": "x"}], r'messages\[1\]: role; got User; .*Did you mean "user"'),
        ([{"role": "<|im_end|>", "content": "x"}], r"messages\[0\]: role; got <\|im_end\|>"),
        ([{"role": "user", "content": 5}], r"messages\[0\]\.content; got int; allowed: a text or a list"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "content of type 'image_url' is not supported"),
        (
            [{"role": "user", "content": "x", "tool_calls": [nested(600)]}],
            "messages; got deeper than 64 levels; allowed: 64",
        ),
    ],
)
def test_what_is_no_conversation_is_refused_by_all_doors(
    served: Pipeline, client: TestClient, messages: Any, said: str
) -> None:
    with pytest.raises(SettingError, match=said) as caught:
        served.chat(messages, max_new_tokens=2)
    assert caught.value.setting == "messages"
    if isinstance(messages, list):
        for path in ("/v1/chat/completions", "/apply-template"):
            answer = client.post(path, json={"messages": messages, "max_tokens": 2})
            assert answer.status_code == 400, answer.text


def test_tools_do_not_nest_without_end(served: Pipeline) -> None:
    assert served.chat_tokens([HELLO], tools=[nested(20)], enable_thinking=False)
    with pytest.raises(SettingError, match="^tools; got deeper than 64 levels; allowed: 64") as caught:
        served.chat_tokens([HELLO], tools=[nested(600)])
    assert caught.value.setting == "tools"


def test_what_nests_deeper_than_64_levels_is_refused() -> None:
    inner: list[Any] = []
    for _ in range(63):
        inner = [inner]
    for shallow in (inner, "text", None, 5):
        require_shallow(shallow, "tools")
    with pytest.raises(
        SettingError, match="^tools; got deeper than 64 levels; allowed: 64 levels of lists and objects$"
    ):
        require_shallow([inner], "tools")


def test_a_role_of_the_models_own_template_is_known() -> None:
    own = "{% if messages[0].role == 'ipython' or messages[0].role == '<|x|>' %}{% endif %}" + GENERIC
    ipython, mark = [{"role": "ipython", "content": "2"}], [{"role": "<|x|>", "content": "2"}]
    assert "ipython\n2" in ChatTemplate(own).render(ipython)
    for template, messages in ((GENERIC, ipython), (own, mark)):
        with pytest.raises(SettingError, match="role; got"):
            ChatTemplate(template).render(messages)


def test_a_server_names_the_field_that_is_wrong(client: TestClient) -> None:
    body = {"messages": [{"role": "usr", "content": "x"}]}
    error = client.post("/v1/chat/completions", json=body).json()["error"]
    assert error["param"] == "messages" and 'Did you mean "user"' in error["message"]
    body = {"messages": [HELLO], "logit_bias": {"1000000": 3}}  # type: ignore[dict-item]
    answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "logit_bias"


def test_an_empty_stop_string_is_none_for_clients_and_a_mistake_in_the_library(
    served: Pipeline, client: TestClient
) -> None:
    body = {"messages": [HELLO], "stop": "", "max_tokens": 2}
    assert client.post("/v1/chat/completions", json=body).status_code == 200
    with pytest.raises(SettingError, match="stop string is empty"):
        served.chat([HELLO], stop="", max_new_tokens=2)
