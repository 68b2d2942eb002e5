"""``edgespec run``: a prompt in, text out."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from edgespec.commands import answer, given_text
from edgespec.commands.options import (
    allow_special_option,
    fetch_options,
    format_from,
    format_options,
    learning_options,
    model_options,
    sampling_from,
    sampling_options,
)
from edgespec.console import line_to_type
from edgespec.errors import EdgespecError, SettingError, printable
from edgespec.sampling_params import require_matching

if TYPE_CHECKING:
    from edgespec.generation import Generation
    from edgespec.pipeline import Pipeline

_MOST_BYTES = 64 << 20
"""bytes of a prompt from standard input. Once the model is loaded, its own context limits the prompt."""
CUT_SHORT = 3
"""exit status where a text of a format is incomplete"""


@click.command(name="run", context_settings={"ignore_unknown_options": False, "allow_extra_args": True})
@click.argument("prompt", required=False)
@model_options
@fetch_options
@learning_options
@sampling_options
@click.option("--raw", is_flag=True, help="Continue the prompt as it is, without the chat template.")
@click.option("--system", metavar="TEXT", help="System prompt.")
@allow_special_option
@click.option("--stop", multiple=True, metavar="TEXT", help="End the text before this string; may be repeated.")
@format_options
@click.option("--ignore-eos", is_flag=True, help="Go on after the model's own end, up to --max-new-tokens.")
@click.option("--explain", is_flag=True, help="Say on stderr why it was fast or slow: who drafted, what it gained.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def command(
    prompt: str | None,
    raw: bool,
    system: str | None,
    allow_special: bool,
    stop: tuple[str, ...],
    ignore_eos: bool,
    explain: bool,
    as_json: bool,
    **options: object,
) -> None:
    """Generate text from PROMPT, or from standard input (no PROMPT, or -).

    Text goes to stdout, a one-line summary to stderr. Exit status 3: a text of a format (--json-schema and others) was
    cut short, and is only the beginning of one.
    """
    if extra := click.get_current_context().args:
        what = f"unexpected extra argument ({' '.join(extra)}): a prompt is one argument"
        typed = line_to_type([" ".join([prompt or "", *extra])])
        raise SettingError(what, hint=f"put it in quotes{typed and ': '}{typed or ', or send it to standard input'}")
    response_format = format_from(options, ignore_eos=ignore_eos)
    text = _read_prompt(prompt)
    if not text.strip() and not (raw and text):  # before a model is loaded for nothing
        raise SettingError("prompt is empty", hint='give a text: edgespec "What is the capital of France?"')
    sampling, max_new_tokens, load_options = sampling_from(options)
    if load_options["schedule"] == "overlapped":
        require_matching(sampling)
    from edgespec.commands.fetching import fetch_and_load

    pipeline = fetch_and_load(load_options)
    stream = pipeline.stream(
        text,
        system=system,
        raw=raw,
        allow_special=allow_special,
        stop=stop,
        ignore_eos=ignore_eos,
        response_format=response_format,
        sampling=sampling,
        max_new_tokens=max_new_tokens,
    )
    result = answer.show(stream, as_json=as_json)
    if explain:
        from edgespec.explain import explain as in_words

        stats = result.stats
        words = [*in_words(stats, pipeline.expected_plain_s(stats)), _engine(pipeline, result, load_options["backend"])]
        click.echo("\n".join(map(printable, words)), err=True)
    if response_format is not None and result.finish_reason == "length":
        click.echo(f"error: the text is cut short, and does not fit its format. {_remedy(pipeline, result)}", err=True)
        sys.exit(CUT_SHORT)


def _remedy(pipeline: Pipeline, result: Generation) -> str:
    """What gives a text that was cut short more room."""
    if answer.limit(result) != "the context":
        return "Raise --max-new-tokens"
    capacity = pipeline.target.cache.capacity
    if capacity < pipeline.longest:
        return f"Raise --context-length, up to {pipeline.longest}"
    return f"No longer context than {capacity} tokens is possible here; shorten the prompt, or ask for less"


def _engine(pipeline: Pipeline, result: Generation, asked: str | None) -> str:
    """Which engine ran, and why."""
    from edgespec.hub.resolve import path_here
    from edgespec.machine.engine_choice import why

    bundle = pipeline.bundle
    graph = None
    with suppress(EdgespecError):  # its files were changed since they were loaded
        graph = path_here(bundle, bundle.manifest.target)
    reason = why(graph, result.numerics, asked)
    known = reason.startswith(result.backend)
    return f"Engine: {reason if known else f'{result.backend}, not compared with another for this model and device'}."


def _read_prompt(prompt: str | None) -> str:
    if prompt is not None and prompt != "-":
        try:
            prompt.encode("utf-8")
        except UnicodeEncodeError as error:
            raise SettingError("prompt is not valid UTF-8", hint="save or pass it as UTF-8") from error
        return prompt
    if prompt is None and sys.stdin.isatty():
        raise SettingError("no prompt", hint='try: edgespec "What is the capital of France?", or edgespec chat')
    return given_text.read("-", _MOST_BYTES)
