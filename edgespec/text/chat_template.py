"""Chat templates: Jinja source from a model repository, rendered as transformers renders it, within limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgespec.errors import BundleError, SettingError, foreign
from edgespec.text.messages import require_roles

Message = Mapping[str, Any]


class ChatTemplate:
    """A compiled template. It is not trusted: it can compute a limited amount of text, and nothing else."""

    def __init__(self, source: str, *, bos_token: str | None = None, eos_token: str | None = None) -> None:
        from edgespec.text.template_sandbox import Sandbox

        with foreign(BundleError, "chat template does not compile", hint="export the model again"):
            self._template = Sandbox(source)
        self.source = source
        self._tokens = {"bos_token": bos_token or "", "eos_token": eos_token or ""}

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True, **extra: Any) -> str:
        """The text that the model was trained to read for these messages. Raises SettingError if the template refuses
        them."""
        variables: dict[str, Any] = {"tools": None, "documents": None, **self._tokens, **extra}
        with foreign(SettingError, "the model's chat template refuses these messages"):
            given = [dict(message) for message in messages]
            require_roles(given, self.source)
            variables |= {"messages": given, "add_generation_prompt": add_generation_prompt}
            return self._template.render(variables)
