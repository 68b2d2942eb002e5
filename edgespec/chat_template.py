"""Chat templates: Jinja source from a model repository, rendered in a bounded sandbox as transformers renders it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from edgespec.errors import BundleError, SettingError, foreign

Message = Mapping[str, Any]


class ChatTemplate:
    """A compiled template. It comes from outside: it can compute text, within a budget, and nothing else."""

    def __init__(self, source: str, *, bos_token: str | None = None, eos_token: str | None = None) -> None:
        from edgespec.template_budget import SOURCE_CHARS, BoundedEnvironment

        if len(source) > SOURCE_CHARS:
            raise BundleError(
                "chat template is too long", got=f"{len(source)} characters", allowed=f"{SOURCE_CHARS} characters"
            )
        self._environment = BoundedEnvironment()
        self._environment.filters["tojson"] = self._environment.bounded("tojson", _tojson)
        self._environment.globals["raise_exception"] = _refuse
        self._environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        with foreign(BundleError, "chat template does not compile", hint="export the model again"):
            self._template = self._environment.from_string(source)
        self._tokens = {"bos_token": bos_token or "", "eos_token": eos_token or ""}

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True, **extra: Any) -> str:
        """The text the model was trained to see for these messages. Raises SettingError if the template refuses, or
        would take more work than a template needs (see ``template_budget``)."""
        self._environment.begin()
        given = {"tools": None, "documents": None, "add_generation_prompt": add_generation_prompt, **self._tokens}
        with foreign(SettingError, "the model's chat template refuses these messages"):
            return self._template.render(messages=[dict(message) for message in messages], **(given | extra))


def _refuse(message: str) -> NoReturn:
    from jinja2 import TemplateError

    raise TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As transformers renders it: no HTML escapes, non-ASCII kept unless told."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
