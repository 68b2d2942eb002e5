"""What a caller gives to a pipeline: what is of another kind is told at once, and what is meant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

import edgespec
from edgespec.decode.policy import FixedLength, Plain
from edgespec.drafters.ngram import NGram
from edgespec.drafters.none import NoDrafter
from edgespec.errors import EdgespecError, SettingError
from edgespec.pipeline import Pipeline
from edgespec.protocols import Drafter
from edgespec.types import Allowed, Draft

SCHEMA = {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}}


class Nameless(Drafter):
    def propose(self, context: Sequence[int], k: int, allowed: Allowed | None = None) -> Draft:
        return Draft()


class Narrow(NoDrafter):
    name = "narrow"

    def propose(self, context: Sequence[int], k: int) -> Draft:  # type: ignore[override]
        return Draft()


class NoCommit(Plain):
    commit = None  # type: ignore[assignment]


class Says(NoDrafter):
    """Proposes whatever it was given."""

    name = "says"

    def __init__(self, said: Any) -> None:
        self.said = said

    def propose(self, context: Sequence[int], k: int, allowed: Allowed | None = None) -> Draft:
        return self.said if k else Draft()


class SaysItself(Plain):
    """A policy that does so."""

    name, longest = "itself", 4

    def draft(self, context: Sequence[int], limit: int, forced: int = 0, allowed: Allowed | None = None) -> Draft:
        return [5]  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"sampling": {"temperature": 0.5}}, r"sampling; got {.*}; allowed: SamplingParams.*edgespec\.SamplingParams"),
        ({"sampling": 0.5}, r"sampling; got 0\.5; allowed: SamplingParams"),
        ({"stop": 5}, "stop; got 5; allowed: a text, or several"),
        ({"max_new_tokens": "8"}, "max_new_tokens; got '8'; allowed: 1 or more, a whole number"),
        ({"max_new_tokens": 8.0}, r"max_new_tokens; got 8\.0; allowed: 1 or more, a whole number"),
        ({"max_new_tokens": 0}, "max_new_tokens; got 0; allowed: 1 or more$"),
        ({"num_draft_tokens": "3"}, "number of draft tokens; got '3'; allowed: 0 to 63, a whole number"),
        ({"num_draft_tokens": 64}, "number of draft tokens; got 64; allowed: 0 to 63$"),
        ({"logprobs": "2"}, "logprobs; got '2'; allowed: 0 to 400, a whole number"),
        ({"sampling": edgespec.SamplingParams(logit_bias={10**9: 3})}, "logit_bias; got token 10{9}; allowed: .* 399"),
        ({"drafter": "ngram"}, r"drafter; got 'ngram'; allowed: .*protocols\.Drafter\. .*edgespec\.load\(draft="),
        ({"drafter": NGram}, "drafter; got the class NGram; .* Make one: drafter=NGram"),
        ({"drafter": Nameless()}, "drafter Nameless: its name; got None; allowed: a text"),  # type: ignore[abstract]
        ({"drafter": Narrow()}, r"got propose\(context, k\); allowed: propose\(context, k, allowed\)"),
        ({"policy": "x"}, r"policy; got 'x'; allowed: .*protocols\.Policy"),
        ({"policy": NoCommit()}, r"policy NoCommit lacks a method; allowed: commit\(context, draft, verdict, step\)"),
        ({"progress": 5}, "progress; got 5; allowed: a function"),
        ({"cancelled": True}, "cancelled; got True; allowed: a function"),
        ({"hole": "x"}, "hole; got 'x'; allowed: what infill_prompt gives"),
        ({"response_format": "json"}, "response_format; got json"),
    ],
)
def test_an_option_of_another_kind_is_told(served: Pipeline, given: dict[str, Any], said: str) -> None:
    options: dict[str, Any] = {"max_new_tokens": 4} | given
    with pytest.raises(SettingError, match=said) as caught:
        served.generate("Hello", **options)
    assert caught.value.setting in {*given, "logit_bias", None}
    assert served.generate("Hello", max_new_tokens=4).token_ids


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ([5], r"got list; allowed: a Draft: edgespec\.types\.Draft\(tokens\)"),
        (None, "got NoneType; allowed: a Draft"),
        (Draft([5, 6]), "got tokens that are no tuple; allowed: a tuple of token ids"),  # type: ignore[arg-type]
        (Draft((1.5, 2.5)), r"got token 1\.5; allowed: whole numbers"),  # type: ignore[arg-type]
        (Draft((5, 400)), "got token 400; allowed: 0 to 399"),
        (Draft((5, 6), scores=(0.5,)), "got 1 scores of 2 tokens"),
        (Draft((5, 6), tree=(0, 2)), r"got the tree \(0, 2\) of 2 tokens"),
        (Draft((5, 6), tree=(0,)), r"got the tree \(0,\) of 2 tokens"),
    ],
)
@pytest.mark.parametrize("form", [None, SCHEMA], ids=["free", "constrained"])
def test_what_is_no_draft_is_an_error_of_its_drafter(served: Pipeline, said: Any, why: str, form: Any) -> None:
    with pytest.raises(SettingError, match=f"drafter says proposes what cannot be verified; {why}"):
        served.generate("Hello", max_new_tokens=8, drafter=Says(said), response_format=form, num_draft_tokens=4)


def test_a_policy_that_gives_no_draft_is_named(served: Pipeline) -> None:
    for form in (None, SCHEMA):
        with pytest.raises(SettingError, match="drafter itself proposes what cannot be verified; got list"):
            served.generate("Hello", max_new_tokens=8, policy=SaysItself(), response_format=form)


def test_a_policys_own_length_is_a_number() -> None:
    with pytest.raises(SettingError, match="number of draft tokens; got '3'; allowed: 0 or more, a whole number"):
        FixedLength(NGram(), "3")  # type: ignore[arg-type]


def test_options_nobody_has_name_the_function_that_was_called(served: Pipeline) -> None:
    talk = [{"role": "user", "content": "Hello"}]
    wrong: dict[str, Any] = {"temperature": 0.3}
    for name, given in (("generate", "Hi"), ("stream", "Hi"), ("chat", talk), ("stream_chat", talk), ("infill", "a")):
        said = rf"Pipeline\.{name}\(\) got .* 'temperature'\. Give it in sampling=edgespec\.SamplingParams"
        with pytest.raises(TypeError, match=said):
            getattr(served, name)(given, **wrong)
    with pytest.raises(TypeError, match=r"Pipeline\.stream_infill\(\) got .* 'temperature'"):
        served.stream_infill("a", "b", **wrong)
    with pytest.raises(TypeError, match="'max_token'. Did you mean max_new_tokens"):
        served.generate("Hi", max_token=3)
    with pytest.raises(TypeError, match=r"'nothing_like_it'$"):
        served.generate("Hi", nothing_like_it=3)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"prefix": None}, "prefix; got None; allowed: a text"),
        ({"suffix": 5}, "suffix; got 5; allowed: a text"),
        ({"path": 5}, "path; got 5; allowed: a text, or None"),
        ({"files": 5}, "files; got 5; allowed: a dict of paths"),
        ({"files": {"a": None}}, "files; got .*None.*; allowed: pairs"),
        ({"indent": "2"}, "indent; got '2'; allowed: a whole number of characters"),
        ({"max_s": "2"}, "max_s; got '2'; allowed: seconds"),
        ({"prompt_tokens": "9"}, "prompt_tokens; got '9'; allowed: 1 or more, a whole number"),
        ({"prompt_tokens": None}, "prompt_tokens; got None; allowed: 1 or more, a whole number"),
        ({"max_new_tokens": "9"}, "max_new_tokens; got '9'"),
    ],
)
def test_a_hole_of_another_kind_is_told(served: Pipeline, given: dict[str, Any], said: str) -> None:
    options = {"prefix": "a = 1\n", "suffix": "", "max_new_tokens": 4} | given
    with pytest.raises(SettingError, match=said) as caught:
        served.infill(**options)  # type: ignore[arg-type]
    assert caught.value.setting in given


@pytest.mark.parametrize("prompt", [[{"role": "user", "content": "Hi"}], {"role": "user", "content": "Hi"}])
def test_messages_are_no_prompt(served: Pipeline, prompt: Any) -> None:
    with pytest.raises(SettingError, match=r"prompt; got messages; .* Use chat .*pipeline\.chat\(messages\)"):
        served.generate(prompt)


def test_stop_strings_may_come_from_anything_that_gives_them_once(served: Pipeline) -> None:
    text = served.generate("List three animals.", max_new_tokens=40).text
    word = text[10:14]
    result = served.generate("List three animals.", max_new_tokens=40, stop=(each for each in [word]))
    assert result.stop_string == word


def test_a_load_that_no_text_could_use_is_refused(served: Pipeline) -> None:
    def load(**given: Any) -> Pipeline:
        return edgespec.load("no-such-model", **given)

    with pytest.raises(SettingError, match="number of draft tokens; got 64; allowed: 0 to 63"):
        Pipeline(served.bundle, served.target, NGram(), num_draft_tokens=64)
    with pytest.raises(SettingError, match="number of draft tokens; got '3'; allowed: 0 or more, a whole number"):
        load(num_draft_tokens="3")
    for wrong in ("x", (), 0, (2,)):
        with pytest.raises(SettingError, match=r"needs; got .*; allowed: edgespec\.types\.Needs") as caught:
            load(needs=wrong)
        assert caught.value.setting == "needs"
    with pytest.raises(EdgespecError, match="got ''; allowed"):
        edgespec.load("")


@pytest.mark.parametrize(
    ("got", "shown"),
    [("8", "'8'"), (8, "8"), ("1e3", "'1e3'"), ("", "''"), (" ", "' '"), ("CPU", "CPU"), ("8 GB", "8 GB")],
)
def test_a_text_is_in_quotes_where_it_would_read_as_something_else(got: object, shown: str) -> None:
    assert str(EdgespecError("x", got=got, allowed="y")) == f"x; got {shown}; allowed: y"


def test_what_cannot_be_written_out_is_named_by_its_type() -> None:
    class Odd:
        def __repr__(self) -> str:
            raise ValueError("too long")

    assert str(EdgespecError("x", got=Odd())) == "x; got a Odd"
