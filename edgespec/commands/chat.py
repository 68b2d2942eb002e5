"""``edgespec chat``: a conversation in the terminal. The KV cache is kept, so a new message computes only its own
tokens."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import click

from edgespec.commands import screen
from edgespec.commands.answer import summary
from edgespec.commands.options import (
    allow_special_option,
    fetch_options,
    format_from,
    format_options,
    learning_options,
    model_options,
    sampling_from,
    sampling_options,
    worded,
)
from edgespec.console import figure
from edgespec.errors import EdgespecError, printable
from edgespec.generation import Generation
from edgespec.pipeline import Pipeline
from edgespec.sampling_params import SamplingParams

HELP = """\
/help              this list
/reset             forget the conversation
/system [TEXT]     set the system prompt and begin again; without TEXT drop it
/retry             answer the last question again
/stats             figures of the last answer
/exit              leave (or Ctrl-D)
Enter sends; Alt-Enter (or Esc, then Enter) begins a new line; Ctrl-C stops an answer."""


class Conversation:
    """The messages and the last answer. If an answer is stopped, its text so far stays in the conversation."""

    def __init__(self, pipeline: Pipeline, system: str | None, **options: Any) -> None:
        self.pipeline = pipeline
        self.options = options
        self.last: Generation | None = None
        self.begin(system)

    def begin(self, system: str | None) -> None:
        self.system = system
        self.messages: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []

    def ask(self, text: str) -> Iterator[str]:
        """Stream the answer to the user's next message."""
        self.messages.append({"role": "user", "content": text})
        try:
            stream = self.pipeline.stream_chat(self.messages, **self.options)
        except EdgespecError:
            self.messages.pop()  # a refused question does not count as asked
            raise
        self.last = stream.result
        try:
            yield from stream
        finally:
            self.messages.append({"role": "assistant", "content": stream.result.text})

    def drop_last_turn(self) -> str | None:
        """Take back the last question and its answer; returns the question."""
        while self.messages and self.messages[-1]["role"] != "user":
            if self.messages[-1]["role"] == "system":
                return None
            self.messages.pop()
        return self.messages.pop()["content"] if self.messages else None


@click.command(name="chat")
@model_options
@fetch_options
@learning_options
@sampling_options
@format_options
@click.option("--system", metavar="TEXT", help="System prompt.")
@allow_special_option
@click.option("--no-history", is_flag=True, help="Keep nothing that you write for the next session.")
def command(system: str | None, allow_special: bool, no_history: bool, **options: Any) -> None:
    """Talk to a model. Reads turns line by line when standard input is not a terminal."""
    response_format = format_from(options)
    sampling, max_new_tokens, load_options = sampling_from(options)

    from edgespec.commands.fetching import fetch_and_load

    pipeline = fetch_and_load(load_options)
    conversation = Conversation(
        pipeline,
        system,
        allow_special=allow_special,
        sampling=sampling,
        max_new_tokens=max_new_tokens,
        response_format=response_format,
    )
    click.echo(f"{printable(pipeline.bundle.name)}, {_how(sampling)}. /help lists commands.", err=True)
    for line in _lines(not no_history):
        if line.startswith("/"):
            if not _command(conversation, line):
                return
        elif line.strip():
            _answer(conversation, line)


def _answer(conversation: Conversation, text: str) -> None:
    pieces = None
    try:
        pieces = conversation.ask(text)
        for piece in pieces:
            screen.write(piece)
        sys.stdout.write("\n")
    except KeyboardInterrupt:
        sys.stdout.write("\n")
        click.echo("[stopped]", err=True)
    except EdgespecError as error:
        click.echo(f"error: {worded(error, command)}", err=True)
        return
    finally:
        sys.stdout.flush()
        if pieces is not None:
            pieces.close()  # type: ignore[attr-defined]
    if conversation.last is not None:
        click.echo(summary(conversation.last), err=True)


def _command(conversation: Conversation, line: str) -> bool:
    """Run a /command; False ends the session."""
    name, _, rest = line.strip().partition(" ")
    match name:
        case "/exit" | "/quit":
            return False
        case "/help":
            click.echo(HELP, err=True)
        case "/reset":
            conversation.begin(conversation.system)
        case "/system":
            conversation.begin(rest.strip() or None)
        case "/retry":
            question = conversation.drop_last_turn()
            if question is None:
                click.echo("nothing to retry", err=True)
            else:
                _answer(conversation, question)
        case "/stats":
            _stats(conversation.last)
        case _:
            click.echo(f"no such command: {name}; /help lists them", err=True)
    return True


def _stats(last: Generation | None) -> None:
    if last is None:
        click.echo("no answer yet", err=True)
        return
    figures = last.as_dict()
    for key in ("text", "token_ids"):
        figures.pop(key)
    for key, value in figures.items():
        if words := _words(value):
            click.echo(f"{key:18} {printable(words)}", err=True)


def _words(value: object) -> str:
    """A figure for people; nothing for None.

    >>> _words(0.05512345678), _words(1234.5), _words({"ngram": 3, "share": 0.5}), _words(None), _words(0)
    ('0.0551', '1234', 'ngram 3, share 0.5', '', '0')
    """
    if isinstance(value, dict):
        return ", ".join(f"{key.replace('_', ' ')} {words}" for key, each in value.items() if (words := _words(each)))
    if isinstance(value, float):
        return figure(value)
    return "" if value is None else str(value)


def _lines(history: bool) -> Iterator[str]:
    """The user's messages: from an editor on a terminal, else line by line."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        for raw in sys.stdin.buffer:
            yield raw.decode("utf-8", errors="replace").lstrip("\ufeff").rstrip("\r\n")
        return
    read = _editor(history)
    while True:
        try:
            yield read()
        except KeyboardInterrupt:
            click.echo("(Ctrl-D or /exit leaves)", err=True)
        except EOFError:
            return


def _editor(history: bool) -> Callable[[], str]:
    """A line editor with multi-line input. Its history outlives the session."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    from edgespec import cache
    from edgespec.commands.chat_history import PrivateHistory

    keys = KeyBindings()

    @keys.add("enter")
    def _send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    kept = PrivateHistory(cache.cache_dir() / "chat" / "history") if history else InMemoryHistory()
    session: PromptSession[str] = PromptSession(history=kept, multiline=True, key_bindings=keys)
    return lambda: session.prompt("> ", prompt_continuation="  ")


def _how(sampling: SamplingParams) -> str:
    return "greedy" if sampling.greedy else f"temperature {sampling.temperature:g}"
