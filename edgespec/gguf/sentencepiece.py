"""tokenizer.json from the metadata of a GGUF file: SentencePiece's BPE (Llama 2, Mistral, Phi-3, Gemma).

A GGUF file holds a score for each piece instead of merges: two neighbours become the piece with the highest score. So a
merge is made for each way to cut a piece in two others, and ranked by its score, as transformers does. What no piece
spells becomes bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgespec.errors import ConversionError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # token types
_SPACE = "\u2581"
_LONGEST = 256
"""characters of a piece that is cut; known ones have at most 32"""
_MOST_MERGES = 1 << 21
"""Gemma's 262,144 pieces have half a million. A file of few bytes may make a hundred million."""
_NOT_STRIPPING = ("<unk>", "<s>", "<|endoftext|>")
_AGAIN = "download the file again"


@dataclass(frozen=True)
class Pieces:
    """unknown: id of the piece for letters that nothing spells. prefixed: a text begins with a space. stripping:
    control tokens take the spaces behind them (Phi-3)."""

    tokens: Sequence[str]
    types: Sequence[int]
    scores: Sequence[float]
    unknown: int
    prefixed: bool
    stripping: bool

    def tokenizer_json(self) -> str:
        """Compact JSON. Raises ConversionError: pieces that are no vocabulary."""
        from tokenizers import AddedToken, Tokenizer, models

        vocabulary = {token: index for index, token in enumerate(self.tokens)}
        self._check(vocabulary)
        tokenizer = Tokenizer(
            models.BPE(
                vocabulary,
                self._merges(vocabulary),
                unk_token=self.tokens[self.unknown],
                fuse_unk=True,
                byte_fallback=True,
            )
        )
        tokenizer.normalizer, tokenizer.decoder = self._texts()
        tokenizer.add_tokens(
            [
                AddedToken(
                    token,
                    special=kind != USER_DEFINED,
                    normalized=False,
                    rstrip=self.stripping and kind != USER_DEFINED and token not in _NOT_STRIPPING,
                )
                for token, kind in zip(self.tokens, self.types, strict=True)
                if kind in (CONTROL, USER_DEFINED, UNKNOWN)
            ]
        )
        return str(tokenizer.to_str(pretty=False))

    def _check(self, vocabulary: Mapping[str, int]) -> None:
        if len(self.scores) != len(self.tokens) or not all(map(math.isfinite, self.scores)):
            got = f"{len(self.tokens)} pieces, {len(self.scores)} scores"
            raise ConversionError("scores do not fit the vocabulary, or are no numbers", got=got, hint=_AGAIN)
        missing = next((byte for byte in range(256) if f"<0x{byte:02X}>" not in vocabulary), None)
        if missing is not None:
            raise ConversionError("vocabulary has no piece for a byte", got=f"no <0x{missing:02X}>", hint=_AGAIN)

    def _merges(self, vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
        """By score; of one piece the way with the longest left part first."""
        found: list[tuple[float, int, int, str, str]] = []
        of = {token: index for token, index in vocabulary.items() if self.types[index] not in (CONTROL, UNKNOWN, BYTE)}
        for piece, index in of.items():
            if len(piece) > _LONGEST and self.types[index] != USER_DEFINED:
                got = f"one of {len(piece)} characters"
                raise ConversionError("vocabulary holds too long a piece", got=got, allowed=f"{_LONGEST}", hint=_AGAIN)
            if self.types[index] == USER_DEFINED:
                continue
            for at in range(1, len(piece)):
                left, right = piece[:at], piece[at:]
                if left in of and right in of:
                    found.append((-self.scores[index], -at, len(piece) - at, left, right))
            if len(found) > _MOST_MERGES:
                what = "vocabulary can be merged in more ways than any known one"
                raise ConversionError(what, got=f"over {_MOST_MERGES}", hint=_AGAIN)
        found.sort(key=lambda merge: merge[:3])
        return [(left, right) for *_, left, right in found]

    def _texts(self) -> tuple[object, object]:
        """What is done to a text before, and to pieces behind."""
        from tokenizers import decoders, normalizers

        spelt = normalizers.Replace(" ", _SPACE)
        steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
        if not self.prefixed:
            return spelt, decoders.Sequence(steps)
        before = normalizers.Sequence([normalizers.Prepend(_SPACE), spelt])
        return before, decoders.Sequence([*steps, decoders.Strip(content=" ", left=1, right=0)])
