"""A target that costs like a model of a billion parameters and answers like SmolLM2-135M.

Speculation pays where a forward is bound by reading weights, and so small a model is not. This one is the default
target with *guests*: feed-forward blocks of a model 2,048 wide (2,048 -> 6,144 -> 2,048 as in Qwen3-1.7B), one beside
the feed-forward block of a layer, whose last projection is zero. Every weight is read in every forward, and x + 0 is
x: the function is the same, so the shipped draft is as right as ever.

    x (576) -> enter (2048, 576) -> gate, up (6144, 2048) -> down (2048, 6144) -> leave (576, 2048), all zero -> + x

Why guests and not more layers of the model's own size: 250 of those would make a billion parameters in matrices of
0.1 to 0.9 million, and a forward would be made of overheads. Guests bring matrices of 12 million, as real models have.
Attention is left as it is: 30 layers of 3 heads keep 23 KB of keys and values a token, a 1B model 32 KB.

Zero is exact: codes of the last projection are its zero point. So nothing of a guest comes through, not its last digits
either, which may depend on the width of a forward: exact numerics asks for the widths of the default target. A real
model with int8 layers of 3,072 inputs and more may ask for 5 rows (docs/exactness.md); say so where
figures of this one stand for a real one's. Random weights are scaled so that a guest's activations stay near the size
of its input.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from edgespec import __version__, bundle
from edgespec.backends.openvino.runtime import ops, ov
from edgespec.errors import ConversionError, SettingError, wrap_errors
from edgespec.hub import catalog
from edgespec.hub.resolve import model_path

Weights = Literal["int8", "int4"]

WIDTH, INNER, WIDEST_INNER = 2048, 6144, 8192
STEP, GROUP = 64, 64
"""inner sizes are a multiple of; weights of a row that share a scale and a zero point in int4"""
_LEAST = 2e8
_TARGET = "target/openvino_model.xml"


@dataclass(frozen=True)
class Plan:
    """guests: layers that get one. inner: of each. parameters: of the whole model."""

    guests: tuple[int, ...]
    inner: int
    parameters: int


def plan(parameters: float, *, own: int, layers: int, hidden: int) -> Plan:
    """As many guests, evenly spread, as come nearest with INNER; then the inner size that fits.

    own, layers, hidden: of the model. Raises SettingError: too few parameters, or too many for a guest a layer.

    >>> plan(1e9, own=134_500_000, layers=30, hidden=576).inner
    6016
    """
    most = own + layers * guest_parameters(hidden, WIDEST_INNER)
    if not _LEAST <= parameters <= most:
        raise SettingError("parameters", got=f"about {parameters:.3g}", allowed=f"{_LEAST:.3g} to {most:.3g}")
    added = parameters - own
    count = min(layers, max(1, round(added / guest_parameters(hidden, INNER))))
    exact = (added / count - guest_parameters(hidden, 0)) / (guest_parameters(hidden, 1) - guest_parameters(hidden, 0))
    inner = min(WIDEST_INNER, max(STEP, STEP * round(exact / STEP)))
    places = tuple(i * layers // count for i in range(count))
    return Plan(places, inner, own + count * guest_parameters(hidden, inner))


def guest_parameters(hidden: int, inner: int) -> int:
    """Weights of one guest."""
    return 2 * WIDTH * hidden + 3 * WIDTH * inner


def inflate(folder: Path, *, parameters: float = 1e9, weights: Weights = "int8") -> bundle.Bundle:
    """Make the bundle at ``folder``, which appears whole or not at all. The draft and the texts are the default's.

    weights: of the guests; the model's own stay as they are, 8 bits. Raises SettingError, ConversionError.
    """
    if folder.exists():
        raise SettingError("there is something at the folder to make", got=str(folder), hint="name another")
    default = bundle.read(catalog.default_folder())
    model = ov.Core().read_model(model_path(default, default.manifest.target))
    own = _matrices(model)
    layers = sum(name.endswith(".ffn_down.weight") for name in own)
    if not layers:
        raise ConversionError("the default target has no layers to be found", hint="fetch it again: edgespec pull")
    hidden = own["blk.0.ffn_down.weight"].get_output_shape(0)[0]
    different = {constant.get_name(): constant for constant in own.values()}
    count = sum(int(np.prod(constant.get_output_shape(0))) for constant in different.values())
    planned = plan(parameters, own=count, layers=layers, hidden=hidden)
    with wrap_errors(ConversionError, f"cannot write {folder}", hint="is the disk full?"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        needed, free = 2 * planned.parameters, shutil.disk_usage(folder.parent).free
        if free < needed:
            raise ConversionError(
                f"not enough disk space at {folder.parent}",
                got=f"{free >> 20} MiB free",
                allowed=f"{needed >> 20} MiB or more",
            )
        partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
        try:
            partial.mkdir()
            random = np.random.default_rng(0)
            for layer in planned.guests:
                _add_guest(own, layer, planned.inner, weights, random)
            _fill(partial, default, model, planned, weights)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return bundle.read(folder)


def _fill(folder: Path, default: bundle.Bundle, model: Any, planned: Plan, weights: Weights) -> None:
    shutil.copytree(default.root, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(bundle.MANIFEST))
    xml = folder / _TARGET
    xml.parent.mkdir()
    ov.serialize(model, xml)
    billions = f"{planned.parameters / 1e9:.2f}"
    bundle.write(
        folder,
        msgspec.structs.replace(
            default.manifest,
            name=f"smollm2-135m-inflated-{billions}b-{weights}",
            target=bundle.model_file(folder, _TARGET, precision=weights, vocab_size=default.manifest.target.vocab_size),
            provenance=bundle.Provenance(
                licence=default.manifest.provenance.licence,
                source=default.manifest.provenance.source,
                command=f"edgespec bench inflate --parameters {planned.parameters:.3g} --weights {weights}",
                versions={"edgespec": __version__},
                notes=f"inflated: costs like {billions} billion parameters, answers like SmolLM2-135M. Has "
                f"{len(planned.guests)} blocks of random weights ({WIDTH} wide, {planned.inner} inside, {weights}), "
                "their last projection zero. For measurements only",
            ),
            measured={},
        ),
    )


def _matrices(model: Any) -> dict[str, Any]:
    """Constants of the model's own matrices, by their names in the GGUF file. Merged ones come under each name."""
    return {
        name: node
        for node in model.get_ordered_ops()
        if node.get_type_name() == "Constant"
        and node.get_element_type() == ov.Type.u8
        and node.get_friendly_name().endswith(".weight")
        for name in node.get_friendly_name().split("+")
    }


def _add_guest(own: dict[str, Any], layer: int, inner: int, weights: Weights, random: np.random.Generator) -> None:
    """Beside the feed-forward block of a layer: the same input, and added to what the layer gives."""
    normed = _product(own[f"blk.{layer}.ffn_gate.weight"]).input_value(0)
    [reader] = _product(own[f"blk.{layer}.ffn_down.weight"]).output(0).get_target_inputs()
    end = reader.get_node()
    assert end.get_type_name() == "Add", end.get_type_name()
    readers = end.output(0).get_target_inputs()
    hidden = normed.get_partial_shape()[2].get_length()

    def times(source: Any, rows: int, inputs: int) -> Any:
        return ops.matmul(source, random_matrix(rows, inputs, weights, random), False, True)

    entered = times(normed, WIDTH, hidden)
    both = times(entered, 2 * inner, WIDTH)  # merged, as in every model we convert
    gate, up = ops.split(both, ops.constant(-1, np.int64), 2).outputs()
    down = times(ops.multiply(ops.swish(gate), up), WIDTH, inner)
    left = ops.matmul(down, zero_matrix(hidden, WIDTH, weights, random), False, True)
    grown = ops.add(end, left)
    grown.set_friendly_name(f"inflated.layer{layer}")
    for port in readers:
        port.replace_source_output(grown.output(0))


def _product(constant: Any) -> Any:
    """The matrix product that a compressed weight goes into."""
    node = constant
    while node.get_type_name() != "MatMul":
        [reader] = node.output(0).get_target_inputs()
        node = reader.get_node()
    return node


def random_matrix(rows: int, inputs: int, weights: Weights, random: np.random.Generator) -> Any:
    """Nodes of a ``(rows, inputs)`` weight: uniform codes, standard deviation 1 / sqrt(inputs)."""
    levels = 256 if weights == "int8" else 16
    codes = random.integers(0, levels, (rows, _groups(inputs, weights), _group(inputs, weights)), np.uint8)
    zeros = np.full((*codes.shape[:2], 1), levels // 2, np.uint8)
    return _decompressed(codes, zeros, 1 / sqrt(inputs * (levels**2 - 1) / 12), weights)


def zero_matrix(rows: int, inputs: int, weights: Weights, random: np.random.Generator) -> Any:
    """Nodes of a weight of which every number is exactly 0: its codes are its zero points.

    These are random, or all guests would share one matrix (equal constants are stored once); and powers of two, so that
    a kernel that takes them off behind its sum comes to 0 too.
    """
    bits = 8 if weights == "int8" else 4
    zeros = 1 << random.integers(0, bits, (rows, _groups(inputs, weights), 1), np.uint8)
    codes = np.repeat(zeros, _group(inputs, weights), axis=2)
    return _decompressed(codes, zeros, 1 / 1024, weights)


def _group(inputs: int, weights: Weights) -> int:
    return inputs if weights == "int8" else GROUP


def _groups(inputs: int, weights: Weights) -> int:
    return inputs // _group(inputs, weights)


def _decompressed(codes: Any, zeros: Any, step: float, weights: Weights) -> Any:
    """``(code - zero) * step``, of shape ``(rows, inputs)``.

    codes: ``(rows, groups, weights of a group)``; zeros: ``(rows, groups, 1)``. In int8 a row is one group.
    """
    rows, groups, size = codes.shape
    kind = ov.Type.u4
    if weights == "int8":
        codes, zeros, kind = codes[:, 0], zeros[:, 0], ov.Type.u8
    shifted = ops.subtract(ops.convert(ops.constant(codes, kind), "f16"), ops.convert(ops.constant(zeros, kind), "f16"))
    values = ops.multiply(shifted, ops.constant(np.full(zeros.shape, step, np.float16)))
    if weights == "int4":
        values = ops.reshape(values, np.array([rows, groups * size], np.int64), False)
    return ops.convert(values, "f32")
