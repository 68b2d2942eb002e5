"""The fields of requests that formats share, under all their names, and two lists of others: refused, and ignored.

A field that would change the answer and that this server does not know is refused, unless its value changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, TypeVar, cast

import msgspec
from starlette.requests import Request as HTTPRequest

from edgespec.sampling_params import SamplingParams
from edgespec.server import wire
from edgespec.server.refusals import BadRequest
from edgespec.server.schema import Kind, Prompt, Request

REFUSED: dict[str, tuple[Any, ...]] = {
    "adapter": (None, ""),
    "audio": (None,),
    "background": (None, False),
    "best_of": (None, 1),
    "context": (None, []),
    "conversation": (None,),
    "dry_multiplier": (None, 0),
    "dynatemp_range": (None, 0),
    "echo": (None, False),
    "frequency_penalty": (None, 0),
    "function_call": (None, "none", "auto"),
    "functions": (None, []),
    "grammar": (None, ""),
    "images": (None, []),
    "logprobs": (None, False),
    "include": (None, [], ["reasoning.encrypted_content"]),
    "lora": (None, []),
    "min_keep": (None, 0),
    "min_tokens": (None, 0),
    "mirostat": (None, 0),
    "modalities": (None, ["text"]),
    "n_cmpl": (None, 1),
    "n_probs": (None, 0),
    "post_sampling_probs": (None, False),
    "prediction": (None,),
    "presence_penalty": (None, 0),
    "template": (None, ""),
    "tfs_z": (None, 1),
    "top_logprobs": (None, 0),
    "typical_p": (None, 1),
    "web_search_options": (None,),
    "xtc_probability": (None, 0),
}
"""name -> values that change nothing. Any other value is refused."""

IGNORED = {
    "add_generation_prompt",
    "backend_sampling",
    "cache_prompt",
    "dry_allowed_length",
    "dry_base",
    "dry_penalty_last_n",
    "dry_sequence_breakers",
    "dynatemp_exponent",
    "main_gpu",
    "metadata",
    "mirostat_eta",
    "mirostat_tau",
    "n_discard",
    "n_keep",
    "num_batch",
    "num_ctx",
    "num_gpu",
    "num_keep",
    "num_thread",
    "numa",
    "parallel_tool_calls",
    "penalize_nl",
    "prompt_cache_key",
    "reasoning",
    "reasoning_effort",
    "reasoning_format",
    "repeat_last_n",
    "safety_identifier",
    "samplers",
    "service_tier",
    "store",
    "t_max_prompt_ms",
    "timings_per_token",
    "truncation",
    "use_mlock",
    "use_mmap",
    "user",
    "verbosity",
    "xtc_threshold",
}
"""names that change how an answer is computed or kept elsewhere, and not what it may be here"""

LENGTHS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict", "num_predict", "max_new_tokens")
PROMPTS = ("input", "messages", "input_prefix", "prompt")
"""what routes call a prompt"""


_MOST_STOPS = 64
_WHOLE = re.compile(r"[0-9]{1,18}")
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ms|s|m|h)")
_DURATION = re.compile(rf"-?(?:{_PART.pattern})+")
_DURATION_OR_SECONDS = rf"^(-?({_PART.pattern})+|-?\d{{1,8}}(\.\d+)?)$"
_UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def described(**schema: Any) -> msgspec.Meta:
    """What the OpenAPI document says of a field beside its type. The server refuses with words of its own."""
    return msgspec.Meta(extra_json_schema=schema)


_Penalty = Annotated[float, msgspec.Meta(ge=1e-3, le=1e3)] | None


class Common(msgspec.Struct, kw_only=True):
    """Of every request for a text, on every route. ``options``: the same fields again, where Ollama puts them."""

    model: str | None = None
    stream: bool | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    max_output_tokens: int | None = None
    n_predict: int | None = None
    num_predict: int | None = None
    max_new_tokens: int | None = None
    stop: Annotated[str | list[str] | None, described(maxItems=_MOST_STOPS)] = None
    temperature: Annotated[float | None, described(minimum=0)] = None
    top_k: int | None = None
    top_p: Annotated[float | None, described(exclusiveMinimum=0, maximum=1)] = None
    min_p: Annotated[float | None, described(minimum=0, maximum=1)] = None
    seed: Annotated[int | None, described(maximum=2**64 - 1)] = None
    repeat_penalty: _Penalty = None
    repetition_penalty: _Penalty = None
    logit_bias: Annotated[dict[str, float] | None, described(propertyNames={"pattern": r"^\d+$"})] = None
    ignore_eos: bool | None = None
    keep_alive: Annotated[str | float | None, described(pattern=_DURATION_OR_SECONDS)] = None
    id_slot: int | None = None
    options: dict[str, Any] | None = None
    num_draft_tokens: Annotated[int, msgspec.Meta(ge=0)] | None = None
    verification: Annotated[str | None, described(enum=["coupled", "rejection", None])] = None
    edgespec_rounds: bool = False
    return_progress: bool = False

    def request(
        self,
        http: HTTPRequest,
        prompt: Prompt,
        kind: Kind,
        response_format: Mapping[str, Any] | None,
        *,
        place: str | None = None,
    ) -> Request:
        """What is asked of the engine. place: a client that names no slot has its newer completion for this place end
        the older one. Nothing ends a chat: llama.vim sends slot 0 for its first chat, too."""
        named = self.id_slot is not None and self.id_slot >= 0
        where = f"slot {self.id_slot}" if named else place
        return Request(
            prompt=prompt,
            kind=kind,
            model=self.model,
            client=wire.client_of(http),
            key=f"{wire.client_of(http)}\n{where}" if where is not None and kind == "completion" else None,
            sampling=self.sampling,
            max_new_tokens=self.length,
            is_unlimited=self.is_unlimited,
            stop=self.stops,
            ignore_eos=bool(self.ignore_eos),
            response_format=response_format,
            num_draft_tokens=self.num_draft_tokens,
            keep_alive_s=self.keep_alive_s,
            logprobs=self.alternatives,
            shows_progress=self.return_progress,
            prompt_field=next(name for name in PROMPTS if hasattr(self, name)),
        )

    @property
    def alternatives(self) -> int | None:
        """How many alternatives of each token the answer shows, beside its log probability; None: neither."""
        return None

    @property
    def length(self) -> int | None:
        """Most tokens of the answer. None: not limited by the request. Raises BadRequest for two that differ."""
        given = {name: value for name in LENGTHS if (value := getattr(self, name)) is not None}
        if len(set(given.values())) > 1:
            raise BadRequest(f"{' and '.join(given)} differ; give one of them", param=next(iter(given)))
        value = next(iter(given.values()), None)
        return None if value is None or value < 0 else value

    @property
    def is_unlimited(self) -> bool:
        """Whether the request asks for a text as long as the context has room for, as llama.cpp and Ollama spell it."""
        return any((getattr(self, name) or 0) < 0 for name in LENGTHS)

    @property
    def stops(self) -> tuple[str, ...]:
        """An empty text is none of them: clients send one where they have none. The library and the command line refuse
        it, since there a person wrote it."""
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        if len(stops) > _MOST_STOPS:
            raise BadRequest(f"stop: {len(stops)} texts; allowed: {_MOST_STOPS}", param="stop")
        return tuple(stop for stop in stops if stop)

    @property
    def sampling(self) -> SamplingParams:
        """Greedy where the request names no temperature. Raises SettingError."""
        bias: dict[int, float] = {}
        for name, value in (self.logit_bias or {}).items():
            if (token := whole_number(name)) is None:
                raise BadRequest(f"logit_bias: {name!r:.40} is not the id of a token", param="logit_bias")
            bias[token] = value
        penalty = self.repetition_penalty if self.repetition_penalty is not None else self.repeat_penalty
        return SamplingParams(
            temperature=self.temperature or 0.0,
            top_k=max(self.top_k or 0, 0),
            top_p=1.0 if self.top_p is None else self.top_p,
            min_p=self.min_p or 0.0,
            repetition_penalty=1.0 if penalty is None else penalty,
            logit_bias=bias,
            verification=cast(Any, self.verification or "coupled"),
            seed=None if self.seed is None or self.seed < 0 else self.seed,
        )

    @property
    def keep_alive_s(self) -> float | None:
        return None if self.keep_alive is None else seconds(self.keep_alive)


S = TypeVar("S", bound=msgspec.Struct)


def whole_number(text: str) -> int | None:
    """Of digits alone. None is also said of one with more than 18 of them: nothing is counted so far, and Python itself
    fails at thousands."""
    return int(text) if _WHOLE.fullmatch(text) else None


def seconds(value: str | float) -> float:
    """A duration as Ollama spells it. Below 0 is for good.

    >>> seconds("5m"), seconds(-1), seconds("90"), seconds("1h30m"), seconds("-1m")
    (300.0, -1.0, 90.0, 5400.0, -60.0)
    """
    try:
        if isinstance(value, str) and _DURATION.fullmatch(value):
            number = sum(float(count) * _UNITS[unit] for count, unit in _PART.findall(value))
            number = -number if value.startswith("-") else number
        else:
            number = float(value)
        if not -1e9 < number < 1e9:
            raise ValueError
    except ValueError as error:
        raise BadRequest(
            f"keep_alive: got {value!r:.40}; allowed: seconds, or a text like 5m", param="keep_alive"
        ) from error
    return number


def read(body: bytes, kind: type[S], *, empty: bool = False) -> S:
    """The fields of a body. Raises BadRequest. empty: a body that is empty stands for an empty object."""
    try:
        fields = msgspec.json.decode(body) if body or not empty else {}
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise BadRequest("the body is not a JSON object")
    known = _names(kind)
    fields = _with_options(fields, known)
    for name, value in fields.items():
        if name in REFUSED and name not in known and not _is_harmless(value, REFUSED[name]):
            raise BadRequest(f"{name} is not supported; leave it out", param=name)
    try:
        return msgspec.convert(fields, kind)
    except (msgspec.ValidationError, RecursionError) as error:
        where = str(error).rpartition("`$.")[2].rstrip("`") if "`$." in str(error) else None
        raise BadRequest(str(error).replace("`", ""), param=where) from error


@cache
def _names(kind: type[msgspec.Struct]) -> frozenset[str]:
    """In JSON. To ask for them takes 0.8 ms, as all types of a kind are evaluated again."""
    return frozenset(field.encode_name for field in msgspec.structs.fields(kind))


def _with_options(fields: dict[str, Any], known: frozenset[str]) -> dict[str, Any]:
    """Fields within ``options`` count like those beside it, which go before."""
    options = fields.get("options")
    if not isinstance(options, Mapping) or "options" not in known:
        return fields
    inner = {name: value for name, value in options.items() if fields.get(name) is None and name != "options"}
    return {**fields, **inner}


def _is_harmless(value: Any, harmless: tuple[Any, ...]) -> bool:
    return any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in harmless)
