"""The contract every backend keeps: whatever was appended, cropped and kept, the next forward is a fresh forward."""

from __future__ import annotations

import gc
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgespec.backends import input_buffers
from edgespec.backends.exact_widths import ExactWidths, find_exact_widths
from edgespec.backends.fake import FakeModel, random_table
from edgespec.backends.onnx.ready import ReadyModel
from edgespec.backends.onnx.session import OnnxRuntimeModel, SessionModel
from edgespec.backends.openvino.paged import OpenVINOPagedModel
from edgespec.errors import BackendError, ContextFull
from edgespec.protocols import Model
from edgespec.types import Hidden, Logits, Numerics, Step, Verdict
from tests.conftest import load_ir, load_onnx
from tests.tiny_models import build, export_ir
from tests.tiny_onnx import write

CAPACITY = 700
Make = Callable[[], Model]


@pytest.fixture(
    params=[
        *("fake", "paged-exact", "paged-exact-5-to-32", "paged-fast", "onnx-exact", "onnx-fast", "onnx-int4-exact"),
        *("ready-genai-exact", "ready-optimum-fast"),
    ]
)
def make(request: pytest.FixtureRequest) -> Make:
    if request.param == "fake":
        table = random_table(50, seed=1, order=1000)  # sensitive to the whole text
        return lambda: FakeModel(table, 50, capacity=CAPACITY)
    if request.param == "paged-fast":
        fast_ir: Path = request.getfixturevalue("tiny_fast_ir")
        return lambda: by_channel(load_ir(fast_ir, "fast", capacity=CAPACITY))
    if request.param == "onnx-int4-exact":
        int4_ir: Path = request.getfixturevalue("tiny_int4_ir")
        return lambda: load_onnx(int4_ir, capacity=CAPACITY)
    if request.param.startswith("onnx"):
        int8_ir: Path = request.getfixturevalue("tiny_fast_ir")
        return lambda: load_onnx(int8_ir, request.param.removeprefix("onnx-"), capacity=CAPACITY)
    if request.param.startswith("ready"):
        _, kind, numerics = request.param.split("-")
        return lambda: ready(request.getfixturevalue(f"tiny_{kind}"), numerics)
    ir: Path = request.getfixturevalue("tiny_ir")
    if request.param == "paged-exact-5-to-32":
        return lambda: narrowed(load_ir(ir, capacity=CAPACITY))
    return lambda: load_ir(ir, capacity=CAPACITY)


def by_channel(model: OpenVINOPagedModel) -> OpenVINOPagedModel:
    """The 8-bit keys of fast numerics: their rows share scales and cannot move."""
    assert not model.cache.rows_can_move and not model.capabilities.tree
    return model


@pytest.fixture(scope="module")
def tiny_genai(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny_genai")
    return write(build("llama", folder / "torch", context_length=1024), folder / "onnx", "genai") / "model.onnx"


@pytest.fixture(scope="module")
def tiny_optimum(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny_optimum")
    return write(build("llama", folder / "torch", context_length=1024), folder / "onnx", "optimum") / "model.onnx"


def ready(path: Path, numerics: Numerics) -> ReadyModel:
    """A ready ONNX model, as another tool exported it."""
    model = ReadyModel(path, numerics, capacity=CAPACITY)
    if numerics == "exact":
        model.set_exact_widths(find_exact_widths(model))
    return model


def narrowed(model: OpenVINOPagedModel) -> OpenVINOPagedModel:
    """As on a machine where one function begins at five rows and ends at 32."""
    model.set_exact_widths(ExactWidths(5, 32))
    return model


def fresh_logits(model: Model, text: list[int]) -> Logits:
    model.cache.reset()
    model.prefill(text[:-1])
    return model.forward(text[-1:]).logits[0].copy()


def close(model: Model, left: Logits, right: Logits) -> bool:
    if model.capabilities.numerics == "exact":
        return bool(np.array_equal(left, right))
    return bool(np.abs(left - right).max() < 0.1 * np.abs(right).max() if left.size else True)


@pytest.mark.cpu
def test_any_history_then_one_forward_equals_a_fresh_one(make: Make) -> None:
    model, other = make(), make()
    rng = random.Random(0)
    for _ in range(12):
        model.cache.reset()
        text: list[int] = []
        for _ in range(rng.randrange(2, 8)):
            action = rng.choice(["append", "append", "crop", "tree" if takes_trees(model) else "append"])
            if action == "crop" or len(text) > 100:
                text = text[: rng.randrange(len(text) + 1)]
                model.cache.crop(len(text))
                model.cache.crop(len(text))  # idempotent
                continue
            tokens = [rng.randrange(50) for _ in range(rng.randrange(1, 9))]
            if action == "append":
                model.forward(tokens)
                kept = rng.randrange(1, len(tokens) + 1)
                model.cache.keep(range(kept))
                text += tokens[:kept]
            else:
                tree = tuple(rng.randrange(row) for row in range(1, len(tokens)))
                model.forward(tokens, tree)
                path = random_path(tree, rng)
                model.cache.keep(path)
                text += [tokens[row] for row in path]
            assert list(model.cache.tokens) == text
        probe = rng.randrange(50)
        assert close(model, model.forward([probe]).logits[0], fresh_logits(other, [*text, probe]))


def takes_trees(model: Model) -> bool:
    return isinstance(model, FakeModel) or (isinstance(model, OpenVINOPagedModel) and model.cache.rows_can_move)


def skip_without_masks(model: Model) -> None:
    if isinstance(model, SessionModel):
        pytest.skip("attention on ONNX Runtime is given chains only")


def random_path(tree: tuple[int, ...], rng: random.Random) -> list[int]:
    path = [0]
    while children := [row for row, parent in enumerate(tree, 1) if parent == path[-1]]:
        if rng.random() < 0.2:
            break
        path.append(rng.choice(children))
    return path


def test_a_tree_row_sees_its_own_branch_only(make: Make) -> None:
    model, other = make(), make()
    skip_without_masks(model)
    if not takes_trees(model):
        pytest.skip("8-bit keys by channel: rows cannot move, so trees are not declared")
    text = [5, 6, 7]
    model.prefill(text)
    # 1 -> 2 -> 3 and 1 -> 4 -> 5
    step = model.forward([1, 2, 3, 4, 5], tree=(0, 1, 0, 3))
    rows = step.logits.copy()
    for row, branch in {0: [1], 1: [1, 2], 2: [1, 2, 3], 3: [1, 4], 4: [1, 4, 5]}.items():
        assert np.allclose(rows[row], fresh_logits(other, text + branch), atol=0.05), row
        assert int(rows[row].argmax()) == int(fresh_logits(other, text + branch).argmax())


@pytest.mark.cpu
def test_logits_do_not_depend_on_the_width_or_on_the_chunks_of_the_prefill(make: Make) -> None:
    model = make()
    text = [(7 * i + i * i) % 50 for i in range(150)]
    alone = fresh_logits(model, text)
    for width in (2, 3, 5, 8, 16, 31, model.capabilities.max_width):
        model.cache.reset()
        model.prefill(text[:-width])
        together = model.forward(text[-width:]).logits[-1]
        assert close(model, alone, together), width
    for first in (1, 2, 63, 64, 65, 100):
        model.cache.reset()
        model.prefill(text[:first])
        assert model.prefill(text[:-1]) == first
        assert close(model, alone, model.forward(text[-1:]).logits[0]), first


@pytest.mark.cpu
def test_rejected_rows_leave_no_trace(make: Make) -> None:
    model, other = make(), make()
    text = [3, 1, 4, 1, 5, 9, 2, 6]
    model.prefill(text[:2])
    for index in range(2, len(text)):
        model.forward([text[index], 41, 42, 43])
        model.cache.keep([0])
    assert close(model, model.forward([8]).logits[0], fresh_logits(other, [*text, 8]))


def deferred(make: Make, text: list[int]) -> tuple[Model, int]:
    """A model that has deferred the end of a text, and how many rows of it."""
    model = make()
    if isinstance(model, FakeModel):
        model.leaves = 8
    model.prefill(text, reserve=3)
    rows = len(text) - model.cache.length
    if not rows:
        pytest.skip("its forwards are too narrow for the end of a prompt")
    assert model.free_width == model.capabilities.max_width - rows
    return model, rows


TEXT = [(13 * i + i * i) % 50 for i in range(7)]


@pytest.mark.cpu
def test_the_end_of_a_prompt_that_is_deferred_runs_in_front_of_the_next_forward(make: Make) -> None:
    (model, rows), other = deferred(make, TEXT), make()
    step = model.forward([6, 7, 8])
    assert (step.prompt_rows, len(step.logits)) == (rows, 3) and step.width >= rows + 3
    logits = step.logits.copy()
    model.cache.keep([0, 1])
    assert list(model.cache.tokens) == [*TEXT, 6, 7] and model.free_width == model.capabilities.max_width
    for row, more in zip(logits, ([6], [6, 7], [6, 7, 8]), strict=True):
        assert close(model, row, fresh_logits(other, [*TEXT, *more]))
    assert model.forward([9]).prompt_rows == 0


def test_a_tree_may_stand_behind_a_deferred_end(make: Make) -> None:
    (model, _), other = deferred(make, TEXT), make()
    if not takes_trees(model):
        pytest.skip("chains only")
    model.forward([6, 7, 8, 9], tree=(0, 0, 2))
    model.cache.keep([0, 2, 3])
    assert list(model.cache.tokens) == [*TEXT, 6, 8, 9]
    assert close(model, model.forward([5]).logits[0], fresh_logits(other, [*TEXT, 6, 8, 9, 5]))


@pytest.mark.parametrize("then", ["reset", "crop", "prefill", "start"])
def test_whoever_goes_back_forgets_what_was_deferred(make: Make, then: str) -> None:
    (model, rows), other = deferred(make, TEXT), make()
    text = TEXT[: len(TEXT) - rows]
    if then == "reset":
        model.cache.reset()
        text = []
    elif then == "crop":
        model.cache.crop(len(text))
    elif then == "prefill":
        text = [*TEXT, 3]
        model.prefill(text)
    else:  # one that nobody waits for does nothing
        model.start([1, 2])
        text = TEXT
    step = model.forward([4])
    assert step.prompt_rows == (rows if then == "start" else 0)
    assert list(model.cache.tokens) == [*text, 4]
    assert close(model, step.logits[0].copy(), fresh_logits(other, [*text, 4]))


def test_without_a_reserve_nothing_is_deferred(make: Make) -> None:
    model = make()
    model.prefill(TEXT)
    assert list(model.cache.tokens) == TEXT and model.free_width == model.capabilities.max_width


def test_the_progress_of_a_prefill_ends_with_what_was_deferred(make: Make) -> None:
    model, seen = make(), []
    if isinstance(model, FakeModel):
        model.leaves = 8
    model.prefill(TEXT, reserve=3, progress=lambda done, total: seen.append((done, total)))
    model.forward([6, 7])
    model.forward([8])
    assert seen == [(len(TEXT), len(TEXT))]


def test_prefill_reuses_the_longest_prefix(make: Make) -> None:
    model, other = make(), make()
    assert model.prefill([1, 2, 3, 4, 5]) == 0
    assert model.prefill([1, 2, 3, 9, 9, 9]) == 3
    assert model.prefill([1, 2]) == 2
    assert list(model.cache.tokens) == [1, 2]
    assert model.prefill([1, 2, 7, 8]) == 2
    assert close(model, model.forward([8]).logits[0], fresh_logits(other, [1, 2, 7, 8, 8]))


def test_the_context_fills_to_its_last_row_and_not_further(make: Make) -> None:
    model, other = make(), make()
    text = [(i * 13) % 50 for i in range(CAPACITY)]
    with pytest.raises(ContextFull, match="701 tokens"):
        model.prefill([*text, 1])
    model.prefill(text[:-1])
    assert close(model, model.forward(text[-1:]).logits[0], fresh_logits(other, text))
    assert model.cache.length == CAPACITY


@pytest.mark.parametrize("reused", [CAPACITY - 3, CAPACITY - 60, CAPACITY - 195, CAPACITY - 250])
def test_pads_fit_behind_a_prompt_that_fills_the_context(make: Make, reused: int) -> None:
    """Whatever is left to read: in a prefill, and in the forward that reads the end of the prompt."""
    model, other = make(), make()
    text = [(i * 13) % 50 for i in range(CAPACITY)]
    expected = fresh_logits(other, text)
    for reserve in (None, 1):
        model.cache.reset()
        model.prefill(text[:reused])
        assert model.prefill(text[:-1], reserve=reserve) == reused
        row = model.forward(text[-1:]).logits[0]
        assert model.cache.tokens == text and close(model, row, expected)


def test_num_logits_takes_the_last_rows(make: Make) -> None:
    model = make()
    everything = model.forward([1, 2, 3, 4]).logits.copy()
    for wanted in (0, 1, 2, 4):
        model.cache.reset()
        rows = model.forward([1, 2, 3, 4], num_logits=wanted).logits
        assert rows.shape == (wanted, model.vocab_size)
        assert close(model, rows, everything[4 - wanted :])


def test_start_ready_wait_is_forward(make: Make) -> None:
    model, other = make(), make()
    model.start([1, 2, 3])
    assert model.cache.length == 0  # rows are booked when they are there
    step = model.wait()
    assert model.cache.length == 3
    assert np.array_equal(step.logits, other.forward([1, 2, 3]).logits)


def test_a_forward_nobody_waited_for_leaves_no_trace(make: Make) -> None:
    model, other = make(), make()
    model.prefill([1, 2, 3, 4])
    model.start([9, 9, 9])
    assert model.prefill([1, 2, 3, 4, 5]) == 4
    model.start([7])
    assert close(model, model.forward([6]).logits[0], fresh_logits(other, [1, 2, 3, 4, 5, 6]))


@pytest.mark.parametrize("then", ["reset", "crop", "prefill"])
def test_a_tree_without_a_kept_path_can_be_cropped_away(make: Make, then: str) -> None:
    model, other = make(), make()
    skip_without_masks(model)
    model.prefill([1, 2, 3])
    model.forward([4, 5, 6], tree=(0, 0))
    if then == "reset":
        model.cache.reset()
    elif then == "crop":
        model.cache.crop(2)
    model.prefill([1, 2, 8])
    assert close(model, model.forward([6]).logits[0], fresh_logits(other, [1, 2, 8, 6]))


@pytest.mark.parametrize("load", [load_ir, load_onnx])
def test_an_interrupted_growth_begins_again(
    tiny_ir: Path, monkeypatch: pytest.MonkeyPatch, load: Callable[..., OpenVINOPagedModel | OnnxRuntimeModel]
) -> None:
    model, other = load(tiny_ir, capacity=4096), load(tiny_ir, capacity=4096)
    model.prefill([1] * 50)
    allocate, calls = model.cache._allocate, 0

    def interrupted(*arguments):  # type: ignore[no-untyped-def]
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return allocate(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(model.cache, "_allocate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            model.prefill([1] * 2000)
    assert model.prefill([1] * 60) == 0
    assert np.array_equal(model.forward([2]).logits[0], fresh_logits(other, [1] * 60 + [2]))
    model.prefill([1] * 3000)
    assert np.array_equal(model.forward([2]).logits[0], fresh_logits(other, [1] * 3000 + [2]))


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("load", [load_ir, load_onnx])
def test_inputs_that_were_interrupted_are_set_again(
    tiny_ir: Path,
    monkeypatch: pytest.MonkeyPatch,
    load: Callable[..., OpenVINOPagedModel | OnnxRuntimeModel],
    before: bool,
) -> None:
    """Ctrl-C while a forward of another width is set up, before the engine is told of an input or after: the next one
    is right. So it is when arrays that were used before had to go."""
    monkeypatch.setattr(input_buffers, "_KEPT", 5)
    model, other = load(tiny_ir), load(tiny_ir)
    tell = model._inputs._tell
    places = 4  # inputs whose shape is another in a forward of another width, one of them because of a block more
    for place in range(places):
        text = [(7 * i + place) % 60 for i in range(28 + 32 * place)]  # a block is 32 rows
        model.prefill(text)
        model.forward([1, 2, 3])
        model.cache.crop(len(text))
        with monkeypatch.context() as patch:
            patch.setattr(model._inputs, "_tell", interrupted(tell, place, before))
            with pytest.raises(KeyboardInterrupt):
                model.forward([4] * (model.min_width + 5 + place % 2))
        model.prefill(text)
        for width in (3, 5, 1):
            expected = fresh_logits(other, [*text, *range(width)])
            assert np.array_equal(model.forward(list(range(width))).logits[-1], expected), (place, width)
            model.cache.crop(len(text))


class _Failed:
    def __init__(self) -> None:
        self.waited = 0

    def wait(self) -> None:
        self.waited += 1
        raise RuntimeError("the forward failed")


def test_a_model_that_goes_while_a_forward_runs_waits_for_it_and_says_nothing(
    tiny_ir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_ir(tiny_ir)
    model.start([1])
    request, model._request = model._request, _Failed()
    failed, said = model._request, []
    monkeypatch.setattr(sys, "unraisablehook", said.append)
    del model
    gc.collect()
    request.wait()
    assert failed.waited == 1 and not said


def interrupted(tell: Callable[..., object], place: int, before: bool) -> Callable[..., None]:
    """``tell``, interrupted before or after it was done for the ``place``-th time."""
    told = 0

    def telling(name: str, handle: object) -> None:
        nonlocal told
        told += 1
        if told <= place or not before:
            tell(name, handle)
        if told > place:
            raise KeyboardInterrupt

    return telling


def test_a_stopped_prefill_keeps_what_it_did(make: Make) -> None:
    model, other = make(), make()
    chunk = model.capabilities.max_width
    text = [(i * 3) % 50 for i in range(chunk + 60)]
    seen: list[tuple[int, int]] = []

    def stop_late(done: int, total: int) -> None:
        seen.append((done, total))
        if done >= chunk:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.prefill(text, progress=stop_late)
    assert seen == [(chunk, chunk + 60)] and model.cache.length == chunk
    assert model.prefill(text[:-1]) == chunk
    assert close(model, model.forward(text[-1:]).logits[0], fresh_logits(other, text))


def test_an_abandoned_tree_is_forgotten(make: Make) -> None:
    model, other = make(), make()
    skip_without_masks(model)
    model.prefill([1, 2, 3])
    model.forward([4, 5, 6], tree=(0, 0))  # and no keep: the round was interrupted
    assert model.prefill([1, 2, 3, 4, 5]) == 3
    assert close(model, model.forward([6]).logits[0], fresh_logits(other, [1, 2, 3, 4, 5, 6]))


def test_crop_and_growth_do_not_copy_more_than_they_must(tiny_ir: Path) -> None:
    model = load_ir(tiny_ir, capacity=4096)
    model.prefill([1] * 10)
    per_block = model.cache.nbytes / model.cache.blocks
    model.prefill([1] * 2000)
    large = model.cache.nbytes
    assert 2000 / 32 <= large / per_block <= 1.3 * 2000 / 32
    model.cache.crop(5)
    assert model.cache.nbytes == large  # memory is kept for the next text


LAYERS = (0, 1, 2)  # of the tiny models: embeddings, behind the first layer, what goes into the output head


def test_hidden_states_come_on_request(tiny_ir: Path) -> None:
    model = load_ir(tiny_ir, layers=LAYERS)
    step = model.forward([1, 2, 3])
    assert model.capabilities.hidden == LAYERS and set(step.hidden) == set(LAYERS)
    for states in step.hidden.values():
        assert states.shape == (3, 64) and np.isfinite(states).all()
    assert model.forward([4]).hidden[1].shape == (1, 64)
    assert not load_ir(tiny_ir).forward([1]).hidden
    with pytest.raises(BackendError, match="no such layer; got 3; allowed: 0 to 2"):
        load_ir(tiny_ir, layers=(3,))


@pytest.mark.parametrize(
    "arch",
    ["llama", *(pytest.param(arch, marks=pytest.mark.slow) for arch in ("phi3", "qwen2", "qwen3"))],
)
def test_hidden_states_are_those_of_transformers(tmp_path: Path, arch: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    folder = build(arch, tmp_path / "torch", layers=3)
    model = load_ir(export_ir(folder, tmp_path / "ir"), layers=(0, 1, 2, 3), full_precision=True)
    text = [(11 * i + i * i) % 300 + 10 for i in range(12)]
    with torch.no_grad():
        said = AutoModelForCausalLM.from_pretrained(folder)(torch.tensor([text]), output_hidden_states=True)
    step = model.forward(text)
    assert len(said.hidden_states) == 4
    for layer, expected in enumerate(said.hidden_states):
        correlation = np.corrcoef(step.hidden[layer].ravel(), expected[0].numpy().ravel())[0, 1]
        assert correlation > 0.999, (layer, correlation)


def test_hidden_states_of_a_prefill_and_of_what_it_defers_are_told(tiny_ir: Path) -> None:
    fake = FakeModel(random_table(50, seed=1), 50, max_width=64, leaves=20, layers=(1,))
    paged = load_ir(tiny_ir, layers=(1,))
    paged.set_exact_widths(ExactWidths(paged.min_width, 64))
    for model in (fake, paged):
        told: list[tuple[int, list[int], int]] = []

        def observe(start: int, tokens: Sequence[int], hidden: Hidden, told: list[Any] = told) -> None:
            told.append((start, list(tokens), len(hidden[1])))

        text = [(7 * i) % 50 for i in range(71)]
        model.prefill(text, reserve=3, observe=observe)  # type: ignore[attr-defined]
        assert told == [(0, text[:64], 64)]
        step = model.forward([1, 2, 3])
        assert (step.prompt_rows, len(step.hidden[1]), len(step.logits)) == (7, 10, 3)
        start, tokens, hidden = step.kept([*text, 1, 2, 9], Verdict(1, (2, 9), (0, 1)))
        assert (start, list(tokens), len(hidden[1])) == (64, [*text[64:], 1, 2], 9)
        assert np.array_equal(hidden[1], step.hidden[1][:9])


@pytest.mark.parametrize(
    ("arch", "weights"),
    [
        ("llama", "int4"),
        ("qwen3", "f32"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [("llama", "int8"), ("phi3", "f16"), ("qwen2", "int8"), ("qwen3", "int4")]
        ),
    ],
)
def test_exact_numerics_hold_for_other_models_and_weights(tmp_path: Path, arch: str, weights: str) -> None:
    """Bit for bit: one text in windows of many widths, with rejected tokens between, after prefills of any chunking."""
    from tests.tiny_models import build, export_ir

    model = load_ir(export_ir(build(arch, tmp_path / "torch"), tmp_path / "ir", weights))
    text = [(11 * i + i * i) % 300 + 10 for i in range(128)]

    def logits(width: int, junk: int, first: int) -> Logits:
        model.cache.reset()
        for end in range(first, 64, first):
            model.prefill(text[:end])
        model.prefill(text[:64])
        rows = []
        for begin in range(64, 128, width):
            window = text[begin : begin + width]
            rows.append(model.forward([*window, *[3, 5, 7][:junk]]).logits[: len(window)].copy())
            model.cache.keep(range(len(window)))
        return np.concatenate(rows)

    expected = logits(8, 0, 64)
    for width, junk, first in [(1, 0, 64), (1, 3, 64), (2, 0, 1), (5, 2, 17), (16, 0, 33), (64, 0, 64), (61, 3, 2)]:
        assert np.array_equal(logits(width, junk, first), expected), (width, junk, first)


def test_the_exact_range_is_found_by_trying(tiny_ir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose narrow and wide forwards differ in the last bit gets the range between, or is refused."""
    table = random_table(50, seed=1)

    class Moody(FakeModel):
        same = range(5, 33)

        def forward(self, tokens, tree=None, **options):  # type: ignore[no-untyped-def]
            step = super().forward(tokens, tree, **options)
            return step if len(tokens) in self.same else Step(step.logits + np.float32(1e-5 * len(tokens)))

    assert find_exact_widths(Moody(table, 50)) == ExactWidths(5, 32)
    monkeypatch.setattr(Moody, "same", range(2, 65))
    assert find_exact_widths(Moody(table, 50)) == ExactWidths(2, 64)
    monkeypatch.setattr(Moody, "same", range(2, 300, 2))
    assert find_exact_widths(Moody(table, 50)) == ExactWidths(2, 64, 2), "an odd row runs another kernel"
    for odd in (11, 13):
        monkeypatch.setattr(Moody, "same", [width for width in range(1, 300) if width != odd])
        assert find_exact_widths(Moody(table, 50)) == ExactWidths(2, 64, 2), "no width stands for another"
    monkeypatch.setattr(Moody, "same", [4, *range(8, 300, 4)])
    assert find_exact_widths(Moody(table, 50)) == ExactWidths(4, 64, 4)
    monkeypatch.setattr(Moody, "same", range(20, 41))
    with pytest.raises(BackendError, match="Use --numerics fast"):
        find_exact_widths(Moody(table, 50))


def test_a_width_that_differs_now_and_then_is_not_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """As kernels do that sum in another order: most rows come out alike."""
    table = random_table(50, seed=1)

    class Fickle(FakeModel):
        def forward(self, tokens, tree=None, **options):  # type: ignore[no-untyped-def]
            step = super().forward(tokens, tree, **options)
            differs = len(tokens) == 1 and self.cache.length % 16 == 0
            return Step(step.logits + np.float32(1e-6)) if differs else step

    assert find_exact_widths(Fickle(table, 50)).least == 2


@pytest.mark.slow
def test_exact_numerics_hold_for_wide_layers(tmp_path: Path) -> None:
    """On an AVX2 machine these need five rows, not two: the reason why the range is tried."""
    from tests.tiny_models import build, export_ir

    torch = build("llama", tmp_path / "torch", hidden=3072, heads=48, kv_heads=12, layers=1, scale=0.02)
    model = load_ir(export_ir(torch, tmp_path / "ir", "int8"))
    text = [(11 * i + i * i) % 300 + 10 for i in range(128)]
    model.prefill(text[:64])
    expected = model.forward(text[64:]).logits.copy()
    for width in (1, 2, 3, 4, 5, 8, 31):
        model.cache.crop(64)
        assert np.array_equal(model.forward(text[64 : 64 + width]).logits, expected[:width]), width
