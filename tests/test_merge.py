"""Products that read the same activations become one, and nothing else changes: not one bit of what they give."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgespec.backends.openvino.graph import paged_graph
from edgespec.backends.openvino.merge_matmuls import merge_products
from edgespec.backends.openvino.runtime import ops, ov
from edgespec.backends.openvino.settings import FULL_PRECISION
from edgespec.hub import catalog
from edgespec.hub.resolve import model_path
from edgespec.pipeline import Pipeline

WIDTH = 64
RANDOM = np.random.default_rng(0)


def int8(rows: int) -> Any:
    codes = ops.constant(RANDOM.integers(0, 256, (rows, WIDTH), dtype=np.uint8))
    zeros = ops.constant(RANDOM.integers(100, 150, (rows, 1), dtype=np.uint8))
    shifted = ops.subtract(ops.convert(codes, "f16"), ops.convert(zeros, "f16"))
    return ops.convert(ops.multiply(shifted, ops.constant(RANDOM.random((rows, 1)).astype(np.float16))), "f32")


def int4_in_groups(rows: int) -> Any:
    codes = ops.constant(RANDOM.integers(0, 16, (rows, 2, WIDTH // 2), dtype=np.uint8), ov.Type.u4)
    zeros = ops.constant(RANDOM.integers(0, 16, (rows, 2, 1)).astype(np.float16))
    shifted = ops.subtract(ops.convert(codes, "f16"), zeros)
    scaled = ops.multiply(shifted, ops.constant(RANDOM.random((rows, 2, 1)).astype(np.float16)))
    return ops.convert(ops.reshape(scaled, np.array([rows, WIDTH]), False), "f32")


def int4_with_one_zero_point(rows: int, zero: float = 8.0) -> Any:
    codes = ops.constant(RANDOM.integers(0, 16, (rows, WIDTH), dtype=np.uint8), ov.Type.u4)
    shifted = ops.subtract(ops.convert(codes, "f16"), ops.constant(np.array([[zero]], np.float16)))
    return ops.convert(ops.multiply(shifted, ops.constant(RANDOM.random((rows, 1)).astype(np.float16))), "f32")


def float16(rows: int) -> Any:
    return ops.convert(ops.constant(RANDOM.random((rows, WIDTH)).astype(np.float16)), "f32")


def model_of(matrices: list[Any], biased: bool = False) -> ov.Model:
    activations = ops.parameter([-1, 1, WIDTH], np.float32)
    products = [ops.matmul(activations, matrix, False, True) for matrix in matrices]
    if biased:
        products = [ops.add(product, ops.constant(RANDOM.random(32).astype(np.float32))) for product in products]
    return ov.Model([ops.result(product) for product in products], [activations])


def outputs(model: ov.Model, rows: int) -> list[np.ndarray]:
    compiled = ov.Core().compile_model(model, "CPU", FULL_PRECISION)
    given = np.random.default_rng(1).standard_normal((rows, 1, WIDTH)).astype(np.float32)
    return [np.array(value) for value in compiled(given).values()]


def products(model: ov.Model) -> int:
    return sum(node.get_type_name() == "MatMul" for node in model.get_ops())


@pytest.mark.cpu
@pytest.mark.parametrize("make", [int8, int4_in_groups, int4_with_one_zero_point, float16])
def test_one_product_gives_what_three_did(make: Any) -> None:
    model = model_of([make(96), make(32), make(32)])
    before = {rows: outputs(model, rows) for rows in (1, 2, 5, 40)}
    assert merge_products(model) == 2
    assert products(model) == 1
    for rows, expected in before.items():
        for one, other in zip(outputs(model, rows), expected, strict=True):
            np.testing.assert_array_equal(one, other)


def test_products_with_a_bias_keep_it_where_the_engine_adds_it_for_nothing() -> None:
    model = model_of([int8(32), int8(32)], biased=True)
    assert merge_products(model) == 0


def test_only_what_is_alike_is_merged() -> None:
    assert merge_products(model_of([int8(32), float16(32), int8(16)])) == 1
    different = [int4_with_one_zero_point(32, 8.0), int4_with_one_zero_point(32, 7.0)]
    assert merge_products(model_of(different)) == 0


def test_the_default_target_was_converted_that_way(pipeline: Pipeline) -> None:
    """Four products a layer, and the head."""
    xml = model_path(pipeline.bundle, pipeline.bundle.manifest.target)
    assert products(ov.Core().read_model(xml)) == 30 * 4 + 1


def test_drafts_are_merged_when_they_are_loaded() -> None:
    xml = catalog.default_folder() / "draft" / "openvino_model.xml"
    before = products(ov.Core().read_model(xml))
    assert products(paged_graph(ov.Core(), xml)) == before - 2 * 3


def bf16(rows: int) -> Any:
    return ops.convert(ops.constant(RANDOM.random((rows, WIDTH)).astype(np.float32), ov.Type.bf16), "f32")


def scaled_by_input(rows: int) -> Any:
    return ops.multiply(float16(rows), ops.constant(RANDOM.random(WIDTH).astype(np.float32)))


@pytest.mark.parametrize("make", [bf16, scaled_by_input])
def test_weights_that_rows_cannot_be_told_of_are_left_alone(make: Any) -> None:
    model = model_of([make(32), make(16)])
    before = outputs(model, 3)
    assert merge_products(model) == 0
    for one, other in zip(outputs(model, 3), before, strict=True):
        np.testing.assert_array_equal(one, other)


def test_products_of_one_row_are_left_alone() -> None:
    assert merge_products(model_of([float16(1), float16(1)])) == 0
