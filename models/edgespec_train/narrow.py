"""Embeddings of a draft in 4 bits. NNCF leaves them in 8, and they are a fifth of a small draft's bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgespec.backends.openvino.runtime import ops, ov

GROUP = 32
"""numbers that share a step"""
_MIDDLE = 8
"""zero point of all codes: the one that every engine knows without being told"""


def with_narrow_embedding(raw: Path, out: Path) -> Path:
    """A copy of an uncompressed IR whose embedding is narrow; the IR itself if its embedding cannot be."""
    model = ov.Core().read_model(raw)
    if not narrow_embedding(model):
        return raw
    out.parent.mkdir(parents=True)
    ov.save_model(model, out, compress_to_fp16=False)
    return out


def narrow_embedding(model: ov.Model) -> bool:
    """Store the float table that token ids are looked up in as 4-bit codes. False: there is no such table."""
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Gather":
            continue
        table = node.input_value(0).get_node()
        below = table.input_value(0).get_node() if table.get_type_name() == "Convert" else table
        if below.get_type_name() != "Constant" or below.get_element_type().get_type_name() not in ("f32", "f16"):
            continue
        if len(shape := table.get_output_shape(0)) != 2 or shape[1] % GROUP:
            continue
        narrow = narrow_constant(np.array(below.get_data(), np.float32), below.get_friendly_name())
        node.input(0).replace_source_output(narrow.output(0))
        return True
    return False


def codes_of(values: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    """Codes 0 to 15 and steps: ``value = (code - 8) * step``. values: ``(rows, groups, size)``.

    The number farthest from zero gets code 0, at -8 steps, as in GGUF's Q4_0.
    """
    far = np.take_along_axis(values, np.abs(values).argmax(-1)[..., None], -1)
    steps = (far / -_MIDDLE).astype(np.float16)
    safe = np.where(steps == 0, 1, steps).astype(np.float32)
    return np.clip(np.rint(values / safe) + _MIDDLE, 0, 15).astype(np.uint8), steps


def narrow_constant(values: NDArray[np.float32], name: str = "") -> Any:
    """A subgraph of constants that gives ``(rows, columns)`` in f32, as NNCF writes one."""
    rows, columns = values.shape
    codes, steps = codes_of(values.reshape(rows, columns // GROUP, GROUP))
    tensor = ov.Tensor(ov.Type.u4, ov.Shape(codes.shape))
    tensor.data.reshape(-1).view(np.uint8)[:] = (codes[..., 0::2] | codes[..., 1::2] << 4).reshape(-1)
    constant = ops.constant(tensor)
    if name:
        constant.set_friendly_name(name)
    middle = ops.convert(ops.constant(np.array(_MIDDLE, np.uint8)), "f16")
    shifted = ops.subtract(ops.convert(constant, "f16"), middle)
    scaled = ops.multiply(shifted, ops.constant(steps))
    shape = ops.constant(np.array([rows, columns], np.int64))
    return ops.convert(ops.reshape(scaled, shape, False), "f32")
