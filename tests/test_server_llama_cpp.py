"""llama.cpp's routes, on a fake model: as its own clients read them."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from starlette.testclient import TestClient

from edgespec.pipeline import Pipeline
from edgespec.server.app import application
from edgespec.server.residents import Offer, Residents
from edgespec.server.service import Service
from tests.fake_server import CAPACITY, Engine, fake_pipeline, on_a_port, service_of
from tests.tiny_models import SPECIAL, train_tokenizer

FIM = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|repo_name|>", "<|file_sep|>")
HOLE = {"input_prefix": "def area(shape):\n", "prompt": "    w", "input_suffix": "\n\nprint(area((2, 3)))\n"}
LLAMA_VIM = {
    "id_slot": 0,
    "input_extra": [{"filename": "b.py", "text": "x = 1\n"}],
    "n_predict": 12,
    "stop": [],
    "n_indent": 0,
    "top_k": 40,
    "top_p": 0.9,
    "samplers": ["top_k", "top_p", "infill"],
    "stream": False,
    "cache_prompt": True,
    "t_max_prompt_ms": 500,
    "t_max_predict_ms": 60000,
    "response_fields": ["content", "timings/prompt_n", "timings/predicted_per_second", "truncated", "tokens_cached"],
    "model": "",
} | HOLE
"""a request as the plugin sends it"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    folder = tmp_path_factory.mktemp("llama_cpp")
    train_tokenizer(folder / "tokenizer.json", special=(*SPECIAL, *FIM))
    return fake_pipeline(folder)


@pytest.fixture
def client(served: Pipeline) -> Iterator[TestClient]:
    with TestClient(application(service_of(served)), base_url="http://127.0.0.1") as client:
        yield client


def ask(client: TestClient, path: str, fields: dict[str, Any]) -> dict[str, Any]:
    answer = client.post(path, json=fields)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert isinstance(found, dict)
    return found


def test_a_text_that_meets_the_suffix_has_ended_by_itself(tmp_path: Path) -> None:
    """A client takes "limit" for a text that was cut off."""
    without_fim = fake_pipeline(tmp_path)
    with TestClient(application(service_of(without_fim)), base_url="http://127.0.0.1") as client:
        fields = {"input_prefix": "x7 = 7\n", "n_predict": 120}
        long = ask(client, "/infill", fields)
        first, second, *_ = long["content"].split("\n")
        assert long["stop_type"] == "limit"
        met = ask(client, "/infill", fields | {"input_suffix": f"\n{second}\n"})
        assert (met["content"], met["stop_type"]) == (first, "eos")
        begun = ask(client, "/infill", fields | {"input_suffix": f"{first[-2:]}\n{second}\n"})
        assert (begun["content"], begun["stop_type"]) == (first[:-2], "eos"), "the rest of the line is there already"


def test_a_hole_is_filled_as_the_library_fills_it(client: TestClient, served: Pipeline) -> None:
    expected = served.infill(
        "def area(shape):\n    w", HOLE["input_suffix"], files={"b.py": "x = 1\n"}, max_new_tokens=12
    )
    answer = ask(client, "/infill", {name: value for name, value in LLAMA_VIM.items() if name != "response_fields"})
    assert answer["content"] == expected.text and answer["stop"] is True
    assert answer["tokens_evaluated"] == expected.stats.prompt_tokens and answer["tokens_predicted"] == 12
    assert answer["stop_type"] == "limit" and answer["generation_settings"]["n_predict"] == 12
    one = ask(
        client, "/infill", HOLE | {"input_prefix": HOLE["input_prefix"] + HOLE["prompt"], "prompt": "", "n_predict": 9}
    )
    other = ask(client, "/infill", HOLE | {"n_predict": 9})
    assert one["content"] == other["content"], "wherever the client puts what was typed"


def test_whole_lines_that_were_typed_stand_behind_the_suffix(client: TestClient, served: Pipeline) -> None:
    """So a client says where the hole is anchored, and no answer depends on the requests before it."""
    prefix, line = "x = 1\ny = 2\n", "z = x +\n"
    sent = HOLE | {"input_prefix": prefix, "prompt": line + "  w", "n_predict": 9}
    for _ in range(2):
        expected = served.infill(prefix + line + "  w", HOLE["input_suffix"], anchor=len(prefix), max_new_tokens=9)
        assert ask(client, "/infill", sent)["content"] == expected.text
        moved = ask(client, "/infill", sent | {"input_prefix": prefix + line, "prompt": "  w"})
        assert moved["content"] == served.infill(prefix + line + "  w", HOLE["input_suffix"], max_new_tokens=9).text
    read = ask(client, "/infill", sent | {"prompt": line + "  w"})["timings"]["prompt_n"]
    more = ask(client, "/infill", sent | {"prompt": line + "  wi\n"})["timings"]["prompt_n"]
    assert read > more <= 6, "the suffix is held"
    alone = sent | {"input_prefix": "", "prompt": prefix + line}
    assert (
        ask(client, "/infill", alone)["content"]
        == ask(client, "/infill", alone | {"input_prefix": prefix + line, "prompt": ""})["content"]
    )


def test_the_plugin_reads_the_raw_body(client: TestClient) -> None:
    """llama.vim looks at the bytes before it parses them."""
    raw = client.post("/infill", json=LLAMA_VIM).text
    assert re.match(r"\s*\{", raw) and re.search(r'"content"\s*:"', raw)
    assert json.loads(raw).keys() == set(LLAMA_VIM["response_fields"])  # type: ignore[call-overload]


def test_a_keystroke_reads_itself(client: TestClient) -> None:
    ask(client, "/infill", LLAMA_VIM)
    after = ask(client, "/infill", LLAMA_VIM | {"prompt": "    wi"})
    assert after["timings/prompt_n"] <= 3


def test_a_warm_up_reads_and_writes_nothing(client: TestClient, served: Pipeline) -> None:
    warm = LLAMA_VIM | {"n_predict": 0, "samplers": [], "response_fields": [""], "prompt": "", "input_prefix": ""}
    extra = [{"filename": "long.py", "text": "value = 1\n" * 20}]
    assert ask(client, "/infill", warm | {"input_suffix": "", "input_extra": extra}) == {}
    found = ask(client, "/infill", LLAMA_VIM | {"input_extra": extra, "response_fields": ["timings"]})
    assert found["timings"]["cache_n"] > 60


def test_a_stream_has_content_and_stop_in_every_event(client: TestClient) -> None:
    whole = ask(client, "/completion", {"prompt": "The lighthouse", "n_predict": 10})
    answer = client.post("/completion", json={"prompt": "The lighthouse", "n_predict": 10, "stream": True})
    assert answer.headers["content-type"] == "text/event-stream"
    events = [json.loads(line.removeprefix("data: ")) for line in answer.text.split("\n\n") if line]
    assert all({"content", "stop"} <= event.keys() for event in events)
    assert [event["stop"] for event in events] == [False] * (len(events) - 1) + [True]
    assert "".join(event["content"] for event in events) == whole["content"]
    assert events[-1]["timings"]["predicted_n"] == 10 and events[-1]["stop_type"] == "limit"


def test_why_a_text_ended(client: TestClient) -> None:
    text = ask(client, "/completion", {"prompt": "The lighthouse", "n_predict": 30})["content"]
    word = text[5:8]
    found = ask(client, "/completion", {"prompt": "The lighthouse", "n_predict": 30, "stop": ["zzz", word]})
    assert (found["stop_type"], found["stopping_word"]) == ("word", word)
    assert found["content"] == text[: text.index(word)]


def test_lengths_under_every_name_and_token_prompts(client: TestClient, served: Pipeline) -> None:
    ids = served.tokenizer.encode("The lighthouse")
    texts = {
        json.dumps(ask(client, "/completion", {"prompt": prompt, name: 7})["content"])
        for prompt in ("The lighthouse", ids)
        for name in ("n_predict", "max_tokens", "num_predict")
    }
    assert len(texts) == 1


def test_tokens_and_back(client: TestClient, served: Pipeline) -> None:
    ids = ask(client, "/tokenize", {"content": "def area(shape):"})["tokens"]
    assert ids == served.tokenizer.encode("def area(shape):")
    pieces = ask(client, "/tokenize", {"content": "def area(shape):", "with_pieces": True})["tokens"]
    assert [each["id"] for each in pieces] == ids and "".join(each["piece"] for each in pieces) == "def area(shape):"
    assert ask(client, "/detokenize", {"tokens": ids}) == {"content": "def area(shape):"}
    messages = [{"role": "user", "content": "hi"}]
    assert ask(client, "/apply-template", {"messages": messages}) == {"prompt": "<|user|>hi<|eos|><|assistant|>"}


def test_what_editors_ask_a_server_for(client: TestClient) -> None:
    props = client.get("/props?model=tiny").json()
    assert props["default_generation_settings"]["n_ctx"] == CAPACITY and props["total_slots"] == 1
    assert "assistant" in props["chat_template"]
    ask(client, "/infill", LLAMA_VIM)
    [slot] = client.get("/slots").json()
    assert slot["id"] == 0 and slot["n_ctx"] == CAPACITY and slot["is_processing"] is False and slot["n_past"] > 20
    assert client.get("/health").json() == {"status": "ok"}


def test_a_model_has_the_name_that_the_server_offers_it_by(served: Pipeline) -> None:
    """A listed file that was served by its path is offered by the file's name, and its bundle has the listed one."""
    residents = Residents({"file": Offer(name="file", load=lambda: served, aliases=("./file.gguf",))})
    with TestClient(application(Service(residents)), base_url="http://127.0.0.1") as client:
        for query in ("", "?model=./file.gguf"):
            props = client.get(f"/props{query}").json()
            assert (props["model_alias"], props["model_path"]) == ("file", "file")
        [slot] = client.get("/slots").json()
        assert slot["model"] == "file"
        assert "content" in ask(client, "/completion", {"prompt": "x", "n_predict": 2, "model": slot["model"]})


@pytest.mark.parametrize(
    ("path", "fields", "status"),
    [
        ("/infill", {}, 400),
        ("/infill", {"input_prefix": 3, "input_suffix": "x"}, 400),
        ("/infill", {"input_prefix": "x", "input_extra": [{"filename": "a"}]}, 400),
        ("/infill", {"input_prefix": "x", "input_suffix": "", "grammar": "root ::= x"}, 400),
        ("/infill", {"input_prefix": "x", "model": "none"}, 404),
        ("/completion", {}, 400),
        ("/completion", {"prompt": ["a", "b"]}, 400),
        ("/completion", {"prompt": ""}, 400),
        ("/completion", {"prompt": [399999]}, 400),
        ("/completion", {"prompt": "a " * 5000}, 400),
        ("/completion", {"prompt": "x", "logit_bias": {"9" * 5000: 1}}, 400),
        ("/detokenize", {"tokens": [-1]}, 400),
        ("/detokenize", {"tokens": [5] * (8 * CAPACITY + 1)}, 400),
        ("/tokenize", {"content": 3}, 400),
        ("/slots/0?action=x", {}, 400),
        ("/slots/99?action=save", {"filename": "a.bin"}, 400),
        (f"/slots/{'9' * 5000}?action=erase", {}, 400),
    ],
)
def test_bad_requests_have_the_shape_that_clients_know(
    client: TestClient, path: str, fields: dict[str, Any], status: int
) -> None:
    answer = client.post(path, json=fields)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["code"] == status and error["message"] and error["type"]
    assert '"content":"' not in answer.text
    assert ask(client, "/infill", LLAMA_VIM)["content"], "the next request works"


def test_types_of_errors_are_those_that_clients_look_for(client: TestClient) -> None:
    """As of llama.cpp's own server: its clients cut a prompt by the numbers of an error."""
    unknown = client.post("/infill", json={"input_prefix": "x", "model": "none"}).json()["error"]
    assert (unknown["code"], unknown["type"]) == (404, "not_found_error")
    for prompt, tokens in (([5] * (CAPACITY + 7), CAPACITY + 7), ("a " * 20_000, CAPACITY + 1)):
        error = client.post("/completion", json={"prompt": prompt}).json()["error"]
        assert error["type"] == "exceed_context_size_error" and error["n_ctx"] == CAPACITY
        assert error["n_prompt_tokens"] >= tokens
    too_much = client.post("/tokenize", json={"content": "a " * 100_000}).json()["error"]
    assert too_much["type"] == "invalid_request_error" and "n_ctx" not in too_much, "of no context"


def test_the_newest_request_of_a_slot_wins(tmp_path: Path) -> None:
    train_tokenizer(tmp_path / "tokenizer.json", special=(*SPECIAL, *FIM))
    served = fake_pipeline(tmp_path)
    engine = cast(Engine, served.target)
    service = service_of(served)
    with on_a_port(service) as url:
        engine.gate.clear()
        answers: dict[str, httpx.Response] = {}

        def post(name: str, **fields: Any) -> None:
            answers[name] = httpx.post(f"{url}/infill", json=LLAMA_VIM | fields, timeout=30)

        threads = [threading.Thread(target=post, args=("first",))]
        threads[0].start()
        assert engine.entered.acquire(timeout=20)
        threads.append(threading.Thread(target=post, args=("other slot",), kwargs={"id_slot": 1}))
        threads.append(threading.Thread(target=post, args=("newest",), kwargs={"prompt": "    wi"}))
        for thread in threads[1:]:
            thread.start()
        running = service.residents.loaded["tiny"].worker.running
        until = time.monotonic() + 20
        while (running is None or running.ended is None) and time.monotonic() < until:
            time.sleep(0.01)
        engine.gate.set()
        for thread in threads:
            thread.join(30)
    assert answers["first"].status_code == 409 and answers["first"].json()["error"]["type"]
    assert answers["newest"].status_code == answers["other slot"].status_code == 200
    assert answers["newest"].json()["content"] and answers["other slot"].json()["content"]


def test_several_answers_are_a_list_and_have_numbers(client: TestClient) -> None:
    fields: dict[str, Any] = {"prompt": "The sea", "n_predict": 8, "temperature": 1.0, "seed": 3}
    alone = [ask(client, "/completion", fields | {"seed": seed})["content"] for seed in (3, 4)]
    found = client.post("/completion", json=fields | {"n_cmpl": 2}).json()
    assert [each["index"] for each in found] == [0, 1]
    assert [each["content"] for each in found] == alone and alone[0] != alone[1]
    texts = ["", ""]
    stream = client.post("/completion", json=fields | {"n_cmpl": 2, "stream": True}).text
    for part in (json.loads(line.removeprefix("data: ")) for line in stream.splitlines() if line.startswith("data: ")):
        texts[part["index"]] += part["content"]
    assert texts == alone
    answer = client.post("/completion", json=fields | {"n_cmpl": 9})
    assert answer.status_code == 400 and "n_cmpl: got 9; allowed: 1 to 8" in answer.text


def test_a_variable_that_the_server_sets_is_refused(client: TestClient) -> None:
    for path, more in (("/apply-template", {}), ("/v1/chat/completions", {"max_tokens": 1})):
        for name in ("messages", "self", "add_generation_prompt"):
            sent = {"messages": [{"role": "user", "content": "x"}], "chat_template_kwargs": {name: []}} | more
            answer = client.post(path, json=sent)
            assert (answer.status_code, f"{name} is set by the server" in answer.text) == (400, True)


def test_long_texts_are_encoded_beside_the_event_loop(
    client: TestClient, served: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = []
    encode = served.tokenizer.encode

    def noted(text: str, **options: Any) -> list[int]:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            beside.append(True)
        else:
            beside.append(False)
        return encode(text, **options)

    monkeypatch.setattr(served.tokenizer, "encode", noted)
    ids = client.post("/tokenize", json={"content": "hello"}).json()["tokens"]
    assert client.post("/detokenize", json={"tokens": ids}).json()["content"] == "hello"
    assert beside and all(beside)
