"""How llama.cpp's server writes an answer, whole and in parts, and an error."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from edgespec.generation import Generation
from edgespec.pipeline import Pipeline
from edgespec.sampling_params import SamplingParams
from edgespec.server import figures
from edgespec.server.fields import Common
from edgespec.server.logprobs import LogprobScanner, entries
from edgespec.server.refusals import Refusal, TooLong
from edgespec.server.schema import Chunk
from edgespec.server.service import Answer
from edgespec.server.several import Count


class GenerationRequest(Common, kw_only=True):
    """Of a text, as llama.cpp's clients ask for it."""

    n_cmpl: Count = None
    response_fields: list[str] | None = None
    return_tokens: bool = False
    t_max_predict_ms: float | None = None
    n_indent: int = 0
    json_schema: dict[str, Any] | None = None

    @property
    def limit_s(self) -> float | None:
        """Behind the first line, as llama.cpp means it."""
        given = self.t_max_predict_ms
        return given / 1e3 if given is not None and given > 0 else None

    @property
    def response_format(self) -> dict[str, Any] | None:
        return {"type": "json_schema", "json_schema": {"schema": self.json_schema}} if self.json_schema else None


_TYPES = {404: "not_found_error", 501: "not_supported_error"}
"""of llama.cpp, where OpenAI has no type of its own"""


def shape_error(why: Refusal) -> dict[str, Any]:
    error: dict[str, Any] = {"code": why.status, "message": why.message, "type": _TYPES.get(why.status, why.kind)}
    if isinstance(why, TooLong):  # clients cut their prompt by these numbers
        error["type"] = "exceed_context_size_error"
        if why.tokens is not None:
            error |= {"n_prompt_tokens": why.tokens, "n_ctx": why.capacity}
    return {"error": error}


class Parts:
    """The parts of one answer's stream. index: of the answer, among those to one request."""

    def __init__(self, index: int, answer: Answer, asked: GenerationRequest) -> None:
        self._index, self._answer, self._asked = index, answer, asked
        self._scores = LogprobScanner.of(answer)
        self._written = 0

    def of(self, chunk: Chunk) -> Iterator[dict[str, Any]]:
        self._written += sum(each.committed for each in chunk.rounds)
        scored = self._scores.push(chunk.logprobs, chunk.text) if self._scores else ()
        if chunk.text or (self._asked.return_progress and chunk.read):
            part = self._part(chunk)
            yield part | {"completion_probabilities": entries(scored)} if scored else part
        if chunk.result is not None:
            last = whole(self._index, self._answer, self._asked, chunk.result)
            yield last | {"content": "", "tokens": []}

    def _part(self, chunk: Chunk) -> dict[str, Any]:
        asked = self._asked
        part: dict[str, Any] = {
            "index": self._index,
            "content": chunk.text,
            "tokens": [],
            "stop": False,
            "id_slot": -1 if asked.id_slot is None else asked.id_slot,
            "tokens_predicted": self._written,
            "tokens_evaluated": len(self._answer.prepared.tokens),
        }
        if asked.return_progress and chunk.read:
            part["prompt_progress"] = {"processed": chunk.read[0], "total": chunk.read[1]}
        if asked.edgespec_rounds and chunk.rounds:
            part["edgespec"] = {"rounds": figures.rounds(chunk.rounds)}
        return part


def whole(index: int, answer: Answer, asked: GenerationRequest, result: Generation) -> dict[str, Any]:
    stats = result.stats
    stop_type, word = _stop(answer, result)
    found: dict[str, Any] = {
        "index": index,
        "content": result.text,
        "tokens": result.token_ids if asked.return_tokens else [],
        "id_slot": 0 if asked.id_slot is None else asked.id_slot,
        "stop": True,
        "model": answer.model,
        "tokens_predicted": len(result.token_ids),
        "tokens_evaluated": stats.prompt_tokens,
        "generation_settings": settings(asked, answer.request.sampling, answer.pipeline, result),
        "prompt": "",
        "has_new_line": "\n" in result.text,
        "truncated": False,
        "stop_type": stop_type,
        "stopping_word": word,
        "tokens_cached": stats.prompt_tokens + max(len(result.token_ids) - 1, 0),
        "timings": figures.timings(result),
    }
    if asked.edgespec_rounds:
        found["edgespec"] = {"rounds": figures.rounds(stats.rounds)}
    if scores := LogprobScanner.of(answer):
        found["completion_probabilities"] = entries(scores.whole(result))
    return found


def _stop(answer: Answer, result: Generation) -> tuple[str, str]:
    """llama.cpp's name of why the text ended, and the stop string."""
    if result.finish_reason != "stop":
        return "limit", ""
    found, hole = result.stop_string, answer.prepared.hole
    if found is None or (hole is not None and found in (*hole.stops, hole.rules.next_line)):
        return "eos", ""
    if found in answer.request.stop:
        return "word", found
    limits = hole is None or hole.rules.indent or hole.rules.seconds is not None  # that the client set
    return ("limit" if limits else "eos"), ""


def settings(asked: Common, sampling: SamplingParams, pipeline: Pipeline, result: Generation | None) -> dict[str, Any]:
    """What applied, by llama.cpp's names."""
    length = -1 if asked.length is None else asked.length
    return {
        "n_predict": length,
        "max_tokens": length,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "repeat_penalty": sampling.repetition_penalty,
        "seed": result.seed if result is not None and result.seed is not None else sampling.seed,
        "stop": list(asked.stops),
        "ignore_eos": bool(asked.ignore_eos),
        "stream": bool(asked.stream),
        "samplers": ["penalties", "top_k", "top_p", "min_p", "temperature"],
        "speculative.types": pipeline.drafter_names,
    }


def only(whole: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    """The fields a client asked for. A path like ``timings/prompt_n`` stays the name of the value.

    >>> only({"content": "x", "timings": {"prompt_n": 3}}, ["content", "timings/prompt_n", ""])
    {'content': 'x', 'timings/prompt_n': 3}
    """
    found = {}
    for name in names:
        value: Any = whole
        for part in name.split("/"):
            if not (isinstance(value, Mapping) and part in value):
                break
            value = value[part]
        else:
            found[name] = value
    return found
