"""Convert the weights to one format, in a process of its own: torch's memory and a peer's crash stay there.

python -m edgespec_bench.peers.convert_worker STEP ARGUMENT...
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgespec import telemetry

NEVER = -1e4
"""logit of a token that a draft does not have"""


def tokenizers(tokenizer: Path, folder: Path) -> None:
    """Write openvino_tokenizer.xml and openvino_detokenizer.xml. openvino-genai needs them even for input of ids."""
    import openvino
    from openvino_tokenizers import convert_tokenizer
    from transformers import PreTrainedTokenizerFast

    make: Any = PreTrainedTokenizerFast
    fast = make(tokenizer_file=str(tokenizer))
    there, back = convert_tokenizer(fast, with_detokenizer=True)
    openvino.save_model(there, folder / "openvino_tokenizer.xml")
    openvino.save_model(back, folder / "openvino_detokenizer.xml")


def maps(
    id_map: NDArray[np.int32], unknown: int | None, vocab_size: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Two maps for a draft with its own vocabulary, each ``(vocab_size,)`` and indexed by target id.

    The first holds the id that the draft reads, the second the column of its logit. A token without a logit gets the
    column after the last. unknown: the id for tokens that the draft lacks; None if it reads the target's ids.

    >>> maps(np.array([3, 0, -1], np.int32), 2, 5)
    (array([1, 2, 2, 0, 2]), array([1, 3, 3, 0, 3]))
    """
    known = np.flatnonzero(id_map >= 0)
    columns = np.full(vocab_size, len(id_map), np.int64)
    columns[id_map[known]] = known
    if unknown is None:
        return np.arange(vocab_size, dtype=np.int64), columns
    reads = np.full(vocab_size, unknown, np.int64)
    reads[id_map[known]] = known
    return reads, columns


def whole_vocabulary(xml: Path, reads: NDArray[np.int64], columns: NDArray[np.int64], out: Path) -> None:
    """Write the draft with the target's vocabulary: a Gather before the embedding, another after the head.

    The head gets no rows, so it costs the same. The missing logits are NEVER.
    """
    from edgespec.backends.openvino.runtime import ops, ov

    model = ov.Core().read_model(xml)
    ids = model.input("input_ids")
    readers = [port for port in ids.get_target_inputs() if port.get_node().get_type_name() != "ShapeOf"]
    gathered = ops.gather(ops.constant(reads), ids, ops.constant(0, np.int64))
    for port in readers:
        port.replace_source_output(gathered.output(0))
    result = model.output("logits").get_node()
    head = result.input_value(0)
    rows = ops.slice(ops.shape_of(head), ops.constant([0]), ops.constant([2]), ops.constant([1]))  # (2,): batch, rows
    never = ops.broadcast(ops.constant(np.float32(NEVER)), ops.concat([rows, ops.constant(np.array([1]))], 0))
    whole = ops.gather(ops.concat([head, never], -1), ops.constant(columns), ops.constant(-1, np.int64))
    head.get_tensor().set_names(set())
    result.input(0).replace_source_output(whole.output(0))
    whole.output(0).get_tensor().set_names({"logits"})
    model.validate_nodes_and_infer_types()
    ov.save_model(model, out, compress_to_fp16=False)


def torch_model(gguf: Path, folder: Path) -> None:
    """Write the weights of a GGUF file as a transformers model in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    auto: Any = AutoModelForCausalLM
    model = auto.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
    model.save_pretrained(str(folder))


def parts(name: str, rows: Any, config: Any) -> list[Any]:
    """Undo ``edgespec.backends.openvino.merge_matmuls``: split a merged weight.

    name: the names of the single weights, joined by +.
    """
    names = name.split("+")
    if len(names) == 1:
        return [rows]
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    known = {
        "q_proj": config.num_attention_heads * head,
        "k_proj": config.num_key_value_heads * head,
        "v_proj": config.num_key_value_heads * head,
        "gate_proj": config.intermediate_size,
        "up_proj": config.intermediate_size,
    }
    return list(rows.split([known[own.split(".")[-2]] for own in names]))


def _each(names: str, end: str) -> str:
    return "+".join(name + end for name in names.split("+"))


def torch_draft(xml: Path, target: Path, folder: Path) -> None:
    """Write the weights of a draft's IR, as optimum-intel and nncf save it, as a transformers model."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from edgespec.backends.openvino.runtime import ov

    values: dict[str, NDArray[np.float32]] = {}
    for node in ov.Core().read_model(xml).get_ordered_ops():
        if node.get_type_name() != "Constant":
            continue
        name = node.get_friendly_name()
        if name.startswith("self.") and name.endswith(("weight", "zero_point", "scale")):
            values[name.removeprefix("self.").replace("+self.", "+")] = node.data.astype(np.float32)
        elif node.get_output_size() == 1 and tuple(node.get_output_shape(0)[:2]) == (1, 1) and node.data.size > 1:
            # The weight of a norm, ``(1, 1, d)``: only its multiplication has a name.
            user = next(iter(node.output(0).get_target_inputs())).get_node().get_friendly_name()
            if "norm/" in user:
                values[f"{user.split('/')[0].removeprefix('__module.')}.weight"] = node.data.astype(np.float32).reshape(
                    -1
                )
    whole = {
        name: torch.from_numpy(
            (value - values.get(_each(name, "/zero_point"), 0)) * values.get(_each(name, "/scale"), 1)
        )
        for name, value in values.items()
        if name.endswith("weight")
    }
    config = AutoConfig.from_pretrained(str(target))
    state = {
        own: rows
        for name, weight in whole.items()
        for own, rows in zip(name.split("+"), parts(name, weight, config), strict=True)
    }
    config.vocab_size = len(state["model.embed_tokens.weight"])
    config.num_hidden_layers = sum(name.endswith("q_proj.weight") for name in state)
    config.tie_word_embeddings = "lm_head.weight" not in state
    config.bos_token_id = config.eos_token_id = config.pad_token_id = 0  # unused: the target's ids count
    auto: Any = AutoModelForCausalLM
    model = auto.from_config(config, dtype=torch.float32)
    lacking = model.load_state_dict(state, strict=False)
    if lacking.unexpected_keys or set(lacking.missing_keys) - {"lm_head.weight"}:
        raise SystemExit(
            f"not the weights of this architecture: {[*lacking.missing_keys, *lacking.unexpected_keys][:3]}"
        )
    model.save_pretrained(str(folder))


def onnx_model(torch_folder: Path, bits: str, folder: Path) -> None:
    """Run onnxruntime-genai's model builder by its command line, since no function takes all its options."""
    import runpy
    import shutil

    cache = folder / "cache"
    sys.argv = ["builder", "-i", str(torch_folder), "-o", str(folder), "-p", bits, "-e", "cpu", "-c", str(cache)]
    runpy.run_module("onnxruntime_genai.models.builder", run_name="__main__")
    shutil.rmtree(cache, ignore_errors=True)


def onnx_pair(target: Path, draft: Path, reads: NDArray[np.int64], columns: NDArray[np.int64], folder: Path) -> None:
    """Write a folder of onnxruntime-genai with both models. The draft's graph gets the target's vocabulary."""
    import shutil

    import onnx
    from onnx import helper, numpy_helper

    for file in target.iterdir():
        shutil.copyfile(file, folder / file.name)
    model = onnx.load(str(draft / "model.onnx"), load_external_data=False)
    graph = model.graph
    head = next(output for output in graph.output if output.name == "logits")
    for node in graph.node:
        for names, old, new in ((node.input, "input_ids", "read_ids"), (node.output, "logits", "own_logits")):
            for index, name in enumerate(names):
                if name == old:
                    names[index] = new
    graph.initializer.extend(
        numpy_helper.from_array(array, name)
        for name, array in (
            ("reads", reads),
            ("columns", columns),
            ("never_pads", np.array([0, 0, 0, 0, 0, 1], np.int64)),
            ("never", np.array(NEVER, np.float32)),
        )
    )
    graph.node.insert(0, helper.make_node("Gather", ["reads", "input_ids"], ["read_ids"], "read"))
    graph.node.append(helper.make_node("Pad", ["own_logits", "never_pads", "never"], ["padded_logits"], "pad"))
    graph.node.append(helper.make_node("Gather", ["padded_logits", "columns"], ["logits"], "spread", axis=2))
    head.type.tensor_type.shape.dim[2].dim_value = len(columns)
    onnx.save(model, str(folder / "draft.onnx"))
    shutil.copyfile(draft / "model.onnx.data", folder / "model.onnx.draft")
    shutil.move(folder / "model.onnx.draft", folder / "draft.data")
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "draft.data"
    onnx.save(model, str(folder / "draft.onnx"))
    config = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))
    small = json.loads((draft / "genai_config.json").read_text(encoding="utf-8"))
    config["model"]["draft"] = small["model"]["decoder"] | {"filename": "draft.onnx"}
    (folder / "genai_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")


def _load_maps(file: Path) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    reads, columns = np.load(file, allow_pickle=False)
    return reads, columns


def main(step: str, *arguments: str) -> None:
    paths = [Path(argument) for argument in arguments]
    telemetry.hide_openvino_telemetry()
    steps: dict[str, Callable[[], None]] = {
        "tokenizers": lambda: tokenizers(paths[0], paths[1]),
        "whole_vocabulary": lambda: whole_vocabulary(paths[0], *_load_maps(paths[1]), paths[2]),
        "torch_model": lambda: torch_model(paths[0], paths[1]),
        "torch_draft": lambda: torch_draft(paths[0], paths[1], paths[2]),
        "onnx_model": lambda: onnx_model(paths[0], arguments[1], paths[2]),
        "onnx_pair": lambda: onnx_pair(paths[0], paths[1], *_load_maps(paths[2]), paths[3]),
    }
    steps[step]()


if __name__ == "__main__":
    main(*sys.argv[1:])
