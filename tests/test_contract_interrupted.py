"""Forwards that nobody waited for, and work that Ctrl-C stopped, leave every backend right."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgespec.backends import input_buffers
from edgespec.backends.onnx.session import OnnxRuntimeModel
from edgespec.backends.openvino.npu import OpenVINONPUModel
from edgespec.backends.openvino.paged import OpenVINOPagedModel
from tests import contract
from tests.conftest import load_ir, load_onnx
from tests.contract import Make, close, fresh_logits, skip_without_masks

make = contract.make


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
    failed = model._request
    said: list[Any] = []
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
    did = len(text) if isinstance(model, OpenVINONPUModel) else chunk  # its plugin makes the chunks
    assert seen == [(did, len(text))] and model.cache.length == did
    assert model.prefill(text[:-1]) == min(did, len(text) - 1)
    assert close(model, model.forward(text[-1:]).logits[0], fresh_logits(other, text))


def test_an_abandoned_tree_is_forgotten(make: Make) -> None:
    model, other = make(), make()
    skip_without_masks(model)
    model.prefill([1, 2, 3])
    model.forward([4, 5, 6], tree=(0, 0))  # and no keep: the round was interrupted
    assert model.prefill([1, 2, 3, 4, 5]) == 3
    assert close(model, model.forward([6]).logits[0], fresh_logits(other, [1, 2, 3, 4, 5, 6]))
