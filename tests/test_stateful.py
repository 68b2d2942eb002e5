"""The cache inside the engine: what a crop costs, when the states are rewritten, failures, and which models have it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgespec
from edgespec.backends.fake import FakeModel, random_table
from edgespec.backends.open import Opening, open_model
from edgespec.backends.openvino import rollback_check
from edgespec.backends.openvino.paged import OpenVINOPagedModel
from edgespec.backends.openvino.stateful_model import OpenVINOStatefulModel
from edgespec.errors import BackendError, SettingError
from edgespec.gguf.convert import convert, read_header
from edgespec.load_options import LoadOptions
from edgespec.types import KVPath, Numerics
from tests import tiny_gguf
from tests.conftest import load_ir, load_stateful
from tests.contract import close, fresh_logits

LAYERS = 2
"""of a tiny model"""
TEXT = [(7 * i + i * i) % 50 for i in range(90)]


class Counted:
    """A request whose states were read or reset so many times."""

    def __init__(self, request: Any) -> None:
        self._request, self.read, self.reset = request, 0, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._request, name)

    def query_state(self) -> Any:
        self.read += 1
        return self._request.query_state()

    def reset_state(self) -> None:
        self.reset += 1
        self._request.reset_state()


@pytest.fixture
def model(tiny_ir: Path) -> OpenVINOStatefulModel:
    return load_stateful(tiny_ir)


def test_rounds_do_not_touch_the_states_until_many_rows_went(model: OpenVINOStatefulModel, tiny_ir: Path) -> None:
    counted = Counted(model._request)
    model.cache._request = counted
    model.prefill(TEXT)
    text = list(TEXT)
    went = model.last_width - len(TEXT)  # pads of the prompt
    while went <= model.cache.most_waste:
        assert (counted.read, counted.reset) == (0, 0)
        model.forward([went % 50, 41, 42, 43])
        model.cache.keep([0])
        text.append(went % 50)
        went += 3
    model.forward([2])
    assert (counted.read, counted.reset) == (1, 0)
    assert model.cache.tokens == [*text, 2] and len(text) > 160
    other = load_stateful(tiny_ir)
    assert close(model, model.forward([3]).logits[0], fresh_logits(other, [*text, 2, 3]))


def test_what_is_left_of_a_long_text_is_read_and_nothing_else(model: OpenVINOStatefulModel, tiny_ir: Path) -> None:
    """A crop of most of the text is not paid for by every forward behind it."""
    text = [(13 * i + i * i) % 50 for i in range(400)]
    model.prefill(text)
    model.cache.crop(20)
    model.forward([1])
    assert model.compiled is not None and model._request.query_state()[0].state.shape[2] == 21
    other = load_stateful(tiny_ir)
    assert close(model, model.forward([2]).logits[0], fresh_logits(other, [*text[:20], 1, 2]))


def test_it_says_what_the_paged_model_says(model: OpenVINOStatefulModel, tiny_ir: Path) -> None:
    paged = load_ir(tiny_ir, "fast")
    tree = (0, 0, 1, 2)
    for each in (model, paged):
        each.prefill(TEXT)
    mine, theirs = (each.forward([1, 2, 3, 4, 5], tree).logits.copy() for each in (model, paged))
    assert np.abs(mine - theirs).max() < 0.05 * np.abs(theirs).max()
    assert (mine.argmax(1) == theirs.argmax(1)).all()


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("when", ["infer", "wait"])
def test_after_a_failed_forward_the_text_is_read_again(
    tiny_ir: Path, monkeypatch: pytest.MonkeyPatch, masked: bool, when: str
) -> None:
    """A device that goes away in the middle: some layers may have the rows of the forward, and others not."""
    model, other = load_stateful(tiny_ir, masked=masked), load_stateful(tiny_ir)
    model.prefill(TEXT)

    def lost(self: Any) -> None:
        raise RuntimeError("[GPU] CL_DEVICE_NOT_AVAILABLE")

    with monkeypatch.context() as patch:
        patch.setattr("edgespec.backends.openvino.request_model.RequestModel._" + when, lost)
        with pytest.raises(BackendError, match="CL_DEVICE_NOT_AVAILABLE"):
            if when == "infer":
                model.forward([1, 2])
            else:
                model.start([1, 2])
                model.wait()
    model._request.wait()
    assert model.prefill(TEXT) == 0
    assert close(model, model.forward([3]).logits[0], fresh_logits(other, [*TEXT, 3]))


def test_a_rewrite_that_is_interrupted_begins_again(
    model: OpenVINOStatefulModel, tiny_ir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.cache.most_waste = 0
    model.prefill(TEXT)
    model.cache.crop(30)

    def interrupted(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("edgespec.backends.openvino.engine_states.np.ascontiguousarray", interrupted)
        with pytest.raises(KeyboardInterrupt):
            model.forward([1])
    assert model.prefill(TEXT) == 0
    assert close(model, model.forward([3]).logits[0], fresh_logits(load_stateful(tiny_ir), [*TEXT, 3]))


def test_a_window_is_found_and_the_engine_cuts(tmp_path: Path) -> None:
    """Rows that went would count as tokens of the window. A window that the context does not reach is none."""
    pytest.importorskip("optimum.intel")
    from tests.tiny_models import build, export_ir

    ir = export_ir(build("phi3", tmp_path / "torch", sliding_window=48), tmp_path / "ir")
    model, short = load_stateful(ir), load_stateful(ir, capacity=40)
    assert not model.cache.masked and not model.capabilities.tree and short.cache.masked
    paged = load_ir(ir, "fast")
    text = list(TEXT)
    for token in range(30):
        model.prefill(text)
        model.forward([token, 41, 42, 43])
        model.cache.keep([0])
        text.append(token)
    ours, theirs = model.forward([1]).logits[0].copy(), fresh_logits(paged, [*text, 1])
    assert np.abs(ours - theirs).max() < 0.05 * np.abs(theirs).max()


def opening(ir: Path, kv: KVPath | None, numerics: Numerics | None = None) -> Opening:
    return Opening(
        graph=ir if ir.suffix == ".xml" else ir / "openvino_model.xml",
        form=None,
        device="CPU",
        numerics=numerics,
        capacity=600,
        context_length=600,
        layers=(),
        trees=False,
        is_draft=False,
        say=lambda line: None,
        name="tiny",
        kv=kv,
    )


def kind_of(node: Any) -> str:
    """What the engine made of an operation."""
    return str(node.get_rt_info()["layerType"].value)


@pytest.mark.parametrize("mode", ["bidirectional", "numpy"])
def test_the_engine_knows_attention_with_states_in_converted_files(tmp_path: Path, mode: str) -> None:
    """Those that repeat heads as exports do, and those of before."""
    source = tiny_gguf.write(tmp_path / "tiny.gguf")
    convert(read_header(source), tmp_path, name="tiny", source="tiny")
    xml = tmp_path / "openvino_model.xml"
    text = xml.read_text(encoding="utf-8")
    assert text.count('mode="bidirectional"') == 2 * LAYERS  # of keys and of values
    xml.write_text(text.replace('mode="bidirectional"', f'mode="{mode}"'), encoding="utf-8")
    model = load_stateful(tmp_path)
    kinds = [kind_of(node) for node in model.compiled.get_runtime_model().get_ops()]
    assert kinds.count("ScaledDotProductAttention") == LAYERS
    model.prefill(TEXT)
    step = model.forward([7])
    assert close(model, step.logits[0], fresh_logits(load_ir(tmp_path), [*TEXT, 7]))


def test_the_cpu_keeps_its_cache_in_pages_unless_asked(tiny_ir: Path) -> None:
    assert isinstance(open_model("openvino", opening(tiny_ir, None)), OpenVINOPagedModel)
    assert isinstance(open_model("openvino", opening(tiny_ir, "paged")), OpenVINOPagedModel)
    model = open_model("openvino", opening(tiny_ir, "stateful"))
    assert isinstance(model, OpenVINOStatefulModel) and model.numerics == "fast"


def test_a_pipeline_writes_the_same_on_either_path(tiny_ir: Path) -> None:
    texts = {}
    for kv in ("paged", "stateful"):
        pipeline = edgespec.load(tiny_ir.parent, kv=kv, numerics="fast", draft="ngram", num_draft_tokens=4)
        assert pipeline.target.capabilities.backend == "openvino"
        ids = pipeline.tokenizer.encode("moving_average(values, window) moving_average(values, ")
        texts[kv] = [pipeline.generate(ids, max_new_tokens=20, ignore_eos=True).token_ids for _ in range(2)]
        assert texts[kv][0] == texts[kv][1]
    assert texts["paged"][0][:8] == texts["stateful"][0][:8]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kv": "blocks"}, "kv; got blocks; allowed: paged, stateful"),
        ({"kv": "paged", "backend": "onnxruntime"}, "onnxruntime has a cache of its own"),
        ({"kv": "stateful", "numerics": "exact"}, "numerics exact .* paged cache only.* allowed: paged"),
        ({"kv": "stateful", "device": "npu"}, "the NPU has a cache of its own"),
        ({"numerics": "exact", "device": "npu"}, "only known to hold on CPU; device NPU"),
    ],
)
def test_a_cache_that_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        LoadOptions(**options)
    assert LoadOptions(kv="stateful").backend == "openvino"


class Poisoned(FakeModel):
    """A rejected token changes what follows, as keys of one scale do."""

    def forward(self, tokens: Any, tree: Any = None, **options: Any) -> Any:
        step = super().forward(tokens, tree, **options)
        if len(tokens) > 1 and options.get("num_logits") == 0:
            table = self.table
            self.table = lambda text: table(text) * 1.05
        return step


def test_a_device_that_does_not_go_back_runs_the_stateful_path() -> None:
    said: list[str] = []
    table = random_table(300, seed=1)
    right: Any = object()

    def refused() -> Any:
        raise BackendError("cannot compile")

    whole: Any = FakeModel(table, 300)
    assert rollback_check.either(lambda: whole, lambda: right, "GPU", said.append) is whole
    assert not said and whole.cache.length == 0
    for paged in (lambda: Poisoned(table, 300, max_width=8), refused):
        assert rollback_check.either(paged, lambda: right, "GPU", said.append) is right  # type: ignore[arg-type]
    assert [line.split(": ")[-1] for line in said] == ["a rejected draft changed the text behind it", "cannot compile"]
    assert all("GPU" in line and "stateful" in line for line in said)


def test_a_context_shorter_than_what_is_measured(tiny_ir: Path) -> None:
    """Costs are measured behind 512 rows, whatever the context."""
    pair = edgespec.load(tiny_ir.parent, kv="stateful", context_length=32)
    assert pair.arbiter is not None and pair.arbiter.target_s.times.long > 32
    assert len(pair.generate(TEXT[:20], ignore_eos=True).token_ids) == 32 - 20 + 1
