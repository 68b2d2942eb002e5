"""``edgespec serve``: a local server that clients of OpenAI, Ollama and llama.cpp can talk to."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from socket import gethostname
from typing import TYPE_CHECKING, Any

import click

from edgespec.commands.options import fetch_options, learning_options, loading_options
from edgespec.errors import EdgespecError, SettingError, printable

if TYPE_CHECKING:
    from edgespec.server.address import Address
    from edgespec.server.found import Found
    from edgespec.server.service import Service

PORT = 8012
"""where llama.vim and llama.vscode look for completions"""


@click.command(name="serve")
@click.argument("models", nargs=-1, metavar="[REF]...")
@click.option("--model", "-m", "more", multiple=True, metavar="REF", help="A model, like REF; may be repeated.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Any but this machine's own needs a key.")
@click.option("--port", "-p", type=click.IntRange(0, 65535), default=PORT, show_default=True, help="0: any free one.")
@click.option("--socket", type=click.Path(path_type=Path), metavar="FILE", help="A socket in the file system instead.")
@click.option(
    "--api-key", envvar="EDGESPEC_API_KEY", show_envvar=True, metavar="KEY", help="Ask requests for this key."
)
@click.option("--insecure", is_flag=True, help="Serve other machines without a key.")
@click.option("--allow-host", multiple=True, metavar="NAME", help="A further name of this machine; may be repeated.")
@click.option("--allow-origin", multiple=True, metavar="URL", help="Let web pages of this origin ask; may be repeated.")
@click.option("--memory", type=float, metavar="GB", help="Most memory of models and caches. Default: 60 % of all.")
@click.option("--keep-alive", default="5m", show_default=True, help="How long unused models stay that were not named.")
@click.option("--queue", type=click.IntRange(1), default=64, show_default=True, help="Requests that may wait, a model.")
@click.option("--time-limit", type=float, default=600.0, show_default=True, metavar="S", help="Of one answer.")
@loading_options
@fetch_options
@learning_options
def command(
    models: tuple[str, ...],
    more: tuple[str, ...],
    host: str,
    port: int,
    socket: Path | None,
    api_key: str | None,
    insecure: bool,
    allow_host: tuple[str, ...],
    allow_origin: tuple[str, ...],
    memory: float | None,
    keep_alive: str,
    queue: int,
    time_limit: float,
    **options: Any,
) -> None:
    """Serve models on this machine: OpenAI's routes under /v1, Ollama's under /api, llama.cpp's beside them.

    Each REF is a model, as for run; the first is the one that requests get which name none. Models that were fetched
    before are loaded when a request names them. One line on stderr for each request; no texts.

    \b
    edgespec serve
    edgespec serve qwen2.5-coder-1.5b --port 11434
    """
    from edgespec.commands.fetching import fetch_first
    from edgespec.hub.resolve import require_model
    from edgespec.server import found, terminal
    from edgespec.server.address import Address
    from edgespec.server.build import budget_bytes, build
    from edgespec.server.security import is_loopback, require_safe

    refs = list(dict.fromkeys([*models, *more])) or ["default"]
    if socket is None:
        require_safe(host, api_key, insecure)
    if not time_limit > 0:
        raise SettingError("time_limit", got=time_limit, allowed="seconds, above 0", setting="time_limit")
    keep_alive_s = _seconds(keep_alive)
    budget_bytes(memory)
    for ref in refs:  # before the address is taken and shown
        require_model(ref)
    address = Address(host, port, socket)
    record = None
    try:
        yes, mirror = options.pop("yes"), options.pop("mirror")
        for ref in refs:
            fetch_first({**options, "ref": ref, "yes": yes, "mirror": mirror})
        service, names = build(
            refs,
            options,
            memory_gb=memory,
            keep_alive_s=keep_alive_s,
            longest_queue=queue,
            time_limit_s=time_limit,
        )
        service.listeners.append(terminal.ended)
        with suppress(OSError):  # only convenience: without a data folder nobody finds this server by itself
            record = found.record(address.local_url)
        own = gethostname()
        _listen(
            service,
            names,
            address,
            record,
            api_key=api_key,
            hosts=(*allow_host, host, own, f"{own}.local"),
            others_reach=socket is None and not is_loopback(host),
            origins=allow_origin,
        )
    finally:
        address.close()
        if record is not None:
            found.forget(record)


def _seconds(text: str) -> float:
    from edgespec.server.fields import seconds
    from edgespec.server.refusals import BadRequest

    try:
        return seconds(text)
    except BadRequest as error:
        raise SettingError("keep_alive", got=text, allowed="5m, 300, -1", setting="keep_alive") from error


def _listen(service: Service, names: list[str], address: Address, record: Found | None, **who_may_ask: Any) -> None:
    """Until it is stopped. Raises EdgespecError if a model that was named cannot be loaded."""
    import asyncio

    from edgespec.server import found, terminal
    from edgespec.server.app import Shutdown, application
    from edgespec.server.chat.routes import ChatPage
    from edgespec.server.listen import Listener
    from edgespec.server.refusals import Refusal

    page = ChatPage(service, found.data_dir() / "chats.sqlite")
    app = application(
        service,
        shutdown=Shutdown(record.token, lambda: listener.stop()) if record else None,
        more=page.routes(),
        **who_may_ask,
    )
    listener = Listener(terminal.RefusedLines(app), service, address, begin=lambda: _begin(service, names, address))
    try:
        asyncio.run(listener.run())
    except Refusal as error:
        raise EdgespecError(error.told) from error
    finally:
        page.close()


async def _begin(service: Service, names: list[str], address: Address) -> None:
    _say(f"{address.url}: loading {', '.join(names)}")
    await service.begin(names)
    _say(f"{address.url}: ready. Ctrl-C stops it")


def _say(line: str) -> None:
    from edgespec.server import stderr

    stderr.write(f"edgespec: {printable(line)}\n")
