"""Heads in the product, on a tiny target: by which names they are found, on which engines, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from edgespec import SamplingParams, bundle, draft_folder, load
from edgespec.backends.openvino.runtime import ops, ov
from edgespec.bundle import IR_FILE
from edgespec.cli import cli
from edgespec.errors import BackendError, DeviceError, EdgespecError, IncompatiblePair, SettingError
from edgespec.hub import catalog
from edgespec.hub.resolve import resolve
from edgespec.pipeline import Pipeline
from edgespec_export import Request, Weights, export
from tests.books import check_identities
from tests.everyday import check_everyday
from tests.heads import write_head

TOKENS = 24
PROMPT = [5, 9, 40, 7]
FAST: dict[str, Any] = {"numerics": "fast", "num_draft_tokens": 4}
"""nothing to search for or to measure"""


@pytest.fixture(scope="module")
def target(tiny_fast_ir: Path) -> Path:
    return tiny_fast_ir.parent


@pytest.fixture(scope="module")
def text(target: Path) -> list[int]:
    return tokens(load(target, draft="none", numerics="fast", num_draft_tokens=0))


@pytest.fixture
def make(target: Path, text: list[int], tmp_path: Path) -> Callable[..., Path]:
    def head(**changes: Any) -> Path:
        given: dict[str, Any] = {"width": 128, "layers": (1, 2), "kind": "block"} | changes
        return write_head(tmp_path / "head", bundle.read(target), [[*PROMPT, *text]], **given)

    return head


def tokens(pipeline: Pipeline, **options: Any) -> list[int]:
    return pipeline.generate(list(PROMPT), max_new_tokens=TOKENS, ignore_eos=True, **options).token_ids


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
@pytest.mark.parametrize(("kind", "trimmed"), [("redrafter", False), ("block", True)])
def test_a_head_drafts_on_both_engines(
    target: Path, make: Callable[..., Path], backend: Any, kind: str, trimmed: bool
) -> None:
    plain = tokens(load(target, draft="none", backend=backend, num_draft_tokens=0))
    loaded = load(target, draft=make(kind=kind, trimmed=trimmed), backend=backend, num_draft_tokens=4)
    assert loaded.target.capabilities.backend == backend and loaded.target.capabilities.hidden == (1, 2)
    found = loaded.generate(list(PROMPT), max_new_tokens=TOKENS, ignore_eos=True)
    assert found.token_ids == plain
    assert found.drafter == "ngram+pool+head" and "head" in found.stats.by_drafter


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("kind", ["block", "redrafter"])
def test_chats_formats_stop_strings_and_dropped_streams_are_those_without_drafts(
    target: Path, make: Callable[..., Path], backend: Any, kind: str
) -> None:
    plain = load(target, draft="none", backend=backend, numerics="exact", num_draft_tokens=0)
    head = make(kind=kind, trimmed=False)
    drafted = load(target, draft=head, backend=backend, numerics="exact", num_draft_tokens=4)
    check_everyday(plain, drafted, TOKENS)


MODES = {
    "greedy": SamplingParams(),
    "sampled": SamplingParams(temperature=0.8, top_p=0.95, seed=1234),
    "penalty": SamplingParams(temperature=1.0, repetition_penalty=1.1, seed=99),
}


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("kind", ["block", "redrafter"])
def test_every_mode_and_length_of_draft_writes_plain_decodings_tokens(
    target: Path, make: Callable[..., Path], kind: str, backend: Any
) -> None:
    plain, drafted = (load(target, draft=draft, backend=backend) for draft in ("none", make(kind=kind)))
    assert drafted.arbiter is not None
    for sampling in MODES.values():
        expected = tokens(plain, sampling=sampling)
        for k in (1, 4, None):
            drafter = None if k is None else drafted.arbiter.model
            for _ in range(2):  # the second time, the target holds the prompt
                found = drafted.generate(
                    list(PROMPT), max_new_tokens=TOKENS, ignore_eos=True, sampling=sampling, num_draft_tokens=k,
                    drafter=drafter,
                )  # fmt: skip
                assert found.token_ids == expected
                check_identities(found.stats.rounds)
                if k is not None:
                    assert found.stats.proposed > 0 and set(found.stats.by_drafter) <= {"head"}
                    assert sampling.temperature or found.stats.accepted > 0


@pytest.mark.parametrize("kind", ["block", "redrafter"])
def test_by_rejection_a_seed_gives_one_text(target: Path, make: Callable[..., Path], kind: str) -> None:
    drafted = load(target, draft=make(kind=kind))
    assert drafted.arbiter is not None
    rejecting = SamplingParams(temperature=0.8, seed=5, verification="rejection")
    head: dict[str, Any] = {"drafter": drafted.arbiter.model, "num_draft_tokens": 4}
    texts = [tokens(drafted, sampling=rejecting, **head) for _ in range(3)]
    assert texts == texts[:1] * 3


@pytest.fixture
def pair(target: Path, make: Callable[..., Path], tmp_path: Path) -> Path:
    """A bundle to which a head was added."""
    folder, own = tmp_path / "pair", tmp_path / "own"
    read = bundle.read(target)
    (own / "target").mkdir(parents=True)
    for file in (IR_FILE, "openvino_model.bin"):
        (own / "target" / file).write_bytes((target / file).read_bytes())
    (own / "tokenizer.json").write_bytes((target / "tokenizer.json").read_bytes())
    model = bundle.model_file(own, f"target/{IR_FILE}", precision="int8", vocab_size=read.manifest.target.vocab_size)
    lookup = bundle.Drafter(name="ngram", kind="ngram")
    bundle.write(own, msgspec.structs.replace(read.manifest, target=model, chat_template=None, drafters=(lookup,)))
    export(Request(str(own), folder, Weights(), draft=str(make())))
    shutil.rmtree(tmp_path / "head")
    return folder


@pytest.mark.parametrize("output", ["onnx", "both"])
def test_a_head_stays_as_it_is_beside_an_onnx_form(output: Any, pair: Path, tmp_path: Path) -> None:
    out = export(Request(str(pair), tmp_path / output, Weights(), format=output))
    before, after = (bundle.read(folder).manifest for folder in (pair, out))
    assert after.drafters == before.drafters and after.target.onnx and (after.target.file is None) == (output == "onnx")
    plain = tokens(load(out, draft="none", backend="onnxruntime", num_draft_tokens=0))
    found = load(out, draft="block", backend="onnxruntime", num_draft_tokens=4).generate(
        list(PROMPT), max_new_tokens=TOKENS, ignore_eos=True
    )
    assert found.token_ids == plain and found.drafter == "head" and found.stats.proposed > 0


def test_the_kind_of_a_head_is_a_name_for_it(pair: Path) -> None:
    for draft, drafters, layers in (
        ("block", "head", (1, 2)),
        ("head", "head", (1, 2)),
        ("auto", "ngram+pool+head", (1, 2)),
        ("ngram", "ngram", ()),
        ("none", "none", ()),
        ("recycling", "recycling", ()),
    ):
        k: dict[str, Any] = {"num_draft_tokens": 0 if draft == "none" else 4, "numerics": "fast"}
        pipeline = load(pair, draft=draft, **k)
        assert (pipeline.drafter.name, pipeline.target.capabilities.hidden) == (drafters, layers), draft
    with pytest.raises(
        EdgespecError, match="no such draft; got redrafter; allowed: auto, none, ngram, recycling, head"
    ):
        load(pair, draft="redrafter", **FAST)


def test_the_arbiter_gets_the_measured_cost_of_a_call(
    target: Path, make: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGESPEC_CACHE", str(tmp_path / "cache"))
    loaded = load(target, draft=make(), numerics="fast")
    assert loaded.arbiter is not None and loaded.arbiter.draft_s is not None
    seconds = loaded.arbiter.draft_s.start_s
    assert 0 < seconds < 1 and loaded.arbiter.draft_s.seconds(1, 0) == 0
    [file] = (tmp_path / "cache").glob("measured/call-*.json")
    assert json.loads(file.read_bytes())["seconds"] == pytest.approx(seconds)
    file.write_text(json.dumps({"seconds": 0.5, "other_cores": 0.0}))
    again = load(target, draft=tmp_path / "head", numerics="fast").arbiter
    assert again is not None and again.draft_s is not None and again.draft_s.start_s == 0.5
    found = loaded.generate(list(PROMPT), max_new_tokens=TOKENS, ignore_eos=True)
    assert found.drafter == "ngram+pool+recycling+head" and len(found.token_ids) == TOKENS


def test_the_command_line_says_what_the_head_did(target: Path, make: Callable[..., Path]) -> None:
    asked = ["run", "-m", str(target), "--draft", str(make()), "--numerics", "fast", "-k", "4", "--json", "--explain"]
    ran = CliRunner().invoke(cli, [*asked, "--raw", "--max-new-tokens", "16", "hello there"])
    assert ran.exit_code == 0, ran.output
    found = json.loads(ran.stdout.splitlines()[0])
    assert found["drafter"] == "ngram+pool+head"


# What is refused


def test_a_head_of_another_target_is_refused(target: Path, make: Callable[..., Path]) -> None:
    other = {"target_weights": ("0" * 64,), "target": "coder"}
    folder = make(**other)
    with pytest.raises(IncompatiblePair, match=r"another model than .*weights of hash .*allowed: 000000000000\. Train"):
        load(target, draft=folder, **FAST)


def test_a_head_for_a_model_of_that_name_is_taken(target: Path, make: Callable[..., Path]) -> None:
    name = bundle.read(target).name.casefold()
    folder = make(target_weights=("0" * 64,), target_names=(name,))
    assert load(target, draft=folder, **FAST).drafter.name.endswith("head")


def test_a_head_for_states_of_another_width_is_refused(target: Path, make: Callable[..., Path]) -> None:
    with pytest.raises(IncompatiblePair, match="got states of 128 numbers; allowed: 64"):
        load(target, draft=make(width=64), **FAST)


def test_a_head_for_a_layer_that_is_not_there_is_refused(target: Path, make: Callable[..., Path]) -> None:
    with pytest.raises(BackendError, match="no such layer; got 7; allowed: 0 to 2"):
        load(target, draft=make(layers=(7,)), **FAST)


@pytest.mark.parametrize("wrong", [{"width": 64}, {"layers": (7,)}])
def test_a_head_that_ships_and_does_not_fit_leaves_the_lookups(
    wrong: dict[str, Any], target: Path, make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody asked for it: a model that only has the name of its target runs as before."""
    shipped = draft_folder.read(make(target_names=(bundle.read(target).name.casefold(),), **wrong))
    monkeypatch.setattr(catalog, "trained_drafts", lambda: {"qwen2.5-coder-1.5b": shipped})
    assert shipped.manifest.drafter.name in {entry.name for entry in resolve(str(target)).manifest.drafters}
    assert load(target, **FAST).drafter.name == "ngram+pool", "as a model without a draft"
    with pytest.raises(EdgespecError):
        load(target, draft=shipped.root, **FAST)


def test_a_head_for_another_vocabulary_is_refused(target: Path, make: Callable[..., Path]) -> None:
    with pytest.raises(IncompatiblePair, match="another vocabulary"):
        load(target, draft=make(tokens_sha256="1" * 64), **FAST)


def test_a_graph_that_is_no_head_is_refused(target: Path, make: Callable[..., Path]) -> None:
    folder = make()
    x = ops.parameter([1], np.float32)
    x.output(0).get_tensor().set_names({"x"})
    y = ops.result(ops.abs(x))
    y.output(0).get_tensor().set_names({"y"})
    ov.serialize(ov.Model([y], [x], "other"), folder / "draft" / IR_FILE)
    model = bundle.model_file(folder, f"draft/{IR_FILE}", precision="f32", vocab_size=4)
    manifest = draft_folder.read(folder).manifest
    entry = msgspec.structs.replace(manifest.drafter, model=model, id_map=None)
    changed = msgspec.structs.replace(manifest, drafter=entry)
    (folder / draft_folder.MANIFEST).write_bytes(msgspec.json.encode(changed))
    with pytest.raises(IncompatiblePair, match="head is no graph of a block drafter"):
        load(target, draft=folder, **FAST)


def test_a_damaged_head_is_refused(target: Path, make: Callable[..., Path]) -> None:
    folder = make()
    weights = (folder / "draft" / IR_FILE).with_suffix(".bin")
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(EdgespecError, match="wrong size"):
        load(target, draft=folder, **FAST)


def test_a_head_has_a_device_and_no_engine_of_its_own(target: Path, make: Callable[..., Path]) -> None:
    head = make()
    assert load(target, draft=head, draft_device="CPU", **FAST).devices["draft"] == "CPU"
    with pytest.raises(SettingError, match="only a draft model has a draft backend, and head is none"):
        load(target, draft=head, draft_backend="openvino", **FAST)
    with pytest.raises(DeviceError, match="no such device here; got NOPE"):
        load(target, draft=head, draft_device="nope", **FAST)
