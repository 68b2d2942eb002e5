"""Why a request gets no answer, with the HTTP status of it. Each wire format has a shape of its own for them."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

from edgespec.errors import ContextFull, EdgespecError, LicenceError, NoSuchModel, SettingError


class Refusal(Exception):
    """status: of HTTP. kind: OpenAI's type of error. code: a short name for programs. param: the field that is wrong.

    retry_after_s: when to ask again. told: what the server's own terminal says of it, where that is more.
    """

    status = 400
    kind = "invalid_request_error"
    code: str | None = None

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
        told: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        self.told = told or message


class BadRequest(Refusal):
    """Wrong types or values, or a field that this server refuses."""


class TooLong(Refusal):
    """tokens, capacity: see ``ContextFull``."""

    code = "context_length_exceeded"

    def __init__(self, message: str, *, tokens: int | None = None, capacity: int | None = None) -> None:
        super().__init__(message)
        self.tokens, self.capacity = tokens, capacity


class Forbidden(Refusal):
    status, kind, code = 403, "permission_error", "forbidden"


class Unauthorized(Refusal):
    status, kind, code = 401, "authentication_error", "invalid_api_key"


class NoModel(Refusal):
    status, code = 404, "model_not_found"


class NoRoute(Refusal):
    status, code = 404, "not_found"


class WrongMethod(Refusal):
    status, code = 405, "method_not_allowed"


class Slow(Refusal):
    status, code = 408, "request_timeout"


class Replaced(Refusal):
    """A newer request of the same client took its place."""

    status, code = 409, "replaced"


class Gone(Refusal):
    """The client closed its connection: nobody reads this."""

    status, code = 499, "client_gone"


class TooLarge(Refusal):
    status, code = 413, "body_too_large"


class Busy(Refusal):
    status, kind, code = 429, "rate_limit_error", "queue_full"


class Failed(Refusal):
    status, kind, code = 500, "server_error", "engine_failed"


class NotOffered(Refusal):
    status, code = 501, "not_supported"


class Unavailable(Refusal):
    """Stopping, loading, or no memory for one more model."""

    status, kind, code = 503, "unavailable_error", "unavailable"


def refusal(error: BaseException) -> Refusal:
    """What an error means to a client. What nobody foresaw is the server's fault; its text stays in the log."""
    match error:
        case Refusal():
            return error
        case ContextFull():
            return TooLong(str(error), tokens=error.tokens, capacity=error.capacity)
        case NoSuchModel():
            return NoModel(str(error), param="model")
        case LicenceError():
            return Forbidden(str(error))
        case SettingError():
            return BadRequest(str(error), param=error.setting)
        case EdgespecError():
            return Failed(without_folders(str(error)), told=str(error))
        case _:
            return Failed("the server failed; its terminal says more")


_START = r"""(?:(?<=[\s'"(=\[`,<])|^)"""
_QUOTED = re.compile(r"""(?<=['"`])(?:[A-Za-z]:)?[\\/](?:[^'"`\n]*[\\/])?(?=[^'"`\n\\/]+['"`])""")
_BARE = re.compile(_START + r"""(?:[A-Za-z]:|\\)?[\\/](?:[^\s'"()=;,`\]]*[\\/])?(?=[^\s'"()=;,`\]\\/])""")
"""what stands before a path; both up to the last name of an absolute path, which may have spaces within quotes"""


def _folders() -> list[str]:
    """Of who runs the server, the longest first. They may have spaces. Now, since the current one may be deleted."""
    found = []
    for folder in (Path.cwd, Path.home):
        with suppress(OSError, RuntimeError):  # deleted; a container whose user has a number only
            found.append(folder())
    return sorted((str(each) for each in found if each != Path(each.anchor)), key=len, reverse=True)


_KNOWN = [re.compile(_START + re.escape(folder) + r"(?=[\\/])") for folder in _folders()]


def without_folders(text: str) -> str:
    """Of absolute paths only their last names, as far as a path can be told from other words: who asks may be on
    another machine, and folders name who runs the server.

    >>> without_folders("no file '/home/ann lee/x.gguf'. See https://example.org/a/b, or C:\\\\Users\\\\a\\\\b.xml")
    "no file 'x.gguf'. See https://example.org/a/b, or b.xml"
    """
    for pattern in (*_KNOWN, _QUOTED, _BARE):
        text = pattern.sub("", text)
    return text
