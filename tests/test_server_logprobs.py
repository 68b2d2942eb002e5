"""Log probabilities over HTTP: of every token that the text shows, and the same in a stream."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from edgespec.pipeline import Pipeline
from edgespec.types import TokenLogprobs
from tests.fake_server import EOS

HELLO = [{"role": "user", "content": "Say hello."}]
PATHS = {
    "/v1/chat/completions": {"messages": HELLO, "logprobs": True, "top_logprobs": 2},
    "/v1/completions": {"prompt": "The lighthouse", "logprobs": 2},
    "/completion": {"prompt": "The lighthouse", "n_probs": 2},
    "/api/chat": {"messages": HELLO, "logprobs": True, "top_logprobs": 2},
    "/api/generate": {"prompt": "The lighthouse", "raw": True, "logprobs": True, "top_logprobs": 2},
}
TIMES = {"created", "created_at", "timings", "id"}


def parts(client: TestClient, path: str, **fields: Any) -> list[dict[str, Any]]:
    """Of a stream; the answer in one piece, if it is none."""
    answer = client.post(path, json=PATHS[path] | {"max_tokens": 24, "stream": True} | fields)
    assert answer.status_code == 200, answer.text
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line and not line.startswith(":")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def text_of(path: str, found: list[dict[str, Any]]) -> str:
    text = ""
    for part in found:
        if "choices" in part:
            choice = part["choices"][0]
            message = choice.get("delta") or choice.get("message") or {}
            text += choice.get("text") or message.get("content") or ""
        else:
            text += part.get("content") or part.get("response") or part.get("message", {}).get("content", "")
    return text


def entries(path: str, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    last = found[-1] if path == "/completion" else None  # it has all of them again
    for part in found:
        if path == "/v1/chat/completions":
            made += (part["choices"][0]["logprobs"] or {"content": ()})["content"]
        elif path == "/v1/completions":
            columns = part["choices"][0]["logprobs"]
            rows = zip(*columns.values(), strict=True) if columns else ()
            made += [dict(zip(columns, row, strict=True)) for row in rows]
        elif path == "/completion":
            made += part.get("completion_probabilities", ()) if part is not last or len(found) == 1 else ()
        else:
            made += part.get("logprobs", ())
    return made


def expected(served: Pipeline, path: str, **options: Any) -> list[TokenLogprobs]:
    prompt = served.chat_tokens(HELLO) if "chat" in path else served.text_tokens("The lighthouse")
    plain = served.stream_tokens(prompt, logprobs=2, num_draft_tokens=0, **{"max_new_tokens": 24} | options)
    for _ in plain:
        pass
    assert plain.result.logprobs is not None
    return plain.result.logprobs


@pytest.mark.parametrize("path", PATHS)
def test_they_are_those_of_decoding_without_drafts(client: TestClient, served: Pipeline, path: str) -> None:
    whole, stream = parts(client, path, stream=False), parts(client, path)
    assert text_of(path, whole) == text_of(path, stream)
    found = entries(path, whole)
    assert found == entries(path, stream)
    alone = expected(served, path)
    name = "token_logprobs" if path == "/v1/completions" else "logprob"
    assert [each[name] for each in found] == [each.logprob for each in alone]
    assert all(len(each["top_logprobs"]) in (2, 3) for each in found)
    if "bytes" in found[0]:
        spelt = b"".join(bytes(each["bytes"]) for each in found).decode(errors="replace")
        special = served.tokenizer.control_texts
        for text in special:
            spelt = spelt.replace(text, "")
        assert spelt == text_of(path, whole)
        assert [other["logprob"] for other in found[3]["top_logprobs"]] == [logprob for _, logprob in alone[3].top]


def test_a_completion_says_where_each_token_begins(client: TestClient) -> None:
    found = parts(client, "/v1/completions", stream=False)
    text, columns = text_of("", found), found[0]["choices"][0]["logprobs"]
    for token, offset, others in zip(columns["tokens"], columns["text_offset"], columns["top_logprobs"], strict=True):
        assert token in others
        if token.isascii() and not token.startswith(("bytes:", "<|")):
            assert text[offset:].lstrip("\ufffd").startswith(token)


@pytest.mark.parametrize("path", PATHS)
def test_what_the_text_does_not_show_has_none(client: TestClient, served: Pipeline, path: str) -> None:
    """Neither the end of the model nor a stop string."""
    text = text_of(path, parts(client, path, stream=False))
    stop = text[6:8]
    found = parts(client, path, stop=[stop])
    assert text_of(path, found) == text[: text.index(stop)]
    assert 0 < len(entries(path, found)) <= len(expected(served, path, stop=stop))
    ended = expected(served, path, max_new_tokens=480)
    if ended[-1].token == EOS:
        assert len(entries(path, parts(client, path, max_tokens=480))) == len(ended) - 1


@pytest.mark.parametrize("path", PATHS)
def test_without_them_an_answer_is_as_it_was(client: TestClient, path: str) -> None:
    for stream in (True, False):
        found = parts(client, path, stream=stream, logprobs=None, top_logprobs=0, n_probs=0)
        assert not entries(path, found) and "completion_probabilities" not in found[-1]


def test_several_answers_have_their_own(client: TestClient) -> None:
    fields = {"n": 2, "temperature": 1.0, "seed": 3}
    whole = parts(client, "/v1/chat/completions", stream=False, **fields)[0]["choices"]
    stream = parts(client, "/v1/chat/completions", **fields)
    for index in (0, 1):
        own = [part for part in stream if part["choices"][0]["index"] == index]
        assert entries("/v1/chat/completions", own) == whole[index]["logprobs"]["content"]


def test_what_cannot_be_is_refused(client: TestClient) -> None:
    for path, fields in (
        ("/v1/chat/completions", {"top_logprobs": 21}),
        ("/v1/chat/completions", {"logprobs": False}),
        ("/v1/chat/completions", {"logprobs": 3}),
        ("/v1/completions", {"logprobs": -1}),
        ("/v1/completions", {"suffix": "x"}),
        ("/completion", {"n_probs": 21}),
        ("/completion", {"post_sampling_probs": True}),
        ("/api/generate", {"suffix": "x"}),
    ):
        answer = client.post(path, json=PATHS[path] | fields)
        assert answer.status_code == 400, (path, fields, answer.text)
        assert "logprobs" in answer.text or "prob" in answer.text
    answer = client.post("/infill", json={"input_prefix": "x", "n_probs": 3})
    assert answer.status_code == 400 and "n_probs" in answer.text
