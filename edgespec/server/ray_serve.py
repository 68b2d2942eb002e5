"""The server as a deployment of Ray Serve: copies of it, on one machine or several, behind one address.

    serve.run(deployment(["default"], replicas=2), route_prefix="/")

Each copy loads the models for itself, and has caches and queues of its own. It needs the extra ``ray``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from starlette.types import ASGIApp

from edgespec.errors import SettingError
from edgespec.server.app import application
from edgespec.server.build import budget_bytes, build
from edgespec.server.service import Service

_LONGEST_QUEUE = 64
"""requests that one copy may hold; Ray keeps further ones"""


def deployment(
    refs: Sequence[str] = ("default",),
    *,
    replicas: int = 1,
    cpus: float = 1.0,
    memory_gb: float | None = None,
    api_key: str | None = None,
    hosts: Sequence[str] = (),
    **options: Any,
) -> Any:
    """An application for ``ray.serve.run``. Raises SettingError.

    cpus, memory_gb: of one copy. api_key: asked of every request; give one where others reach Ray's address. hosts:
    names of the machine that clients may use, beside this machine's own. options: of ``load``.
    """
    try:
        from ray import serve
    except ImportError as error:
        raise SettingError("Ray Serve is not installed", hint='pip install "edgespec[ray]"') from error
    budget_bytes(memory_gb)  # refused here, and not in every copy
    key = (tuple(refs), memory_gb, tuple(sorted(options.items())))

    def app() -> ASGIApp:
        return application(_service(*key)[0], api_key=api_key, hosts=hosts)

    class Edgespec:
        async def __init__(self) -> None:  # type: ignore[misc]  # Ray awaits it
            service, names = _service(*key)
            await service.begin(names)

    deployed = serve.deployment(
        name="edgespec",
        num_replicas=replicas,
        max_ongoing_requests=_LONGEST_QUEUE,
        ray_actor_options={"num_cpus": cpus},
    )(serve.ingress(app)(Edgespec))
    return deployed.bind()


@cache
def _service(
    refs: tuple[str, ...], memory_gb: float | None, options: tuple[tuple[str, Any], ...]
) -> tuple[Service, list[str]]:
    """One in each process: that of the application is the one whose models the copy loads."""
    return build(refs, dict(options), memory_gb=memory_gb, longest_queue=_LONGEST_QUEUE)
