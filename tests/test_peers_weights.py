"""The same weights for every peer: named files, and the default pair converted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edgespec import bundle
from edgespec.backends.openvino.settings import FULL_PRECISION
from edgespec.errors import SettingError
from edgespec.hub.catalog import default_folder
from edgespec_bench.peers.convert_worker import NEVER, maps, whole_vocabulary
from edgespec_bench.peers.entries import choose
from edgespec_bench.peers.process import start
from edgespec_bench.peers.weights import Sources, prepare


def test_the_named_sources_are_used_as_they_are(tmp_path: Path) -> None:
    files = {"gguf": tmp_path / "m.gguf", "gguf_draft": tmp_path / "d.gguf"}
    with pytest.raises(SettingError, match="--gguf"):
        Sources(**files)
    for file in files.values():
        file.write_bytes(b"GGUF")
    with pytest.raises(SettingError, match="--hf-draft"):
        Sources(**files, hf_draft=tmp_path)
    found = prepare("default", None, ["gguf_draft"], Sources(**files), rows=512, tell=print)
    assert found.gguf_draft == str(files["gguf_draft"]) and found.onnx is None
    assert "--gguf-draft FILE" in prepare("default", None, ["gguf_draft"], rows=512, tell=print).missing["gguf_draft"]


def test_other_weights_in_a_named_folder_are_converted_anew(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"1")
    first = Sources(hf=tmp_path).identity
    weights.write_bytes(b"22")
    assert Sources().identity != first != Sources(hf=tmp_path).identity


def test_a_draft_with_its_own_vocabulary_gets_the_targets(tmp_path: Path) -> None:
    import openvino as ov

    folder = default_folder()
    manifest = bundle.read(folder).manifest
    entry = manifest.drafters[0]
    assert entry.model is not None and entry.model.file is not None and entry.id_map is not None
    id_map, unknown, size = np.load(folder / entry.id_map), entry.unknown, manifest.target.vocab_size
    assert unknown is not None
    reads, columns = maps(id_map, unknown, size)
    whole_vocabulary(folder / entry.model.file, reads, columns, tmp_path / "openvino_model.xml")

    def logits(path: Path, ids: list[int]) -> NDArray[np.float32]:
        request = ov.Core().compile_model(path, "CPU", FULL_PRECISION).create_infer_request()
        n = len(ids)
        inputs = {
            "input_ids": np.array([ids], np.int64),
            "attention_mask": np.ones((1, n), np.int64),
            "position_ids": np.arange(n)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        return np.array(request.infer(inputs)["logits"])[0]

    absent = next(token for token in range(size) if token not in id_map)
    peer_logits = logits(tmp_path / "openvino_model.xml", [int(id_map[11]), int(id_map[8000]), absent])
    own_logits = logits(folder / entry.model.file, [11, 8000, unknown])
    assert peer_logits.shape == (3, size) and own_logits.shape == (3, len(id_map))
    known = id_map >= 0
    assert np.array_equal(peer_logits[:, id_map[known]], own_logits[:, known])
    assert (np.delete(peer_logits, id_map[known], axis=1) == NEVER).all() and own_logits.min() > NEVER


@pytest.mark.slow
def test_openvino_genai_answers_with_the_tokens_of_its_own_plain_decoding() -> None:
    """Its draft, with the vocabulary that it was given here, has its tokens accepted."""
    pytest.importorskip("openvino_genai")
    pytest.importorskip("transformers")
    weight_formats = prepare("default", None, ("ir", "draft_ir"), rows=512, tell=print)
    assert not weight_formats.missing
    prompt = list(range(1000, 1016))
    answers = {}
    for runtime in choose("openvino-genai")[2:]:
        process = start(runtime)
        try:
            process.load(weight_formats, runtime.mode, 2, None)
            answers[runtime.mode] = process.generate(prompt, 12)
        finally:
            process.close()
    assert all(0 < answer.ttft_s < answer.total_s for answer in answers.values())
    assert answers["plain"].forwards == 11 and answers["plain"].proposed is None
    drafted = answers["draft_model"]
    assert drafted.proposed and drafted.forwards and drafted.forwards <= 11


@pytest.mark.slow  # transformers
def test_a_draft_with_merged_products_becomes_the_same_torch_model(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from safetensors.numpy import load_file

    from edgespec.backends.openvino.merge_matmuls import merge_products
    from edgespec.backends.openvino.runtime import ov
    from edgespec.hub import catalog
    from edgespec_bench.peers.convert_worker import torch_draft

    shape = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2} | shape
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    xml = catalog.default_folder() / "draft" / "openvino_model.xml"
    model = ov.Core().read_model(xml)
    assert merge_products(model) == 6
    ov.serialize(model, tmp_path / "merged.xml")
    states = []
    for number, source in enumerate((xml, tmp_path / "merged.xml")):
        torch_draft(source, tmp_path / "target", tmp_path / str(number))
        states.append(load_file(tmp_path / str(number) / "model.safetensors"))
    assert states[0].keys() == states[1].keys()
    assert all(np.array_equal(states[0][name], states[1][name]) for name in states[0])
