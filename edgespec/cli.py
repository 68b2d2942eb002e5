"""The command line: a dispatcher that imports a command only when it runs. ``edgespec "text"`` is ``edgespec run``."""

from __future__ import annotations

import errno
import io
import os
import re
import sys
from ast import literal_eval
from difflib import get_close_matches
from importlib import import_module
from itertools import takewhile
from typing import Any

import click

from edgespec import __version__
from edgespec.console import line_to_type
from edgespec.errors import EdgespecError, SettingError, printable

COMMANDS = {
    "run": "Generate text from a prompt (the default command).",
    "infill": "Write the text that is missing at a place in a file.",
    "chat": "Talk to a model in the terminal.",
    "serve": "Serve models to clients of OpenAI, Ollama and llama.cpp.",
    "pull": "Fetch a model into the cache.",
    "models": "List models: cached and known.",
    "export": "Convert a target and its draft into a bundle.",
    "train": "Train a draft for a target, and measure what it is worth.",
    "bench": "Measure the loop on this machine.",
    "simulate": "Simulate a pair on a laptop chip that is not here.",
    "doctor": "Show devices, versions and memory, and what will run where.",
}
DEFAULT = "run"
_ELSEWHERE = {
    "list": "models",
    "ls": "models",
    "install": "pull",
    "download": "pull",
    "start": "serve",
    "generate": "run",
    "complete": "infill",
}
"""what users of other programs type for these commands: no prompt is one such word"""
_CLOSE = 0.75
"""how alike a command and a word that means it are, from 0 to 1: "dictator" and "doctor" have 0.71"""


class Dispatcher(click.Group):
    """Loads ``edgespec.commands.NAME`` on demand; anything that is no command is a prompt for ``run``."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = import_module(f"edgespec.commands.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own = {option for param in self.params for option in param.opts} | set(ctx.help_option_names)
        args = _as_options(args)
        if args and args[0] not in COMMANDS and args[0] not in own:
            _require_prompt(args)
            args = [DEFAULT, *args]
        return super().parse_args(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=Dispatcher,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
@click.version_option(__version__, prog_name="edgespec")
@click.pass_context
def cli(context: click.Context) -> None:
    """Run language models fast and exactly: a small draft proposes, the model checks.

    \b
    edgespec "What is the capital of France?"      same as: edgespec run ...
    edgespec chat
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def main() -> None:
    """Run what the arguments say. Ends with SystemExit, and leaves the process to its owner.

    Errors a user can cure: one line, exit 2. An incomplete text of a format: 3. Ctrl-C: 130. A reader that went away:
    141, quietly.

    The context is made by hand because ``cli()`` turns a closed pipe into exit code 1.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by the caller
            setattr(sys, name, open(os.devnull, mode))  # noqa: PTH123, SIM115 - for the life of the process
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a pipe on Windows, or LANG=C, may not know every character
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        with cli.make_context("edgespec", sys.argv[1:]) as context:
            cli.invoke(context)
        sys.stdout.flush()
    except EdgespecError as error:
        from edgespec.commands.options import worded

        _fail(f"error: {worded(error, _that_ran(sys.argv[1:]))}")
    except click.exceptions.Exit as finished:
        sys.exit(finished.exit_code)
    except click.ClickException as error:
        _fail(f"error: {_in_our_form(error)} (see --help)")
    except (click.Abort, KeyboardInterrupt):
        sys.stderr.write("\n")
        sys.exit(130)
    except MemoryError:
        shorter = any("--context-length" in option.opts for option in _that_ran(sys.argv[1:]).params)
        hint = ", or use a smaller --context-length" if shorter else ""
        _fail(f"error: no memory is left. Close other programs{hint}")
    except OSError as error:
        if error.errno != errno.EPIPE and (os.name, error.errno) != ("nt", errno.EINVAL):
            _fail(f"error: cannot write: {error.strerror or error}")
        # The interpreter flushes stdout once more on exit; give it somewhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


_REFUSED = re.compile(r"""('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*") is not |(\S+) is not in the range """)
"""how click's words about a value begin: with a text as Python writes it, which ends with its quotes, or a number"""


def _in_our_form(error: click.ClickException) -> str:
    """click's message; about an option's value: which option, what it got, what is allowed."""
    if isinstance(error, click.NoSuchOption):
        near = f". Did you mean {' or '.join(sorted(error.possibilities))}?" if error.possibilities else ""
        return f"No such option; got {error.option_name}{near}"
    found = _REFUSED.match(error.message)
    if not isinstance(error, click.BadParameter) or error.param is None or found is None:
        return error.format_message()
    text, number = found.groups()
    if (allowed := _allowed(error.param.type, is_number=text is None)) is None:
        return error.format_message()
    name = "/".join(sorted(error.param.opts, key=len)) if isinstance(error.param, click.Option) else error.param.name
    got = " ".join(str(literal_eval(text)).split()) if text else number
    return f"{name}; got {printable(got) or text}; allowed: {allowed}"


def _allowed(kind: click.ParamType[Any], *, is_number: bool) -> str | None:
    """Values of an option of this type; None: it has words of its own. is_number: the value had the right kind."""
    if isinstance(kind, click.Choice):
        return ", ".join(map(repr, kind.choices))
    number = "a whole number" if isinstance(kind, type(click.INT)) else "a number"
    if kind in (click.INT, click.FLOAT):
        return number
    if not isinstance(kind, click.IntRange | click.FloatRange):
        return None
    above, below = "" if kind.min_open else "=", "" if kind.max_open else "="
    if kind.max is None:
        limits = f"x>{above}{kind.min}"
    else:
        limits = f"x<{below}{kind.max}" if kind.min is None else f"{kind.min}<{above}x<{below}{kind.max}"
    return limits if is_number else f"{limits}, {number}"


def _as_options(args: list[str]) -> list[str]:
    """``help``, ``help COMMAND`` and ``version``, which git, pip and others know, as the options they stand for."""
    match args:
        case ["version"]:
            return ["--version"]
        case ["help"]:
            return ["--help"]
        case ["help", command, *more] if command in COMMANDS:
            words = list(takewhile(lambda arg: not arg.startswith("-"), more))  # behind "--" it would be a prompt
            return [command, *words, "--help", *more[len(words) :]]
    return args


def _require_prompt(args: list[str]) -> None:
    """Refuse what is a command with a typing error, or a prompt without quotes. Raises SettingError."""
    words = list(takewhile(lambda arg: not arg.startswith("-"), args))
    typed = line_to_type(["edgespec", DEFAULT, " ".join(words), *args[len(words) :]])
    hint = f"to send it as a prompt: {typed or f'edgespec {DEFAULT}, with the prompt on standard input'}"
    named = words[1:] if words[:1] == ["help"] else words
    if meant := _command_meant(named):
        raise SettingError(f'no command "{named[0]}"; did you mean "{meant}"', hint=hint)
    if words[:1] == ["version"] and len(words) > 1:
        raise SettingError('the command "version" takes no words, and a prompt is one argument', hint=hint)
    if len(words) > 1 and len(words[0].split()) == 1:
        raise SettingError(f'no command "{named[0]}", and a prompt is one argument', hint=hint)


def _command_meant(words: list[str]) -> str | None:
    """The command that the first of these words is called elsewhere, or is close to. What it is called elsewhere is no
    prompt, whatever files there are. A lone word that is close to one, and the name of a file, may be a prompt."""
    if words and words[0].lower() in _ELSEWHERE:
        return _ELSEWHERE[words[0].lower()]
    if not words or len(words[0].split()) != 1 or (len(words) == 1 and os.path.lexists(words[0])):
        return None
    word = words[0].lower()
    same_start = [name for name in COMMANDS if name[0] == word[0]]  # "what" and "rain" are words of their own
    if swapped := next((name for name in same_start if sorted(name) == sorted(word)), None):
        return swapped
    return next(iter(get_close_matches(word, same_start, n=1, cutoff=_CLOSE)), None)


def _that_ran(args: list[str]) -> click.Command:
    """The command that these arguments mean: ``bench speed`` is one."""
    context = click.Context(cli)
    named = args[0] if args and args[0] in COMMANDS else DEFAULT
    command = cli.get_command(context, named)
    assert command is not None
    for word in args[1:]:
        if isinstance(command, click.Group) and (inner := command.get_command(context, word)):
            command = inner
    return command


def _fail(message: str) -> None:
    sys.stderr.write(message + "\n")
    sys.exit(2)
