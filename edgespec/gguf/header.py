"""Header of a GGUF file, read with a limit on everything before any library sees it.

A stranger wrote every count and every length. Each is held against the bytes that are left; no array holds arrays;
and only arrays that are used become Python objects. So a file costs about its own size in memory, whatever it claims.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import os
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgespec.errors import ConversionError, foreign

HEADER_BYTES = 32 << 20  # the largest vocabularies of today, half a million merges, need half of it
TEXT_BYTES = 1 << 20  # one string that is used: a chat template
KEYS, TENSORS = 4096, 65536
NAME_BYTES = 1024  # of a key or tensor; llama.cpp stops at 64 for tensors
MAX_DIMS = 4

ELSE = "make a bundle from the original model: edgespec export OWNER/NAME -o DIR"

_SCALARS = {
    0: ("uint8", "B"), 1: ("int8", "b"), 2: ("uint16", "H"), 3: ("int16", "h"), 4: ("uint32", "I"), 5: ("int32", "i"),
    6: ("float32", "f"), 7: ("bool", "?"), 10: ("uint64", "Q"), 11: ("int64", "q"), 12: ("float64", "d"),
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_LEAST_KEY, _LEAST_TENSOR = 8 + 1 + 4 + 1, 8 + 1 + 4 + 8 + 4 + 8  # bytes


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies. kind: a ggml type, e.g. Q4_K. shape: innermost first. offset: from the file's begin."""

    kind: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Header:
    """Metadata of a GGUF file and the places of its tensors.

    kinds: what each key holds, e.g. "uint32" or "array of 3 string". A key of ``kinds`` that is not in ``metadata``
    holds an array that nobody asked for, or a string beyond TEXT_BYTES.
    """

    path: Path
    metadata: dict[str, Any]
    kinds: dict[str, str]
    tensors: dict[str, Tensor]

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture"))

    def get(self, key: str, default: Any = None) -> Any:
        """``{arch}.KEY`` for the architecture's own keys: ``get("{arch}.context_length")``."""
        return self.metadata.get(key.format(arch=self.architecture), default)

    def token(self, key: str) -> str | None:
        """Text of a token that the metadata names by id, e.g. ``eos_token_id``."""
        token_id = self.get(f"tokenizer.ggml.{key}")
        return None if token_id is None else str(self.get("tokenizer.ggml.tokens")[token_id])

    @property
    def precision(self) -> str:
        """What the file calls its weights, e.g. q4_k_m; the type of most of them where it says nothing known."""
        from gguf import LlamaFileType

        try:
            name = LlamaFileType(self.get("general.file_type")).name.split("_", 1)[1]  # MOSTLY_Q4_1
        except (ValueError, IndexError):
            sizes: Counter[str] = Counter()
            for tensor in self.tensors.values():
                sizes[tensor.kind] += tensor.nbytes
            name = sizes.most_common(1)[0][0]
        return str(name).lower()

    @property
    def licence(self) -> str | None:
        held = self.get("general.license")
        texts = [text for text in (held if isinstance(held, list) else [held]) if isinstance(text, str)]
        return ", ".join(texts) or None

    @property
    def vocab_size(self) -> int:
        """Number of logits."""
        output = self.tensors.get("output.weight") or self.tensors["token_embd.weight"]
        return output.shape[-1]


def read(path: Path, wanted: Callable[[str], int]) -> Header:
    """wanted: most items of an array that is read, by its key; 0 for arrays that are only walked past.

    Raises ConversionError: not a GGUF file, of another version or byte order, damaged, or beyond a limit.
    """
    with foreign(ConversionError, f"cannot read {path}", hint="download it again"):
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            data = file.read(HEADER_BYTES)
        _check_begin(path, data)
        return _Reader(path, data, size).header(wanted)


def _check_begin(path: Path, data: bytes) -> None:
    if data[:4] != b"GGUF":
        hint = "download the .gguf file of the model again"
        raise ConversionError("not a GGUF file", got=str(path), hint=hint)
    version = int.from_bytes(data[4:8], "little")
    if version and version & 0xFFFF == 0:
        raise ConversionError(
            f"{path} is a big-endian GGUF file",
            allowed="little-endian ones",
            hint="get the usual file of the model, or convert it with llama.cpp: gguf_convert_endian.py FILE little",
        )
    if len(data) >= 8 and version not in (2, 3):
        hint = "get a newer file of the model" if version < 2 else "download it again: it is damaged, or too new"
        raise ConversionError(f"GGUF version of {path}", got=version, allowed="2, 3", hint=hint)


class _Reader:
    """Goes through ``data``, the first bytes of a file of ``size`` bytes."""

    def __init__(self, path: Path, data: bytes, size: int) -> None:
        self.path = path
        self.data = data
        self.size = size
        self.at = 8  # behind magic and version

    def header(self, wanted: Callable[[str], int]) -> Header:
        tensor_count = self._count(_LEAST_TENSOR, TENSORS, "tensors")
        key_count = self._count(_LEAST_KEY, KEYS, "keys")
        metadata: dict[str, Any] = {}
        kinds: dict[str, str] = {}
        for _ in range(key_count):
            key = self._name("key")
            if key in kinds:
                raise self._damaged(f"{key} is there twice")
            kinds[key], value = self._value(key, wanted(key))
            if value is not None:
                metadata[key] = value
        infos = [self._tensor() for _ in range(tensor_count)]
        return Header(self.path, metadata, kinds, self._placed(infos, metadata.get("general.alignment", 32)))

    def _damaged(self, reason: str) -> ConversionError:
        return ConversionError(f"{self.path} is damaged or cut short ({reason})", hint="download it again")

    def _beyond(self, reason: str) -> ConversionError:
        return ConversionError(f"{self.path} holds more than edgespec reads ({reason})", hint=ELSE)

    def _require(self, size: int) -> None:
        """``size`` more bytes of header are there."""
        if self.at + size > self.size:
            raise self._damaged(f"{self.at + size} bytes needed, {self.size} there")
        if self.at + size > len(self.data):
            raise self._beyond(f"a header of more than {HEADER_BYTES >> 20} MiB")

    def _take(self, layout: str) -> Any:
        size = struct.calcsize(layout)
        self._require(size)
        (value,) = struct.unpack_from(layout, self.data, self.at)
        self.at += size
        return value

    def _count(self, least: int, limit: int, what: str) -> int:
        """A number of things that take ``least`` bytes each or more."""
        count: int = self._take("<Q")
        if count * least > self.size - self.at:
            raise self._damaged(f"{count} {what} in {self.size - self.at} bytes")
        if count > limit:
            raise self._beyond(f"{count} {what}, at most {limit}")
        return count

    def _text(self, length: int, what: str) -> str:
        self._require(length)
        self.at += length
        try:
            return str(self.data[self.at - length : self.at], "utf-8")
        except UnicodeDecodeError as error:
            raise self._damaged(f"{what} is not UTF-8") from error

    def _name(self, what: str) -> str:
        length: int = self._take("<Q")
        if length > NAME_BYTES:
            raise self._damaged(f"name of a {what} of {length} bytes")
        return self._text(length, f"name of a {what}")

    def _value(self, key: str, most: int) -> tuple[str, Any]:
        """What a key holds, and the value where it is read."""
        kind: int = self._take("<I")
        if kind in _SCALARS:
            name, layout = _SCALARS[kind]
            return name, self._take(f"<{layout}")
        if kind == _STRING:
            length: int = self._take("<Q")
            if length <= TEXT_BYTES:
                return "string", self._text(length, key)
            self._require(length)
            self.at += length
            return f"string of more than {TEXT_BYTES >> 20} MiB", None
        if kind == _ARRAY:
            return self._array(key, most)
        raise self._damaged(f"{key} holds a value of unknown type {kind}")

    def _array(self, key: str, most: int) -> tuple[str, list[Any] | None]:
        kind: int = self._take("<I")
        count: int = self._take("<Q")
        if kind not in _SCALARS and kind != _STRING:
            raise self._damaged(f"{key} holds an array of {'arrays' if kind == _ARRAY else f'unknown type {kind}'}")
        name, layout = _SCALARS.get(kind, ("string", "Q"))  # a string is a length at least
        layout = f"<{count}{layout}"
        self._require(count * struct.calcsize(f"<{layout[-1]}"))
        if most and count > most:
            raise self._beyond(f"{count} items of {key}, at most {most}")
        items = None
        if kind == _STRING:
            items = self._strings(key, count, keep=most > 0)
        else:
            items = list(struct.unpack_from(layout, self.data, self.at)) if most else None
            self.at += struct.calcsize(layout)
        return f"array of {count} {name}", items if most else None

    def _strings(self, key: str, count: int, *, keep: bool) -> list[str]:
        """Written out for speed: a vocabulary has some 300,000 tokens and merges."""
        data, end, at = self.data, len(self.data), self.at
        length_at, kept = struct.Struct("<Q").unpack_from, []
        try:
            for _ in range(count):
                (length,) = length_at(data, at)  # struct.error: less than eight bytes are left
                at += 8 + length
                if at > end:
                    break
                if keep:
                    kept.append(str(data[at - length : at], "utf-8"))
        except UnicodeDecodeError as error:
            raise self._damaged(f"{key} is not UTF-8") from error
        except struct.error:
            at += 8
        self._require(at - self.at)
        self.at = at
        return kept

    def _tensor(self) -> tuple[str, Tensor]:
        """Name and place, counted from the header's end."""
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        name = self._name("tensor")
        dims: int = self._take("<I")
        if not 1 <= dims <= MAX_DIMS:
            raise self._damaged(f"{name} has {dims} dimensions")
        shape = tuple(self._take("<Q") for _ in range(dims))
        number, offset = self._take("<I"), self._take("<Q")
        try:
            kind = GGMLQuantizationType(number)
        except ValueError as error:
            raise self._damaged(f"{name} has the unknown type {number}") from error
        block, block_bytes = GGML_QUANT_SIZES[kind]
        if 0 in shape or shape[0] % block:
            raise self._damaged(f"{name} has the shape {shape}")
        return name, Tensor(kind.name, shape, offset, math.prod(shape) // block * block_bytes)

    def _placed(self, infos: list[tuple[str, Tensor]], alignment: object) -> dict[str, Tensor]:
        """Tensors lie one behind the other, inside the file."""
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise self._damaged(f"general.alignment is {alignment}")
        begin = -(-self.at // alignment) * alignment
        tensors: dict[str, Tensor] = {}
        free = 0
        for name, tensor in sorted(infos, key=lambda info: info[1].offset):
            if name in tensors:
                raise self._damaged(f"{name} is there twice")
            if tensor.offset % alignment or tensor.offset < free:
                raise self._damaged(f"{name} begins inside another tensor")
            free = tensor.offset + tensor.nbytes
            if begin + free > self.size:
                raise self._damaged(f"{name} ends at byte {begin + free} of {self.size}")
            tensors[name] = replace(tensor, offset=begin + tensor.offset)
        return tensors
