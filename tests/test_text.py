"""Streaming text, stop strings, chat templates."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgespec.errors import BundleError, SettingError, foreign
from edgespec.pipeline import Pipeline
from edgespec.text.chat_template import ChatTemplate
from edgespec.text.tokenizer import Detokenizer, StopStrings, Tokenizer

TEXTS = [
    "Plain text, with  two spaces\n\tand a tab.",
    "Grüße aus Köln: 1 234,50 € - naïve café",
    "日本語のテキストと中文混合。",
    "emoji: 👩‍👩‍👧‍👦 🏳️‍🌈 🤷🏽‍♀️ end",
    "def f(x):\n    return x ** 2  # comment\n\n\nprint(f(3))",
    "\u0000\u200b control and zero width",
]


@pytest.mark.parametrize("text", TEXTS)
def test_streamed_pieces_are_whole_characters_and_add_up(pipeline: Pipeline, text: str) -> None:
    ids = pipeline.tokenizer.encode(text)
    stream = Detokenizer(pipeline.tokenizer)
    pieces = [stream.push(token) for token in ids]
    assert all("\ufffd" not in piece for piece in pieces)
    assert "".join(pieces) + stream.flush() == pipeline.tokenizer.decode(ids) == text


def test_an_unfinished_character_comes_out_at_the_end(pipeline: Pipeline) -> None:
    ids = pipeline.tokenizer.encode("ok 👩")
    stream = Detokenizer(pipeline.tokenizer)
    said = "".join(stream.push(token) for token in ids[:-1])
    assert said == "ok" or said == "ok "
    assert "\ufffd" in stream.flush()
    assert stream.flush() == ""


@given(ids=st.lists(st.integers(0, 49151), max_size=40))
def test_any_tokens_at_all_can_be_streamed(pipeline: Pipeline, ids: list[int]) -> None:
    stream = Detokenizer(pipeline.tokenizer)
    text = "".join(stream.push(token) for token in ids) + stream.flush()
    whole = pipeline.tokenizer.decode(ids)
    assert text.replace("\ufffd", "") == whole.replace("\ufffd", "")


@given(
    text=st.text("abEND ", max_size=40),
    stops=st.lists(st.text("abEND ", min_size=1, max_size=5), max_size=3),
    cuts=st.lists(st.integers(0, 40)),
)
def test_stop_strings_equal_a_search_in_the_whole_text(text: str, stops: list[str], cuts: list[int]) -> None:
    edges = [0, *sorted(min(c, len(text)) for c in cuts), len(text)]
    scan = StopStrings(stops)
    shown = ""
    for begin, end in itertools.pairwise(edges):
        shown += scan.push(text[begin:end])
        assert text.startswith(shown)  # nothing of a stop string is ever shown
    shown += scan.flush()
    ends = [text.find(s) + len(s) for s in stops if s in text]
    if not ends:
        assert shown == text and scan.found is None
    else:
        assert scan.found in stops and shown + str(scan.found) in text
        assert not any(s in shown for s in stops)


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(SettingError, match="stop string is empty"):
        StopStrings(["a", ""])


def test_stop_strings_cut_text_and_tokens_where_plain_decoding_would(pipeline: Pipeline) -> None:
    options = {"max_new_tokens": 60, "stop": ["Paris", "never"]}
    plain = pipeline.generate("What is the capital of France?", num_draft_tokens=0, **options)
    drafted = pipeline.generate("What is the capital of France?", num_draft_tokens=8, **options)
    assert plain.text == drafted.text == "The capital of France is "
    assert plain.token_ids == drafted.token_ids
    assert plain.finish_reason == "stop" and plain.stop_string == "Paris"


def test_default_template_renders_as_published(pipeline: Pipeline) -> None:
    assert pipeline.template is not None
    text = pipeline.template.render([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}])
    assert text == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    ids = pipeline.tokenizer.encode(text)
    assert ids[0] == 1 and ids.count(2) == 2  # special tokens are tokens, not text


def test_templates_run_in_a_sandbox() -> None:
    message = [{"role": "user", "content": "x"}]
    for evil in (
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__ }}",
    ):
        with pytest.raises(SettingError):
            ChatTemplate(evil).render(message)


def test_templates_may_refuse_and_use_the_usual_helpers() -> None:
    with pytest.raises(SettingError, match="no system role"):
        ChatTemplate("{{ raise_exception('no system role') }}").render([])
    template = ChatTemplate(
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'tool' %}{% continue %}{% endif %}"
        "{{ m.content | tojson }}{% endfor %}{{ strftime_now('%Y')[:2] }}{{ flag }}",
        bos_token="<s>",
    )
    rendered = template.render([{"role": "tool", "content": "-"}, {"role": "user", "content": "é<"}], flag=1)
    assert rendered == '<s>"é<"201'
    with pytest.raises(BundleError, match="does not compile"):
        ChatTemplate("{% for %}")


def test_a_broken_tokenizer_file_is_a_bundle_error(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text("{}")
    with pytest.raises(BundleError, match="is not a tokenizer"):
        Tokenizer(path)


def test_a_strangers_file_raises_our_errors_only() -> None:
    class PanicException(BaseException):  # as pyo3 names it
        pass

    for error in (ValueError("a"), RecursionError(), MemoryError(), PanicException("b"), KeyError("c")):
        with pytest.raises(BundleError, match="cannot read it") as caught, foreign(BundleError, "cannot read it"):
            raise error
        assert caught.value.__cause__ is error
    for leave in (KeyboardInterrupt, SystemExit, GeneratorExit):
        with pytest.raises(leave), foreign(BundleError, "cannot read it"):
            raise leave


def test_an_error_shows_no_raw_control_characters() -> None:
    error = BundleError("name\x1b]0;title\x07", got="\x9b2J", hint="see \u202e")
    assert str(error).isprintable()
    assert "\\x1b]0;title\\x07" in str(error)
