"""No memory is left while a model runs: the text ends with an error, and what the cache held is still there.

What fails is simulated where the engines are called: to grow the cache, to set up a forward, to run it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

import edgespec
from edgespec import cli
from edgespec.backends.engine_model import PaddedModel
from edgespec.backends.input_buffers import Inputs
from edgespec.backends.onnx.session import OnnxRuntimeModel, SessionModel
from edgespec.backends.openvino.blocks import PagedCache
from edgespec.backends.openvino.paged import OpenVINOPagedModel
from edgespec.backends.openvino.request_model import RequestModel
from edgespec.backends.openvino.stateful_model import OpenVINOStatefulModel
from edgespec.errors import BackendError
from edgespec.pipeline import Pipeline
from tests import contract
from tests.conftest import load_ir, load_onnx
from tests.contract import Make, close, fresh_logits, takes_trees

make = contract.make

TEXT = [(7 * i + i * i) % 50 for i in range(2000)]
OUT_OF_MEMORY = [MemoryError(), RuntimeError("[GPU] CL_OUT_OF_DEVICE_MEMORY")]


def done(*args: object) -> None:
    """What runs before the error: nothing."""


def failing(error: Exception, after: Callable[..., object] = done) -> Callable[..., Any]:
    def fail(*args: Any) -> None:
        after(*args)
        raise error

    return fail


def engine_of(model: object) -> type:
    """Whose methods call the engine."""
    return SessionModel if isinstance(model, SessionModel) else RequestModel


@pytest.mark.parametrize("place", [1, 2, 4])
@pytest.mark.parametrize("load", [load_ir, load_onnx])
def test_a_cache_that_cannot_grow_keeps_its_rows(
    tiny_ir: Path,
    monkeypatch: pytest.MonkeyPatch,
    load: Callable[..., OpenVINOPagedModel | OnnxRuntimeModel],
    place: int,
) -> None:
    """Whichever layer is the first without memory, and then again, before there is some."""
    model, other = load(tiny_ir, capacity=4096), load(tiny_ir, capacity=4096)
    model.prefill(TEXT[:50])
    allocate, calls = model.cache._allocate, 0

    def short(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls % place == 0:
            raise MemoryError
        return allocate(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(model.cache, "_allocate", short)
        for _ in range(2):
            with pytest.raises(BackendError, match=r"no memory for the KV cache: MemoryError.*--context-length"):
                model.prefill(TEXT)
            assert list(model.cache.tokens) == TEXT[:50]
            assert np.array_equal(model.forward([2]).logits[0], fresh_logits(other, [*TEXT[:50], 2]))
            model.cache.crop(50)
        if takes_trees(model):  # whose rows move within the cache that is left
            model.forward([4, 5, 6], tree=(0, 0))
            model.cache.keep((0, 2))
            assert np.array_equal(model.forward([2]).logits[0], fresh_logits(other, [*TEXT[:50], 4, 6, 2]))
            model.cache.crop(50)
    assert model.prefill(TEXT) == 50, "there is memory again: what was read is not read again"
    assert np.array_equal(model.forward([2]).logits[0], fresh_logits(other, [*TEXT, 2]))


@pytest.mark.parametrize("load", [load_ir, load_onnx])
def test_a_cache_that_is_not_taken_back_begins_again(
    tiny_ir: Path, monkeypatch: pytest.MonkeyPatch, load: Callable[..., OpenVINOPagedModel | OnnxRuntimeModel]
) -> None:
    """The engine refuses the memory that it had before. What is told is the first error, which says what to do."""
    model, other = load(tiny_ir, capacity=4096), load(tiny_ir, capacity=4096)
    model.prefill(TEXT[:50])
    refused = failing(RuntimeError("[GPU] CL_INVALID_MEM_OBJECT"))
    with monkeypatch.context() as patch:
        patch.setattr(model.cache, "_allocate", failing(MemoryError()))
        if isinstance(model.cache, PagedCache):
            patch.setattr(model.cache, "_request", SimpleNamespace(set_tensor=refused))
        else:
            patch.setattr(model.cache, "_bind", refused)
        with pytest.raises(BackendError, match=r"no memory for the KV cache: MemoryError.*--context-length"):
            model.prefill(TEXT)
        assert not model.cache.tokens and model.cache.nbytes == 0
    assert model.prefill(TEXT[:50]) == 0
    assert np.array_equal(model.forward([2]).logits[0], fresh_logits(other, [*TEXT[:50], 2]))


@pytest.mark.parametrize("load", [load_ir, load_onnx])
def test_layers_that_have_grown_are_counted_as_large_as_they_are(
    tiny_ir: Path, monkeypatch: pytest.MonkeyPatch, load: Callable[..., OpenVINOPagedModel | OnnxRuntimeModel]
) -> None:
    """Though the text has no use for their new rows."""
    model, large = load(tiny_ir, capacity=4096), load(tiny_ir, capacity=4096)
    model.prefill(TEXT[:50])
    large.prefill(TEXT[:50])
    small, layers, allocate = model.cache.nbytes, len(model.cache._tensors) // 2, model.cache._allocate
    asked = count()

    def short(*arguments: Any) -> Any:
        if next(asked) == 2:  # keys and values of the first layer have grown
            raise MemoryError
        return allocate(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(model.cache, "_allocate", short)
        with pytest.raises(BackendError, match="no memory for the KV cache"):
            model.prefill(TEXT)
    large.prefill(TEXT)
    assert layers > 1 and model.cache.nbytes == small + (large.cache.nbytes - small) // layers
    model.prefill(TEXT)
    assert model.cache.nbytes == large.cache.nbytes


@pytest.mark.parametrize("error", [ValueError("a shape of ours"), RuntimeError("a state of ours")])
def test_a_mistake_of_ours_is_no_error_of_the_engine(
    make: Make, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """What fails while inputs are made keeps its traceback; what the engine says of them is told in a line."""
    model: Any = make()
    if not issubclass(type(model), PaddedModel):
        pytest.skip("no engine that could have an error")
    model.prefill(TEXT[:60])
    with monkeypatch.context() as patch:
        patch.setattr(model, "_set_inputs", failing(error))
        with pytest.raises(type(error), match="of ours"):
            model.forward([1, 2])
    with monkeypatch.context() as patch:
        patch.setattr(model, "_inputs", Inputs(model._inputs._kinds, model._inputs._wrap, failing(error)))
        with pytest.raises(BackendError, match="cannot set up a forward: .* of ours"):
            model.forward([1, 2])


def test_the_first_memory_that_is_asked_for_may_be_there_later(tiny_ir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for load in (load_ir, load_onnx):
        model = load(tiny_ir)
        with monkeypatch.context() as patch:
            patch.setattr(model.cache, "_allocate", failing(MemoryError()))
            with pytest.raises(BackendError, match="no memory for the KV cache"):
                model.forward([1])
        assert np.array_equal(model.forward([1]).logits, load(tiny_ir).forward([1]).logits)


def test_a_forward_without_memory_leaves_no_trace(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the host or of the device, while it is set up, while it runs, and while somebody waits for it."""
    model, other = make(), make()
    if not isinstance(model, PaddedModel):
        pytest.skip("no engine that could have none")
    engine: Any = engine_of(model)
    expected = fresh_logits(other, [*TEXT[:61], 3])
    for place, method in enumerate(("_set_inputs", "_infer", "_start", "_wait")):
        error = OUT_OF_MEMORY[place % 2]
        model.prefill(TEXT[:60])
        with monkeypatch.context() as patch:
            if method == "_set_inputs":
                patch.setattr(model, method, failing(error))
            else:
                patch.setattr(engine, method, failing(error, engine._wait if method == "_wait" else done))
            with pytest.raises(BackendError, match="MemoryError|CL_OUT_OF_DEVICE_MEMORY"):
                if method == "_infer":
                    model.forward([1, 2])
                else:
                    model.start([1, 2])
                    model.wait()
        held = list(model.cache.tokens)
        assert held == TEXT[: len(held)]
        model.prefill(TEXT[:61])
        assert close(model, model.forward([3]).logits[0], expected), method


def test_a_forward_that_returns_nothing_is_an_error_and_no_text(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO's output has no rows, and no error says why, where a process may not have more memory."""
    model, other = make(), make()
    if not isinstance(model, PaddedModel):
        pytest.skip("no engine that could have none")
    model.prefill(TEXT[:60])
    step = model._step
    with monkeypatch.context() as patch:
        patch.setattr(model, "_step", lambda forward: replace(step(forward), logits=step(forward).logits[:0]))
        with pytest.raises(BackendError, match="the engine returned no result; got 0 of 2 rows"):
            model.forward([1, 2])
    assert list(model.cache.tokens) == TEXT[:60]
    model.prefill(TEXT[:61])
    assert close(model, model.forward([3]).logits[0], fresh_logits(other, [*TEXT[:61], 3]))


@pytest.fixture(params=["paged", "stateful", "onnxruntime"])
def chat(request: pytest.FixtureRequest, tiny_ir: Path) -> Pipeline:
    options: dict[str, Any] = {"draft": "ngram", "num_draft_tokens": 3, "numerics": "fast"}
    if request.param == "onnxruntime":
        return edgespec.load(tiny_ir.parent, backend="onnxruntime", **options)
    return edgespec.load(tiny_ir.parent, backend="openvino", kv=request.param, **options)


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["host", "device"])
def test_a_text_ends_in_the_middle_and_the_chat_goes_on(
    chat: Pipeline, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """The rows of the prompt and of what was written are there still, unless the engine holds them itself."""
    options: dict[str, Any] = {"max_new_tokens": 12, "ignore_eos": True}
    expected = chat.generate(TEXT[:80], **options).token_ids
    chat.target.cache.reset()
    kind: Any = engine_of(chat.target)
    run, ran = kind._infer, 0

    def short(self: Any) -> None:
        nonlocal ran
        ran += 1
        if ran > 4:
            raise error
        run(self)

    stream = chat.stream(TEXT[:80], **options)
    with monkeypatch.context() as patch:
        patch.setattr(kind, "_infer", short)
        with pytest.raises(BackendError, match="inference failed: (MemoryError|.*CL_OUT_OF_DEVICE_MEMORY)"):
            list(stream)
    written = stream.result.token_ids
    assert 0 < len(written) < 12 and written == expected[: len(written)], "what was written before stays"
    held = list(chat.target.cache.tokens)
    if isinstance(chat.target, OpenVINOStatefulModel):
        assert not held, "some of its states may have more rows than others"
    else:
        assert held == [*TEXT[:80], *written][: len(held)] and len(held) >= 80
    again = chat.generate(TEXT[:80], **options)
    assert again.token_ids == expected and again.stats.reused_tokens == min(79, len(held))


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["host", "device"])
def test_a_draft_without_memory_ends_the_text_and_not_the_next(
    tiny_ir: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """By both schedules: overlapped, the target runs when it comes."""
    options: dict[str, Any] = {"max_new_tokens": 12, "ignore_eos": True}
    monkeypatch.setattr("edgespec.machine.schedule_choice.available_cores", lambda: 2)
    for schedule in ("synchronous", "overlapped"):
        folder, how = tiny_ir.parent, cast("Any", schedule)
        pair = edgespec.load(folder, draft=str(folder), backend="openvino", schedule=how)
        expected = pair.generate(TEXT[:40], **options).token_ids
        assert pair.draft_model is not None
        drafted = options | {"num_draft_tokens": 3}
        if pair.arbiter is not None:  # else its lookups draft
            drafted["drafter"] = pair.arbiter.model
        with monkeypatch.context() as patch:
            patch.setattr(pair.draft_model, "_infer", failing(error))
            with pytest.raises(BackendError, match="MemoryError|CL_OUT_OF_DEVICE_MEMORY"):
                pair.generate(TEXT[:40], **drafted)
        again = pair.generate(TEXT[:40], **drafted)
        assert again.token_ids == expected and again.stats.reused_tokens > 0
        guessed = again.stats.guessed
        assert again.stats.proposed > 0 if guessed is None else guessed.kept + guessed.stale > 0


@pytest.mark.parametrize(("arguments", "shorter"), [(["models"], False), (["run", "x"], True), (["x"], True)])
def test_a_command_without_memory_says_so_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], shorter: bool
) -> None:
    monkeypatch.setattr("sys.argv", ["edgespec", *arguments])
    monkeypatch.setattr(cli.cli, "invoke", failing(MemoryError()))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    told = capsys.readouterr().err
    assert ended.value.code == 2 and told.startswith("error: no memory is left")
    assert ("--context-length" in told) == shorter
