"""Response formats: what users may ask for, what they are told, and what the real pair writes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from edgespec.commands.options import format_from
from edgespec.decode.autoregressive import autoregressive
from edgespec.errors import SettingError
from edgespec.pipeline import Pipeline
from edgespec.sampling_params import SamplingParams
from edgespec.text.response_format import Grammars, grammar_of
from tests import processes, test_commands
from tests.books import check_identities
from tests.formats import Fake, says, schema_format, small_tokenizer

here = test_commands.here


@pytest.fixture(scope="session")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Fake:
    return Fake(small_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.mark.parametrize(
    ("response_format", "message"),
    [
        ({}, "response_format; got {}; allowed: an object with the key"),
        ({"type": None}, "allowed: text, json_object"),
        ({"type": "xml"}, "got xml; allowed: text, json_object, json_schema, regex, grammar"),
        ("json_object", 'got json_object; allowed: an object with the key "type"'),
        ({"type": "json_object", "schema": {}}, "keys of json_object"),
        ({"type": "json_schema", "schema": {}}, "keys of json_schema"),
        ({"type": "json_schema", "json_schema": {}}, 'an object with the key "schema"'),
        ({"type": "json_schema", "json_schema": {"schema": {}, "lenient": True}}, 'an object with the key "schema"'),
        (schema_format(["a"]), "response_format: schema; got ['a']; allowed: a JSON object"),
        (schema_format(True), "response_format: schema; got True; allowed: a JSON object"),
        (schema_format({"enum": {1, 2}}), "this json schema cannot be used; got Object of type set"),
        (schema_format({"const": float("nan")}), "this json schema cannot be used; got Out of range float"),
        (schema_format({"type": "foo"}), "this json schema cannot be used; got Invalid type: foo"),
        (schema_format({"not": {}}), 'Unimplemented keys: ["not"]'),
        (schema_format({"type": "integer", "minimum": 5, "maximum": 3}), "minimum (5) is greater than maximum (3)"),
        (schema_format({"type": "string", "pattern": "(?=a)"}), "look-around"),
        ({"type": "regex", "regex": "(a"}, "this regex cannot be used; got unclosed group"),
        ({"type": "regex", "regex": ""}, "not empty"),
        ({"type": "regex", "regex": "a\\\\\\"}, "this regex cannot be used; got a backslash at its end"),
        ({"type": "regex", "regex": r"(a)\1"}, "backreferences are not supported"),
        ({"type": "regex", "regex": "\udcff"}, "this regex cannot be used; got 'utf-8' codec"),
        ({"type": "regex", "regex": 5}, "response_format: regex; got 5"),
        ({"type": "grammar", "grammar": " \n"}, "not empty"),
        ({"type": "grammar", "grammar": "// nothing"}, "this grammar cannot be used; got no start rule found"),
        ({"type": "grammar", "grammar": "start: other"}, 'unknown name: "other"'),
        ({"type": "grammar", "grammar": "a: b ??? {"}, "this grammar cannot be used"),
    ],
)
def test_a_format_that_cannot_be_is_refused_with_the_reason(response_format: Any, message: str) -> None:
    with pytest.raises(SettingError) as error:
        grammar_of(response_format)
    assert message in str(error.value)


def test_a_grammar_or_a_model_that_does_not_go_with_the_other_is_refused(fake: Fake) -> None:
    grammar = grammar_of({"type": "grammar", "grammar": 'start: <|nowhere|> "x"'})
    assert grammar is not None
    with pytest.raises(SettingError, match="nowhere"):
        fake.grammars.constraint(grammar)
    with pytest.raises(SettingError, match="needs a model with an end token"):
        Grammars(fake.tokenizer, fake.vocab, ())


def test_plain_text_needs_no_grammar_and_loads_no_llguidance() -> None:
    assert grammar_of(None) is None and grammar_of({"type": "text"}) is None
    code = (
        "import sys; from edgespec.pipeline import grammar_of; grammar_of(None); sys.exit('llguidance' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_whitespace_is_bounded_and_a_schema_may_say_otherwise(fake: Fake) -> None:
    def takes(schema: dict[str, Any], text: str) -> bool:
        grammar = grammar_of(schema_format(schema))
        assert grammar is not None
        constraint = fake.grammars.constraint(grammar)
        path: list[int] = []
        for token in fake.tokenizer.encode(text):
            if not constraint.allowed(path)[token]:
                return False
            path.append(token)
        return True

    schema = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}
    assert all(takes(schema, text) for text in ('{"a":1}', '{ "a": 1 }', '{\n    "a": 1\n}'))
    assert not takes(schema, '{  "a"') and not takes(schema, '{\n\n"a"')
    assert not takes(schema | {"x-guidance": {"whitespace_pattern": "#"}}, '{ "a"')


def test_what_the_command_line_is_given_is_checked(tmp_path: Path) -> None:
    files = {
        "schema": b'{"type": "foo"}',
        "cut": b'{"type": ',
        "latin": b'{"title": "\xe9"}',
        "good": b'{"type": "object"}',
        "lark": b'\xef\xbb\xbfstart: "a"',
        "blank": b"\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_bytes(text)

    def given(name: str | None, regex: str | None = None) -> Any:
        return format_from({"json_schema": name and str(tmp_path / name), "regex": regex, "grammar": None})

    def grammar(name: str, **options: Any) -> Any:
        return format_from({"json_schema": None, "regex": None, "grammar": str(tmp_path / name)}, **options)

    assert given(None) is None
    assert grammar("lark") == {"type": "grammar", "grammar": 'start: "a"'}
    for name, message in (("blank", "not empty"), ("latin", "is not valid UTF-8"), ("none", "cannot read")):
        with pytest.raises(SettingError, match=message):
            grammar(name)
    with pytest.raises(SettingError, match="ends where the format does"):
        grammar("lark", ignore_eos=True)
    assert given("good") == schema_format({"type": "object"}) | {"json_schema": {"schema": {"type": "object"}}}
    assert given(None, "a+") == {"type": "regex", "regex": "a+"}
    refused: tuple[tuple[str | None, str | None, str], ...] = (
        ("schema", None, "Invalid type: foo"),
        ("cut", None, "cut is not JSON"),
        ("latin", None, "latin is not valid UTF-8"),
        ("none", None, "cannot read"),
        ("", None, "cannot read"),
        ("good", "a", "--json-schema and --regex are formats of one answer. Give one of them"),
        (None, "", "regex"),
    )
    for file, regex, reason in refused:
        with pytest.raises(SettingError, match=re.escape(reason)):
            given(file, regex)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--regex", "(a"], "--regex: this regex cannot be used; got unclosed group"),
        (["chat", "--regex", "(a"], "--regex: this regex cannot be used; got unclosed group"),
        (
            ["run", "--json-schema", "no-such-file"],
            "--json-schema: cannot read no-such-file: No such file or directory. Give a text file",
        ),
        (
            ["run", "--grammar", "no-such-file", "--regex", "a"],
            "--regex and --grammar are formats of one answer. Give one of them",
        ),
        (
            ["run", "--regex", "a", "--ignore-eos"],
            "--ignore-eos: a text with a response format ends where the format does: ignore_eos; got True",
        ),
    ],
)
def test_a_bad_format_is_one_line_and_exit_2_before_a_model_is_loaded(arguments: list[str], message: str) -> None:
    ran = processes.decoded(processes.edgespec(*arguments, "--model", "./no-such-model", stdin=b"Hello"))
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == f"error: {message}\n"


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
REAL = {
    "person": (schema_format(PERSON), "Describe a person as JSON."),
    "phone": ({"type": "regex", "regex": r"Phone: \d{3}-\d{4}"}, "Give me a phone number."),
}


@pytest.mark.parametrize(
    ("name", "sampling", "lengths"),
    [
        ("person", SamplingParams(), (0, 3)),
        ("person", SamplingParams(temperature=0.8, seed=7), (7,)),
        ("phone", SamplingParams(temperature=0.8, top_p=0.9, repetition_penalty=1.1, seed=7), (1,)),
    ],
)
def test_the_real_pair_writes_what_plain_constrained_decoding_writes(
    pipeline: Pipeline, name: str, sampling: SamplingParams, lengths: tuple[int, ...]
) -> None:
    response_format, question = REAL[name]
    assert pipeline.template is not None
    prompt = pipeline.tokenizer.encode(pipeline.template.render([{"role": "user", "content": question}]))
    context = list(prompt)
    constraint = pipeline._constraint(response_format, hole=None, ignore_eos=False)
    for _ in autoregressive(
        pipeline.target, context, sampling, stop=pipeline.stop_ids, budget=40, constraint=constraint
    ):
        pass
    for k in lengths:
        result = pipeline.generate(
            list(prompt), response_format=response_format, sampling=sampling, max_new_tokens=40, num_draft_tokens=k
        )
        assert result.token_ids == context[len(prompt) :]
        check_identities(result.stats.rounds)
        assert result.stats.forced > 0
        assert result.finish_reason == "stop"
        says(response_format, result.text)


def test_a_budget_that_ends_the_text_early_is_told(pipeline: Pipeline) -> None:
    result = pipeline.generate("A person.", response_format=schema_format(PERSON), max_new_tokens=5)
    assert (result.finish_reason, len(result.token_ids)) == ("length", 5)


def test_a_format_ends_where_it_ends(pipeline: Pipeline) -> None:
    with pytest.raises(SettingError, match="ends where the format does"):
        pipeline.stream("Hello", response_format={"type": "json_object"}, ignore_eos=True)
    unconstrained = pipeline.generate("Hello", response_format={"type": "text"}, max_new_tokens=3, ignore_eos=True)
    assert unconstrained.stats.forced == 0


def test_the_command_line_writes_the_format(here: Callable[..., test_commands.Ended], tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text(json.dumps(PERSON))
    arguments = ["run", "--json", "--json-schema", str(tmp_path / "schema.json"), "-n", "60", "A person."]
    code, said, shown = here(*arguments)
    told = json.loads(said)
    assert code == 0
    jsonschema.validate(json.loads(told["text"]), PERSON)
    assert told["finish_reason"] == "stop" and told["forced"] > 0
    assert f"forced by the format: {told['forced']}" in shown
