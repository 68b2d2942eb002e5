"""Chat templates: Jinja source from a model repository, rendered in a sandbox."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from edgespec.errors import BundleError, SettingError

Message = Mapping[str, Any]


class ChatTemplate:
    """A compiled template. It comes from outside: it can compute text and nothing else."""

    def __init__(self, source: str, *, bos_token: str | None = None, eos_token: str | None = None) -> None:
        from jinja2 import TemplateError
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise BundleError(f"chat template does not compile: {error}", hint="export the model again") from error
        self._tokens = {"bos_token": bos_token or "", "eos_token": eos_token or ""}

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True, **extra: Any) -> str:
        """The text the model was trained to see for these messages. Raises SettingError if the template refuses."""
        try:
            return self._template.render(
                messages=[dict(m) for m in messages],
                add_generation_prompt=add_generation_prompt,
                **self._tokens,
                **extra,
            )
        except Exception as error:  # a template is a program of somebody else's: it may fail in any way
            raise SettingError(f"the model's chat template refuses these messages: {error}") from error


def _refuse(message: str) -> NoReturn:
    from jinja2 import TemplateError

    raise TemplateError(message)


def _tojson(value: Any, indent: int | None = None, **options: Any) -> str:
    """As transformers renders it: no HTML escapes, non-ASCII kept."""
    return json.dumps(value, ensure_ascii=False, indent=indent, **options)
