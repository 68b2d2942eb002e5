"""Bundles with ONNX forms: nothing is made at the first run, weights are there once, strangers' forms are checked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

import edgespec
from edgespec import bundle, cache
from edgespec.backends.onnx import form
from edgespec.cli import cli
from edgespec.errors import BackendError, BundleError, ConversionError, EdgespecError, IntegrityError, SettingError
from edgespec.types import Needs
from edgespec_export import Request, Weights, export
from edgespec_export.settings import Format

PROMPT = [(7 * i + i * i) % 200 + 5 for i in range(20)]


@pytest.fixture(scope="module")
def openvino(tiny_int4_ir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target that drafts for itself."""
    folder = tmp_path_factory.mktemp("bundles") / "openvino"
    described = bundle.read(tiny_int4_ir.parent)
    for role in ("target", "draft"):
        (folder / role).mkdir(parents=True)
        for name in ("openvino_model.xml", "openvino_model.bin"):
            shutil.copyfile(tiny_int4_ir.parent / name, folder / role / name)
    shutil.copyfile(tiny_int4_ir.parent / "tokenizer.json", folder / "tokenizer.json")
    size = described.manifest.target.vocab_size
    models = {
        role: bundle.model_file(folder, f"{role}/openvino_model.xml", precision="int4", vocab_size=size)
        for role in ("target", "draft")
    }
    drafter = bundle.Drafter(name="itself", kind="small_model", model=models["draft"])
    manifest = msgspec.structs.replace(
        described.manifest, name="tiny", target=models["target"], drafters=(drafter,), chat_template=None
    )
    bundle.write(folder, manifest)
    return folder


def made(openvino: Path, out: Path, output: Format) -> Path:
    said: list[str] = []
    request = Request(target=str(openvino), out=out, weights=Weights(), format=output)
    assert export(request, said.append) == out
    assert any("target: writing the ONNX form, at most" in line for line in said)
    return out


@pytest.fixture(scope="module")
def both(openvino: Path) -> Path:
    return made(openvino, openvino.with_name("both"), "both")


@pytest.fixture(scope="module")
def onnx_alone(openvino: Path) -> Path:
    return made(openvino, openvino.with_name("onnx"), "onnx")


@pytest.fixture(autouse=True)
def no_form_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """An empty cache; the list of IRs that a form was written of."""
    monkeypatch.setenv("EDGESPEC_CACHE", str(tmp_path / "cache"))
    written: list[Path] = []
    write = form.write_form

    def recording(xml: Path, *given: Any, **options: Any) -> None:
        written.append(xml)
        write(xml, *given, **options)

    monkeypatch.setattr(form, "write_form", recording)
    return written


def tokens(folder: Path, **options: Any) -> list[int]:
    pipeline = edgespec.load(folder, num_draft_tokens=3, **options)
    assert pipeline.target.capabilities.backend == options.get("backend", "onnxruntime")
    found = pipeline.generate(PROMPT, max_new_tokens=24, ignore_eos=True)
    assert found.stats.accepted > 0, "it drafts for itself"
    return found.token_ids


def test_forms_in_a_bundle_run_as_they_are(
    openvino: Path, both: Path, onnx_alone: Path, no_form_is_made: list[Path]
) -> None:
    expected = tokens(openvino, backend="onnxruntime")
    assert len(no_form_is_made) == 1, "without a form in the bundle it is made; its draft is of the same contents"
    no_form_is_made.clear()
    shutil.rmtree(cache.cache_dir() / "onnx")
    assert tokens(both, backend="onnxruntime") == tokens(onnx_alone) == expected
    assert not no_form_is_made and not (cache.cache_dir() / "onnx").exists()


def test_a_form_in_a_bundle_returns_hidden_states_as_it_is(
    openvino: Path, both: Path, onnx_alone: Path, no_form_is_made: list[Path]
) -> None:
    states = []
    for folder in (openvino, both, onnx_alone):
        files = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
        made = edgespec.load(folder, draft="none", num_draft_tokens=0, needs=Needs((1, 2)), backend="onnxruntime")
        states.append({layer: found.copy() for layer, found in made.target.forward(PROMPT).hidden.items()})
        assert files == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}, "nothing is written beside it"
    assert len(no_form_is_made) == 1 and states[0].keys() == {1, 2}
    for others in states[1:]:
        assert all(np.array_equal(others[layer], found) for layer, found in states[0].items())


def test_a_bundle_with_both_runs_on_openvino(openvino: Path, both: Path) -> None:
    assert tokens(both, backend="openvino") == tokens(openvino, backend="openvino")


def test_a_bundle_with_onnx_alone_says_what_to_do_for_openvino(onnx_alone: Path) -> None:
    assert not list(onnx_alone.rglob("openvino_model.*"))
    with pytest.raises(SettingError, match=r"runs on ONNX Runtime only.*again with --format both"):
        edgespec.load(onnx_alone, backend="openvino")


def test_the_manifest_names_both_forms_with_hashes(both: Path, onnx_alone: Path) -> None:
    for folder in (both, onnx_alone):
        found = bundle.read(folder)
        found.check()
        for model in found.manifest.models:
            assert model.onnx is not None and model.onnx.version == cache.VERSIONS["onnx_form"]
            here = (folder / model.onnx.file).parent
            hashed = {entry.file for entry in model.onnx.files} | ({model.file} if model.file else set())
            there = {path.relative_to(folder).as_posix() for path in here.iterdir()}
            assert there - hashed <= {f"{here.name}/openvino_model.bin"}, "the hash of which is the IR's"
            for entry in model.onnx.files:
                assert bundle.sha256_of(folder / entry.file) == entry.sha256


def test_codes_are_there_once(openvino: Path, both: Path, onnx_alone: Path) -> None:
    in_ir, more, alone = (
        (folder / "target" / name).stat().st_size
        for folder, name in (
            (openvino, "openvino_model.bin"),
            (both, "model.onnx.data"),
            (onnx_alone, "model.onnx.data"),
        )
    )
    assert more < alone / 2
    import onnx

    graph = onnx.load(str(both / "target" / "model.onnx"), load_external_data=False).graph
    places = [{entry.key: entry.value for entry in tensor.external_data} for tensor in graph.initializer]
    shared = sum(int(place["length"]) for place in places if place.get("location") == "openvino_model.bin")
    assert shared > in_ir / 2 and shared + more >= alone


def test_a_form_of_another_version_is_made_again_and_said(
    both: Path, onnx_alone: Path, no_form_is_made: list[Path], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    now = cache.VERSIONS["onnx_form"]
    for version, way_out in ((now + 1, "export the model again"), (now - 1, "upgrade edgespec")):
        no_form_is_made.clear()
        monkeypatch.setitem(cache.VERSIONS, "onnx_form", version)
        edgespec.load(both, draft="none", backend="onnxruntime", progress=True)
        assert no_form_is_made == [both / "target" / "openvino_model.xml"]
        assert f"version {now}, not {version}. Another one is made in the cache" in capsys.readouterr().err
        with pytest.raises(BundleError, match=f"got {now}; allowed: {version}. (?i:{way_out})"):
            edgespec.load(onnx_alone, draft="none")


def test_changed_files_are_noticed(both: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(both, tmp_path / "copy"))
    for name in ("model.onnx", "model.onnx.data", "rotary.npz", "rotary.xml", "openvino_model.bin"):
        path = folder / "target" / name
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        with pytest.raises(IntegrityError, match=name):
            edgespec.load(folder, draft="none", backend="onnxruntime")
        data[len(data) // 2] ^= 1
        path.write_bytes(data)


# --- what a stranger may have put into a bundle


def attention(model: Any) -> Any:
    return next(node for node in model.graph.node if node.op_type == "GroupQueryAttention")


def place(model: Any, key: str, value: str) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.external_data)
    for entry in tensor.external_data:
        entry.value = value if entry.key == key else entry.value


def own_tables(model: Any) -> None:
    attention(model).input[7] = "past_key_values.0.key"


def swapped(model: Any) -> None:
    node = attention(model)
    node.output[1], node.output[2] = node.output[2], node.output[1]


def own_length(model: Any) -> None:
    attention(model).input[6] = "seqlens_k"


def packed_zeros(model: Any) -> None:
    """Zero points in floating point, but as few as bytes that hold two each."""
    product = next(node for node in model.graph.node if node.op_type == "MatMulNBits")
    sizes = {option.name: option.i for option in product.attribute}
    packed = sizes["N"] * -(-sizes["K"] // sizes["block_size"] * sizes["bits"] // 8)
    zeros = model.graph.initializer.add(name="zeros", dims=[packed], data_type=1)
    zeros.float_data.extend([0.0] * packed)
    del product.input[3:]
    product.input.append("zeros")


def varying_logits(model: Any) -> None:
    logits = next(port for port in model.graph.output if port.name == "logits")
    logits.type.tensor_type.shape.dim[2].dim_param = "many"


def more_input(model: Any) -> None:
    model.graph.input.add().CopyFrom(model.graph.input[0])
    model.graph.input[-1].name = "more"


CHANGES: dict[str, tuple[Callable[[Any], object], str]] = {
    "another file": (lambda model: place(model, "location", "../tokenizer.json"), "weights in the file"),
    "past the end": (lambda model: place(model, "offset", "900000000"), "cut short"),
    "an operator": (lambda model: setattr(model.graph.node[0], "op_type", "Unique"), "operator Unique"),
    "keys for values": (swapped, "does not hand on"),
    "tables": (own_tables, "rotary tables|something else than one attention"),
    "a length": (own_length, "goes by another length"),
    "an input": (more_input, "goes in or out.*more"),
    "heads": (lambda model: [setattr(a, "i", 9) for a in attention(model).attribute if a.name == "kv_num_heads"],
              "other heads"),
    "zero points": (packed_zeros, "of another size or type"),
    "logits": (varying_logits, "how many logits"),
    "a type": (lambda model: setattr(model.graph.input[-1].type.tensor_type, "elem_type", 10), "FLOAT16"),
}  # fmt: skip


def rehashed(folder: Path) -> None:
    """A stranger's hashes are right, whatever they put there."""
    manifest = json.loads((folder / "bundle.json").read_bytes())
    file = manifest["target"]["onnx"]["file"]
    manifest["target"]["onnx"] = msgspec.to_builtins(bundle.onnx_form(folder, file))
    (folder / "bundle.json").write_text(json.dumps(manifest), encoding="utf-8")


@pytest.mark.parametrize("name", CHANGES)
def test_a_form_that_edgespec_did_not_write_is_refused(both: Path, tmp_path: Path, name: str) -> None:
    import onnx

    change, error = CHANGES[name]
    folder = Path(shutil.copytree(both, tmp_path / "copy"))
    path = folder / "target" / "model.onnx"
    model = onnx.load(str(path), load_external_data=False)
    change(model)
    path.write_bytes(model.SerializeToString())
    rehashed(folder)
    with pytest.raises(BackendError, match=error):
        edgespec.load(folder, draft="none", backend="onnxruntime")


@pytest.mark.parametrize("wrong", ["f64", "columns", "rows", "bomb", "longest"])
def test_rotary_tables_of_another_shape_are_refused(both: Path, tmp_path: Path, wrong: str) -> None:
    """The engine reads them by the shape that it is told."""
    folder = Path(shutil.copytree(both, tmp_path / "copy"))
    path = folder / "target" / "rotary.npz"
    with np.load(path) as stored:
        tables = {name: stored[name] for name in stored.files}
    changed: dict[str, Any] = {
        "f64": {"cos.0": tables["cos.0"].astype(np.float64)},
        "columns": {"cos.0": tables["cos.0"][:, :1]},
        "rows": {"cos.0": tables["cos.0"][:7]},
        "bomb": {"more": np.zeros(1 << 24, np.uint8)},
        "longest": {"longest": np.array(0)},
    }[wrong]
    np.savez_compressed(path, **(tables | changed))
    rehashed(folder)
    with pytest.raises(BackendError, match="cannot load"):
        edgespec.load(folder, draft="none", backend="onnxruntime")


def test_places_of_a_form_that_cannot_be_are_refused(both: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(both, tmp_path / "copy"))
    sound = (folder / "bundle.json").read_bytes()
    for change, error in (
        ({"file": "../model.onnx"}, "a file inside the folder"),
        ({"file": "draft/model.onnx"}, "different folders"),
        ({"file": "target/model.bin"}, "an .onnx file"),
        ({"version": 0}, ">= 1"),
    ):
        manifest = json.loads(sound)
        manifest["target"]["onnx"] |= change
        (folder / "bundle.json").write_text(json.dumps(manifest), encoding="utf-8")
        with pytest.raises(BundleError, match=error):
            bundle.read(folder)


# --- the export of a bundle


def test_nothing_half_written_is_left(openvino: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgespec_export import forms

    written: list[Path] = []

    def interrupted(xml: Path, folder: Path, **options: Any) -> None:
        (folder / "model.onnx.data").write_bytes(b"half")
        written.append(folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(forms, "write_form", interrupted)
    with pytest.raises(KeyboardInterrupt):
        made(openvino, tmp_path / "out", "both")
    assert written and not list(tmp_path.glob("*out*"))


def test_a_full_disk_is_said_before_anything_is_written(
    openvino: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgespec_export import staging

    monkeypatch.setattr(staging.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(ConversionError, match="not enough space"):
        made(openvino, tmp_path / "out", "both")
    assert not list(tmp_path.glob("*out*"))


def test_what_has_no_openvino_form_is_not_exported_again(onnx_alone: Path, openvino: Path, tmp_path: Path) -> None:
    def run(*arguments: str) -> str:
        ended = CliRunner().invoke(cli, ["export", *arguments, "--format", "both"])
        assert isinstance(ended.exception, EdgespecError), ended.output
        return str(ended.exception)

    out = str(tmp_path / "out")
    assert "has no OpenVINO IR" in run(str(onnx_alone), "-o", out)
    assert "its drafters are kept" in run(str(openvino), "--draft", str(openvino), "-o", out)
    assert "keep their weights" in run(str(openvino), "-o", out, "--weights", "int4")
    placeholder = ("--adaptive-token", "5", "--adaptive-count", "2")
    assert "--adaptive-token of a bundle" in run(str(openvino), "-o", out, "--format", "both", *placeholder)
    assert "destination exists" in run(str(openvino), "-o", str(openvino))
    assert "itself is the destination" in run(str(openvino), "-o", str(openvino), "--force")
    assert not (tmp_path / "out").exists()


def test_files_of_a_form_that_no_hash_is_given_for_are_refused(both: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(both, folder)
    raw = json.loads((folder / bundle.MANIFEST).read_text(encoding="utf-8"))
    files = raw["target"]["onnx"]["files"]
    raw["target"]["onnx"]["files"] = [entry for entry in files if not entry["file"].endswith((".onnx", ".npz"))]
    (folder / bundle.MANIFEST).write_text(json.dumps(raw), encoding="utf-8")
    with pytest.raises(BundleError, match=r"has files without a hash: model\.onnx, rotary\.npz"):
        edgespec.load(folder, backend="onnxruntime", draft="none")
