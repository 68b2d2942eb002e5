"""What a caller gives: stop strings, prompts that are too long, schemas that are too long, byte order marks."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from edgespec.backends.fake import FakeModel, random_table
from edgespec.commands.options import format_from
from edgespec.commands.run import _read_prompt
from edgespec.drafters.none import NoDrafter
from edgespec.errors import BundleError, ContextFull, SettingError
from edgespec.pipeline import Pipeline
from edgespec.sampling_params import SamplingParams
from edgespec.text.response_format import grammar_of
from edgespec.text.tokenizer import StopStrings, Tokenizer
from tests.fake_server import fake_pipeline
from tests.foreign_files import READERS


@pytest.fixture(scope="module")
def faked(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """On a fake model: which tokens it writes is no matter here."""
    return fake_pipeline(tmp_path_factory.mktemp("pipeline"))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_bytes(READERS["tokenizer"].sound()["tokenizer.json"])
    return Tokenizer(path)


def test_one_string_is_one_stop(faked: Pipeline) -> None:
    text = faked.generate("List three animals.", max_new_tokens=40).text
    word = text[10:14]
    assert text.index(word) == 10
    for stop in (word, [word], (word, "END")):
        result = faked.generate("List three animals.", max_new_tokens=40, stop=stop)
        assert result.stop_string == word and result.text == text[: text.index(word)]
    nothing: tuple[Sequence[str] | None, ...] = (None, (), [])
    for none in nothing:
        assert faked.generate("List three animals.", max_new_tokens=40, stop=none).text == text


@pytest.mark.parametrize("stop", [b"END", [b"END"], ["a", 3], ""])
def test_what_is_no_stop_string_is_refused(faked: Pipeline, stop: Any) -> None:
    with pytest.raises(SettingError, match="stop"):
        faked.generate("Hi", max_new_tokens=2, stop=stop)


def test_a_prompt_of_bytes_is_refused(faked: Pipeline) -> None:
    with pytest.raises(SettingError, match="prompt; got bytes"):
        faked.generate(b"Hello", max_new_tokens=2)
    with pytest.raises(SettingError, match="prompt; got NoneType"):
        faked.generate(None, max_new_tokens=2)  # type: ignore[arg-type]
    for wrong in ({"max_new_tokens": "5"}, {"max_new_tokens": 2.0}, {"max_new_tokens": 2, "num_draft_tokens": "4"}):
        with pytest.raises(SettingError, match="got .*; allowed: "):
            faked.generate("Hello", **wrong)


def test_a_control_token_as_a_stop_string_ends_the_text_at_that_token(faked: Pipeline) -> None:
    """With drafts and without, although the token has no text."""
    ids = faked.tokenizer.encode("<|user|>Say hi.<|assistant|>")
    likely = SamplingParams(logit_bias=dict.fromkeys((0, 2, 3), 4.0))
    options: dict[str, Any] = {"max_new_tokens": 60, "ignore_eos": True, "sampling": likely}
    written = faked.generate(ids, **options).token_ids
    spelt = {faked.tokenizer.engine.token_to_id(text): text for text in faked.tokenizer.control_texts}
    place, token = next((place, token) for place, token in enumerate(written) if token in spelt)
    for stop in (spelt[token], f"\n{spelt[token]}", ["no such text", spelt[token]]):
        for how in ({}, {"drafter": NoDrafter(), "num_draft_tokens": 0}):
            result = faked.generate(ids, stop=stop, **options, **how)
            assert result.token_ids == written[: place + 1]
            assert result.finish_reason == "stop" and spelt[token] in (result.stop_string or "")
            assert spelt[token] not in result.text


def test_text_held_back_for_a_stop_string_is_shown_where_a_token_ends_the_text() -> None:
    stops = StopStrings(["END", "<|im_end|>"], {2: "<|im_end|>"})
    assert stops.push("the E") == "the " and not stops.ends_at(1) and stops.ends_at(2)
    assert stops.found == "<|im_end|>" and stops.flush() == "E"


def test_a_text_is_refused_by_its_length_before_it_is_read(tokenizer: Tokenizer) -> None:
    class Untouched:
        def __getattr__(self, name: str) -> Any:
            raise AssertionError(f"{name} was asked for")

    longest = max(len(token.encode()) for token in tokenizer.engine.get_vocab())
    assert tokenizer._longest_bytes == longest
    tokenizer.require_fit("a" * 100 * longest, 100)
    tokenizer.engine, engine = Untouched(), tokenizer.engine
    try:
        with pytest.raises(ContextFull, match="prompt is longer than the context") as error:
            tokenizer.require_fit("é" * (50 * longest + 1), 100)
        assert error.value.tokens == 101, "more than fit, or a client would cut nothing"
    finally:
        tokenizer.engine = engine


def test_a_long_text_is_counted_before_it_is_read_whole(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    text, read = "The lighthouse. " * 100_000, []
    monkeypatch.setattr(tokenizer, "_ids", lambda engine, text: read.append(len(text)) or [0] * (len(text) // 4))
    capacity = len(text) // 10
    with pytest.raises(ContextFull, match="over .* tokens; allowed: 160000 tokens"):
        tokenizer.require_fit(text, capacity)
    assert max(read) <= 1 << 16 and sum(read) < len(text)
    tokenizer.require_fit(text, len(text) // 4)


@pytest.mark.parametrize("prompt", [["Hello"], [1.5], [None]])
def test_a_prompt_of_no_token_ids_is_refused(faked: Pipeline, prompt: Any) -> None:
    with pytest.raises(SettingError, match="prompt; got .*; allowed: a text, or token ids"):
        faked.generate(prompt, max_new_tokens=2)


def test_a_system_prompt_beside_token_ids_is_refused(faked: Pipeline) -> None:
    with pytest.raises(SettingError, match="a system prompt needs a prompt that is a text; got token ids"):
        faked.generate([5, 6], system="Be brief.", max_new_tokens=2)


def test_what_is_read_ahead_is_shown_to_the_drafters(faked: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """A head would know nothing of these rows, and draft nothing at first."""
    seen: list[int] = []
    drafter = NoDrafter()
    drafter.observe = lambda start, tokens, hidden: seen.extend(tokens)  # type: ignore[method-assign]
    monkeypatch.setattr(faked, "drafter", drafter)
    table = random_table(faked.target.vocab_size, 1)
    monkeypatch.setattr(faked, "target", FakeModel(table, faked.target.vocab_size, layers=(1,)))
    faked.read([5, 6, 7, 8])
    assert seen == [5, 6, 7]


@pytest.mark.parametrize("raw", [True, False])
def test_a_prompt_longer_than_the_context_is_an_error(faked: Pipeline, raw: bool) -> None:
    with pytest.raises(ContextFull):
        faked.generate("word " * 1_000_000, raw=raw)


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize(
    ("words", "longest", "advised"), [(700, 0, False), (700, 4096, True), (1_000_000, 4096, False)]
)
def test_a_larger_context_is_advised_only_where_one_can_be_had_and_is_enough(
    faked: Pipeline, words: int, longest: int, advised: bool, raw: bool
) -> None:
    pipeline = Pipeline(faked.bundle, faked.target, NoDrafter(), longest=longest)
    with pytest.raises(ContextFull) as error:
        pipeline.generate("word " * words, raw=raw)
    assert ("context_length of up to 4096" in str(error.value)) is advised
    assert "Shorten the prompt" in str(error.value)


def test_formats_have_a_longest(tmp_path: Path) -> None:
    for kind, value in (("regex", "a" * 20_000), ("grammar", "start: /a/\n" + "#" * (1 << 20))):
        with pytest.raises(SettingError, match=kind):
            grammar_of({"type": kind, kind: value})
    with pytest.raises(SettingError, match="json_schema"):
        grammar_of({"type": "json_schema", "json_schema": {"schema": {"title": "x" * (1 << 20)}}})
    endless = tmp_path / "schema.json"
    endless.write_bytes(b" " * ((1 << 20) + 1))
    with pytest.raises(SettingError, match="too long"):
        format_from({"json_schema": str(endless), "regex": None, "grammar": None})


def _stdin(monkeypatch: pytest.MonkeyPatch, data: io.RawIOBase | io.BytesIO) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(data))  # type: ignore[type-var]


def test_a_byte_order_mark_is_no_part_of_a_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    _stdin(monkeypatch, io.BytesIO(b"\xef\xbb\xbfHello"))
    assert _read_prompt("-") == "Hello"


def test_standard_input_without_end_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Yes(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            buffer[:] = b"y" * len(buffer)
            return len(buffer)

    _stdin(monkeypatch, io.BufferedReader(Yes()))  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="standard input is too long"):
        _read_prompt("-")


def test_a_panic_of_the_tokenizer_is_an_error_of_ours(tokenizer: Tokenizer) -> None:
    class PanicException(BaseException):
        pass

    class Panics:
        def encode(self, *_: Any, **__: Any) -> Any:
            raise PanicException("index out of range")

    with pytest.raises(BundleError, match="cannot read the prompt"):
        tokenizer._ids(Panics(), "a")
