"""Which ids may stand for nothing: placeholders of adaptive tokens are none that a text or a template uses."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from edgespec.errors import SettingError, printable
from edgespec.text.vocabulary import Vocabulary

MOST = 64
"""placeholders behind a token"""
_FREE = re.compile(r"reserved|unused|placeholder|extra_id|adaptive|\bsat\b|\[PAD\d+\]", re.IGNORECASE)
"""names that tokenizers give to ids without a use, and users to their own placeholders"""


def require_placeholders(
    ids: Sequence[int], count: int, vocabulary: Vocabulary, *, rows: int = 0, ends: Collection[int] = ()
) -> None:
    """Raises SettingError unless each id is one that the model reads, and that no text uses.

    An id without a text is free. One with a text is free only if its name says so: reserved, unused, extra_id, ..., or
    adaptive, sat, placeholder.

    count: most placeholders behind a token. rows: ids that the model reads behind its vocabulary. ends: ids that end a
    text.
    """
    if not 1 <= count <= MOST:
        raise SettingError("number of adaptive tokens", got=count, allowed=f"1 to {MOST}")
    last = vocabulary.logits + rows - 1
    for token in ids:
        if not 0 <= token <= last:
            raise SettingError(
                f"adaptive token outside the vocabulary of {vocabulary.name}", got=token, allowed=f"0 to {last}"
            )
        name = vocabulary.tokens.get(token) if token < vocabulary.logits else None
        if token in ends or (name is not None and not (token in vocabulary.added and _FREE.search(name))):
            text = "a text ends with it" if name is None else f"it is {printable(repr(name))[:60]}"
            raise SettingError(
                f"adaptive token that the tokenizer uses: {text}",
                got=token,
                allowed="an id without a text, or one called reserved, unused, placeholder, adaptive or sat",
                hint="name the id that the model was trained with",
            )
