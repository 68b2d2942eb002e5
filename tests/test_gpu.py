"""The stateful path on a GPU, or on OpenVINO's GPU plugin on this CPU (scripts/check --gpu-on-cpu).

Tiny models in floating point only: 4-bit weights and paged attention do not run on the CPU's OpenCL runtime.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest

import edgespec
from edgespec.backends.openvino.runtime import core, ops, ov
from edgespec.backends.openvino.stateful_model import OpenVINOStatefulModel
from edgespec.errors import BackendError
from edgespec.protocols import Model
from tests.conftest import load_ir, load_stateful
from tests.contract import CAPACITY, Make, close, fresh_logits
from tests.test_contract import (  # noqa: F401 - the contract, on this device
    test_a_tree_row_sees_its_own_branch_only,
    test_any_history_then_one_forward_equals_a_fresh_one,
    test_num_logits_takes_the_last_rows,
    test_prefill_reuses_the_longest_prefix,
    test_rejected_rows_leave_no_trace,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(  # where the check was asked for, a GPU that does not show is a failure
        "GPU" not in core().available_devices and not os.environ.get("EDGESPEC_GPU_ON_CPU"),
        reason="no GPU here, and no scripts/check --gpu-on-cpu",
    ),
]
TEXT = [(7 * i + i * i) % 50 for i in range(40)]


@pytest.fixture(scope="session")
def gpu_ir(tiny_ir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model. On the CPU's OpenCL runtime its norms stay as they are written: the plugin's kernel for a whole
    norm gives no numbers there."""
    if not os.environ.get("EDGESPEC_GPU_ON_CPU"):
        return tiny_ir
    folder = tmp_path_factory.mktemp("gpu") / "ir"
    shutil.copytree(tiny_ir.parent, folder, ignore=shutil.ignore_patterns("openvino_model.*"))
    model = core().read_model(tiny_ir)
    for node in model.get_ordered_ops():
        if node.get_type_name() == "ReduceMean":
            node.input(0).replace_source_output(ops.abs(node.input_value(0)).output(0))
    ov.save_model(model, folder / tiny_ir.name, compress_to_fp16=False)
    return folder / tiny_ir.name


@pytest.fixture(scope="module", params=["f32", "f16"])
def models(
    gpu_ir: Path, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[OpenVINOStatefulModel]:
    """Two: compiling takes long."""
    made = [load_stateful(gpu_ir, device="GPU", capacity=CAPACITY, precision=request.param) for _ in range(2)]
    assert all(model.cache.masked for model in made)
    return made


@pytest.fixture
def make(models: list[OpenVINOStatefulModel]) -> Iterator[Make]:
    turns = cycle(models)

    def fresh() -> Model:
        model = next(turns)
        model.cache.reset()
        return model

    yield fresh


def test_it_says_what_the_cpu_says(make: Make, gpu_ir: Path) -> None:
    model, cpu = make(), load_ir(gpu_ir, "fast")
    for each in (model, cpu):
        each.prefill(TEXT)
    mine, theirs = (each.forward([1, 2, 3, 4], (0, 0, 2)).logits.copy() for each in (model, cpu))
    assert np.abs(mine - theirs).max() < 0.05 * np.abs(theirs).max()


def test_states_are_rewritten_on_the_device(make: Make, models: list[OpenVINOStatefulModel]) -> None:
    model, other = make(), make()
    model.prefill(TEXT)
    for token in range(10):
        model.forward([token, 41, 42, 43])
        model.cache.keep([0])
    before = model._request.query_state()[0].state.shape[2]  # type: ignore[attr-defined]
    model.cache._rewrite()  # type: ignore[attr-defined]
    assert model._request.query_state()[0].state.shape[2] == 50 < before  # type: ignore[attr-defined]
    assert close(model, model.forward([8]).logits[0], fresh_logits(other, [*TEXT, *range(10), 8]))


def test_turns_of_a_chat_and_a_device_that_fails_between_them(gpu_ir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = edgespec.load(gpu_ir.parent, device="GPU", draft="ngram", num_draft_tokens=4)
    assert pipeline.target.capabilities.device == "GPU" and pipeline.target.capabilities.numerics == "fast"
    options = {"max_new_tokens": 12, "ignore_eos": True}
    messages = [{"role": "user", "content": "moving_average(values, window)"}]
    first = pipeline.chat(messages, **options)
    messages += [{"role": "assistant", "content": first.text}, {"role": "user", "content": "Again."}]

    def lost(self: object) -> None:
        raise RuntimeError("[GPU] CL_DEVICE_NOT_AVAILABLE")

    with monkeypatch.context() as patch:
        patch.setattr("edgespec.backends.openvino.request_model.RequestModel._infer", lost)
        with pytest.raises(BackendError, match="CL_DEVICE_NOT_AVAILABLE"):
            pipeline.chat(messages, **options)
    drafted = pipeline.chat(messages, **options)
    plain = pipeline.chat(messages, num_draft_tokens=0, **options)
    assert len(drafted.token_ids) == 12 and drafted.token_ids[:6] == plain.token_ids[:6]
