"""Several answers to one request, one after the other."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Annotated

from edgespec.server.fields import described
from edgespec.server.refusals import BadRequest
from edgespec.server.schema import Request
from edgespec.server.service import Answer, Service

_MOST = 8
Count = Annotated[int | None, described(minimum=1, maximum=_MOST)]
"""the field that asks for them"""


def checked(count: int | None, name: str) -> int:
    """How many answers a field asks for. Raises BadRequest."""
    if count is not None and not 1 <= count <= _MOST:
        raise BadRequest(f"{name}: got {count}; allowed: 1 to {_MOST}", param=name)
    return count or 1


async def answers(
    service: Service, request: Request, first: Answer, count: int
) -> AsyncGenerator[tuple[int, Answer], None]:
    """The answers with their numbers. Read each to its end before the next is asked for."""
    answer = first
    for index in range(count):
        if index:
            answer = await service.answer(_again(request, index, first))
        try:
            yield index, answer
        finally:
            answer.close()


def _again(request: Request, index: int, first: Answer) -> Request:
    """The same request with the seed of the first answer, and the number of the new one added. It ends no request that
    came since."""
    assert first.result is not None
    seed = None if first.result.seed is None else (first.result.seed + index) % 2**64
    return replace(request, follows=True, sampling=replace(request.sampling, seed=seed))
