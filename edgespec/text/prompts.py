"""From a conversation or a plain text to the ids of a prompt, and what is no prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import index
from typing import Any

from edgespec.errors import SettingError
from edgespec.protocols import Model
from edgespec.text.chat_template import ChatTemplate, Message
from edgespec.text.control_tokens import ControlTokens, texts_in
from edgespec.text.messages import plain_messages, require_shallow
from edgespec.text.tokenizer import Tokenizer, too_long


class Prompts:
    """Of one model. It is asked for its vocabulary and its context alone."""

    def __init__(
        self, name: str, tokenizer: Tokenizer, template: ChatTemplate | None, model: Model, longest: int
    ) -> None:
        """longest: context that the model can be loaded with."""
        self._name = name
        self._tokenizer = tokenizer
        self._template = template
        self._model = model
        self._longest = longest
        self._control = ControlTokens(tokenizer.control_texts, tokenizer.spoken_texts)

    def of_chat(
        self, messages: Sequence[Message], *, allow_special: bool, begun: str, variables: Mapping[str, Any]
    ) -> list[int]:
        """See ``Pipeline.chat_tokens``."""
        if self._template is None:
            raise SettingError(f"{self._name} has no chat template", hint="use a plain prompt (--raw)")
        plain: Sequence[Message] = plain_messages(messages)
        for name, value in {"messages": plain, **variables}.items():
            require_shallow(value, name)
        for content in (*texts_in(plain), *texts_in(variables)):
            self._require_fit(content)
        mark = ""
        given = variables
        if not allow_special:
            (*plain, given), mark = self._control.marked([*plain, variables])
        text = self._template.render(plain, **given) + begun
        self._require_fit(text)
        return self._tokenizer.encode_parts(self._control.parts(text, mark)) if mark else self._tokenizer.encode(text)

    def of_text(self, text: str) -> list[int]:
        """The prompt of a plain text. Control tokens that it spells become tokens."""
        self._require_fit(text)
        return self._tokenizer.encode(text, raw=True)

    def checked(self, prompt: Sequence[int]) -> list[int]:
        """The ids of a prompt as plain numbers. Raises SettingError, and ContextFull for one that is too long."""
        try:
            tokens = [index(token) for token in prompt]
        except TypeError as error:
            raise no_prompt(prompt) from error
        if not tokens:
            raise SettingError("prompt is empty", hint="it needs at least one token")
        if bad := [t for t in tokens if not 0 <= t < self._model.vocab_size]:
            raise SettingError(
                "prompt holds an unknown token id", got=bad[0], allowed=f"0..{self._model.vocab_size - 1}"
            )
        capacity = self._model.cache.capacity
        if len(tokens) > capacity:
            raise too_long(len(tokens), capacity, self._longest)
        return tokens

    def _require_fit(self, text: str) -> None:
        self._tokenizer.require_fit(text, self._model.cache.capacity, self._longest)


def no_prompt(given: object) -> SettingError:
    """For what is neither a text nor token ids."""
    parts = given if isinstance(given, list | tuple) else ()
    is_chat = isinstance(given, Mapping) or any(isinstance(part, Mapping) for part in parts)
    wrong = next((part for part in parts if not hasattr(part, "__index__")), None)
    got = "messages" if is_chat else type(given).__name__
    got += "" if is_chat or wrong is None else f" with {wrong!r}"
    hint = "use chat for a conversation: pipeline.chat(messages)" if is_chat else None
    return SettingError("prompt", got=got, allowed="a text, or token ids", hint=hint, setting="prompt")
