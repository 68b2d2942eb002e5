"""Damaged copies of a file, the same ones for the same seed: what a reader of strangers' files has to survive."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

NUMBERS = (0, 1, 2**7, 2**8 - 1, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1)


def mutations(data: bytes, *, seed: int, count: int, within: int | None = None) -> Iterator[bytes]:
    """within: damage begins in so many first bytes, e.g. a header."""
    for number in range(count):
        yield mutated(data, random.Random(f"{seed} {number}"), within)


def mutated(data: bytes, noise: random.Random, within: int | None = None) -> bytes:
    bad = bytearray(data)
    for _ in range(noise.choice((1, 1, 1, 2, 4, 16))):
        if bad:
            at = noise.randrange(min(len(bad), within or len(bad)))
            noise.choice(WAYS)(bad, at, noise)
    return bytes(bad)


def _flip(bad: bytearray, at: int, noise: random.Random) -> None:
    bad[at] ^= 1 << noise.randrange(8)


def _byte(bad: bytearray, at: int, noise: random.Random) -> None:
    bad[at] = noise.randrange(256)


def _cut(bad: bytearray, at: int, noise: random.Random) -> None:
    del bad[at:]


def _number(bad: bytearray, at: int, noise: random.Random) -> None:
    """A count or a length that is far off, and often far too large."""
    size = noise.choice((1, 2, 4, 8))
    number = noise.choice(NUMBERS) + noise.choice((-1, 0, 0, 1))
    wrapped = (number % 2 ** (8 * size)).to_bytes(size, noise.choice(("little", "little", "little", "big")))
    bad[at : at + size] = wrapped


def _splice(bad: bytearray, at: int, noise: random.Random) -> None:
    """A piece of the file in place of another one."""
    piece = _piece(bad, noise)
    bad[at : at + len(piece)] = piece


def _insert(bad: bytearray, at: int, noise: random.Random) -> None:
    bad[at:at] = _piece(bad, noise)


def _remove(bad: bytearray, at: int, noise: random.Random) -> None:
    del bad[at : at + noise.choice((1, 2, 4, 8, 64, 1024))]


def _repeat(bad: bytearray, at: int, noise: random.Random) -> None:
    bad[at:at] = bad[at : at + noise.choice((1, 8, 64))] * noise.choice((2, 16, 256))


def _piece(bad: bytearray, noise: random.Random) -> bytes:
    begin = noise.randrange(len(bad))
    return bytes(bad[begin : begin + noise.choice((1, 2, 4, 8, 64, 1024))])


WAYS: tuple[Callable[[bytearray, int, random.Random], None], ...] = (
    _flip, _byte, _cut, _number, _number, _number, _splice, _insert, _remove, _repeat,
)  # fmt: skip
