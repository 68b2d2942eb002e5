"""GGUF file -> OpenVINO IR by OpenVINO GenAI, in a process of its own.

GenAI never sees the stranger's file. It gets one that is written here from what was checked: its sizes, its tensors,
and a placeholder for the tokenizer. F32 matrices, which GenAI does not read, are there in F16 until
``gguf.weights.requantize`` puts the file's own numbers back.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

from edgespec.errors import ConversionError
from edgespec.gguf.dimensions import Dimensions
from edgespec.gguf.header import ELSE, Header
from edgespec.gguf.tensors import Stored, read
from edgespec.gguf.vectors import FACTORS

STAGED = "staged.gguf"
IR = "openvino_model.xml"

_ALIGNMENT = 32
_F32, _F16 = 0, 1  # ggml types, and what the file says of itself
_UINT32, _INT32, _FLOAT32, _STRING, _ARRAY = 4, 5, 6, 8, 9  # types of values

# GenAI was seen to take up to eight times a small file; the base is for engine and threads.
_MEMORY_BASE_BYTES, _MEMORY_FACTOR = 8 << 30, 8
_SECONDS_BASE, _SECONDS_PER_GIB = 600, 600

# Its own process: engine messages stay off stdout, Ctrl-C works, a crash is an error, and memory comes back. The file
# names are relative because the GGUF reader takes no paths beyond the code page on Windows.
_LIMIT = """
import sys
try:
    import resource
    resource.setrlimit(resource.RLIMIT_DATA, (int(sys.argv[1]), resource.getrlimit(resource.RLIMIT_DATA)[1]))
except (ImportError, OSError, ValueError):
    pass  # Windows has no such limits, macOS takes no value
"""
_CONVERT = f"""
sys.modules["openvino_telemetry"] = None  # see edgespec.backends.openvino.runtime
import openvino, openvino_genai
openvino_genai.LLMPipeline("{STAGED}", "CPU", enable_save_ov_model=True)
openvino.Core().read_model("{IR}")
"""


def write_ir(header: Header, folder: Path) -> Path:
    """The IR of a file that was checked, as GenAI rounds it. Raises ConversionError."""
    staged = folder / STAGED
    try:
        try:
            stage(header, staged)
        except OSError as error:
            raise ConversionError(f"cannot write {staged}: {error.strerror}", hint=_space(folder)) from error
        _run(header, staged)
    finally:
        staged.unlink(missing_ok=True)
    for path in (*folder.glob("openvino_tokenizer.*"), *folder.glob("openvino_detokenizer.*")):
        path.unlink()
    return folder / IR


def stage(header: Header, path: Path) -> None:
    """Write the file for GenAI."""
    sizes, arch = Dimensions.of(header), header.architecture
    tensors = [tensor for tensor in read(header) if tensor.name != FACTORS]
    floating = all(tensor.kind in ("F32", "F16") for tensor in tensors)
    keys = [
        _text("general.architecture", arch),
        _number("general.file_type", _F16 if floating else 2),  # another one: GenAI looks for the scales of weights
        _number(f"{arch}.block_count", sizes.layers),
        _number(f"{arch}.context_length", sizes.context),
        _number(f"{arch}.embedding_length", sizes.embedding),
        _number(f"{arch}.feed_forward_length", sizes.feed_forward),
        _number(f"{arch}.attention.head_count", sizes.heads),
        _number(f"{arch}.attention.head_count_kv", sizes.kv_heads),
        _number(f"{arch}.attention.key_length", sizes.head),
        _key(f"{arch}.attention.layer_norm_rms_epsilon", _FLOAT32, struct.pack("<f", sizes.norm_epsilon)),
        _key(f"{arch}.rope.freq_base", _FLOAT32, struct.pack("<f", sizes.rope_base)),
        *_placeholder_tokenizer(),
    ]
    infos, offset = [], 0
    for tensor in tensors:
        infos.append(_info(tensor, offset))
        offset += -(-_bytes(tensor) // _ALIGNMENT) * _ALIGNMENT
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, len(infos), len(keys)))
        file.write(b"".join(keys) + b"".join(infos))
        for tensor in tensors:
            _pad(file)
            _write(file, tensor)


def _run(header: Header, staged: Path) -> None:
    size = staged.stat().st_size
    memory = _MEMORY_BASE_BYTES + _MEMORY_FACTOR * size
    seconds = _SECONDS_BASE + _SECONDS_PER_GIB * (size >> 30)
    what = f"cannot convert {header.path.name}"
    try:
        run = subprocess.run(
            [sys.executable, "-c", _LIMIT + _CONVERT, str(memory)],
            cwd=staged.parent,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            check=False,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired as error:
        raise ConversionError(f"{what}: it was not done after {seconds} seconds", hint=ELSE) from error
    if run.returncode != 0:
        lines = [line.strip() for line in run.stderr.decode(errors="replace").splitlines() if line.strip()]
        reason = lines[-1] if lines else f"the converter ended with code {run.returncode}"
        if "bad_alloc" in reason or "MemoryError" in reason:
            reason = f"no memory ({memory >> 30} GiB are allowed)"
        raise ConversionError(f"{what}: {reason}", hint=f"{_space(staged.parent)}. {ELSE}")


def _space(folder: Path) -> str:
    return f"free disk space: {shutil.disk_usage(folder).free >> 20} MiB"


def _placeholder_tokenizer() -> list[bytes]:
    """GenAI makes one of it, which is thrown away."""
    texts = struct.pack("<IQ", _STRING, 2) + _string("a") + _string("b")
    return [
        _text("tokenizer.ggml.model", "gpt2"),
        _text("tokenizer.ggml.pre", "default"),
        _key("tokenizer.ggml.tokens", _ARRAY, texts),
        _key("tokenizer.ggml.token_type", _ARRAY, struct.pack("<IQii", _INT32, 2, 1, 3)),
        _key("tokenizer.ggml.merges", _ARRAY, struct.pack("<IQ", _STRING, 1) + _string("a b")),
        _number("tokenizer.ggml.bos_token_id", 1),
        _number("tokenizer.ggml.eos_token_id", 1),
    ]


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def _key(key: str, kind: int, value: bytes) -> bytes:
    return _string(key) + struct.pack("<I", kind) + value


def _text(key: str, text: str) -> bytes:
    return _key(key, _STRING, _string(text))


def _number(key: str, number: int) -> bytes:
    return _key(key, _UINT32, struct.pack("<I", number))


def _info(tensor: Stored, offset: int) -> bytes:
    import gguf

    rows, columns = tensor.shape
    shape = struct.pack("<IQ", 1, rows) if tensor.vector else struct.pack("<IQQ", 2, columns, rows)
    kind = _F32 if tensor.vector else _F16 if tensor.kind == "F32" else gguf.GGMLQuantizationType[tensor.kind]
    return _string(tensor.name) + shape + struct.pack("<IQ", kind, offset)


def _bytes(tensor: Stored) -> int:
    return 4 * tensor.shape[0] if tensor.vector else int(tensor.data.nbytes) // (2 if tensor.kind == "F32" else 1)


def _pad(file: BinaryIO) -> None:
    file.write(bytes(-file.tell() % _ALIGNMENT))


def _write(file: BinaryIO, tensor: Stored) -> None:
    import numpy as np

    if tensor.vector:
        file.write(tensor.rows(slice(None)).astype(np.float32).tobytes())
    elif tensor.kind == "F32":
        largest = np.finfo(np.float16).max
        for part in tensor.parts():
            file.write(tensor.data[part].view(np.float32).clip(-largest, largest).astype(np.float16).tobytes())
    else:
        tensor.data.tofile(file)
