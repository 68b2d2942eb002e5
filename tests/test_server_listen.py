"""How a server ends whose models are still loading."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from edgespec.server.address import Address
from edgespec.server.app import application
from edgespec.server.listen import Listener
from edgespec.server.refusals import Unavailable
from tests.fake_server import fake_pipeline, service_of


def listener(folder: Path, begin: Callable[[], Awaitable[None]]) -> Listener:
    service = service_of(fake_pipeline(folder))
    return Listener(application(service), service, Address("127.0.0.1", 0), begin=begin)


def test_whoever_stops_it_while_models_load_sees_no_failure(tmp_path: Path) -> None:
    async def stopped() -> None:
        server.stop()
        raise Unavailable("tiny was unloaded while it was loading")

    server = listener(tmp_path, stopped)
    asyncio.run(server.run())


def test_a_model_that_cannot_be_loaded_ends_it_with_that_error(tmp_path: Path) -> None:
    async def fails() -> None:
        raise Unavailable("no memory for tiny")

    with pytest.raises(Unavailable, match="no memory"):
        asyncio.run(listener(tmp_path, fails).run())
