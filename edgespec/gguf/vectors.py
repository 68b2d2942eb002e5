"""Norms, biases and rotary frequencies of a GGUF file, put into the IR that OpenVINO GenAI wrote from it.

GenAI saves a model without quantized weights in float16, these constants too. A rotary frequency is then off by up to
one part in 2,000: half a turn at position 8,000. And it leaves out the factors that Llama 3.1 and later divide them by.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgespec.backends.openvino.merge_matmuls import array_of
from edgespec.errors import ConversionError
from edgespec.gguf.dimensions import Dimensions
from edgespec.gguf.tensors import Stored

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FACTORS = "rope_freqs.weight"
_CLOSE = 2e-3  # relative: what float16 rounds, and the arithmetic of GenAI


def restore_vectors(model: Any, sizes: Dimensions, stored: list[Stored]) -> bool:
    """Whether anything was to be changed. Raises ConversionError: another file's IR."""
    factors = next((vector for vector in stored if vector.name == FACTORS), None)
    vectors = [vector.rows(slice(None)).reshape(-1) for vector in stored if vector.vector and vector is not factors]
    changed = _restore_frequencies(model, sizes, factors)
    for node in _constants(model):
        shape = tuple(node.get_output_shape(0))
        if node.get_output_element_type(0).to_string() == "f16" and shape[-1:] > (1,) and set(shape[:-1]) <= {1}:
            _put(node, _nearest(array_of(node).reshape(-1), vectors))
            changed = True
    return changed


def _restore_frequencies(model: Any, sizes: Dimensions, factors: Stored | None) -> bool:
    """llama.cpp, ggml_rope_ext: the angle of pair ``i`` is ``position * base ** (-2 i / head) / factor[i]``."""
    import numpy as np

    plain = sizes.rope_base ** (-2 * np.arange(sizes.frequencies) / sizes.head)
    tables = [node for node in _constants(model) if tuple(node.get_output_shape(0)) == (1, sizes.frequencies, 1)]
    tables = [node for node in tables if np.allclose(array_of(node).reshape(-1), plain, rtol=_CLOSE, atol=1e-7)]
    if len(tables) != 1:
        raise ConversionError("the IR is not as GenAI writes it", got=f"{len(tables)} tables of rotary frequencies")
    if factors is None:
        wanted = plain
    else:
        divisors = factors.rows(slice(None)).reshape(-1)
        if not (divisors > 0).all():
            raise ConversionError(f"{FACTORS} holds numbers that are not positive", hint="download the file again")
        wanted = plain / divisors
    if np.allclose(array_of(tables[0]).reshape(-1), wanted, rtol=1e-6, atol=0):
        return False
    _put(tables[0], wanted)
    return True


def _constants(model: Any) -> list[Any]:
    return [node for node in model.get_ordered_ops() if node.get_type_name() == "Constant"]


def _nearest(rounded: NDArray[np.float16], vectors: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    alike = [vector for vector in vectors if vector.shape == rounded.shape]
    distances = [float(((vector - rounded.astype("float32")) ** 2).sum()) for vector in alike]
    best = min(range(len(alike)), key=distances.__getitem__, default=None)
    if best is None or distances[best] > _CLOSE**2 * float((alike[best] ** 2).sum()):
        raise ConversionError("the IR was not made from this GGUF file", got=f"{len(rounded)} numbers that it lacks")
    return alike[best]


def _put(node: Any, values: NDArray[Any]) -> None:
    """In place of a constant. The Convert behind it stays, and has nothing to do any more."""
    from edgespec.backends.openvino.runtime import ops

    constant = ops.constant(values.astype("float32").reshape(node.get_output_shape(0)))
    node.output(0).replace(constant.output(0))
