"""Messages as clients send them, and the variables of templates that they set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from edgespec.server.fields import described
from edgespec.server.refusals import BadRequest
from edgespec.text.messages import require_shallow

Message = Annotated[
    dict[str, Any],
    described(
        properties={"role": {"type": "string"}, "content": {"type": ["string", "array", "null"]}}, required=["role"]
    ),
]
"""as a client sends it; ``text.messages`` says more"""

_OWN_VARIABLES = {"add_generation_prompt", "allow_special", "begun", "messages", "self", "tools"}


def template_variables(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Variables of a chat template that a client may set. Raises BadRequest, SettingError."""
    if taken := sorted(_OWN_VARIABLES & (given or {}).keys()):
        raise BadRequest(f"chat_template_kwargs: {taken[0]} is set by the server", param="chat_template_kwargs")
    require_shallow(given, "chat_template_kwargs")
    return dict(given or {})
