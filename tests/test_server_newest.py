"""Whom a newer request ends: an older completion of its client, and nobody else. Real sockets and clients."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

from edgespec.pipeline import Pipeline
from edgespec.server import several
from edgespec.server.refusals import Replaced
from edgespec.server.schema import Infill, Request
from edgespec.server.service import Ended, Service
from tests import server_calls
from tests.fake_server import Engine, fake_pipeline, on_a_port, service_of
from tests.server_calls import LONG_S, Beside, ask, complete, held, text_of, until
from tests.test_server_llama_cpp import FIM, HOLE, LLAMA_VIM
from tests.tiny_models import SPECIAL, train_tokenizer

engine = server_calls.engine
RING = [{"filename": "long.py", "text": "value = 1\n" * 20}]
WARM_UP = {
    "id_slot": 0,
    "input_prefix": "",
    "input_suffix": "",
    "input_extra": RING,
    "prompt": "",
    "n_predict": 0,
    "temperature": 0.0,
    "samplers": [],
    "stream": False,
    "cache_prompt": True,
    "t_max_prompt_ms": 1,
    "t_max_predict_ms": 1,
    "response_fields": [""],
}
"""what llama.vim sends when its ring of pieces of other files has changed"""
CURL = {"user-agent": "curl/8.5.0"}


@pytest.fixture
def served(tmp_path: Path) -> Pipeline:
    train_tokenizer(tmp_path / "tokenizer.json", special=(*SPECIAL, *FIM))
    return fake_pipeline(tmp_path)


@pytest.fixture
def ended() -> list[Ended]:
    return []


@pytest.fixture
def service(served: Pipeline, ended: list[Ended]) -> Service:
    service = service_of(served, longest_queue=3)
    service.listeners.append(ended.append)
    return service


@pytest.fixture
def url(service: Service) -> Iterator[str]:
    with on_a_port(service) as url:
        yield url


def infill(url: str, fields: dict[str, Any] = LLAMA_VIM) -> httpx.Response:
    return httpx.post(f"{url}/infill", json=fields, timeout=LONG_S, headers=CURL)


def instruct(url: str, text: str) -> httpx.Response:
    """The first instruction in a Vim."""
    return ask(url, text, id_slot=0, headers=CURL)


def waiting(service: Service, count: int) -> None:
    until(lambda: service.residents.loaded["tiny"].worker.waiting == count)


def test_vims_with_their_rings_end_no_chat(url: str, service: Service, served: Pipeline, engine: Engine) -> None:
    """llama.vim sends slot 0 for all of these."""
    expected = [served.chat([{"role": "user", "content": text}], max_new_tokens=8).text for text in ("one", "two")]
    chats = [held(engine, lambda: instruct(url, "one"))]
    others = [Beside(lambda: infill(url, WARM_UP))]
    waiting(service, 1)
    chats.append(Beside(lambda: instruct(url, "two")))
    waiting(service, 2)
    others.append(Beside(lambda: infill(url)))
    assert others[0].end().status_code == 409, "only the ring, which is read again with the hole"
    engine.gate.set()
    assert [text_of(chat.end()) for chat in chats] == expected
    assert others[1].end().json()["content"]


def test_a_warm_up_ends_no_hole_that_is_still_being_read(url: str, service: Service, engine: Engine) -> None:
    hole = held(engine, lambda: infill(url))
    warm_ups = [Beside(lambda: infill(url, WARM_UP)) for _ in range(2)]
    waiting(service, 2)
    engine.gate.set()
    assert hole.end().json()["content"]
    assert [each.end().status_code for each in warm_ups] == [200, 200]


def test_a_hole_ends_the_warm_up_of_its_client(url: str, service: Service, engine: Engine) -> None:
    warm_up = held(engine, lambda: infill(url, WARM_UP))
    hole = Beside(lambda: infill(url))
    waiting(service, 1)
    engine.gate.set()
    assert warm_up.end().status_code == 409 and hole.end().json()["content"]


@pytest.mark.slow
def test_openais_client_does_not_ask_again_for_what_it_replaced(
    url: str, service: Service, engine: Engine, ended: list[Ended]
) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    assert client.max_retries

    def fill(prompt: str) -> Any:
        try:
            return client.completions.create(model="tiny", prompt=prompt, suffix="\n", max_tokens=8)
        except openai.ConflictError as error:
            return error

    older = held(engine, lambda: fill("older"))
    newer = Beside(lambda: fill("newer"))
    waiting(service, 1)
    engine.gate.set()
    assert isinstance(older.end(), openai.ConflictError) and newer.end().choices[0].text
    assert [each.why and each.why.code for each in ended] == ["replaced", None]


def test_in_a_full_queue_a_request_takes_the_place_of_those_that_it_ends(
    url: str, service: Service, engine: Engine
) -> None:
    older = held(engine, lambda: complete(url, "older", id_slot=1))
    others = [Beside(lambda: complete(url, "other")) for _ in range(3)]
    waiting(service, 3)
    assert complete(url, "one more", id_slot=2).status_code == 429
    newer = Beside(lambda: complete(url, "newer", id_slot=1))
    waiting(service, 4)
    engine.gate.set()
    assert older.end().status_code == 409
    assert all(text_of(each.end()) for each in (*others, newer))


@pytest.mark.parametrize("is_over", [False, True])
def test_a_further_answer_ends_no_request_that_came_since(service: Service, served: Pipeline, is_over: bool) -> None:
    engine = cast(Engine, served.target)
    request = Request(prompt=Infill(HOLE["input_prefix"], ""), kind="completion", key="mine", max_new_tokens=4)

    async def work() -> None:
        answers = several.answers(service, request, await service.answer(request), 2)
        await (await anext(answers))[1].whole()
        engine.gate.clear()
        newer = await service.answer(request)
        if is_over:
            engine.gate.set()
            await newer.whole()
            assert (await anext(answers))[0] == 1
        else:
            with pytest.raises(Replaced):
                await anext(answers)
            engine.gate.set()
            assert (await newer.whole()).text
        await answers.aclose()
        newer.close()

    asyncio.run(work())
