"""Ready ONNX folders of a tiny Llama, with the graphs of onnxruntime-genai's model builder and of optimum.

    write(build("llama", tmp / "torch"), tmp / "onnx", "genai")

Both in float32, so their logits are those of transformers. What each graph has that the other has not is how keys and
values are handed on: "genai" has GroupQueryAttention, "optimum" has attention in plain operators.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np


class _Graph:
    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, name: str, array: Any) -> str:
        from onnx import numpy_helper

        self.constants.append(numpy_helper.from_array(np.array(array, order="C"), name))
        return name

    def add(self, kind: str, *inputs: str, out: list[str] | None = None, domain: str = "", **options: Any) -> str:
        from onnx import helper

        out = out or [f"{kind}.{len(self.nodes)}"]
        self.nodes.append(helper.make_node(kind, list(inputs), out, domain=domain, **options))
        return out[0]


def write(torch: Path, folder: Path, kind: str) -> Path:
    """torch: a Llama that ``tiny_models.build`` made. Returns the folder, with all the files that the tool writes."""
    import onnx
    from onnx import TensorProto, helper
    from safetensors.numpy import load_file

    config = json.loads((torch / "config.json").read_text(encoding="utf-8"))
    weights = load_file(torch / "model.safetensors")
    heads, kv_heads, hidden = (config[key] for key in ("num_attention_heads", "num_key_value_heads", "hidden_size"))
    size, longest = hidden // heads, config["max_position_embeddings"]
    graph = _Graph()
    for name, value in {"one": [1], "shape.heads": [0, 0, -1, size], "shape.flat": [0, 0, hidden]}.items():
        graph.constant(name, np.array(value, np.int64))
    graph.constant("second", np.array(1, np.int64))
    theta = config["rope_parameters"]["rope_theta"]
    angles = np.outer(np.arange(longest), theta ** (-np.arange(0, size, 2) / size))
    graph.constant("cos", np.cos(angles).astype(np.float32))
    graph.constant("sin", np.sin(angles).astype(np.float32))
    total = graph.add("Gather", graph.add("Shape", "attention_mask"), "second", axis=0)
    if kind == "genai":
        last = graph.add("Sub", graph.add("ReduceSum", "attention_mask", "one", keepdims=0), "one")
        lengths = graph.add("Cast", last, to=6), graph.add("Cast", total, to=6)
    else:
        for name, number in {"zero": 0, "step": 1}.items():
            graph.constant(name, np.array(number, np.int64))
        graph.constant("minus", np.array(-1e9, np.float32))
        graph.constant("nothing", np.array(0, np.float32))
        graph.constant("scale", np.array(size**-0.5, np.float32))
        graph.constant("last axis", np.array([2], np.int64))
        graph.constant("groups", np.array([1, kv_heads, heads // kv_heads, 1, size], np.int64))
        graph.constant("shape.grouped", np.array([1, heads, -1, size], np.int64))
        own = graph.add("Unsqueeze", "position_ids", "last axis")
        seen = graph.add("LessOrEqual", graph.add("Range", "zero", total, "step"), own)
        mask = graph.add("Unsqueeze", graph.add("Where", seen, "nothing", "minus"), "one")
    cos_sin = ("cos", "sin")

    def norm(x: str, name: str) -> str:
        epsilon = config["rms_norm_eps"]
        scale = graph.constant(name, weights[name])
        return graph.add("SimplifiedLayerNormalization", x, scale, axis=-1, epsilon=epsilon, stash_type=1)

    def product(x: str, name: str) -> str:
        key = f"{name}.weight" if f"{name}.weight" in weights else "model.embed_tokens.weight"
        return graph.add("MatMul", x, graph.constant(name, weights[key].T))

    def plain(parts: list[str], layer: int) -> str:
        of_head = [graph.add("Transpose", graph.add("Reshape", x, "shape.heads"), perm=[0, 2, 1, 3]) for x in parts]
        for index in range(2):
            turned = of_head[index], "position_ids", *cos_sin
            of_head[index] = graph.add("RotaryEmbedding", *turned, domain="com.microsoft")
        grown = []
        for part, new in zip(("key", "value"), of_head[1:], strict=True):
            present = [f"present.{layer}.{part}"]
            rows = graph.add("Concat", f"past_key_values.{layer}.{part}", new, out=present, axis=-2)
            five = graph.add("Unsqueeze", rows, "last axis")
            shape = graph.add("Concat", "repeat", graph.add("Unsqueeze", total, "axis 0"), "size", axis=0)
            grown.append(graph.add("Reshape", graph.add("Expand", five, shape), "shape.grouped"))
        scores = graph.add("MatMul", of_head[0], graph.add("Transpose", grown[0], perm=[0, 1, 3, 2]))
        scores = graph.add("Add", graph.add("Mul", scores, "scale"), mask)
        mixed = graph.add("MatMul", graph.add("Softmax", scores, axis=-1), grown[1])
        return graph.add("Reshape", graph.add("Transpose", mixed, perm=[0, 2, 1, 3]), "shape.flat")

    def grouped(parts: list[str], layer: int) -> str:
        names = [f"{when}.{layer}.{part}" for when in ("past_key_values", "present") for part in ("key", "value")]
        options = {"num_heads": heads, "kv_num_heads": kv_heads, "do_rotary": 1, "scale": size**-0.5}
        out = [f"attention.{layer}", *names[2:]]
        given = (*parts, *names[:2], *lengths, *cos_sin)
        return graph.add("GroupQueryAttention", *given, out=out, domain="com.microsoft", **options)

    if kind != "genai":
        for name, value in {"repeat": [1, kv_heads, heads // kv_heads], "size": [size], "axis 0": [0]}.items():
            graph.constant(name, np.array(value, np.int64))
    x = graph.add("Gather", graph.constant("table", weights["model.embed_tokens.weight"]), "input_ids", axis=0)
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        y = norm(x, f"{at}.input_layernorm.weight")
        parts = [product(y, f"{at}.self_attn.{part}_proj") for part in "qkv"]
        y = (grouped if kind == "genai" else plain)(parts, layer)
        x = graph.add("Add", x, product(y, f"{at}.self_attn.o_proj"))
        y = norm(x, f"{at}.post_attention_layernorm.weight")
        gate = product(y, f"{at}.mlp.gate_proj")
        gate = graph.add("Mul", gate, graph.add("Sigmoid", gate))
        y = graph.add("Mul", gate, product(y, f"{at}.mlp.up_proj"))
        x = graph.add("Add", x, product(y, f"{at}.mlp.down_proj"))
    head = product(norm(x, "model.norm.weight"), "lm_head")
    graph.add("Identity", head, out=["logits"])

    def port(name: str, type_: int, *shape: Any) -> Any:
        return helper.make_tensor_value_info(name, type_, shape)

    floats, ids = TensorProto.FLOAT, TensorProto.INT64
    kv = [f"{layer}.{part}" for layer in range(config["num_hidden_layers"]) for part in ("key", "value")]
    inputs = [port("input_ids", ids, 1, "n"), port("attention_mask", ids, 1, "total")]
    inputs += [port("position_ids", ids, 1, "n")] if kind != "genai" else []
    # genai's builder does not say how large a head is
    sizes = (1, kv_heads, "past", "kv_cache_dim" if kind == "genai" else size)
    inputs += [port(f"past_key_values.{name}", floats, *sizes) for name in kv]
    outputs = [port("logits", floats, 1, "n", config["vocab_size"])]
    outputs += [port(f"present.{name}", floats, 1, kv_heads, "total", sizes[3]) for name in kv]
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    made = helper.make_graph(graph.nodes, "tiny", inputs, outputs, graph.constants)
    model = helper.make_model(made, opset_imports=opsets, ir_version=10)
    folder.mkdir(parents=True)
    place = {"save_as_external_data": True, "location": "model.onnx.data", "size_threshold": 1024}
    onnx.save_model(model, str(folder / "model.onnx"), **place if kind == "genai" else {})
    texts = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
    for name in texts if kind == "genai" else [*texts, "config.json", "generation_config.json"]:
        shutil.copyfile(torch / name, folder / name)
    if kind == "genai":
        decoder = {"filename": "model.onnx", "head_size": size, "session_options": {"provider_options": []}}
        described = {
            "context_length": longest,
            "decoder": decoder,
            "eos_token_id": 1,
            "vocab_size": config["vocab_size"],
        }
        (folder / "genai_config.json").write_text(json.dumps({"model": described}), encoding="utf-8")
    return folder
