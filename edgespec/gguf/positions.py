"""What a graph knows of positions: which earlier tokens a row sees, and how queries and keys are rotated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgespec.backends.openvino.runtime import ops
from edgespec.backends.openvino.windows import WINDOW
from edgespec.errors import ConversionError
from edgespec.gguf.dimensions import Dimensions
from edgespec.gguf.matrices import integers
from edgespec.gguf.rotary import DIVISORS
from edgespec.gguf.tensors import Stored

_LOWEST = float(np.finfo(np.float32).min)
"""added to what is not attended to; not -inf, for a row of a padded batch may attend to nothing"""


def attention_mask(ids: Any, mask: Any, window: int = 0) -> Any:
    """``(batch, 1, length, total)``, to be added to scores: up to a row's own place, and not to pads.

    window: newest tokens that a row sees, itself among them; 0 for all.
    """
    total, length = length_of(mask, 1), length_of(ids, 1)
    last = ops.squeeze(total, integers(0))
    columns = ops.range(np.int64(0), last, np.int64(1), "i64")
    rows = ops.range(ops.squeeze(ops.subtract(total, length), integers(0)), last, np.int64(1), "i64")
    places = ops.unsqueeze(rows, integers(1))
    seen = ops.less_equal(columns, places)
    kept = ops.unsqueeze(ops.not_equal(mask, np.int64(0)), integers(1, 2))
    if not window:
        return ops.select(ops.logical_and(kept, seen), np.float32(0), np.float32(_LOWEST))
    # In the one form that OpenVINO's transformation to paged attention takes for a window.
    near, every = ops.greater(columns, ops.add(places, integers(-window))), ops.constant(True)
    both = ops.bitwise_and(every, ops.bitwise_and(ops.bitwise_and(every, near), seen))
    shape = ops.concat([length_of(ids, 0), integers([1]), length, total], 0)
    in_window = ops.broadcast(ops.bitwise_and(both, kept), shape)
    added = ops.select(in_window, np.float32(0), np.float32(_LOWEST))
    made = ops.slice(added, integers([0]), total, integers([1]), integers([3]))
    made.set_friendly_name(f"{WINDOW}{window}")
    return made


def rotary_tables(
    positions: Any, sizes: Dimensions, tensors: Mapping[str, Stored], *, local: bool = False
) -> tuple[Any, Any]:
    """Cosines and sines of ``(batch, 1, length, size)``. local: of a layer with a window."""
    found = _frequencies(sizes, tensors, local)
    still = sizes.head // 2 - len(found)  # pairs that are not rotated
    frequencies = ops.constant(np.pad(found, (0, still)).astype(np.float32).reshape(1, 1, -1))
    angles = ops.multiply(ops.unsqueeze(ops.convert(positions, "f32"), integers(2)), frequencies)
    both = ops.unsqueeze(ops.concat([angles, angles], -1), integers(1))
    tables = ops.cos(both), ops.sin(both)
    scale = sizes.rope.scale(local=local)
    if scale == 1:
        return tables
    of_half = np.pad(np.full(len(found), scale, np.float32), (0, still), constant_values=1)
    scales = np.concatenate([of_half, of_half]).reshape(1, 1, 1, -1)
    return ops.multiply(tables[0], scales), ops.multiply(tables[1], scales)


def _frequencies(sizes: Dimensions, tensors: Mapping[str, Stored], local: bool) -> NDArray[Any]:
    plain = sizes.rope.frequencies(local=local)
    for name in DIVISORS:
        if name in tensors and not (local and sizes.rope.local_base):
            factors = tensors[name].vector_values()
            if not (factors > 0).all():
                raise ConversionError(f"{name} holds numbers that are not positive", hint="download the file again")
            plain = plain / factors
    return plain


def rotated(x: Any, tables: tuple[Any, Any], head: int) -> Any:
    """RoPE, of ``(batch, heads, length, head)``: the halves of a head are pairs."""
    half, end, one, axis = (integers([n]) for n in (head // 2, head, 1, 3))
    left = ops.slice(x, integers([0]), half, one, axis)
    right = ops.slice(x, half, end, one, axis)
    across = ops.concat([ops.multiply(right, np.float32(-1)), left], -1)
    cos, sin = tables
    return ops.add(ops.multiply(x, cos), ops.multiply(across, sin))


def length_of(x: Any, axis: int) -> Any:
    """``(1,)``"""
    return ops.gather(ops.shape_of(x), integers([axis]), integers(0))
