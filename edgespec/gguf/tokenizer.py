"""tokenizer.json from the metadata of a GGUF file: byte-level BPE as ``tokenizers`` knows it.

A GGUF file holds the vocabulary and the merges, and only a name for how text is split before them. The expressions
are those of the models' own tokenizers; OpenVINO GenAI and llama.cpp leave out NFC for qwen2, GenAI takes llama-bpe
for "default".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgespec.errors import ConversionError

CONTROL, USER_DEFINED = 3, 4  # token types

_CONTRACTIONS = "'s|'t|'re|'ve|'m|'ll|'d"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA_3 = rf"(?i:{_CONTRACTIONS})|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_TAIL}"
_SPLITS = {  # applied one after the other; the expression of GPT-2 is a part of ByteLevel
    "smollm": ("digits", "gpt-2"),
    "gpt-2": ("gpt-2",),
    "llama-bpe": (_LLAMA_3,),
    "smaug-bpe": (_LLAMA_3,),  # as llama.cpp, which names Llama 3 with other control tokens so
    "qwen2": (rf"(?i:{_CONTRACTIONS})|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_TAIL}",),
    "default": (  # what llama.cpp falls back to
        r"[\p{P}\$\+<=>\^~\|]+",
        rf"{_CONTRACTIONS}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)",
        r"\p{N}+",
        r"[0-9][0-9][0-9]",
    ),
    "refact": ("digits", "gpt-2"),  # Granite 3, too
}
PRE_TOKENIZERS = tuple(_SPLITS)


def tokenizer_json(pre: str, tokens: Sequence[str], types: Sequence[int], merges: Sequence[str]) -> str:
    """Compact JSON. ``pre``: one of PRE_TOKENIZERS; ``merges``: "left right" each. Raises ConversionError."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

    vocabulary = {token: index for index, token in enumerate(tokens)}
    _check_merges(vocabulary, merges)
    pairs = [tuple(merge.split(" ")) for merge in merges]
    tokenizer = Tokenizer(models.BPE(vocabulary, pairs, ignore_merges=pre in ("llama-bpe", "smaug-bpe")))
    tokenizer.normalizer = normalizers.NFC() if pre == "qwen2" else None
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(_pre_tokenizers(_SPLITS[pre]))
    tokenizer.decoder = decoders.ByteLevel()
    added = [(token, kind) for token, kind in zip(tokens, types, strict=True) if kind in (CONTROL, USER_DEFINED)]
    tokenizer.add_tokens([AddedToken(token, special=kind == CONTROL, normalized=False) for token, kind in added])
    return str(tokenizer.to_str(pretty=False))


def _check_merges(vocabulary: Mapping[str, int], merges: Sequence[str]) -> None:
    """The library checks the same, but has made several copies of both by then."""
    for merge in merges:
        left, _, right = merge.partition(" ")
        missing = next((token for token in (left, right, left + right) if token not in vocabulary), None)
        if missing is not None:
            what = f"vocabulary does not fit its merges: {missing!r} of {merge!r} is no token"
            raise ConversionError(what, hint="download the file again")


def _pre_tokenizers(splits: tuple[str, ...]) -> list[Any]:
    from tokenizers import Regex, pre_tokenizers

    own = [split for split in splits if split not in ("digits", "gpt-2")]
    return [
        *([pre_tokenizers.Digits(individual_digits=True)] if "digits" in splits else []),
        *(pre_tokenizers.Split(Regex(expression), "isolated") for expression in own),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex="gpt-2" in splits),
    ]
