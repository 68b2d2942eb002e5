"""Bodies that nobody meant: whatever a field holds, the server answers in its shape, and the next request works."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from edgespec.server.app import application
from edgespec.server.fields import IGNORED, REFUSED
from edgespec.server.openapi import BODIES
from tests.fake_server import fake_pipeline, service_of

HELLO = [{"role": "user", "content": "hi"}]
VALID: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": HELLO, "max_tokens": 2},
    "/v1/completions": {"prompt": "hi", "max_tokens": 2},
    "/api/chat": {"messages": HELLO, "num_predict": 2},
    "/api/generate": {"prompt": "hi", "num_predict": 2},
    "/infill": {"input_prefix": "hi", "input_suffix": "x", "n_predict": 2},
    "/v1/responses": {"input": "hi", "max_tokens": 2},
    "/completion": {"prompt": "hi", "n_predict": 2},
    "/tokenize": {"content": "hi"},
    "/detokenize": {"tokens": [5]},
    "/apply-template": {"messages": HELLO},
    "/api/show": {"model": "tiny"},
}
KNOWN = sorted({field.encode_name for kind in BODIES.values() for field in msgspec.structs.fields(kind)})
NAMES = st.sampled_from([*KNOWN, *sorted(REFUSED), *sorted(IGNORED), "nobody_knows_this"])
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.sampled_from(["", "x", "-1", "auto", "required", "json", "\ud83d\ude00", "\x00", "tiny", "user", "5m"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "function", "name", "content", "role", "schema", "x"]), inner, max_size=3
        )
    ),
    max_leaves=6,
)
EACH_TYPE: tuple[Any, ...] = (None, True, -1, 1.5, 10**30, "x", [[]], {"x": 1})
MAY_BE = {200, 400, 404, 501}
"""501: what a model or this server cannot do"""


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    service = service_of(fake_pipeline(tmp_path_factory.mktemp("fuzz")))
    return TestClient(application(service), base_url="http://127.0.0.1")


def check(client: TestClient, path: str, body: dict[str, Any]) -> None:
    answer = client.post(path, content=json.dumps(body))
    assert answer.status_code in MAY_BE, (path, body, answer.text)
    if answer.status_code != 200:
        error = answer.json()["error"]
        assert error if path.startswith("/api/") else error["message"], answer.text
    assert "server failed" not in answer.text, (path, body)


@pytest.mark.parametrize("path", VALID)
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
@given(fields=st.dictionaries(NAMES, VALUES, min_size=1, max_size=3))
def test_any_value_in_any_field(client: TestClient, path: str, fields: dict[str, Any]) -> None:
    check(client, path, VALID[path] | {name: value for name, value in fields.items() if name != "n"})


@pytest.mark.parametrize("path", VALID)
def test_every_field_with_a_value_of_each_type(client: TestClient, path: str) -> None:
    for name in [field.encode_name for field in msgspec.structs.fields(BODIES[path])]:
        for value in EACH_TYPE:
            check(client, path, VALID[path] | {name: value})
    assert client.post(path, json=VALID[path]).status_code == 200


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/chat", "/completion"])
def test_a_refused_field_is_refused_and_an_ignored_one_changes_nothing(client: TestClient, path: str) -> None:
    expected = client.post(path, json=VALID[path] | {"stream": False}).json()
    for name in IGNORED:
        for value in (True, 0.5, "x", [1]):
            found = client.post(path, json=VALID[path] | {"stream": False, name: value}).json()
            assert text_of(found) == text_of(expected), name
    for name, harmless in REFUSED.items():
        answer = client.post(path, json=VALID[path] | {name: {"not": "harmless"}})
        assert answer.status_code == 400 and name in answer.text
        for value in harmless:
            assert client.post(path, json=VALID[path] | {name: value}).status_code == 200, (name, value)


def text_of(answer: dict[str, Any]) -> Any:
    if "choices" in answer:
        return answer["choices"][0]["message"]["content"]
    return answer["message"]["content"] if "message" in answer else answer["content"]


def test_bodies_that_are_no_json(client: TestClient) -> None:
    for path in VALID:
        for content in (b"", b"null", b"1", b'"x"', b"[]", b"{", b"\xff\xfe", b'{"a": "\\ud800"}', b"{" * 9999, b"nan"):
            answer = client.post(path, content=content)
            assert answer.status_code in MAY_BE, (path, content, answer.text)
            assert json.loads(answer.content) if answer.status_code != 200 else True
