"""Which texts of a corpus are trained on, and which are held out.

Prompts have twins: a file gives up to three, a documented function two, and the prompt of one text has the answer of
another where the target began both. What is held out is decided by the prompt alone (``shards.is_held_out``), so twins
part. Those on the side of training are left out of it, and so is what must not be trained on at all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from edgespec.bundle import Bundle
from edgespec.errors import SettingError
from edgespec.text.chat_template import ChatTemplate
from edgespec.text.tokenizer import Tokenizer
from edgespec_train.corpus import shards
from edgespec_train.corpus.decontaminate import Decontaminator, runs_of
from edgespec_train.corpus.texts import Own, TargetTexts, TextId

_PHRASE = 20
"""texts that have the same ten words, above which the words are one of our questions' or the target's own"""
_MARK = "\N{WHITE SQUARE}edgespec\N{WHITE SQUARE}"


def parted(texts: Own, target: Bundle, say: Callable[[str], None], exclude: Sequence[str] = ()) -> tuple[Own, Own]:
    """(to train on, held out). No text to train on shares ten words in a row with a held-out text or a benchmark,
    but for words that more than ``_PHRASE`` of them have in common with held-out texts.

    exclude: files of benchmark prompts, beside our own. Raises SettingError if one of the parts is empty.
    """
    rest, held_out = texts.split(shards.held_out_share(len(texts.texts)))
    said, benchmarks = _Said(target), Decontaminator(Path(file) for file in exclude)
    unseen = {run for text in held_out.texts for part in said(held_out, text) for run in runs_of(part)}
    before, kept, times = len(rest.texts), [], Counter[str]()
    for text in rest.texts:
        parts = list(said(rest, text))
        shared = unseen.intersection(run for part in parts for run in runs_of(part))
        times.update(shared)
        if not any(map(benchmarks.matches, parts)):
            kept.append((text, shared))
    rest.texts = [text for text, shared in kept if not any(times[run] <= _PHRASE for run in shared)]
    if left_out := before - len(rest.texts):
        say(f"{left_out} of {before} texts share ten words in a row with a held-out text or a benchmark: left out")
    require_both(rest, held_out)
    return rest, held_out


def require_both(rest: TargetTexts, held_out: TargetTexts) -> None:
    """Raises SettingError if one of the parts is empty."""
    if not rest.texts or not held_out.texts:
        got = f"{len(rest.texts)} and {len(held_out.texts)} held out"
        raise SettingError("too few texts to train on", got=got, hint="more --corpus-tokens")


class _Said:
    """The words of a text, without those that the chat template puts into each."""

    def __init__(self, target: Bundle) -> None:
        generation = target.manifest.generation
        self._tokenizer = Tokenizer(target.hashed(target.manifest.tokenizer))
        self._head: list[int] = []
        self._tail: list[int] = []
        if source := target.chat_template():
            template = ChatTemplate(source, bos_token=generation.bos_token, eos_token=generation.eos_token)
            whole = template.render([{"role": "user", "content": _MARK}])
            self._head, self._tail = (self._tokenizer.encode(part) for part in whole.split(_MARK, 1))

    def __call__(self, texts: TargetTexts, text: TextId) -> Iterator[str]:
        """Question and answer of a chat; the whole of any other text."""
        tokens, answer = texts.tokens(text).tolist(), texts.answer(text)
        head, tail = len(self._head), len(self._tail)
        if tail and tokens[:head] == self._head and tokens[answer - tail : answer] == self._tail:
            yield self._tokenizer.decode(tokens[head : answer - tail])
            yield self._tokenizer.decode(tokens[answer:])
        else:
            yield self._tokenizer.decode(tokens)
