"""``edgespec infill``: write the text at a place in a file, as an editor asks at its cursor."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import click

from edgespec.commands import answer, given_text
from edgespec.commands.options import fetch_options, hole_options, learning_options, model_options, sampling_from
from edgespec.errors import SettingError

_PLACE = re.compile(r"(?P<file>.+):(?P<line>\d+):(?P<column>\d+)", re.DOTALL)
_MOST_BYTES = 64 << 20
"""bytes of a file. Only what is near the hole is read by the model."""
_FORM = "FILE:LINE:COL, both numbers from 1, or -:LINE:COL"


@dataclass(frozen=True)
class Place:
    """Where to write: before the character ``column`` of ``line``, both from 1. file: "-" is standard input."""

    file: str
    line: int
    column: int

    @classmethod
    def of(cls, text: str) -> Place:
        """Read from the right, since a path may hold colons.

        >>> Place.of("C:\\\\code\\\\a.py:12:1")
        Place(file='C:\\\\code\\\\a.py', line=12, column=1)
        """
        found = _PLACE.fullmatch(text)
        if found is None:
            raise SettingError("a place in a file", got=text, allowed=_FORM)
        line, column = (int(found[name][:9]) for name in ("line", "column"))
        if not (line and column):
            raise SettingError("a place in a file", got=text, allowed=_FORM)
        return cls(found["file"], line, column)

    def split(self, text: str) -> tuple[str, str]:
        """The text before this place, and behind it. Raises SettingError if the text has no such place."""
        lines = text.split("\n")
        if self.line > len(lines):
            raise SettingError(f"{self.file} has no line {self.line}", allowed=f"1 to {len(lines)}")
        line = lines[self.line - 1].removesuffix("\r")
        if self.column > len(line) + 1:
            raise SettingError(
                f"line {self.line} of {self.file} has no column {self.column}", allowed=f"1 to {len(line) + 1}"
            )
        at = sum(len(before) + 1 for before in lines[: self.line - 1]) + self.column - 1
        return text[:at], text[at:]


class _Command(click.Command):
    """Takes ``-:LINE:COL`` for the place that it is, and not for an option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        places = [arg for arg in args if arg.startswith("-:")]
        if not places:
            return super().parse_args(ctx, args)
        return super().parse_args(ctx, [*(arg for arg in args if arg not in (*places, "--")), "--", *places])


@click.command(name="infill", cls=_Command, context_settings={"ignore_unknown_options": False})
@click.argument("place", metavar="FILE:LINE:COL")
@click.option("--files", multiple=True, metavar="FILE", help="Another file to know; may be repeated, nearest last.")
@click.option("--path", metavar="PATH", help="The file's path as the model is told it; default: FILE.")
@click.option("--stop", multiple=True, metavar="TEXT", help="End the text before this string; may be repeated.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
@model_options
@fetch_options
@learning_options
@hole_options
def command(
    place: str, files: tuple[str, ...], path: str | None, stop: tuple[str, ...], as_json: bool, **options: object
) -> None:
    """Write the text that is missing at a place in a file: before character COL of line LINE, both counted from 1.

    The model reads what is before and behind it. -:LINE:COL takes the file from standard input. Only the new text goes
    to stdout, a one-line summary to stderr. Models without tokens for it only read what is before the place; their text
    ends where it meets what is behind.

    \b
    edgespec infill --model qwen2.5-coder-0.5b src/app.py:12:5
    edgespec infill -:3:1 --path app.py --files util.py < app.py
    """
    where = Place.of(place)
    prefix, suffix = where.split(given_text.read(where.file, _MOST_BYTES))
    others = {name: given_text.read(name, _MOST_BYTES, "files") for name in files}
    sampling, max_new_tokens, load_options = sampling_from(options)
    length = {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}

    from edgespec.commands.fetching import fetch_and_load

    stream = fetch_and_load(load_options).stream_infill(
        prefix,
        suffix,
        files=others,
        path=path or (None if where.file == "-" else Path(where.file).as_posix()),
        stop=stop,
        sampling=sampling,
        **length,
    )
    answer.show(stream, as_json=as_json)
