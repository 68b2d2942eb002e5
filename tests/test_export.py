"""The exporter: every architecture's IR is the model, a bundle is whole or absent, bad input is one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import edgespec
from edgespec import bundle
from edgespec.commands.export import command
from edgespec.errors import BundleError, ConversionError, IncompatiblePair, SettingError, SourceError

pytest.importorskip("optimum.intel", reason="needs edgespec[export]")

import edgespec_export
from edgespec_export import Request, Weights, export, split_weights, texts
from edgespec_export.sources import resolve
from tests import tiny_gguf, tiny_models

INSTALLED = ("llama", "phi3", "qwen2", "qwen3")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {arch: tiny_models.build(arch, root / arch) for arch in tiny_models.ARCHITECTURES}


@pytest.fixture(scope="session")
def plain(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> bundle.Bundle:
    """A Llama as it is."""
    out = tmp_path_factory.mktemp("plain") / "bundle"
    return bundle.read(export(Request(target=str(models["llama"]), out=out, weights=Weights("f32"))))


@pytest.fixture(scope="session")
def pair(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> bundle.Bundle:
    """A Qwen3 target with a Llama draft: compressed differently, padded differently."""
    root = tmp_path_factory.mktemp("pair")
    draft = tiny_models.build("llama", root / "small", layers=1, hidden=32, vocab_size=448, context_length=256)
    weights = {"weights": Weights("int8"), "draft_weights": Weights("int4", sym=True)}
    out = export(Request(target=str(models["qwen3"]), draft=str(draft), out=root / "bundle", **weights))
    return bundle.read(out)


@pytest.mark.parametrize(
    "arch", [pytest.param(arch, marks=[] if arch in ("llama", "qwen3") else pytest.mark.slow) for arch in INSTALLED]
)
def test_float_ir_is_the_model_and_takes_paged_attention(
    arch: str, models: dict[str, Path], plain: bundle.Bundle, tmp_path: Path
) -> None:
    import openvino as ov
    from openvino._offline_transformations import paged_attention_transformation

    made = plain
    if arch != "llama":
        made = bundle.read(export(Request(target=str(models[arch]), out=tmp_path / "b", weights=Weights("f32"))))
    parity = made.manifest.measured["parity"]["target"]
    assert parity["top1_agreement"] == 1.0
    assert parity["max_logit_difference"] < 1e-3
    assert made.manifest.target.vocab_size == 512

    model = ov.Core().read_model(made.model_path(made.manifest.target))
    assert {p.get_any_name() for p in model.inputs} == {"input_ids", "attention_mask", "position_ids", "beam_idx"}
    assert model.output("logits").partial_shape.to_string() == "[?,?,512]"
    paged_attention_transformation(model, allow_qq_bias=True)
    names = {p.get_any_name() for p in model.inputs}
    assert {"key_cache.0", "key_cache.1", "value_cache.1", "qq_bias", "block_indices"} <= names


@pytest.mark.parametrize("arch", sorted(set(tiny_models.ARCHITECTURES) - set(INSTALLED)))
def test_architecture_for_another_transformers_is_refused_or_exported(
    arch: str, models: dict[str, Path], tmp_path: Path
) -> None:
    # optimum-intel 2.1 exports Gemma with transformers up to 5.0; the extra allows 5.0 and later.
    try:
        export(Request(target=str(models[arch]), out=tmp_path / "b", weights=Weights("f32")))
    except ConversionError as error:
        assert "other versions of transformers" in str(error)
        assert list(tmp_path.iterdir()) == []


def test_a_pair_is_described_completely(pair: bundle.Bundle) -> None:
    manifest = pair.manifest
    (drafter,) = manifest.drafters
    assert drafter.model is not None
    assert (manifest.target.precision, drafter.model.precision) == ("int8", "int4")
    assert (manifest.target.vocab_size, drafter.model.vocab_size) == (512, 448)
    for model in (manifest.target, drafter.model):
        binary = pair.model_path(model).with_suffix(".bin")
        assert (model.weights_bytes, model.sha256) == (binary.stat().st_size, bundle.sha256_of(binary))
    assert pair.hashed(manifest.tokenizer).name == "tokenizer.json"
    assert pair.chat_template() == tiny_models.TEMPLATE
    generation = manifest.generation
    assert (generation.eos_token_ids, generation.context_length, generation.bos_token) == ((1,), 512, "<|bos|>")
    assert set(manifest.provenance.versions) >= {"edgespec", "openvino", "torch", "nncf"}
    command_line = "edgespec export qwen3 --draft small -o bundle --weights int8 --draft-weights int4 --sym"
    assert manifest.provenance.command == command_line
    notes = manifest.provenance.notes or ""
    assert "512 logits and the draft 448" in notes
    assert "group size 32, because 128 does not divide channels of 32, 64" in notes
    assert "context is 256 tokens" in notes
    assert manifest.measured["parity"]["draft"]["weights"]["group_size"] == 32
    assert str(pair.root) not in (pair.root / bundle.MANIFEST).read_text(encoding="utf-8")


@pytest.mark.parametrize(("draft", "drafter"), [(None, "ngram+pool+small"), ("small", "small"), ("ngram", "ngram")])
def test_an_exported_pair_has_the_lookups_too(pair: bundle.Bundle, draft: str | None, drafter: str) -> None:
    """Its bundle names only what has to be loaded."""
    assert [entry.kind for entry in pair.manifest.drafters] == ["small_model"]
    loaded = edgespec.load(pair.root, draft=draft, numerics="fast", num_draft_tokens=2)
    assert loaded.generate([5, 6, 7], max_new_tokens=2).as_dict()["drafter"] == drafter


def test_integer_weights_are_integers(pair: bundle.Bundle) -> None:
    import openvino as ov

    assert pair.manifest.drafters[0].model is not None
    for model, kind in ((pair.manifest.target, "u8"), (pair.manifest.drafters[0].model, "i4")):
        ops = ov.Core().read_model(pair.model_path(model)).get_ops()
        assert kind in {op.get_element_type().to_string() for op in ops if op.get_type_name() == "Constant"}


def test_a_bundle_is_replaced_only_on_request_and_other_folders_never(
    models: dict[str, Path], plain: bundle.Bundle, tmp_path: Path
) -> None:
    request = {"target": str(models["llama"]), "weights": Weights("f16")}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x", encoding="utf-8")
    with pytest.raises(BundleError, match="other files"):
        export(Request(out=tmp_path / "mine", force=True, **request))
    out = shutil.copytree(plain.root, tmp_path / "deep" / "b")
    with pytest.raises(BundleError, match="--force"):
        export(Request(out=out, **request))
    before = (out / bundle.MANIFEST).read_bytes()
    with pytest.raises(IncompatiblePair):
        other = tiny_models.build("llama", tmp_path / "other", tokenizer=_other_tokenizer(tmp_path))
        export(Request(out=out, force=True, draft=str(other), **request))
    assert (out / bundle.MANIFEST).read_bytes() == before
    export(Request(out=out, force=True, target=str(models["llama"]), weights=Weights("int8")))
    assert bundle.read(out).manifest.target.precision == "int8"
    assert [path.name for path in out.parent.iterdir()] == ["b"]


def _other_tokenizer(folder: Path) -> Path:
    return tiny_models.train_tokenizer(folder / "other.json", special=("<|eos|>", "<|bos|>"))


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (lambda f: (f / "config.json").unlink(), SourceError, "no config.json"),
        (lambda f: (f / "model.safetensors").unlink(), SourceError, "no weights"),
        (lambda f: (f / "tokenizer.json").unlink(), ConversionError, "no tokenizer.json"),
        (lambda f: (f / "tokenizer.json").write_text("{}", encoding="utf-8"), ConversionError, "tokenizer.json"),
        (lambda f: _configure(f, model_type="t5", is_encoder_decoder=True), ConversionError, "encoder-decoder"),
        (lambda f: _configure(f, model_type="nonesuch"), ConversionError, "nonesuch"),
        (lambda f: _configure(f, model_type="nemotron"), ConversionError, "no causal LM export"),
        (lambda f: _configure(f, quantization_config={"quant_method": "gptq"}), ConversionError, "already quantised"),
        (lambda f: _configure(f, num_hidden_layers=3), ConversionError, "lacks weights"),
        (lambda f: _configure(f, max_position_embeddings=None), ConversionError, "max_position_embeddings"),
        (lambda f: _configure(f, vocab_size=300), ConversionError, "cannot load source"),
        (lambda f: (f / bundle.IR_FILE).touch(), SourceError, "already an OpenVINO model"),
        (lambda f: (f / "adapter_config.json").touch(), SourceError, "adapter"),
    ],
)
def test_a_bad_source_is_named_and_leaves_nothing(
    change: Callable[[Path], Any], error: type[Exception], says: str, models: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(models["llama"], tmp_path / "source")
    change(folder)
    with pytest.raises(error, match=says):
        export(Request(target=str(folder), out=tmp_path / "b", weights=Weights("f32")))
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def _configure(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


@pytest.mark.parametrize("reference", ["nowhere", "no such/model at all", "missing.gguf", "a/b/c"])
def test_an_unknown_source_is_one_line(reference: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such model"):
        resolve(reference, tmp_path)
    (tmp_path / "x.gguf").write_bytes(b"not one")
    with pytest.raises(ConversionError, match="not a GGUF"):
        resolve(str(tmp_path / "x.gguf"), tmp_path)


def test_a_full_disk_and_a_refused_group_size(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SettingError, match="a divisor of 64, 128"):
        export(Request(target=str(models["llama"]), out=tmp_path / "b", weights=Weights("int4", group_size=256)))
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1))
    with pytest.raises(ConversionError, match="not enough space"):
        export(Request(target=str(models["llama"]), out=tmp_path / "b", weights=Weights("int8")))
    assert list(tmp_path.iterdir()) == []


def test_flags_without_effect_are_refused() -> None:
    none = {"has_draft": False, "group_size": None, "sym": False, "ratio": None}
    assert split_weights("int8", None, **none) == (Weights("int8"), None)
    both = split_weights("f16", "int4", **none | {"has_draft": True, "group_size": 64, "ratio": 0.8, "sym": True})
    assert both == (Weights("f16"), Weights("int4", 64, True, 0.8))
    for kinds, flags in (
        (("int8", "int4"), {}),
        (("int8", None), {"group_size": 64}),
        (("f16", None), {"sym": True}),
        (("int4", None), {"group_size": 48}),
        (("int4", None), {"ratio": 1.5}),
    ):
        with pytest.raises(SettingError):
            split_weights(*kinds, **none | flags)


def test_stdout_is_the_path_alone(models: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "b"
    result = CliRunner().invoke(command, [str(models["llama"]), "-o", str(out), "--weights", "f16"])
    assert result.exit_code == 0
    assert result.stdout == f"{out}\n"
    assert [line.split(": ")[:2] for line in result.stderr.splitlines()] == [
        ["edgespec", "reading llama"],
        *[["edgespec", "target"]] * 3,
    ]
    assert "top-1 agreement" in result.stderr


@pytest.mark.parametrize(
    ("files", "eos", "template", "add_bos"),
    [
        ({"generation_config.json": {"eos_token_id": [1, 3]}}, (1, 3), tiny_models.TEMPLATE, False),
        ({"generation_config.json": {}}, (1,), tiny_models.TEMPLATE, False),
        ({"tokenizer_config.json": {"bos_token": {"content": "<|bos|>"}, "add_bos_token": True}}, (1,), None, True),
        ({"tokenizer_config.json": {"chat_template": [{"name": "default", "template": "T"}]}}, (1,), "T", False),
    ],
)
def test_texts_of_a_folder(
    files: dict[str, Any],
    eos: tuple[int, ...],
    template: str | None,
    add_bos: bool,
    models: dict[str, Path],
    tmp_path: Path,
) -> None:
    folder = shutil.copytree(models["llama"], tmp_path / "source")
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
        if name == "tokenizer_config.json":
            (folder / "chat_template.jinja").unlink(missing_ok=True)
    read = texts.read(resolve(str(folder), tmp_path))
    assert read.generation.eos_token_ids == eos
    assert read.chat_template == template
    assert read.generation.add_bos is add_bos


def test_phi3_stops_where_its_rotary_factors_switch() -> None:
    long = {"max_position_embeddings": 131072, "original_max_position_embeddings": 4096}
    assert texts.context_length_of(long | {"model_type": "phi3"}) == 4096
    assert texts.context_length_of(long | {"model_type": "llama"}) == 131072


def test_a_gguf_file_gives_the_same_model(models: dict[str, Path], plain: bundle.Bundle, tmp_path: Path) -> None:
    file = tiny_models.write_gguf(models["llama"], tmp_path / "llama.gguf")
    made = bundle.read(export(Request(target=str(file), out=tmp_path / "deep" / "b", weights=Weights("f32"))))
    ours, theirs = texts.read(resolve(str(file), tmp_path)), texts.read(resolve(str(models["llama"]), tmp_path))
    for text in tiny_models.CORPUS:
        assert ours.tokenizer.encode(text).ids == theirs.tokenizer.encode(text).ids
    assert made.manifest.generation == theirs.generation
    assert made.chat_template() == tiny_models.TEMPLATE
    assert made.manifest.provenance.licence == "mit"
    assert made.manifest.provenance.source == "llama.gguf"
    parity = [each.manifest.measured["parity"]["target"]["nll_ir"] for each in (made, plain)]
    assert parity[0] == pytest.approx(parity[1], abs=1e-4)


def test_a_gguf_file_that_transformers_does_not_read_is_refused(tmp_path: Path) -> None:
    """Of an architecture that is converted without it."""
    file = tiny_gguf.write(tmp_path / "granite.gguf", arch="granite", extra={"granite.logit_scale": 2.0})
    said = (
        r"does not read granite\.gguf; got architecture granite; allowed: llama, qwen2, qwen3\. Use the file as it is"
    )
    with pytest.raises(ConversionError, match=said):
        resolve(str(file), tmp_path)


def test_a_gguf_file_that_transformers_reads_in_part_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    more = {"rope_freqs.weight": np.ones(8, np.float32)}
    file = tiny_models.write_gguf(models["llama"], tmp_path / "llama.gguf", more)
    with pytest.raises(ConversionError, match=r"transformers leaves out rope_freqs\.weight of llama\.gguf"):
        resolve(str(file), tmp_path)


def test_a_model_that_is_none_is_told_before_a_package_that_is_missing(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edgespec_export, "find_spec", lambda name: None)
    real = str(models["llama"])
    for target, draft in (("nope", None), (str(tmp_path), None), (real, "nope")):
        with pytest.raises(SourceError, match="no such model|no config.json"):
            export(Request(target=target, draft=draft, out=tmp_path / "out", weights=Weights("f32")))
    for target in (real, "org/unknown", "default"):
        with pytest.raises(ConversionError, match="not installed: torch, transformers, optimum.intel, nncf"):
            export(Request(target=target, out=tmp_path / "out", weights=Weights("f32")))
