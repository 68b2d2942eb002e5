"""Random GGUF models of a few hundred kilobytes with a real byte-level BPE vocabulary, written on the spot."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

CORPUS = (
    "The lighthouse had stood on the headland for more than a century. It leaned, slowly, towards the sea.",
    "def moving_average(values, window):\n    return [sum(values[i:i + window]) / window for i in range(len(values))]",
    "In 1889 it rained on 127 days; naïve café, 東京, 👩‍👩‍👧 and   three spaces.",
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool>")
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONTROL, USER_DEFINED, NORMAL = 3, 4, 1
HALVES = {
    "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "IQ4_NL": (0,), "IQ4_XS": (0,),
    "IQ1_S": (0,), "IQ2_XXS": (0,), "IQ2_XS": (0,), "IQ2_S": (0,), "IQ3_XXS": (0,), "IQ3_S": (0,),
    "IQ1_M": (), "Q8_K": (),
}  # fmt: skip
"""types that the package only reads: where a block holds a float16 that its numbers are multiplied with"""


def vocabulary(size: int = 512) -> tuple[list[str], list[str]]:
    """Tokens in id order, the special ones first, and merges as GGUF spells them."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return tokens, [" ".join(pair) for pair in model["merges"]]


def write(
    path: Path,
    *,
    arch: str = "llama",
    pre: str | None = "smollm",
    tokenizer_model: str = "gpt2",
    eos_token_id: int | None = 0,
    template: str | None = TEMPLATE,
    layers: int = 2,
    hidden: int = 64,
    quantize: str = "F16",
    kinds: Mapping[str, str] | None = None,
    tied: bool = True,
    extra: Mapping[str, Any] | None = None,
    tensors: Mapping[str, NDArray[np.float32]] | None = None,
    change: Callable[[str, NDArray[np.float32]], NDArray[np.float32]] = lambda name, values: values,
) -> Path:
    """Write a random model. ``quantize`` is a ggml type name; norms stay in F32.

    kinds: of matrices whose names contain a text, another type.
    extra: metadata that is added or put in another's place (whole numbers become uint32); None leaves a key out.
    tensors: more of them. change: what a matrix or norm holds instead, by its name.
    """
    import gguf

    tokens, merges = vocabulary()
    heads, kv_heads, inner = 4, 2, 2 * hidden
    writer = gguf.GGUFWriter(path, arch)
    writer.add_name("tiny")
    writer.add_context_length(256)
    writer.add_embedding_length(hidden)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_dimension_count(hidden // heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    file_types = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q4_K": 15}
    writer.add_file_type(file_types.get(quantize, 1024))
    writer.add_tokenizer_model(tokenizer_model)
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([CONTROL] * 3 + [USER_DEFINED] + [NORMAL] * (len(tokens) - 4))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    if eos_token_id is not None:
        writer.add_eos_token_id(eos_token_id)
    writer.add_add_bos_token(False)
    if template is not None:
        writer.add_chat_template(template)
    for key, value in (extra or {}).items():
        writer.kv_data[-1].pop(key, None)
        if isinstance(value, int) and not isinstance(value, bool):
            writer.add_uint32(key, value)
        elif value is not None:
            writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))

    random = np.random.default_rng(0)

    def weight(name: str, rows: int, columns: int) -> None:
        kind = next((kind for part, kind in (kinds or {}).items() if part in name), quantize)
        quantized = gguf.GGMLQuantizationType[kind]
        if kind in HALVES:
            data = random_blocks(kind, rows, columns, random)
        else:
            values = random.normal(0, 0.3, (rows, columns)).astype(np.float32)  # (out, in)
            data = gguf.quants.quantize(change(f"{name}.weight", values), quantized)
        writer.add_tensor(f"{name}.weight", data, raw_dtype=quantized)

    def norm(name: str) -> None:
        writer.add_tensor(f"{name}.weight", change(f"{name}.weight", np.ones(hidden, np.float32)))

    kv_hidden = hidden // heads * kv_heads
    weight("token_embd", len(tokens), hidden)
    if not tied:
        weight("output", len(tokens), hidden)
    for layer in range(layers):
        block = f"blk.{layer}"
        norm(f"{block}.attn_norm")
        norm(f"{block}.ffn_norm")
        for name, rows, columns in (
            ("attn_q", hidden, hidden),
            ("attn_k", kv_hidden, hidden),
            ("attn_v", kv_hidden, hidden),
            ("attn_output", hidden, hidden),
            ("ffn_gate", inner, hidden),
            ("ffn_up", inner, hidden),
            ("ffn_down", hidden, inner),
        ):
            weight(f"{block}.{name}", rows, columns)
    norm("output_norm")
    for tensor, numbers in (tensors or {}).items():
        writer.add_tensor(tensor, numbers.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def random_blocks(kind: str, rows: int, columns: int, random: np.random.Generator) -> NDArray[np.uint8]:
    """Any bytes are numbers of these types; what they are multiplied with keeps them small."""
    import gguf

    size, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    blocks = random.integers(0, 256, (rows * columns // size, nbytes), np.uint8)
    if kind == "IQ1_M":  # its float16 lies in the high halves of four bytes
        blocks[:, 49:56:2] = blocks[:, 49:56:2] & 15 | np.array([9, 1, 4, 1], np.uint8) << 4
    for at in HALVES[kind]:
        blocks[:, at : at + 2] = random.normal(0, 1e-3, (len(blocks), 1)).astype(np.float16).view(np.uint8)
    return blocks.reshape(rows, -1)
