"""From the tokens of each round to pieces of text, cut at stop strings."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

from edgespec.errors import SettingError, shown
from edgespec.generation import Generation
from edgespec.text.tokenizer import Detokenizer, StopStrings, Tokenizer
from edgespec.types import TokenLogprobs


def pieces(
    lists: Iterator[list[int]],
    tokenizer: Tokenizer,
    stops: StopStrings,
    result: Generation,
    *,
    end_ids: frozenset[int],
    began: float,
    cancelled: Callable[[], bool] | None,
    logprobs: deque[TokenLogprobs] | None,
) -> Generator[str, None, None]:
    """Turn lists of tokens into text, and fill ``result``. Tokens are taken one by one. So a stop string ends a
    speculative run at the same token as a plain one.

    end_ids: a text that ends with one of them has come to its own end. began: of the call, by the clock of
    ``result.stats``. logprobs: of the tokens of ``lists``, in their order.
    """
    detokenizer = Detokenizer(tokenizer)
    over = False
    kept: list[TokenLogprobs] = []
    if logprobs is not None:
        result.logprobs = kept
    for tokens in lists:
        if result.ttft_s is None:
            result.ttft_s = result.stats.clock() - began
        text = ""
        for token in tokens:
            result.token_ids.append(token)
            if logprobs is not None:
                kept.append(logprobs.popleft())
            text += stops.push(detokenizer.push(token))
            if stops.ends_at(token):
                break
        if text:
            result.text += text
            yield text
        if stops.found is not None:
            break
        if over := cancelled is not None and cancelled():
            break
    tail = stops.push(detokenizer.flush()) + stops.flush()
    result.text += tail
    result.stop_string = stops.found
    if stops.found is not None or end_ids.intersection(result.token_ids[-1:]):
        result.finish_reason = "stop"
    elif not over:
        result.finish_reason = "length"
    if tail:
        yield tail


def stop_strings(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    """The stop strings. A single string counts as one, not as its letters. Raises SettingError."""
    if stop is None or isinstance(stop, str):
        return () if stop is None else (stop,)
    if isinstance(stop, Iterable) and not isinstance(stop, bytes | bytearray):
        stops = tuple(stop)
        if all(isinstance(each, str) for each in stops):
            return stops
    raise SettingError("stop", got=shown(stop), allowed="a text, or several", setting="stop")
