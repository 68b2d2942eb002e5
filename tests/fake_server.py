"""A server on fake models: a real tokenizer, template, loop and drafter, and a function in place of the engine.

with serving(tmp_path) as client:          Starlette's client, in this process
with on_a_port(tmp_path) as (url, service):  a real socket
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgespec.backends.fake import FakeModel, random_table
from edgespec.bundle import Bundle, Generation, HashedFile, Manifest, ModelFile, sha256_of
from edgespec.drafters.ngram import NGram
from edgespec.pipeline import Pipeline
from edgespec.protocols import Model
from edgespec.server.address import Address
from edgespec.server.app import application
from edgespec.server.listen import Listener
from edgespec.server.residents import Offer, Residents
from edgespec.server.service import Service
from tests.tiny_models import TEMPLATE, train_tokenizer

EOS = 1
CAPACITY = 512


class Engine(FakeModel):
    """A fake model that stops before every forward while ``gate`` is closed, and fails where it is told to."""

    def __init__(self, *args: Any, pace_s: float = 0.0, **options: Any) -> None:
        super().__init__(*args, **options)
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        """released at every forward that waits at the gate"""
        self.pace_s = pace_s
        self.error: BaseException | None = None
        self.forwards = 0
        self.weights_bytes = 1000

    def start(self, *args: Any, **options: Any) -> None:
        self.forwards += 1
        if not self.gate.is_set():
            self.entered.release()
            assert self.gate.wait(30)
        if self.pace_s:
            time.sleep(self.pace_s)
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        super().start(*args, **options)


def fake_pipeline(
    folder: Path,
    *,
    name: str = "tiny",
    template: str | None = TEMPLATE,
    seed: int = 3,
    order: int = 3,
    model: Callable[..., Model] = Engine,
    **options: Any,
) -> Pipeline:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tokenizer.json"
    if not path.exists():
        train_tokenizer(path)
    chat = None
    if template is not None:
        (folder / "template.jinja").write_text(template, encoding="utf-8")
        chat = HashedFile(file="template.jinja", sha256=sha256_of(folder / "template.jinja"))
    manifest = Manifest(
        format=1,
        name=name,
        target=ModelFile(precision="f32", vocab_size=400, file="model.xml"),
        tokenizer=HashedFile(file="tokenizer.json", sha256=sha256_of(path)),
        chat_template=chat,
        generation=Generation(eos_token_ids=(EOS,), context_length=CAPACITY, eos_token="<|eos|>"),
    )
    options.setdefault("capacity", CAPACITY)
    target = model(random_table(400, seed, order=order), 400, **options)
    return Pipeline(Bundle(folder, manifest), target, NGram(), num_draft_tokens=3)


def service_of(
    *pipelines: Pipeline, size_of: Callable[[], int | None] = lambda: 1000, longest_queue: int = 64, **options: Any
) -> Service:
    """Of models that are loaded at once. Options are those of ``Residents``."""
    offers = {
        each.bundle.name: Offer(name=each.bundle.name, load=lambda each=each: each, size_of=size_of)  # type: ignore[misc]
        for each in pipelines
    }
    return Service(Residents(offers, **options), longest_queue=longest_queue)


@contextmanager
def on_a_port(service: Service, **options: Any) -> Iterator[str]:
    """The server on a port of this machine, as ``edgespec serve`` runs it. Yields its address."""
    address = Address("127.0.0.1", 0)
    listener = Listener(application(service, **options), service, address)
    thread = threading.Thread(target=lambda: asyncio.run(listener.run()), daemon=True)
    thread.start()
    try:
        yield address.url
    finally:
        listener.stop()
        thread.join(20)
        assert not thread.is_alive()
