"""Every key and tensor of a GGUF file is used, harmless, or refused by its name."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgespec.errors import ConversionError
from edgespec.gguf import keys
from edgespec.gguf.convert import read_header
from tests import tiny_gguf

CHANGES = [
    ({"llama.logit_scale": 16.0}, "llama.logit_scale of tiny.gguf .* logits are scaled; got float32 16.0; allowed: 1"),
    ({"llama.residual_scale": 0.2}, "llama.residual_scale"),
    ({"llama.embedding_scale": 12.0}, "llama.embedding_scale"),
    ({"llama.logit_scale": float("nan")}, "llama.logit_scale"),
    ({"llama.attention.scale": 0.01}, "llama.attention.scale .* allowed: 0.25"),
    ({"llama.attention.causal": False}, "llama.attention.causal"),
    ({"llama.attention.value_length": 8}, "llama.attention.value_length .* got uint32 8; allowed: 16"),
    ({"llama.rope.dimension_count": 8}, "llama.rope.dimension_count .* got uint32 8; allowed: 16"),
    ({"llama.expert_count": 8}, "llama.expert_count .* a mixture of experts; got uint32 8"),
    ({"llama.pooling_type": 1}, "llama.pooling_type .* embeddings"),
    ({"llama.something_new": 1}, "llama.something_new of tiny.gguf is unknown here .* got uint32 1"),
    ({"tokenizer.ggml.add_eos_token": True}, "tokenizer.ggml.add_eos_token"),
    ({"tokenizer.ggml.precompiled_charsmap": [1]}, "tokenizer.ggml.precompiled_charsmap .* got array of 1 int32"),
    ({"tokenizer.something_new": "x"}, "tokenizer.something_new of tiny.gguf is unknown here"),
    ({"split.something_new": "x"}, "split.something_new of tiny.gguf is unknown here"),
    ({"adapter.lora.alpha": 1.0}, "adapter.lora.alpha"),
    ({"llama.attention.head_count_kv": [2, 1]}, "head_count_kv of tiny.gguf; got 1 to 2; allowed: the same in all"),
    ({"llama.attention.head_count_kv": 3}, "do not fit each other"),
    ({"llama.block_count": 4000000000}, r"block_count of tiny.gguf; got 4000000000"),
    ({"llama.block_count": 2000000000}, "do not fit each other; got 2000000000 layers"),
    ({"llama.block_count": 1}, r"tensor blk.1.attn_norm.weight of tiny.gguf is not computed here"),
    ({"llama.block_count": 3}, "not a whole language model; got no blk.2.attn_norm.weight"),
    (
        {"llama.feed_forward_length": 100},
        r"shape of blk.0.ffn_gate.weight of tiny.gguf; got .64, 128.; allowed: .64, 100",
    ),
    ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "layer_norm_rms_epsilon of tiny.gguf; got nan"),
    ({"llama.attention.layer_norm_rms_epsilon": None}, "not a whole language model; got no llama.attention.layer_norm"),
    ({"llama.context_length": 0}, "context_length of tiny.gguf; got 0"),
    ({"general.type": "adapter"}, "tiny.gguf is an adapter, not a model.* [Mm]erge it"),
    ({"general.type": "imatrix"}, "tiny.gguf is not a model; got general.type imatrix"),
    ({"split.count": 2}, "one part of several"),
    ({"tokenizer.ggml.tokens": ["a", "b"]}, "vocabulary of tiny.gguf is damaged; got 2 tokens"),
    ({"tokenizer.ggml.eos_token_id": 512}, "vocabulary of tiny.gguf is damaged; got tokenizer.ggml.eos_token_id: 512"),
    ({"tokenizer.ggml.eos_token_ids": [0, 512]}, "vocabulary of tiny.gguf is damaged; got .*eos_token_ids: 512"),
    ({"tokenizer.ggml.merges": None}, "not a whole language model; got no tokenizer.ggml.merges"),
]
TYPES = [
    ("llama.context_length", "big", "string 'big'; allowed: a whole number"),
    ("llama.context_length", [256], "array of 1 int32; allowed: a whole number"),
    ("llama.rope.freq_base", 10000, "uint32 10000; allowed: a number"),
    ("tokenizer.ggml.eos_token_id", [0, 2], "array of 2 int32; allowed: a whole number"),
    ("tokenizer.ggml.eos_token_id", "</s>", "string '</s>'; allowed: a whole number"),
    ("tokenizer.ggml.add_bos_token", 1, "uint32 1; allowed: true or false"),
    ("tokenizer.ggml.token_type", 1, "uint32 1; allowed: whole numbers"),
    ("tokenizer.ggml.tokens", [1, 2], "array of 2 int32; allowed: texts"),
    ("tokenizer.chat_template", ["a", "b"], "array of 2 string; allowed: a text"),
    ("tokenizer.chat_template", "a" * (1 << 20) + "b", "string of more than 1 MiB; allowed: a text of up to 1 MiB"),
    ("split.count", "2", "string '2'; allowed: a whole number"),
    ("general.type", 3, "uint32 3; allowed: a text"),
]
# Keys that llama.cpp's converter and quantizer write into files of SmolLM2, Llama 3.2, Qwen2.5 and Qwen3, and others
# put beside them.
ORDINARY: dict[str, Any] = {
    "general.type": "model", "general.name": "x", "general.tags": ["a"], "general.languages": ["en"],
    "general.license": "mit", "general.base_model.0.name": "y", "general.quantization_version": 2,
    "general.sampling.temp": 0.7, "quantize.imatrix.file": "f", "quantize.imatrix.entries_count": 3,
    "split.no": 0, "split.count": 1, "split.tensors.count": 20, "mradermacher.quantize_version": "2",
    "{arch}.vocab_size": 512, "{arch}.attention.key_length": 16, "{arch}.attention.value_length": 16,
    "{arch}.rope.dimension_count": 16, "{arch}.rope.scaling.type": "none", "{arch}.rope.scaling.factor": 1.0,
    "{arch}.rope.scaling.finetuned": False, "{arch}.rope.scaling.original_context_length": 256,
    "{arch}.attention.sliding_window": 256, "{arch}.attention.causal": True, "{arch}.expert_count": 0,
    "{arch}.logit_scale": 1.0, "{arch}.attention.scale": 0.25, "{arch}.attention.head_count_kv": [2, 2],
    "tokenizer.ggml.scores": [0.0, 1.0], "tokenizer.ggml.unknown_token_id": 0, "tokenizer.ggml.padding_token_id": 2,
    "tokenizer.ggml.seperator_token_id": 0, "tokenizer.ggml.mask_token_id": 0, "tokenizer.ggml.eot_token_id": 2,
    "tokenizer.ggml.eom_token_id": 2, "tokenizer.ggml.add_eos_token": False, "tokenizer.ggml.add_sep_token": False,
    "tokenizer.ggml.add_space_prefix": False, "tokenizer.ggml.fim_pre_token_id": 1,
    "tokenizer.ggml.fim_sep_token_id": 1, "tokenizer.chat_template.tool_use": "t",
    "tokenizer.chat_templates": ["tool_use"],
}  # fmt: skip


def refused(path: Path, **options: Any) -> pytest.ExceptionInfo[ConversionError]:
    tiny_gguf.write(path, **options)
    with pytest.raises(ConversionError) as caught:
        read_header(path)
    assert "\n" not in str(caught.value)
    return caught


@pytest.mark.parametrize(("extra", "said"), CHANGES)
def test_what_is_not_computed_is_refused_by_its_name(tmp_path: Path, extra: dict[str, Any], said: str) -> None:
    refused(tmp_path / "tiny.gguf", extra=extra).match(said)


@pytest.mark.parametrize(("key", "value", "said"), TYPES)
def test_a_value_of_another_type_is_refused_by_its_key(tmp_path: Path, key: str, value: Any, said: str) -> None:
    caught = refused(tmp_path / "tiny.gguf", extra={key: value})
    assert f"{key} of tiny.gguf; got {said}" in str(caught.value)


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3"])
def test_keys_of_ordinary_files_are_accepted(tmp_path: Path, arch: str) -> None:
    extra = {key.format(arch=arch): value for key, value in ORDINARY.items()}
    norms = {f"blk.{i}.attn_{of}_norm.weight": np.ones(16, np.float32) for i in range(2) for of in "qk"}
    path = tmp_path / "tiny.gguf"
    header = read_header(tiny_gguf.write(path, arch=arch, extra=extra, tensors=norms if arch == "qwen3" else None))
    assert extra.keys() <= header.kinds.keys()
    assert header.licence == "mit"


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"granite.rope.scaling.finetuned": False}, "positions are not rotated; got bool False; allowed: True"),
        ({"granite.logit_scale": "8"}, "granite.logit_scale of tiny.gguf; got string '8'; allowed: a number"),
        ({"granite.logit_scale": 0.0}, "granite.logit_scale of tiny.gguf; got 0.0"),
        ({"granite.logit_scale": None}, "not a whole language model; got no granite.logit_scale"),
        ({"granite.attention.clamp_kqv": 1.0}, "queries, keys and values are clamped"),
    ],
)
def test_factors_are_granites_alone(tmp_path: Path, extra: dict[str, Any], said: str) -> None:
    """Of others they are refused, above."""
    scales = {
        f"granite.{name}": 0.5 for name in ("embedding_scale", "residual_scale", "logit_scale", "attention.scale")
    }
    path = tmp_path / "tiny.gguf"
    read_header(tiny_gguf.write(path, arch="granite", extra=scales | {"granite.rope.scaling.finetuned": True}))
    refused(path, arch="granite", extra=scales | extra).match(said)


@pytest.mark.parametrize(
    ("tensor", "numbers", "said"),
    [
        ("output.bias", 512, "a bias of the logits"),
        ("blk.0.post_attention_norm.weight", 64, "another norm"),
        ("blk.0.attn_q_norm.weight", 16, "norms of queries and keys, as qwen3 and gemma3 have them"),
        ("blk.1.ffn_gate_inp.weight", 64, "a mixture of experts"),
        ("blk.2.attn_norm.weight", 64, "another norm"),
        ("blk.00.attn_norm.weight", 64, "another norm"),
        ("something_new", 1, "it is unknown"),
    ],
)
def test_a_tensor_that_is_not_computed_with_is_refused(tmp_path: Path, tensor: str, numbers: int, said: str) -> None:
    caught = refused(tmp_path / "tiny.gguf", tensors={tensor: np.ones(numbers)})
    assert f"tensor {tensor} of tiny.gguf is not computed here: {said}" in str(caught.value)


def test_a_tensor_of_another_shape_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "tiny.gguf", tensors={"blk.0.attn_q.bias": np.ones(32)}).match(
        r"shape of blk.0.attn_q.bias of tiny.gguf; got \(32,\); allowed: \(64,\)"
    )
    refused(tmp_path / "tiny.gguf", arch="qwen3").match("got no blk.0.attn_q_norm.weight")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"arch": "falcon"}, "got falcon; allowed: llama, qwen2, qwen3, granite"),
        ({"pre": None}, "got none; allowed: smollm, gpt-2"),
        ({"pre": "tekken"}, "got tekken; allowed: smollm, gpt-2, llama-bpe, smaug-bpe, qwen2, default"),
        ({"tokenizer_model": "bert"}, "got bert; allowed: gpt2"),
    ],
)
def test_what_the_converter_cannot_read_is_refused(tmp_path: Path, options: dict[str, object], said: str) -> None:
    refused(tmp_path / "tiny.gguf", **options).match(said)


def test_a_quantization_that_is_not_read_is_named(tmp_path: Path) -> None:
    """Whatever the file calls itself: one named Q4_K_M may hold others."""
    caught = refused(tmp_path / "tiny.gguf", quantize="Q8_K", hidden=256, extra={"general.file_type": 15})
    assert "got Q8_K in 15 of 15 matrices, e.g. token_embd.weight; allowed: F32, F16, BF16, Q4_0" in str(caught.value)
    assert "Q4_K_M" not in str(caught.value) and "disk" not in str(caught.value)


@pytest.mark.parametrize(
    ("extra", "precision", "licence"),
    [
        ({"general.file_type": 1024}, "f16", None),
        ({"general.file_type": None}, "f16", None),
        ({"general.file_type": 15, "general.license": ["mit", "apache-2.0"]}, "q4_k_m", "mit, apache-2.0"),
        ({"general.license": 7}, "f16", None),
    ],
)
def test_a_file_may_say_little_of_itself(
    tmp_path: Path, extra: dict[str, Any], precision: str, licence: str | None
) -> None:
    header = read_header(tiny_gguf.write(tmp_path / "tiny.gguf", extra=extra))
    assert (header.precision, header.licence) == (precision, licence)


def test_the_lists_do_not_contradict_each_other() -> None:
    lists: list[Collection[str]] = [keys.USED, keys.HARMLESS, keys.REFUSED]
    assert sum(map(len, lists)) == len({key for one in lists for key in one})
    assert all(reason for reason in (*keys.HARMLESS.values(), *keys.REFUSED_TENSORS.values()))
    assert all(rule.reason for rule in keys.REFUSED.values())
    known = ("general.", "quantize.", "split.", "tokenizer.", "adapter.", "xielu.", "{arch}.")
    assert all(key.startswith(known) for one in lists for key in one)
