"""Random models of a few hundred kilobytes, built on the spot: real architectures, a real tokenizer, no download.

    folder = build("llama", tmp / "hf")              a transformers folder
    xml = export_ir(folder, tmp / "ir")              its OpenVINO IR in float32
    draft = build("llama", tmp / "draft", vocab_size=49152, tokenizer=path)

Needs the export extra; import it inside a test that calls ``pytest.importorskip("optimum.intel")`` first.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

CORPUS = (
    "The lighthouse had stood on the headland for more than a century. It leaned, slowly, towards the sea.",
    "def moving_average(values, window):\n    return [sum(values[i:i + window]) / window for i in range(len(values))]",
    "Question: What is the boiling point of water at sea level? Answer: 100 degrees Celsius.",
)
SPECIAL = ("<|bos|>", "<|eos|>", "<|user|>", "<|assistant|>")
TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|eos|>{% endfor %}<|assistant|>"
EXPORTED = "EDGESPEC_TESTS_EXPORTED"
"""variable that names the folder of what was exported; tests/conftest.py sets it"""
ARCHITECTURES = ("llama", "phi3", "qwen2", "qwen3", "gemma2", "gemma3_text")


def train_tokenizer(path: Path, vocab_size: int = 400, special: tuple[str, ...] = SPECIAL) -> Path:
    """A byte-level BPE tokenizer.json; the special tokens come first, the same corpus gives the same ids."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(text, special=True) for text in special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
    return path


def build(
    arch: str,
    folder: Path,
    *,
    vocab_size: int | None = None,
    layers: int = 2,
    hidden: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    context_length: int = 512,
    seed: int = 0,
    tokenizer: Path | None = None,
    eos_token_id: int | list[int] = 1,
    scale: float = 0.3,
    **config_options: Any,
) -> Path:
    """Write a transformers folder with random weights and return it.

    vocab_size: rows of the model, by default 512: more than the tokenizer has, as in most real models.
    tokenizer: a tokenizer.json to copy; without one a small one is trained.
    scale: spread of the weights; with less the logits of a random model are nearly all the same.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    options: dict[str, Any] = {
        "vocab_size": vocab_size or 512,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": context_length,
        "bos_token_id": 0,
        "eos_token_id": eos_token_id,
        "pad_token_id": None,
        "initializer_range": scale,
    }
    if arch in ("qwen3", "gemma2", "gemma3_text"):
        options["head_dim"] = hidden // heads
    if arch.startswith("gemma"):
        options |= {"query_pre_attn_scalar": hidden // heads, "sliding_window": context_length}
    torch.set_num_threads(1)  # for models this small several threads mostly wait for each other
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(arch, **(options | config_options)))
    model.generation_config = GenerationConfig(bos_token_id=0, eos_token_id=eos_token_id)
    model.save_pretrained(folder)
    if tokenizer is None:
        train_tokenizer(folder / "tokenizer.json")
    else:
        shutil.copyfile(tokenizer, folder / "tokenizer.json")
    texts = {"bos_token": SPECIAL[0], "eos_token": SPECIAL[1], "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(texts), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    return folder


def export_ir(folder: Path, out: Path, kind: str = "f32", **weights: Any) -> Path:
    """The IR of a transformers folder with the texts beside it, without a manifest; returns the .xml.

    The same model is exported once and copied: many tests build the same one, workers of one run too.
    """
    parts = [(folder / name).read_bytes() for name in ("config.json", "model.safetensors")]
    made = _exported() / sha256(b"".join(parts) + repr((kind, sorted(weights.items()))).encode()).hexdigest()
    if not made.is_dir():
        staged = made.with_name(f"{made.name}-{os.getpid()}")
        _export(folder, staged, kind, weights)
        try:
            staged.rename(made)
        except OSError:
            shutil.rmtree(staged)
            if not made.is_dir():  # by another worker, which was as quick
                raise
    shutil.copytree(made, out, dirs_exist_ok=True)
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(folder / name, out / name)
    shutil.copyfile(folder / "chat_template.jinja", out / "chat_template.jinja")
    return out / "openvino_model.xml"


def _export(folder: Path, out: Path, kind: str, weights: Mapping[str, Any]) -> None:
    from edgespec_export import quiet
    from edgespec_export.settings import Weights
    from edgespec_export.sources import resolve

    with quiet.libraries(verbose=False):
        from edgespec_export import convert

        source, settings = resolve(str(folder), out), Weights(kind, **weights)
        model = convert.load(source, settings, convert.read_config(source))
        raw = convert.export_ir(model, out.with_name(f"{out.name}-raw"), settings)
        convert.compress(raw, out / raw.name, settings)
    shutil.rmtree(raw.parent, ignore_errors=True)


def _exported() -> Path:
    """Of this run of the tests."""
    return Path(os.environ[EXPORTED])


def with_two_tokens_swapped(tokenizer: Path, out: Path) -> Path:
    """Another vocabulary of the same size."""
    raw = json.loads(tokenizer.read_text(encoding="utf-8"))
    ids = raw["model"]["vocab"]
    first, second = [*ids][-2:]
    ids[first], ids[second] = ids[second], ids[first]
    out.write_text(json.dumps(raw), encoding="utf-8")
    return out


def write_gguf(
    folder: Path, path: Path, more: Mapping[str, Any] | None = None, keys: Mapping[str, Any] | None = None
) -> Path:
    """The float32 GGUF file of a model built here, as llama.cpp's converter writes it.

    more: tensors beside its own. keys: metadata beside its own; ``{arch}`` is its architecture."""
    from gguf import GGUFValueType, GGUFWriter
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    heads, kv_heads, rows = config["num_attention_heads"], config["num_key_value_heads"], config["vocab_size"]
    arch = config["model_type"].removesuffix("_text").replace("mistral", "llama")
    writer = GGUFWriter(path, arch)
    writer.add_license("mit")
    writer.add_file_type(0)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    head = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_key_length(head)
    rope = config["rope_parameters"]
    rope = rope.get("full_attention", rope)
    writer.add_rope_dimension_count(int(head * rope.get("partial_rotary_factor", 1)))
    writer.add_rope_freq_base(rope["rope_theta"])
    if arch in ("phi3", "gemma2", "gemma3"):
        writer.add_sliding_window(config["sliding_window"])
    if arch == "gemma2":
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    writer.add_vocab_size(rows)
    if arch == "granite":
        writer.add_embedding_scale(config["embedding_multiplier"])
        writer.add_residual_scale(config["residual_multiplier"])
        writer.add_logit_scale(config["logits_scaling"])
        writer.add_attention_scale(config["attention_multiplier"])
    for key, value in (keys or {}).items():
        writer.add_key_value(key.format(arch=writer.arch), value, GGUFValueType.get_type(value))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    size = tokenizer.get_vocab_size()
    writer.add_token_list([tokenizer.id_to_token(i) if i < size else f"[PAD{i}]" for i in range(rows)])
    writer.add_token_types([3 if i < len(SPECIAL) else 1 if i < size else 5 for i in range(rows)])
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template(TEMPLATE)
    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v"}
    names |= {"self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up"}
    names |= {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
    names |= {"self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up"}
    if arch.startswith("gemma"):
        names |= {"post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm"}
        names |= {"post_feedforward_layernorm": "post_ffw_norm"}
    names = {
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    } | names
    names |= {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "model.layers": "blk",
    }
    for name, tensor in load_file(folder / "model.safetensors").items():
        for split in {"q_proj": heads, "k_proj": kv_heads}.items():
            if split[0] in name and arch in ("llama", "granite", "smollm3"):  # rotary halves become pairs
                shape = (split[1], 2, tensor.shape[0] // split[1] // 2, tensor.shape[1])
                tensor = tensor.reshape(shape).swapaxes(1, 2).reshape(tensor.shape)
        if arch.startswith("gemma") and name.endswith("norm.weight"):
            tensor = tensor + 1
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        writer.add_tensor(name, tensor.copy())
    for name, tensor in (more or {}).items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
