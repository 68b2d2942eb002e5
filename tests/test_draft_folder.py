"""A draft without its target: packed after training, attached to the targets it fits, refused for others."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from edgespec import bundle, draft_folder, load, loading
from edgespec.cli import cli
from edgespec.errors import (
    BundleError,
    EdgespecError,
    IncompatiblePair,
    IntegrityError,
    NoSuchModel,
    SettingError,
    SourceError,
)
from edgespec.hub import catalog
from edgespec.hub.resolve import resolve

pytest.importorskip("optimum.intel", reason="training needs the train extra")
pytest.importorskip("accelerate", reason="training needs the train extra")

from transformers import AutoConfig

from edgespec_train.draft_model import UNKNOWN, Shape, build
from edgespec_train.narrow import GROUP, codes_of
from edgespec_train.pack import save_draft
from edgespec_train.ship import Packing, pack
from tests import tiny_models

IDS = np.array([0, 1, *range(4, 250), UNKNOWN], np.int32)


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGESPEC_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build("qwen2", tmp_path_factory.mktemp("target") / "tiny-coder-instruct")


@pytest.fixture(scope="module")
def gguf(hf: Path) -> Path:
    return tiny_models.write_gguf(hf, hf.with_name("tiny-coder-instruct-f32.gguf"))


@pytest.fixture(scope="module")
def trained(hf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What training leaves, of another width than the target's."""
    config = AutoConfig.from_pretrained(tiny_models.build("qwen2", hf.with_name("small"), hidden=128))
    config.initializer_range = 0.3
    out = tmp_path_factory.mktemp("work") / "draft"
    save_draft(build(config, Shape((0,)), len(IDS), seed=3), IDS, out)
    return out


@pytest.fixture(scope="module")
def packed(trained: Path, gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "draft"
    packing = Packing(
        trained, str(gguf), out, group_size=32, target_names=("Tiny-Coder-Instruct",), licence="Apache-2.0"
    )
    assert pack(packing, lambda line: None) == out
    return out


@pytest.fixture
def shipped(packed: Path, gguf: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> catalog.Model:
    """The packed draft as one that ships for a listed model."""
    digest, size = bundle.sha256_of(gguf), gguf.stat().st_size
    listed = catalog.Model(
        repo="o/tiny", licence="Apache-2.0", file=gguf.name, sha256=digest, bytes=size, trained_draft="here"
    )
    pairs = msgspec.structs.replace(catalog.load(), models={"tiny-coder": listed})
    monkeypatch.setattr(catalog, "load", lambda: pairs)
    home = tmp_path / "here"
    shutil.copytree(packed, home)
    written = msgspec.structs.replace(draft_folder.read(home).manifest, target="tiny-coder")
    (home / draft_folder.MANIFEST).write_bytes(msgspec.json.encode(written))
    monkeypatch.setattr(catalog, "shipped_file", lambda name: tmp_path / name)
    return listed


def other_vocabulary(folder: Path) -> Path:
    tokenizer = tiny_models.train_tokenizer(folder / "other.json", special=("<|eos|>", "<|bos|>", "<x>", "<y>"))
    built = tiny_models.build("qwen2", folder / "other", tokenizer=tokenizer)
    return tiny_models.export_ir(built, folder / "tiny-coder-instruct").parent


# Packing


def test_codes_of_four_bits_are_near() -> None:
    values = np.random.default_rng(0).normal(size=(50, 3, GROUP)).astype(np.float32)
    values[7] = 0
    codes, steps = codes_of(values)
    again = (codes.astype(np.float32) - 8) * steps.astype(np.float32)
    assert codes.max() <= 15
    far = np.abs(values).max(-1, keepdims=True)
    assert (np.abs(again - values) <= far / 8 * 1.01).all()
    np.testing.assert_allclose(np.abs(again).max(-1), far[..., 0], rtol=2e-3)


def test_a_packed_draft_is_small_and_names_what_it_is_for(packed: Path, trained: Path, gguf: Path) -> None:
    found = draft_folder.read(packed)
    assert found.manifest.tokens == 250
    assert found.manifest.provenance.revision == f"sha256:{bundle.sha256_of(gguf)}"
    assert found.manifest.drafter.unknown == len(IDS) - 1
    weights = (packed / "draft" / "openvino_model.bin").stat().st_size
    assert weights < 0.25 * (trained / "model.safetensors").stat().st_size


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_both_engines_draft_with_four_bit_layers_and_embeddings(packed: Path, gguf: Path, backend: Any) -> None:
    """The same proposals, nearly always: the engines round differently."""
    pipeline = load(gguf, draft=packed, backend=backend, num_draft_tokens=4)
    assert "fastdraft" in pipeline.drafter.name
    assert pipeline.draft_model is not None
    assert type(pipeline.draft_model).__module__.startswith(f"edgespec.backends.{backend[:4]}")
    plain = load(gguf, draft="none", backend=backend).generate("def moving_average", max_new_tokens=20)
    drafted = pipeline.generate("def moving_average", max_new_tokens=20)
    assert drafted.token_ids == plain.token_ids
    pipeline.draft_model.cache.reset()
    logits = pipeline.draft_model.forward([5, 9, 40, 7]).logits.copy()
    reference = load(gguf, draft=packed, backend="openvino", num_draft_tokens=4).draft_model
    assert reference is not None
    expected = reference.forward([5, 9, 40, 7]).logits
    assert np.abs(logits - expected).max() < 0.2 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "id_map.npy").unlink(), "no trained draft in"),
        (lambda folder: np.save(folder / "id_map.npy", IDS[:-1]), "the ids of"),
        (lambda folder: np.save(folder / "id_map.npy", IDS + 600), "the ids of"),
        (lambda folder: np.save(folder / "id_map.npy", np.arange(len(IDS), dtype=np.int32)), "all ids of its target"),
    ],
)
def test_what_cannot_be_packed_is_refused(spoil: Any, message: str, trained: Path, gguf: Path, tmp_path: Path) -> None:
    folder = tmp_path / "draft"
    shutil.copytree(trained, folder)
    spoil(folder)
    result = CliRunner().invoke(cli, ["train", "pack", str(folder), str(gguf), "-o", str(tmp_path / "out")])
    assert isinstance(result.exception, SettingError), result.output
    assert message in str(result.exception)
    assert not (tmp_path / "out").exists()


def test_packing_replaces_a_draft_and_nothing_else(trained: Path, gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(SettingError, match="destination is not a draft"):
        pack(Packing(trained, str(gguf), tmp_path / "mine"), lambda line: None)


# Attaching


def test_a_draft_is_attached_by_its_folder(packed: Path, gguf: Path) -> None:
    pipeline = load(gguf, draft=packed, num_draft_tokens=2)
    assert pipeline.drafter.name.endswith("+fastdraft")
    assert [drafter.name for drafter in pipeline.bundle.manifest.drafters] == ["fastdraft"]
    pipeline.bundle.check()


def test_a_listed_file_gets_its_draft_by_its_hash(shipped: catalog.Model, gguf: Path) -> None:
    found = resolve(str(gguf), progress=False)
    assert [drafter.name for drafter in found.manifest.drafters] == ["fastdraft"]
    assert loading.drafter_name(str(gguf)) == "ngram+pool+recycling+fastdraft"
    assert loading.drafter_name("tiny-coder") == "ngram+pool+recycling+fastdraft"
    alone = load(gguf, draft="fastdraft", num_draft_tokens=2)
    assert alone.drafter.name == "fastdraft"
    assert load(gguf, draft="none").drafter.name == "none"


def test_an_exported_target_gets_it_by_name_and_vocabulary(shipped: catalog.Model, hf: Path, tmp_path: Path) -> None:
    same = tiny_models.export_ir(hf, tmp_path / "tiny-coder-instruct-int8").parent
    assert [drafter.name for drafter in resolve(str(same)).manifest.drafters] == ["fastdraft"]
    renamed = same.with_name("mine")
    same.rename(renamed)
    assert not resolve(str(renamed)).manifest.drafters
    asked = load(renamed, draft="tiny-coder-fastdraft", num_draft_tokens=2)
    assert asked.drafter.name.endswith("+fastdraft")


def test_a_target_of_another_vocabulary_is_left_alone_and_refuses_it(
    shipped: catalog.Model, packed: Path, tmp_path: Path
) -> None:
    other = other_vocabulary(tmp_path)
    assert draft_folder.read(packed).is_called_like(bundle.read(other)), "the name alone proves nothing"
    assert not resolve(str(other)).manifest.drafters
    for draft in (packed, "tiny-coder-fastdraft"):
        with pytest.raises(IncompatiblePair, match="was trained for another vocabulary than that of"):
            load(other, draft=draft)


def test_a_reference_that_is_no_draft_is_one_line(
    hf: Path, gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path, a hub id without a network, files of other kinds, and a model that speaks another language."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    tokenizer = tiny_models.with_two_tokens_swapped(hf / "tokenizer.json", tmp_path / "other.json")
    other = tiny_models.build("qwen2", tmp_path / "other", tokenizer=tokenizer)
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "draft.json").write_bytes(b"{}")
    command = [
        "run",
        "-m",
        str(gguf),
        "-k",
        "2",
        "--numerics",
        "fast",
        "--backend",
        "openvino",
        "-n",
        "2",
        "--raw",
        "--yes",
    ]
    for draft, error, said in (
        (tmp_path / "nothing" / "here", NoSuchModel, "no such draft; got .*here; allowed: auto, none, ngram"),
        ("owner/name", SourceError, "cannot fetch owner/name"),
        (tmp_path / "empty", EdgespecError, "neither bundle.json nor openvino_model.xml"),
        (tmp_path / "other.json", SourceError, "not a model"),
        (tmp_path / "damaged", BundleError, "draft.json is not a valid draft"),
        (other, EdgespecError, "edgespec export"),
        (tiny_models.write_gguf(other, tmp_path / "other.gguf"), IncompatiblePair, "does not fit target"),
    ):
        found = CliRunner().invoke(cli, [*command, "--draft", str(draft), "x"])
        assert isinstance(found.exception, error), (draft, found.output, found.exception)
        assert re.search(said, str(found.exception)) and "\n" not in str(found.exception)
    ran = CliRunner().invoke(cli, [*command, "--draft", str(gguf), "x"])
    assert ran.exit_code == 0, "a whole model drafts too"


def test_a_tokenizer_without_a_table_of_texts_only_costs_the_draft(
    shipped: catalog.Model, packed: Path, tmp_path: Path
) -> None:
    """A list of pieces, as Unigram has one: the model is another one that is called alike."""
    other = other_vocabulary(tmp_path)
    raw = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
    raw["model"]["vocab"] = [[text, 0.0] for text in raw["model"]["vocab"]]
    (other / "tokenizer.json").write_text(json.dumps(raw), encoding="utf-8")
    assert not resolve(str(other)).manifest.drafters


def test_a_model_that_is_not_used_names_no_length() -> None:
    def entry(name: str, k: int | None) -> bundle.Drafter:
        model = bundle.ModelFile(precision="int4", vocab_size=100, file=f"{name}/openvino_model.xml")
        return bundle.Drafter(name=name, kind="small_model", model=model, num_draft_tokens=k)

    lookup = bundle.Drafter(name="ngram", kind="ngram", num_draft_tokens=5)
    assert loading.fixed_k([entry("asked", None), entry("own", 3)]) is None
    assert loading.fixed_k([entry("asked", 2), entry("own", 3)]) == 2
    assert loading.fixed_k([entry("asked", None), lookup]) == 5


def test_a_draft_goes_in_front_of_a_bundles_own_only_if_asked_for(packed: Path, gguf: Path) -> None:
    own = bundle.Drafter(name="own", kind="ngram")
    found = resolve(str(gguf))
    pair = bundle.Bundle(found.root, msgspec.structs.replace(found.manifest, drafters=(own,)))
    draft = draft_folder.read(packed)
    for first, names in ((False, ["own", "fastdraft"]), (True, ["fastdraft", "own"])):
        attached = draft_folder.attach(pair, draft, first=first)
        assert [drafter.name for drafter in attached.manifest.drafters] == names
        twice = draft_folder.attach(attached, draft, first=first)
        assert [drafter.name for drafter in twice.manifest.drafters] == names


def test_a_draft_takes_the_place_of_an_attached_one_of_its_name(packed: Path, gguf: Path, tmp_path: Path) -> None:
    """As one trained by the user does of one that ships: both have the names of target and recipe."""
    shutil.copytree(packed, other := tmp_path / "other")
    record = json.loads((other / "draft.json").read_text(encoding="utf-8"))
    record["drafter"]["model"]["sha256"] = "0" * 64
    (other / "draft.json").write_text(json.dumps(record), encoding="utf-8")
    first = draft_folder.attach(resolve(str(gguf)), draft_folder.read(other))
    both = draft_folder.attach(first, draft_folder.read(packed), first=True)
    (entry,) = (drafter for drafter in both.manifest.drafters if drafter.model is not None)
    assert entry.model is not None and both.model_path(entry.model).is_relative_to(packed)


@pytest.mark.parametrize(
    ("file", "content", "error"),
    [
        ("draft.json", b"{", BundleError),
        ("draft.json", b'{"format": 9}', BundleError),
        ("draft/openvino_model.bin", b"short", IntegrityError),
        ("draft/openvino_model.xml", b"<net/>", IntegrityError),
        ("draft/id_map.npy", b"ids", IntegrityError),
    ],
)
def test_a_damaged_draft_is_named(
    file: str, content: bytes, error: type[EdgespecError], packed: Path, gguf: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "draft"
    shutil.copytree(packed, folder)
    (folder / file).write_bytes(content)
    with pytest.raises(error, match=Path(file).name):
        load(gguf, draft=folder)


# The draft that ships


def test_what_ships_is_listed_for_the_model_it_was_trained_for() -> None:
    assert set(catalog.trained_drafts()) == {"qwen2.5-coder-1.5b"}
    for name, draft in catalog.trained_drafts().items():
        assert draft.manifest.target == name
        assert draft.manifest.provenance.revision == f"sha256:{catalog.load().models[name].sha256}"
        assert draft.manifest.provenance.licence == "Apache-2.0"
        assert {"recipe", "training", "corpus"} <= set(draft.manifest.measured)
        assert sum(file.stat().st_size for file in draft.root.rglob("*") if file.is_file()) < 30e6
        assert catalog.trained_draft_named(f"{name}-{draft.manifest.drafter.name}") is draft
