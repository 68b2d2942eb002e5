"""How models are asked for the text of a hole (fill in the middle, Bavarian et al. 2022, arXiv 2207.14255), as data.

A row of the table fits a tokenizer that has all of the row's special tokens. The first row that fits counts. Names of
models play no part, since families share tokens and copies have other names. The last two rows fit models without such
tokens. They go on with the text before the hole and never see the text behind it.

Some models share tokens, but not an order: those of ``<fim_prefix>`` are all asked for prefix, suffix, middle.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

FILES, PREFIX, SUFFIX = "files", "prefix", "suffix"
"""places in a layout; its other entries are special tokens"""


@dataclass(frozen=True, slots=True)
class FimFormat:
    """layout: special tokens and places, in their order. What was typed on the hole's line comes last.

    file: the token before each file's path, also that of the hole's own file. Without one a line of text is written.
    repository: the token before the name of a repository, in front of all files. after_name: what ends that name.
    stops: spellings that end the text of a hole, besides the model's own end.
    """

    layout: tuple[str, ...]
    file: str = ""
    repository: str = ""
    after_name: str = ""
    stops: tuple[str, ...] = ()

    @property
    def tokens(self) -> tuple[str, ...]:
        """The special tokens that a prompt of this format is made of."""
        own = (token for token in self.layout if token not in (FILES, PREFIX, SUFFIX))
        return tuple(token for token in (*own, self.file, self.repository) if token)

    @property
    def fills(self) -> bool:
        """Whether the model reads the text behind the hole."""
        return SUFFIX in self.layout


_BARS = (FILES, "<|fim_prefix|>", PREFIX, "<|fim_suffix|>", SUFFIX, "<|fim_middle|>")
_ANGLES = (FILES, "<fim_prefix>", PREFIX, "<fim_suffix>", SUFFIX, "<fim_middle>")
_ENDS = ("<|endoftext|>", "<|end_of_text|>")
_OF_BARS = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|fim_pad|>", *_ENDS)
_OF_ANGLES = ("<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<fim_pad>", *_ENDS)

FORMATS = (
    # Qwen2.5-Coder, Qwen3-Coder
    FimFormat(
        _BARS,
        file="<|file_sep|>",
        repository="<|repo_name|>",
        after_name="\n",
        stops=(*_OF_BARS, "<|file_sep|>", "<|repo_name|>", "<|im_start|>", "<|im_end|>"),
    ),
    # CodeGemma
    FimFormat(_BARS, file="<|file_separator|>", stops=(*_OF_BARS, "<|file_separator|>", "<end_of_turn>")),
    # Granite 4
    FimFormat(_BARS, stops=_OF_BARS),
    # StarCoder 2
    FimFormat(_ANGLES, file="<file_sep>", repository="<repo_name>", stops=(*_OF_ANGLES, "<file_sep>", "<repo_name>")),
    # StarCoder, Mellum
    FimFormat(_ANGLES, file="<filename>", repository="<reponame>", stops=(*_OF_ANGLES, "<filename>", "<reponame>")),
    # StableCode, Granite 3
    FimFormat(_ANGLES, stops=(*_OF_ANGLES, "<file_sep>")),
    # DeepSeek-Coder
    FimFormat(
        (FILES, "<｜fim▁begin｜>", PREFIX, "<｜fim▁hole｜>", SUFFIX, "<｜fim▁end｜>"),
        stops=("<｜end▁of▁sentence｜>", "<|EOT|>"),
    ),
    # CodeLlama
    FimFormat((FILES, "▁<PRE>", PREFIX, "▁<SUF>", SUFFIX, "▁<MID>"), stops=("▁<EOT>", "<EOT>")),
    FimFormat((FILES, "<PRE>", PREFIX, "<SUF>", SUFFIX, "<MID>"), stops=("<EOT>",)),
    # Codestral: no token for the middle, so the prefix comes last
    FimFormat(("[SUFFIX]", SUFFIX, "[PREFIX]", FILES, PREFIX), stops=("[SUFFIX]", "[PREFIX]", "</s>")),
    # CodeGeeX 4
    FimFormat(
        (FILES, "<|code_suffix|>", SUFFIX, "<|code_prefix|>", PREFIX, "<|code_middle|>"),
        stops=("<|user|>", "<|endoftext|>"),
    ),
    # SmolLM2
    FimFormat(
        (FILES, PREFIX), file="<file_sep>", repository="<repo_name>", stops=(*_ENDS, "<file_sep>", "<repo_name>")
    ),
    FimFormat((FILES, PREFIX), stops=_ENDS),
)


def format_for(id_of: Callable[[str], int | None]) -> FimFormat:
    """The first format whose tokens are all known. id_of: the id of a token, or None.

    >>> format_for({"[SUFFIX]": 5, "[PREFIX]": 6}.get).tokens
    ('[SUFFIX]', '[PREFIX]')
    >>> format_for({}.get).fills
    False
    """
    return next(each for each in FORMATS if all(id_of(token) is not None for token in each.tokens))
