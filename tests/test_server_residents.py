"""Loaded models: on demand, within a budget, unloaded when nobody uses them; a chat's model keeps its place."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from edgespec.errors import NoSuchModel, SourceError
from edgespec.hub import resolve
from edgespec.pipeline import Pipeline
from edgespec.server.offers import fetcher
from edgespec.server.refusals import NoModel, Unavailable
from edgespec.server.residents import Offer, Residents
from edgespec.server.schema import Chat, Request
from edgespec.server.service import Service
from tests.fake_server import CAPACITY, fake_pipeline

MODEL_BYTES = 1000 + 8 * CAPACITY
"""weights and cache of a fake model"""


@pytest.fixture
def loads() -> list[str]:
    return []


@pytest.fixture
def offers(tmp_path: Path, loads: list[str]) -> dict[str, Offer]:
    def offer(name: str) -> Offer:
        def load() -> Pipeline:
            loads.append(name)
            if name == "broken":
                raise SourceError("no such file")
            return fake_pipeline(tmp_path, name=name)

        return Offer(name=name, load=load, size_of=lambda: MODEL_BYTES)

    return {name: offer(name) for name in ("one", "two", "three", "broken")}


def run(work: Callable[[], Awaitable[Any]]) -> Any:
    async def within() -> Any:
        return await work()

    return asyncio.run(within())


async def use(residents: Residents, name: str, kind: Any = "chat", keep_alive_s: float | None = None) -> None:
    residents.give_back(await residents.take(name, kind), keep_alive_s)


def test_a_model_loads_once_and_the_one_unused_for_longest_leaves(offers: dict[str, Offer], loads: list[str]) -> None:
    async def work() -> None:
        residents = Residents(offers, budget_bytes=2 * MODEL_BYTES)
        for name in ("one", "two", "one", "three", "one"):
            await use(residents, name)
        assert loads == ["one", "two", "three"] and list(residents.loaded) == ["one", "three"]
        await asyncio.gather(*(use(residents, "two") for _ in range(5)))
        assert loads.count("two") == 2

    run(work)


def test_a_completion_takes_no_chats_place_but_a_chat_takes_any(offers: dict[str, Offer]) -> None:
    async def work() -> None:
        residents = Residents(offers, budget_bytes=MODEL_BYTES)
        await use(residents, "one", "chat")
        with pytest.raises(Unavailable, match="no memory for two .* one .* is loaded and kept for chats") as error:
            await use(residents, "two", "completion")
        assert error.value.retry_after_s and "one" in error.value.message
        await use(residents, "one", "completion", keep_alive_s=60)
        with pytest.raises(Unavailable, match="kept for chats"):
            await use(residents, "two", "completion")
        residents.loaded["one"].chat_s = monotonic() - 61
        await use(residents, "two", "completion")
        await use(residents, "three", "chat")
        assert list(residents.loaded) == ["three"]

    run(work)


def test_a_question_about_a_model_leaves_it_a_chats(offers: dict[str, Offer]) -> None:
    async def work() -> None:
        residents = Residents(offers, budget_bytes=MODEL_BYTES)
        await use(residents, "one", "chat")
        await use(residents, "one", None)
        with pytest.raises(Unavailable, match="no memory for two"):
            await use(residents, "two", "completion")

    run(work)


def test_a_model_in_use_stays(offers: dict[str, Offer]) -> None:
    async def work() -> None:
        residents = Residents(offers, budget_bytes=MODEL_BYTES)
        resident = await residents.take("one", "completion")
        with pytest.raises(Unavailable):
            await residents.take("two", "chat")
        residents.give_back(resident)
        await use(residents, "two")

    run(work)


def test_what_cannot_fit_unloads_nothing(offers: dict[str, Offer]) -> None:
    def sized(name: str, models: int) -> Offer:
        return replace(offers["three"], name=name, size_of=lambda: models * MODEL_BYTES)

    async def work() -> None:
        others = {"big": sized("big", 3), "huge": sized("huge", 4)}
        residents = Residents(offers | others, budget_bytes=3 * MODEL_BYTES)
        await use(residents, "one")
        resident = await residents.take("two", "chat")
        with pytest.raises(Unavailable, match="two .* is loaded and in use") as error:
            await use(residents, "big")
        assert error.value.retry_after_s and "one" not in error.value.message
        with pytest.raises(Unavailable, match="within .*: raise --memory") as error:
            await use(residents, "huge")
        assert error.value.retry_after_s is None, "it will not fit later either"
        residents.give_back(resident)
        assert list(residents.loaded) == ["one", "two"]

    run(work)


def test_a_model_that_is_not_used_is_unloaded_and_its_memory_is_free(offers: dict[str, Offer]) -> None:
    async def work() -> None:
        residents = Residents(offers)
        await use(residents, "one", keep_alive_s=0.05)
        pipeline = weakref.ref(residents.loaded["one"].pipeline)
        await use(residents, "two", keep_alive_s=-1)
        await use(residents, "three")
        for _ in range(100):
            await asyncio.sleep(0.02)
            if "one" not in residents.loaded:
                break
        assert list(residents.loaded) == ["two", "three"]
        await asyncio.sleep(0.1)
        assert pipeline() is None

    run(work)


def test_a_model_that_is_released_while_it_is_used_goes_behind_its_requests(offers: dict[str, Offer]) -> None:
    async def work() -> None:
        residents = Residents(offers)
        resident = await residents.take("one", "chat")
        await residents.release("one")
        assert "one" in residents.loaded
        residents.give_back(resident)
        for _ in range(100):
            await asyncio.sleep(0.02)
            if not residents.loaded:
                break
        assert not residents.loaded

    run(work)


def test_a_request_moves_the_end_of_its_model(offers: dict[str, Offer]) -> None:
    async def work() -> None:
        residents = Residents(offers)
        await use(residents, "one", keep_alive_s=0.05)
        await use(residents, "one", keep_alive_s=30)
        await asyncio.sleep(0.15)
        assert residents.loaded["one"].expires_at

    run(work)


def test_a_model_that_does_not_load_says_why_and_may_be_asked_for_again(
    offers: dict[str, Offer], loads: list[str]
) -> None:
    async def work() -> None:
        residents = Residents(offers)
        for _ in range(2):
            with pytest.raises(Unavailable, match="broken cannot be loaded: no such file"):
                await residents.take("broken", "chat")
        assert loads == ["broken", "broken"] and not residents.loaded
        with pytest.raises(NoModel, match="no model 'four'; there is one, two, three, broken$"):
            await residents.take("four", "chat")
        for spelt in ("qwen2.5-coder-0.5b", "qwen2.5-coder-0.5b:latest"):
            with pytest.raises(NoModel, match="POST /api/pull, or run `edgespec pull qwen2.5-coder-0.5b`"):
                await residents.take(spelt, "chat")

    run(work)


def test_a_model_that_is_unloaded_while_it_loads_answers_with_a_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgespec.server.residents._UNLOAD_S", 0.05)
    go_on = threading.Event()

    def load() -> Pipeline:
        go_on.wait(10)
        return fake_pipeline(tmp_path)

    async def work() -> None:
        residents = Residents({"slow": Offer(name="slow", load=load)})
        asked = asyncio.ensure_future(
            Service(residents).answer(Request(prompt=Chat([{"role": "user", "content": "x"}]), kind="chat"))
        )
        while not (resident := residents.loaded.get("slow")):
            await asyncio.sleep(0.01)
        await residents.unload("slow")
        go_on.set()
        resident.worker.join(10)  # its thread ends before the loop hears that the model was ready
        with pytest.raises(Unavailable, match="was unloaded while it was loading"):
            await asyncio.wait_for(asked, 10)

    beside = threading.Thread(target=run, args=(work,), daemon=True)  # else a loop that hangs would hang this test
    beside.start()
    beside.join(20)
    assert not beside.is_alive()


def test_who_leaves_before_a_call_begins_takes_nothing_with_him(tmp_path: Path) -> None:
    async def work() -> None:
        residents = Residents({"one": Offer(name="one", load=lambda: fake_pipeline(tmp_path))})
        resident = await residents.take("one", "completion")
        go_on = threading.Event()
        first = resident.worker.call(lambda pipeline: go_on.wait(10))
        gone = asyncio.wrap_future(resident.worker.call(lambda pipeline: pytest.fail("nobody waits for it")))
        gone.cancel()
        await asyncio.sleep(0)
        go_on.set()
        await asyncio.wrap_future(first)
        assert await asyncio.wait_for(asyncio.wrap_future(resident.worker.call(lambda pipeline: 7)), 10) == 7

    run(work)


def test_a_model_that_leaves_has_its_memory_until_its_thread_has_ended(
    offers: dict[str, Offer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgespec.server.residents._UNLOAD_S", 0.05)
    go_on = threading.Event()

    def load() -> Pipeline:
        assert go_on.wait(20)
        return fake_pipeline(tmp_path)

    async def work() -> None:
        residents = Residents(
            offers | {"slow": replace(offers["one"], name="slow", load=load)}, budget_bytes=MODEL_BYTES
        )
        asked = asyncio.ensure_future(residents.take("slow", "completion"))
        await asyncio.sleep(0)
        slow = residents.loaded["slow"]
        await residents.unload("slow")
        with pytest.raises(Unavailable, match="no memory for two yet: slow is being unloaded") as error:
            await residents.take("two", "chat")
        assert error.value.retry_after_s and not residents.loaded
        go_on.set()
        assert slow.worker.join(20)
        await residents.take("two", "chat")
        with pytest.raises(Unavailable):
            await asked

    run(work)


def test_a_stop_while_a_model_loads_does_not_wait_for_it(tmp_path: Path) -> None:
    async def work() -> None:
        loading, go_on = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()

        def load() -> Pipeline:
            loop.call_soon_threadsafe(loading.set)
            asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result()
            raise NoSuchModel("never")

        import edgespec.server.residents as module

        module._UNLOAD_S, before = 0.05, module._UNLOAD_S
        try:
            service = Service(Residents({"slow": Offer(name="slow", load=load)}))
            request = Request(prompt=Chat([{"role": "user", "content": "x"}]), kind="chat")
            asked = asyncio.ensure_future(service.answer(request))
            await loading.wait()
            await asyncio.wait_for(service.stop(0.05), 5)
            go_on.set()
            with pytest.raises(NoModel):
                await asked
        finally:
            module._UNLOAD_S = before

    run(work)


def test_a_fetch_that_fails_names_the_other_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise SourceError("the hub does not answer")

    monkeypatch.setattr(resolve, "fetch_from_hub", fails)
    fetch = fetcher({}, keep_alive_s=None)("qwen2.5-coder-0.5b")
    with pytest.raises(SourceError, match=r"does not answer.* edgespec pull qwen2\.5-coder-0\.5b --mirror index"):
        fetch(Watched())


class Watched:
    """See ``hub.progress.Watch``."""

    n = 0
    total: int | None = None

    def update(self, count: int) -> None: ...
