"""All errors that edgespec raises on purpose.

    EdgespecError
    ├── SettingError       an argument out of its range
    ├── SourceError        a model reference that cannot be found or fetched
    │   ├── NoSuchModel        an unknown name
    │   ├── IntegrityError     a file with a wrong hash or size
    │   └── LicenceError       a model whose licence has to be accepted first
    ├── ConversionError    a source that cannot be turned into a bundle
    ├── BundleError        a bundle or IR folder that is missing parts or malformed
    ├── IncompatiblePair   a draft that does not fit its target
    ├── DeviceError        a device that does not exist or cannot run this
    ├── BackendError       the engine failed; its own exception is the cause
    └── ContextFull        more tokens than the context holds

A message says in one line what is wrong, what was given, what is allowed and what to do next.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class EdgespecError(Exception):
    """Base of all errors that a user can cause or fix. The command line prints it on one line and exits with 2."""

    def __init__(
        self,
        what: str,
        *,
        got: object = None,
        allowed: object = None,
        hint: str | None = None,
        setting: str | None = None,
    ) -> None:
        """setting: the library's name of the wrong argument. A command shows its own option instead."""
        self.setting = setting
        parts = [what.rstrip(".")]
        if got is not None:
            parts.append(f"got {_given(got)}")
        if allowed is not None:
            parts.append(f"allowed: {_short(allowed)}")
        message = "; ".join(parts)
        if hint:
            message = f"{message}. {hint[0].upper()}{hint[1:]}"
        super().__init__(printable(" ".join(message.split())))


class SettingError(EdgespecError):
    """An argument out of its range."""


class SourceError(EdgespecError):
    """A model reference that cannot be found or fetched."""


class NoSuchModel(SourceError):
    """An unknown name."""


class IntegrityError(SourceError):
    """A file with a wrong hash or size."""


class LicenceError(SourceError):
    """A model whose licence has to be accepted first."""


class ConversionError(EdgespecError):
    """A source that cannot be turned into a bundle."""


class BundleError(EdgespecError):
    """A bundle or IR folder that is missing parts or malformed."""


class IncompatiblePair(EdgespecError):
    """A draft that does not fit its target; names both and the first difference."""


class DeviceError(EdgespecError):
    """A device that does not exist or cannot run this model."""


class BackendError(EdgespecError):
    """The engine failed; ``__cause__`` is its own exception."""


class ContextFull(EdgespecError):
    """More tokens than the context holds.

    tokens: of the prompt, or so many at least; None: not counted. capacity: of the context.
    """

    def __init__(self, what: str, *, tokens: int | None = None, capacity: int | None = None, **others: Any) -> None:
        super().__init__(what, **others)
        self.tokens, self.capacity = tokens, capacity


@contextmanager
def wrap_errors(
    to: type[EdgespecError],
    what: str,
    *,
    hint: str | None = None,
    known: tuple[type[Exception], ...] = (RuntimeError, ValueError, OSError, MemoryError),
) -> Iterator[None]:
    """Turn an engine's exception into one of ours, with its cause. The message shows one line of the engine's text.

    known: what may be the engine's. Around code of our own, an error of other kinds is a bug, and stays as it is.
    """
    try:
        yield
    except EdgespecError:
        raise
    except Exception as error:
        is_onnxruntimes = type(error).__module__.startswith("onnxruntime")  # its errors share no base
        if not (is_onnxruntimes or isinstance(error, known)):
            raise
        raise to(f"{what}: {_reason(error)}", hint=hint) from error


@contextmanager
def foreign(to: type[EdgespecError], what: str, *, hint: str | None = None) -> Iterator[None]:
    """For code that reads an untrusted file: whatever it raises becomes ``to``, with its cause.

    This includes recursion errors, memory errors, and the panics of Rust libraries, which are not an ``Exception``.
    """
    try:
        yield
    except EdgespecError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise  # Ctrl-C, the end of a generator or of the process
        raise to(f"{what}: {_reason(error)}", hint=hint) from error


def shown(value: object) -> object:
    """What to give as ``got`` where no text is right: a text in quotes, and None, which is left out otherwise."""
    return repr(value) if value is None or isinstance(value, str) else value


def printable(text: str) -> str:
    """Untrusted text for a terminal: control characters are spelt out.

    >>> printable("name\\x1b]0;title\\x07")
    'name\\\\x1b]0;title\\\\x07'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _reason(error: BaseException) -> str:
    """The informative line of an engine's message (OpenVINO starts with source positions)."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
    return _short((telling or lines or [type(error).__name__])[0])


def _given(value: object) -> str:
    """A text that would read as something else is in quotes: as a number, or as nothing.

    >>> _given("8"), _given(8), _given(" "), _given("ngram")
    ("'8'", '8', "' '", 'ngram')
    """
    is_quoted = isinstance(value, str) and (not value.strip() or _reads_as_number(value))
    return _short(repr(value) if is_quoted else value)


def _reads_as_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _short(value: object, limit: int = 300) -> str:
    try:
        text = value if isinstance(value, str) else repr(value)
    except Exception:  # of a number with thousands of digits, or of a class of the user's own
        text = f"a {type(value).__name__}"
    text = " ".join(text.split())
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
