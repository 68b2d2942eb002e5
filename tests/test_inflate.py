"""The inflated target: as large as asked for, and the same function as the default target, on the real engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from edgespec import bundle
from edgespec.backends.openvino.runtime import ov
from edgespec.bench.prompts import encode, read
from edgespec.bundle import Bundle
from edgespec.cli import cli
from edgespec.drafters.none import NoDrafter
from edgespec.errors import ConversionError, SettingError
from edgespec.pipeline import Pipeline
from edgespec.protocols import Model
from edgespec_bench.inflate import Weights, inflate, plan
from tests.conftest import load_ir

Inflate = Callable[[float, Weights], Bundle]
pytestmark = pytest.mark.real


@pytest.fixture
def inflated(tmp_path: Path) -> Inflate:
    return lambda parameters, weights: inflate(tmp_path / "inflated", parameters=parameters, weights=weights)


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["int8", "int4"])
@pytest.mark.parametrize("parameters", [0.2e9, 1e9])
def test_it_is_as_large_as_asked_for_and_the_same_function(
    inflated: Inflate, pipeline: Pipeline, parameters: float, weights: Weights
) -> None:
    made = inflated(parameters, weights)
    assert made.name.startswith("smollm2-135m-inflated-") and made.name.endswith(weights)
    assert "inflated" in (made.manifest.provenance.notes or "")
    default = pipeline.bundle.manifest
    for part in ("drafters", "tokenizer", "chat_template", "generation"):
        assert getattr(made.manifest, part) == getattr(default, part)
    xml = made.model_path(made.manifest.target)
    assert abs(_parameters(xml) / parameters - 1) < 0.05
    if weights == "int8":  # no weight is stored for another one: all have to be read
        assert xml.with_suffix(".bin").stat().st_size > _parameters(xml)
    big = load_ir(xml, capacity=2048)
    assert big.min_width == pipeline.target.capabilities.min_width
    text = encode(pipeline, read()[0])[:64] * 2
    expected, logits = (_logits(model, text) for model in (pipeline.target, big))
    assert np.isfinite(logits).all() and np.array_equal(logits, expected)
    drafted = Pipeline(made, big, pipeline.drafter)
    for prompt in read(per_category=1):
        ids = encode(pipeline, prompt)
        plain = pipeline.generate(ids, max_new_tokens=12, drafter=NoDrafter()).token_ids
        assert drafted.generate(ids, max_new_tokens=12).token_ids == plain


def _logits(model: Model, text: list[int]) -> np.ndarray:
    model.cache.reset()
    model.prefill(text[:-8])
    return model.forward(text[-8:]).logits.copy()


def _parameters(xml: Path) -> int:
    """Numbers in all compressed constants that are matrices."""
    shapes = [
        node.get_output_shape(0)
        for node in ov.Core().read_model(xml).get_ordered_ops()
        if node.get_type_name() == "Constant" and node.get_element_type() in (ov.Type.u8, ov.Type.u4)
    ]
    return sum(int(np.prod(shape)) for shape in shapes if shape[-1] > 1)


@pytest.mark.parametrize("parameters", [2e8, 5e8, 1e9, 1.5e9])
def test_a_plan_comes_within_five_percent(parameters: float) -> None:
    planned = plan(parameters, own=134_479_872, layers=30, hidden=576)
    assert abs(planned.parameters / parameters - 1) < 0.05
    assert len(set(planned.guests)) == len(planned.guests) <= 30 and max(planned.guests) < 30


@pytest.mark.parametrize("parameters", [1.3e8, 2e10, float("nan"), -1e9])
def test_a_size_that_cannot_be_made_is_refused(tmp_path: Path, parameters: float) -> None:
    with pytest.raises(SettingError, match="parameters; got .*allowed: 2e\\+08 to 1.7"):
        inflate(tmp_path / "inflated", parameters=parameters)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["bench", "inflate", "-o", str(tmp_path)])
    assert isinstance(result.exception, SettingError) and not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(folder: Path, manifest: bundle.Manifest) -> Bundle:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bundle, "write", full)
    with pytest.raises(ConversionError, match="No space left.*Is the disk full"):
        inflate(tmp_path / "inflated", parameters=2e8)
    assert not list(tmp_path.iterdir())
