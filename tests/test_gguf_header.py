"""Nothing a GGUF file claims costs more than the file's size and a little: hand-made attacks, and 200 damaged files."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from edgespec.errors import ConversionError, EdgespecError
from edgespec.gguf import check
from edgespec.gguf import header as gguf_header
from edgespec.gguf.convert import read_header, texts
from tests import tiny_gguf
from tests.mutations import mutations

UINT8, UINT32, INT32, FLOAT32, STRING, ARRAY = 0, 4, 5, 6, 8, 9


def text(content: bytes) -> bytes:
    return struct.pack("<Q", len(content)) + content


def key(name: bytes, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def array(kind: int, count: int, items: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + items


def tensor(name: bytes, shape: tuple[int, ...], offset: int = 0, kind: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def file(*keys: bytes, tensors: tuple[bytes, ...] = (), version: int = 3, data: bytes = b"") -> bytes:
    header = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(keys)) + b"".join((*keys, *tensors))
    return header + bytes(-len(header) % 32) + data


def refusal(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(ConversionError) as caught:
        read_header(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


FLOATS = bytes(64)
CLAIMS = {
    "an array longer than the file": (file(key(b"a", ARRAY, array(UINT8, 1 << 40))), "bytes needed"),
    "strings longer than the file": (file(key(b"a", ARRAY, array(STRING, 1 << 60))), "bytes needed"),
    "a string longer than the file": (file(key(b"a", STRING, struct.pack("<Q", 1 << 62))), "bytes needed"),
    "strings that end early": (file(key(b"a", ARRAY, array(STRING, 2, text(b"x") + bytes([99] * 8)))), "bytes needed"),
    "arrays in arrays": (file(key(b"a", ARRAY, struct.pack("<IQ", ARRAY, 1) * 9999)), "an array of arrays"),
    "a type of value": (file(key(b"a", 99, b"")), "unknown type 99"),
    "a type of items": (file(key(b"a", ARRAY, array(99, 1, b"abcd"))), "unknown type 99"),
    "keys": (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 40), "1099511627776 keys in 0 bytes"),
    "many keys": (file(*(key(b"%d" % i, UINT8, b"x") for i in range(5000))), "5000 keys, at most 4096"),
    "tensors": (b"GGUF" + struct.pack("<IQQ", 3, 1 << 63, 0) + bytes(99), "tensors in"),
    "a long name": (file(key(b"a" * 2000, UINT8, b"x")), "name of a key of 2000 bytes"),
    "a name that is no text": (file(key(b"\xff", UINT8, b"x")), "not UTF-8"),
    "a key twice": (file(key(b"a", UINT8, b"x"), key(b"a", UINT8, b"x")), "a is there twice"),
    "dimensions": (file(tensors=(tensor(b"t", (1,) * 5),), data=FLOATS), "5 dimensions"),
    "sizes beyond 64 bits": (file(tensors=(tensor(b"t", (1 << 40, 1 << 40)),), data=FLOATS), "ends at byte"),
    "no numbers": (file(tensors=(tensor(b"t", (1, 0)),), data=FLOATS), r"shape \(1, 0\)"),
    "a part of a block": (file(tensors=(tensor(b"t", (8,), kind=2),), data=FLOATS), r"shape \(8,\)"),
    "a type of weights": (file(tensors=(tensor(b"t", (1,), kind=999),), data=FLOATS), "unknown type 999"),
    "a tensor twice": (file(tensors=(tensor(b"t", (1,)), tensor(b"t", (1,), 32)), data=FLOATS), "t is there twice"),
    "one place twice": (file(tensors=(tensor(b"t", (1,)), tensor(b"u", (1,))), data=FLOATS), "inside another tensor"),
    "a crooked place": (file(tensors=(tensor(b"t", (1,), 4),), data=FLOATS), "inside another tensor"),
    "a place outside": (file(tensors=(tensor(b"t", (1,), 96),), data=FLOATS), "ends at byte"),
    "an alignment": (
        file(key(b"general.alignment", UINT32, struct.pack("<I", 24)), tensors=(tensor(b"t", (1,)),), data=FLOATS),
        "general.alignment is 24",
    ),
    "an old version": (file(version=1), "got 1; allowed: 2, 3"),
    "a version to come": (file(version=4), "got 4; allowed: 2, 3"),
    "another byte order": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian GGUF file"),
    "another format": (b"GGML" + bytes(99), "not a GGUF file; got .*. Download the .gguf file of the model again"),
}  # fmt: skip


@pytest.mark.parametrize("claim", CLAIMS)
def test_a_claim_is_held_against_the_bytes(tmp_path: Path, claim: str) -> None:
    content, said = CLAIMS[claim]
    assert re.search(said, refusal(tmp_path / "bad.gguf", content))


def test_a_whole_header_is_read(tmp_path: Path) -> None:
    """By the package that wrote it, and by ours."""
    import gguf as package

    path = tiny_gguf.write(tmp_path / "tiny.gguf", quantize="Q8_0", extra={"general.tags": ["a", "b"]})
    theirs, ours = package.GGUFReader(path), read_header(path)
    fields = {name: field.contents() for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    assert ours.kinds.keys() == fields.keys()
    assert ours.kinds["general.tags"] == "array of 2 string"
    assert ours.metadata == {name: value for name, value in fields.items() if name != "general.tags"}
    places = {t.name: (t.tensor_type.name, tuple(t.shape), t.data_offset, t.n_bytes) for t in theirs.tensors}
    assert {n: (t.kind, t.shape, t.offset, t.nbytes) for n, t in ours.tensors.items()} == places


def test_arrays_are_read_on_request_only(tmp_path: Path) -> None:
    path = tmp_path / "some.gguf"
    three = array(STRING, 3, text(b"x") + text("ü".encode()) + text(b""))
    path.write_bytes(file(key(b"a", ARRAY, three), key(b"b", ARRAY, three), key(b"c", STRING, text(b"y" * (2 << 20)))))
    header = gguf_header.read(path, {"a": 3, "b": 0, "c": 0}.__getitem__)
    assert header.metadata == {"a": ["x", "ü", ""]}
    assert header.kinds == {"a": "array of 3 string", "b": "array of 3 string", "c": "string of more than 1 MiB"}
    with pytest.raises(ConversionError, match="3 items of a, at most 2"):
        gguf_header.read(path, lambda _: 2)


@pytest.mark.parametrize("step", [5003, pytest.param(499, marks=pytest.mark.slow)])
def test_every_truncation_is_noticed(tmp_path: Path, step: int) -> None:
    whole = tiny_gguf.write(tmp_path / "tiny.gguf").read_bytes()
    for length in [0, 3, 4, 23, 24, 25, *range(26, len(whole), step), len(whole) - 1]:
        said = "not a GGUF file" if length < 4 else "damaged or cut short"
        assert said in refusal(tmp_path / "cut.gguf", whole[:length])


def test_an_unreadable_file_is_one_line(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing.gguf"):
        with pytest.raises(ConversionError, match="cannot read"):
            gguf_header.read(path, check.longest)


MEASURED = """
import gguf.constants, numpy, pathlib, sys, tokenizers
from edgespec import errors; from edgespec.gguf import convert as gguf

def peak():
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) << 10

before = peak()
try:
    gguf.texts(gguf.read_header(pathlib.Path(sys.argv[1])))
except errors.EdgespecError as error:
    print(peak() - before, error)
"""


def sizes(**changed: int) -> list[bytes]:
    """Keys with the sizes of a llama, and the kind of its tokenizer."""
    usual = {"block_count": 1, "context_length": 8, "embedding_length": 2, "feed_forward_length": 2}
    numbers = {f"llama.{name}": size for name, size in usual.items()} | {"llama.attention.head_count": 1}
    numbers |= {f"llama.{name.replace('__', '.')}": size for name, size in changed.items()}
    return [
        *(key(name.encode(), UINT32, struct.pack("<I", size)) for name, size in numbers.items()),
        key(b"llama.attention.layer_norm_rms_epsilon", FLOAT32, struct.pack("<f", 1e-5)),
        key(b"general.architecture", STRING, text(b"llama")),
        key(b"tokenizer.ggml.model", STRING, text(b"gpt2")),
        key(b"tokenizer.ggml.pre", STRING, text(b"gpt-2")),
    ]


def huge_head(**changed: int) -> bytes:
    """Of which each pair has a frequency."""
    tokens = key(b"tokenizer.ggml.tokens", ARRAY, array(STRING, 1, text(b"a")))
    types = key(b"tokenizer.ggml.token_type", ARRAY, array(INT32, 1, struct.pack("<i", 1)))
    merges = key(b"tokenizer.ggml.merges", ARRAY, array(STRING, 0))
    tensors = (tensor(b"token_embd.weight", (2, 1)),)
    return file(*sizes(**changed), tokens, types, merges, tensors=tensors, data=bytes(32))


def many_tokens() -> bytes:
    """As many tokens and merges as are read, with the weights that they need, and one merge too many."""
    names = [b"%x" % i for i in range(1 << 19)]
    merges = b"".join(text(b"0 %x" % i) for i in range(1, 1 << 15)) + text(b"0 0") * ((1 << 19) - (1 << 15) + 1)
    keys = [
        *sizes(),
        key(b"tokenizer.ggml.tokens", ARRAY, array(STRING, len(names), b"".join(map(text, names)))),
        key(b"tokenizer.ggml.token_type", ARRAY, array(INT32, len(names), struct.pack("<i", 1) * len(names))),
        key(b"tokenizer.ggml.merges", ARRAY, array(STRING, 1 << 19, merges)),
    ]
    products = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    shapes = {b"token_embd": (2, len(names)), b"output_norm": (2,), b"blk.0.attn_norm": (2,), b"blk.0.ffn_norm": (2,)}
    shapes |= {f"blk.0.{name}".encode(): (2, 2) for name in products}
    infos, offset = [], 0
    for name, shape in shapes.items():
        infos.append(tensor(name + b".weight", shape, offset))
        offset += 8 * shape[-1] + -8 * shape[-1] % 32
    return file(*keys, tensors=tuple(infos), data=bytes(offset))


MANY_PAIRS = 1 << 26  # as many as show in the measurement, and fit into it
GREEDY = {
    "empty strings": lambda: file(key(b"tokenizer.ggml.tokens", ARRAY, array(STRING, 8 << 20, bytes(64 << 20)))),
    "empty strings nobody wants": lambda: file(key(b"a", ARRAY, array(STRING, 4 << 20, bytes(32 << 20)))),
    "texts of one wide letter": lambda: file(
        *(key(b"general.%d" % i, STRING, text(b"a" * 1000000 + "😀".encode())) for i in range(30))
    ),
    "tensors": lambda: file(
        tensors=tuple(tensor(b"t%d" % i, (1,), 32 * i) for i in range(65536)), data=bytes(65536 * 32)
    ),
    "tokens and merges": many_tokens,
    "numbers that are rotated": lambda: huge_head(rope__dimension_count=MANY_PAIRS),
    "numbers of a head": lambda: huge_head(attention__key_length=MANY_PAIRS),
    "numbers of a head that no key names": lambda: huge_head(embedding_length=MANY_PAIRS),
}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("greed", GREEDY)
def test_a_refused_file_takes_little_memory(tmp_path: Path, greed: str) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(GREEDY[greed]())
    ran = subprocess.run([sys.executable, "-c", MEASURED, str(path)], capture_output=True, text=True, check=True)
    assert ran.stdout, "it was not refused"
    assert int(ran.stdout.split()[0]) < path.stat().st_size + (200 << 20), ran.stdout


def test_mutations_are_the_same_for_the_same_seed() -> None:
    whole = bytes(range(256))
    first, again, other = (list(mutations(whole, seed=seed, count=50)) for seed in (1, 1, 2))
    assert first == again != other
    assert sum(bad != whole for bad in first) > 45


def survived(path: Path) -> bool:
    """Whether a file is accepted. Anything but an error of ours in one line is raised."""
    try:
        texts(read_header(path))
    except EdgespecError as error:
        assert "\n" not in str(error)
        return False
    return True


def test_damaged_files_are_read_or_refused(tmp_path: Path) -> None:
    whole = tiny_gguf.write(tmp_path / "tiny.gguf").read_bytes()
    path = tmp_path / "bad.gguf"
    accepted = 0
    for bad in mutations(whole, seed=0, count=200, within=whole.index(b"blk.0.attn_norm") + 2000):
        path.write_bytes(bad)
        accepted += survived(path)
    assert 0 < accepted < 150, "mutations that change nothing, or nothing but the first bytes, try nothing"
