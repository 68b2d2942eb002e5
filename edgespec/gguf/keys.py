"""What is done with each key and tensor of a GGUF file: used, harmless, or refused, with the reason.

Nothing is ignored without a place here: a key or tensor on no list is refused by its name. ``{arch}`` is the file's
architecture, ``{i}`` the number of a layer, ``*`` any text.

Names: https://github.com/ggml-org/llama.cpp/blob/master/src/llama-arch.cpp
"""

from __future__ import annotations

from dataclasses import dataclass

from edgespec.gguf.architectures import Architecture

WHOLE = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")
HOLDS = {  # what a used key holds, in words -> the types of it
    "a text of up to 1 MiB": ("string",),
    "a whole number": WHOLE,
    "a number": ("float32", "float64"),
    "true or false": ("bool",),
    "texts": ("array of string",),
    "numbers": ("array of float32", "array of float64"),
    "whole numbers": tuple(f"array of {kind}" for kind in WHOLE),
    "a whole number or whole numbers": (*WHOLE, *(f"array of {kind}" for kind in WHOLE)),
}

USED = {
    "general.architecture": "a text of up to 1 MiB",
    "general.type": "a text of up to 1 MiB",
    "general.alignment": "a whole number",
    "general.file_type": "a whole number",
    "split.count": "a whole number",
    "{arch}.block_count": "a whole number",
    "{arch}.context_length": "a whole number",
    "{arch}.embedding_length": "a whole number",
    "{arch}.feed_forward_length": "a whole number or whole numbers",
    "{arch}.attention.head_count": "a whole number or whole numbers",
    "{arch}.attention.head_count_kv": "a whole number or whole numbers",
    "{arch}.attention.key_length": "a whole number",
    "{arch}.attention.layer_norm_rms_epsilon": "a number",
    "{arch}.rope.freq_base": "a number",
    "{arch}.rope.scale_linear": "a number",
    "{arch}.rope.scaling.type": "a text of up to 1 MiB",
    "{arch}.rope.scaling.factor": "a number",
    "{arch}.rope.scaling.attn_factor": "a number",
    "{arch}.rope.scaling.original_context_length": "a whole number",
    "{arch}.rope.scaling.yarn_beta_fast": "a number",
    "{arch}.rope.scaling.yarn_beta_slow": "a number",
    "tokenizer.chat_template": "a text of up to 1 MiB",
    "tokenizer.ggml.model": "a text of up to 1 MiB",
    "tokenizer.ggml.pre": "a text of up to 1 MiB",
    "tokenizer.ggml.tokens": "texts",
    "tokenizer.ggml.token_type": "whole numbers",
    "tokenizer.ggml.merges": "texts",
    "tokenizer.ggml.scores": "numbers",
    "tokenizer.ggml.add_space_prefix": "true or false",
    "tokenizer.ggml.unknown_token_id": "a whole number",
    "tokenizer.ggml.bos_token_id": "a whole number",
    "tokenizer.ggml.eos_token_id": "a whole number",
    "tokenizer.ggml.eot_token_id": "a whole number",
    "tokenizer.ggml.eom_token_id": "a whole number",
    "tokenizer.ggml.eos_token_ids": "whole numbers",
    "tokenizer.ggml.add_bos_token": "true or false",
}

_WINDOW_OF = {"{arch}.attention.sliding_window": "a whole number"}
USED_OF = {  # an architecture alone
    "llama": _WINDOW_OF,
    "phi3": {**_WINDOW_OF, "{arch}.rope.dimension_count": "a whole number"},
    "gemma2": {
        **_WINDOW_OF,
        "{arch}.attn_logit_softcapping": "a number",
        "{arch}.final_logit_softcapping": "a number",
    },
    "gemma3": {
        **_WINDOW_OF,
        "{arch}.attention.sliding_window_pattern": "a whole number",
        "{arch}.rope.freq_base_swa": "a number",
        "{arch}.final_logit_softcapping": "a number",
    },
    "granite": {
        "{arch}.embedding_scale": "a number",
        "{arch}.residual_scale": "a number",
        "{arch}.logit_scale": "a number",
        "{arch}.attention.scale": "a number",
    },
}

LONGEST = {  # items of the arrays that are read
    "{arch}.feed_forward_length": 4096,
    "{arch}.attention.head_count": 4096,
    "{arch}.attention.head_count_kv": 4096,
    "general.license": 1024,
    "tokenizer.ggml.tokens": 1 << 19,
    "tokenizer.ggml.token_type": 1 << 19,
    "tokenizer.ggml.merges": 1 << 19,
    "tokenizer.ggml.scores": 1 << 19,
    "tokenizer.ggml.eos_token_ids": 64,
}

HARMLESS = {
    "general.*": "names, origin, licences and advice on sampling",
    "quantize.*": "how the weights were quantized",
    "split.no": "read where there are several parts, and those are refused",
    "split.tensors.count": "read where there are several parts, and those are refused",
    "{arch}.rope.scaling.finetuned": "whether the model was trained with it",
    "{arch}.vocab_size": "the shape of the embedding says it",
    "{arch}.attention.layer_norm_epsilon": "these architectures norm by root mean square, which has its own key",
    "tokenizer.chat_templates": "names of the templates for other purposes",
    "tokenizer.chat_template.*": "templates for other purposes than chat, e.g. tools",
    "tokenizer.huggingface.json": "the same tokenizer, spelt otherwise",
    "tokenizer.ggml.added_tokens": "they are among the tokens, too",
    "tokenizer.ggml.token_type_count": "read for BERT",
    "tokenizer.ggml.remove_extra_whitespaces": "read for SentencePiece's unigrams",
    "tokenizer.ggml.padding_token_id": "texts are not padded",
    "tokenizer.ggml.seperator_token_id": "read for BERT (spelt so in llama.cpp)",
    "tokenizer.ggml.separator_token_id": "read for BERT",
    "tokenizer.ggml.cls_token_id": "read for BERT",
    "tokenizer.ggml.mask_token_id": "read for BERT",
    "tokenizer.ggml.prefix_token_id": "a token for infilling: the text that uses it spells it",
    "tokenizer.ggml.suffix_token_id": "a token for infilling: the text that uses it spells it",
    "tokenizer.ggml.middle_token_id": "a token for infilling: the text that uses it spells it",
    "tokenizer.ggml.fim_*_token_id": "a token for infilling: the text that uses it spells it",
}
OTHERS = ("general.", "quantize.", "split.", "tokenizer.", "adapter.", "xielu.")
"""Keys outside of these and the architecture's own are harmless, e.g. mradermacher.*: no reader of models asks."""


@dataclass(frozen=True)
class Refused:
    """unless: values with which the key changes nothing; a text may name an attribute of ``Dimensions``.

    least: an attribute of ``Dimensions`` from which on it changes nothing either.
    """

    reason: str
    unless: tuple[float | str, ...] = ()
    least: str | None = None


_ADAPTER = Refused("an adapter needs the model that it changes")
_EXPERTS = Refused("a mixture of experts", unless=(0,))
_WINDOW = Refused("attention through a window")
_SCALED = Refused("rotary positions are scaled", unless=(0, 1))
_LAST = Refused("the tokenizer writes no token behind a text", unless=(False,))
_NORMALIZED = Refused("another normalization of text", unless=(False,))

REFUSED = {
    "adapter.*": _ADAPTER,
    "xielu.*": Refused("another activation function"),
    "{arch}.logit_scale": Refused("logits are scaled", unless=(1,)),
    "{arch}.residual_scale": Refused("the outputs of layers are scaled", unless=(1,)),
    "{arch}.embedding_scale": Refused("embeddings are scaled", unless=(1,)),
    "{arch}.embedding_length_out": Refused("another size of embeddings", unless=("embedding",)),
    "{arch}.attn_logit_softcapping": Refused("attention scores are capped", unless=(0,)),
    "{arch}.final_logit_softcapping": Refused("logits are capped", unless=(0,)),
    "{arch}.hidden_activation": Refused("another activation function", unless=("silu",)),
    "{arch}.use_parallel_residual": Refused("attention and feed-forward side by side", unless=(False,)),
    "{arch}.tensor_data_layout": Refused("another order of weights", unless=("Meta AI original pth",)),
    "{arch}.pooling_type": Refused("a model for embeddings", unless=(0,)),
    "{arch}.classifier.output_labels": Refused("a classifier"),
    "{arch}.decoder_start_token_id": Refused("an encoder and a decoder"),
    "{arch}.nextn_predict_layers": Refused("layers that predict several tokens", unless=(0,)),
    "{arch}.expert_count": _EXPERTS,
    "{arch}.expert_used_count": _EXPERTS,
    "{arch}.expert_shared_count": _EXPERTS,
    "{arch}.attention.causal": Refused("attention that sees the future", unless=(True,)),
    "{arch}.attention.scale": Refused("another scale of attention", unless=("usual_attention_scale",)),
    "{arch}.attention.output_scale": Refused("attention's output is scaled", unless=(1,)),
    "{arch}.attention.value_scale": Refused("attention's values are scaled", unless=(1,)),
    "{arch}.attention.temperature_length": Refused("attention's temperature depends on the position"),
    "{arch}.attention.temperature_scale": Refused("attention's temperature depends on the position"),
    "{arch}.attention.clamp_kqv": Refused("queries, keys and values are clamped", unless=(0,)),
    "{arch}.attention.max_alibi_bias": Refused("positions by ALiBi", unless=(0,)),
    "{arch}.attention.sliding_window": Refused(_WINDOW.reason, unless=(0,), least="context"),
    "{arch}.attention.sliding_window_pattern": _WINDOW,
    "{arch}.attention.value_length": Refused("values of another length than keys", unless=("head",)),
    "{arch}.rope.dimension_count": Refused("only a part of each head is rotated", unless=("head",)),
    "{arch}.rope.dimension_sections": Refused("positions of several dimensions"),
    "{arch}.rope.freq_base_swa": _WINDOW,
    "{arch}.rope.scaling.alpha": _SCALED,
    "{arch}.rope.scaling.yarn_attn_factor": _SCALED,
    "{arch}.rope.scaling.yarn_ext_factor": Refused(_SCALED.reason, unless=(0,)),
    "{arch}.rope.scaling.yarn_log_multiplier": Refused(_SCALED.reason, unless=(0,)),
    "tokenizer.rwkv.world": Refused("another tokenizer"),
    "tokenizer.ggml.add_eos_token": _LAST,
    "tokenizer.ggml.add_sep_token": _LAST,
    "tokenizer.ggml.suppress_tokens": Refused("tokens that are never written"),
    "tokenizer.ggml.precompiled_charsmap": Refused("another normalization of text"),
    "tokenizer.ggml.normalizer.lowercase": _NORMALIZED,
    "tokenizer.ggml.normalizer.strip_accents": _NORMALIZED,
}

REFUSED_OF = {  # an architecture alone
    "granite": {"{arch}.rope.scaling.finetuned": Refused("positions are not rotated", unless=(True,))},
}

TENSORS = {  # used: the shape, innermost first, in attributes of ``Dimensions``
    "token_embd.weight": ("embedding", "vocabulary"),
    "output_norm.weight": ("embedding",),
    "blk.{i}.attn_norm.weight": ("embedding",),
    "blk.{i}.attn_q.weight": ("embedding", "queries"),
    "blk.{i}.attn_k.weight": ("embedding", "keys"),
    "blk.{i}.attn_v.weight": ("embedding", "keys"),
    "blk.{i}.attn_output.weight": ("queries", "embedding"),
    "blk.{i}.ffn_norm.weight": ("embedding",),
    "blk.{i}.ffn_gate.weight": ("embedding", "feed_forward"),
    "blk.{i}.ffn_up.weight": ("embedding", "feed_forward"),
    "blk.{i}.ffn_down.weight": ("feed_forward", "embedding"),
}
OPTIONAL_TENSORS = {
    "output.weight": ("embedding", "vocabulary"),
    "rope_freqs.weight": ("frequencies",),
    "rope_factors_short.weight": ("frequencies",),
    "rope_factors_long.weight": ("frequencies",),
    "blk.{i}.attn_q.bias": ("queries",),
    "blk.{i}.attn_k.bias": ("keys",),
    "blk.{i}.attn_v.bias": ("keys",),
    "blk.{i}.attn_output.bias": ("embedding",),
    "blk.{i}.ffn_gate.bias": ("feed_forward",),
    "blk.{i}.ffn_up.bias": ("feed_forward",),
    "blk.{i}.ffn_down.bias": ("embedding",),
}
POST_NORMS = {
    "blk.{i}.post_attention_norm.weight": ("embedding",),
    "blk.{i}.post_ffw_norm.weight": ("embedding",),
}
FUSED = {  # queries, keys and values, or gate and up, one below the other
    "blk.{i}.attn_qkv.weight": ("embedding", "fused_rows"),
    "blk.{i}.ffn_up.weight": ("embedding", "gate_and_up"),
}
IN_FUSED = tuple(f"blk.{{i}}.{part}.weight" for part in ("attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up"))
HEAD_NORMS = {"blk.{i}.attn_q_norm.weight": ("head",), "blk.{i}.attn_k_norm.weight": ("head",)}


def needed_tensors(architecture: Architecture) -> dict[str, tuple[str, ...]]:
    needed = TENSORS | (HEAD_NORMS if architecture.head_norms else {}) | (POST_NORMS if architecture.post_norms else {})
    if architecture.fused:
        needed = {name: shape for name, shape in needed.items() if name not in IN_FUSED} | FUSED
    return needed


REFUSED_TENSORS = {  # the first that matches gives the reason
    "output.bias": "a bias of the logits",
    "*.lora_a": _ADAPTER.reason,
    "*.lora_b": _ADAPTER.reason,
    "*.scale": "weights with a scale of their own",
    "*.input_scale": "weights with a scale of their own",
    "position_embd.*": "learned positions",
    "token_types.*": "a model like BERT",
    "cls*": "a classifier",
    "*nextn*": "layers that predict several tokens",
    "blk.*.post_*norm*": "another norm",
    "blk.*_sub_norm.*": "another norm",
    "blk.*_norm_2.*": "another norm",
    "blk.*.attn_[qk]_norm.*": "norms of queries and keys, as qwen3 and gemma3 have them",
    "*_norm.*": "another norm",
    "blk.*.attn_qkv.*": "queries, keys and values in one, as phi3 has them",
    "blk.*.attn_[qkv].weight": "queries, keys and values are one tensor in phi3",
    "blk.*.ffn_gate.weight": "gate and up are one tensor in phi3",
    "blk.*.attn_sinks.*": "attention sinks",
    "blk.*exp*": "a mixture of experts",
    "blk.*.ffn_gate_inp*": "a mixture of experts",
    "blk.*.ffn_gate.*.weight": "a mixture of experts",
    "blk.*.ssm_*": "a state space model",
}
