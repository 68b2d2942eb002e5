"""The bytes that one token stands for. A token may be a part of a character, so it need not be a text."""

from __future__ import annotations

import json
import re

from edgespec.text.tokenizer import Tokenizer

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
"""how SentencePiece spells a byte that is no text"""
_SPACE = "\u2581"
"""how SentencePiece spells a space"""


def _alphabet() -> dict[str, int]:
    """The letter for each byte in byte-level vocabularies, as GPT-2 has them.

    >>> alphabet = _alphabet()
    >>> alphabet["A"], alphabet["Ġ"], len(alphabet)
    (65, 32, 256)
    """
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + index): byte for index, byte in enumerate(others)}


_ALPHABET = _alphabet()


class TokenBytes:
    def __init__(self, tokenizer: Tokenizer) -> None:
        self._engine = tokenizer.engine
        decoder = self._engine.decoder
        self._is_byte_level = decoder is not None and '"ByteLevel"' in json.dumps(json.loads(decoder.__getstate__()))
        self._added = self._engine.get_added_tokens_decoder()

    def of(self, token: int) -> bytes:
        """Empty for an id that names no token."""
        spelling = self._engine.id_to_token(token) or ""
        if token in self._added:
            return str(spelling).encode()
        if self._is_byte_level:
            return bytes(_ALPHABET[letter] for letter in spelling if letter in _ALPHABET)
        if found := _BYTE.fullmatch(spelling):
            return bytes([int(found[1], 16)])
        return str(spelling).replace(_SPACE, " ").encode()
