"""An IR folder of another tool's: what begins and ends a text, as transformers would have it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import edgespec
from edgespec import bundle
from edgespec.errors import BundleError
from edgespec.gguf.convert import convert, read_header
from edgespec.hub.resolve import resolve
from tests import tiny_gguf

CONFIG = {"vocab_size": 12, "max_position_embeddings": 64, "eos_token_id": 3}
BOS, EOS = ("<s>", 2), ("</s>", 3)


def tokenizer_with(post_processor: Any = None) -> str:
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, BOS[0]: BOS[1], EOS[0]: EOS[1]}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([BOS[0], EOS[0]])
    if post_processor is not None:
        tokenizer.post_processor = post_processor
    return str(tokenizer.to_str())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "openvino_model.xml").write_text("<net/>", encoding="utf-8")
    (tmp_path / "openvino_model.bin").write_bytes(b"")
    put(tmp_path, "config.json", CONFIG)
    (tmp_path / "tokenizer.json").write_text(tokenizer_with(), encoding="utf-8")
    return tmp_path


def put(folder: Path, name: str, content: object) -> None:
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / name).write_text(text, encoding="utf-8")


def generation(folder: Path) -> bundle.Generation:
    return bundle.read(folder).manifest.generation


def test_it_is_a_bundle_without_drafters(folder: Path) -> None:
    tokens = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "add_bos_token": True, "chat_template": "{{ 1 }}"}
    put(folder, "tokenizer_config.json", tokens)
    read = bundle.read(folder)
    assert read.manifest.generation == bundle.Generation(
        eos_token_ids=(3,), context_length=64, bos_token="<s>", eos_token="</s>", add_bos=True
    )
    assert (read.chat_template(), read.manifest.drafters) == ("{{ 1 }}", ())
    put(folder, "generation_config.json", {"eos_token_id": [3, 7]})
    put(folder, "chat_template.jinja", "{{ 2 }}")
    read = bundle.read(folder)
    assert (read.manifest.generation.eos_token_ids, read.chat_template()) == ((3, 7), "{{ 2 }}")
    (folder / "openvino_model.bin").unlink()
    with pytest.raises(BundleError, match=r"no openvino_model\.bin"):
        bundle.read(folder)


# --- what ends a text


@pytest.mark.parametrize(
    ("said", "config", "ends"),
    [
        ({"eos_token_id": None}, {}, (3,)),
        ({"eos_token_id": []}, {}, (3,)),
        ({"eos_token_id": -1}, {}, (3,)),
        ({"eos_token_id": [5, None, 6]}, {}, (5, 6)),
        ({"eos_token_id": 0}, {}, (0,)),
        ({}, {"eos_token_id": None, "text_config": {"eos_token_id": 4}}, (4,)),
        ({}, {"text_config": {"vocab_size": 12}}, (3,)),
        ({"eos_token_id": None}, {"eos_token_id": None}, EOS[1:]),
    ],
)
def test_null_says_nothing_about_the_end(folder: Path, said: object, config: dict[str, Any], ends: object) -> None:
    put(folder, "generation_config.json", said)
    put(folder, "config.json", CONFIG | config)
    put(folder, "tokenizer_config.json", {"eos_token": {"content": EOS[0]}})
    assert generation(folder).eos_token_ids == ends


def test_that_nothing_ends_a_text_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(folder, "config.json", CONFIG | {"eos_token_id": None})
    assert generation(folder).eos_token_ids == ()
    resolve(str(folder))
    assert "names no token that ends a text" in capsys.readouterr().err


# --- what begins a raw prompt


def template(*single: str) -> Any:
    return processors.TemplateProcessing(single=" ".join(single), special_tokens=[BOS, EOS])


PROCESSORS = {
    "none": None,
    "BOS": template("<s>", "$A"),
    "BOS and EOS": template("<s>", "$A", "</s>"),
    "EOS": template("$A", "</s>"),
    "second of two": processors.Sequence([processors.ByteLevel(), template("<s>", "$A")]),
    "Roberta": processors.RobertaProcessing(EOS, BOS),
    "Bert": processors.BertProcessing(EOS, BOS),
    "bytes": processors.ByteLevel(),
}


@pytest.mark.parametrize("kind", PROCESSORS)
@pytest.mark.parametrize("named", [True, False])
def test_the_tokenizers_own_bos_is_put_in_front(folder: Path, kind: str, named: bool) -> None:
    """As the library does it, whether or not tokenizer_config.json has a name for it."""
    put(folder, "tokenizer.json", tokenizer_with(PROCESSORS[kind]))
    put(folder, "tokenizer_config.json", {"bos_token": BOS[0]} if named else {})
    library = Tokenizer.from_file(str(folder / "tokenizer.json"))
    found = generation(folder)
    assert found.add_bos == (library.encode("a b").ids[:1] == [BOS[1]])
    assert found.bos_token == (BOS[0] if named or found.add_bos else None)


@pytest.mark.parametrize("said", [True, False])
def test_what_is_said_about_bos_counts(folder: Path, said: bool) -> None:
    put(folder, "tokenizer.json", tokenizer_with(None if said else template("<s>", "$A")))
    put(folder, "tokenizer_config.json", {"bos_token": BOS[0], "add_bos_token": said})
    assert generation(folder).add_bos is said


def test_a_raw_prompt_of_a_loaded_model_begins_with_it(tmp_path: Path) -> None:
    convert(read_header(tiny_gguf.write(tmp_path / "x.gguf")), tmp_path, name="x", source="x")
    (tmp_path / bundle.MANIFEST).unlink()
    put(tmp_path, "tokenizer_config.json", {"bos_token": "<|im_start|>"})
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    bos = tokenizer.token_to_id("<|im_start|>")
    single = processors.TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", bos)])
    tokenizer.post_processor = single
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    pipeline = edgespec.load(tmp_path, backend="openvino", numerics="fast", num_draft_tokens=0)
    assert pipeline.tokenizer.encode("The sea", raw=True) == tokenizer.encode("The sea").ids
    assert pipeline.tokenizer.encode("The sea", raw=True)[0] == bos


# --- the chat template


@pytest.mark.parametrize(
    ("said", "used"),
    [
        ("{{ 1 }}", "{{ 1 }}"),
        ([{"name": "tool_use", "template": "{{ 0 }}"}, {"name": "default", "template": "{{ 1 }}"}], "{{ 1 }}"),
        ([{"name": "tool_use", "template": "{{ 0 }}"}], None),
        ([7, {"name": "default"}], None),
        ({"default": "{{ 1 }}"}, None),
        (None, "{{ 3 }}"),
    ],
)
def test_of_a_list_of_templates_the_default_is_used(folder: Path, said: object, used: str | None) -> None:
    put(folder, "tokenizer_config.json", {"chat_template": said})
    put(folder, "chat_template.json", {"chat_template": "{{ 3 }}"})
    assert bundle.read(folder).chat_template() == used


# --- files that say something else


@pytest.mark.parametrize(
    "config",
    [
        '{"vocab_size": 12}',
        '{"vocab_size": null, "max_position_embeddings": 64}',
        '{"vocab_size": 1000000000000, "max_position_embeddings": 64}',
        '{"vocab_size": 12, "max_position_embeddings": 64, "eos_token_id": "x"}',
        '{"vocab_size": 12, "max_position_embeddings": 64, "eos_token_id": [[1]]}',
        '{"vocab_size": 12, "max_position_embeddings": 1e99}',
        '{"text_config": null}',
        '{"text_config": [1]}',
        "[]",
        "[" * 200_000,
        '{"a":' * 200_000,
        "9" * 10_000,
        "\x00",
        "",
    ],
)
def test_a_poor_config_is_named(folder: Path, config: str) -> None:
    put(folder, "config.json", config)
    with pytest.raises(BundleError, match=r"config\.json") as caught:
        bundle.read(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", ['{"quantization_config": "x"}', '{"quantization_config": [8]}', "7", "{" * 100_000]
)
def test_a_poor_openvino_config_is_named(folder: Path, content: str) -> None:
    put(folder, "openvino_config.json", content)
    with pytest.raises(BundleError, match=r"openvino_config\.json"):
        bundle.read(folder)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json", "chat_template.json"])
@pytest.mark.parametrize("content", ["[1]", "{", "[" * 100_000, '{"a": "\\ud800', " " * (17 << 20)])
def test_the_other_files_are_named_too(folder: Path, name: str, content: str) -> None:
    put(folder, name, content)
    with pytest.raises(BundleError, match=name):
        bundle.read(folder)


@pytest.mark.parametrize("content", ["{", "[]", '{"added_tokens": 7}', '{"added_tokens": [7]}', "[" * 100_000])
def test_a_tokenizer_that_is_none_is_named(folder: Path, content: str) -> None:
    put(folder, "tokenizer.json", content)
    with pytest.raises(BundleError, match=r"tokenizer\.json"):
        bundle.read(folder)


def test_a_byte_order_mark_is_no_content(folder: Path) -> None:
    put(folder, "config.json", "\ufeff" + json.dumps(CONFIG))
    assert generation(folder).context_length == 64


def test_a_name_and_a_precision_are_shown_as_one_line(folder: Path) -> None:
    put(folder, "openvino_config.json", {"quantization_config": {"bits": "\x1b[2J"}})
    assert bundle.read(folder).manifest.target.precision == "int\\x1b[2J"
