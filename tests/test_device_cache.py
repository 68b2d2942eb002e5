"""The KV cache of a device with memory of its own, without one: doubles that allow what the real classes allow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest

from edgespec.backends.openvino.blocks import PagedCache
from tests.conftest import load_ir


class Remote:
    """A tensor in the memory of a device: numbers go in and out by copying only."""

    def __init__(self, held: Any, begin: Any = None, end: Any = None) -> None:
        """Of other memory the part between two corners, as the real class has it; or around an array."""
        self.held: np.ndarray = held if begin is None else held.held[tuple(map(slice, list(begin), list(end)))]

    def get_shape(self) -> ov.Shape:
        return ov.Shape(self.held.shape)

    def get_byte_size(self) -> int:
        return int(self.held.nbytes)

    def copy_from(self, source: Any) -> None:
        given = source.held if isinstance(source, Remote) else source.data
        assert given.shape == self.held.shape
        self.held[...] = given


class Context:
    def create_tensor(self, element_type: ov.Type, shape: ov.Shape, properties: dict[str, Any]) -> Remote:
        return Remote(np.full(list(shape), np.nan, element_type.to_dtype()))  # whatever was there before


class Core:
    def get_default_context(self, device: str) -> Context:
        assert device == "GPU"
        return Context()


class Request:
    """Takes what an overload of the real one takes."""

    def __init__(self) -> None:
        self.tensors: dict[str, Any] = {}

    def set_tensor(self, target: Any, tensor: Any) -> None:
        kinds = (
            "name: str" if isinstance(target, str) else "port: ",
            "tensor: openvino._pyopenvino.RemoteTensor" if isinstance(tensor, Remote) else "tensor: ov",
        )
        overloads = [line for line in ov.InferRequest.set_tensor.__doc__.splitlines() if "set_tensor(self" in line]
        assert len(overloads) == 4
        if not any(all(kind in line for kind in kinds) for line in overloads):
            raise TypeError(f"set_tensor(): incompatible function arguments: {kinds}")
        self.tensors[target] = tensor


def test_the_doubles_have_what_the_real_classes_have() -> None:
    for double, real in ((Remote, ov.RemoteTensor), (Context, ov.RemoteContext), (Core, ov.Core)):
        public = {name for name in vars(double) if not name.startswith("_")}
        assert public and public <= set(dir(real))
    with pytest.raises(TypeError, match="incompatible"):
        Request().set_tensor(object(), Remote(np.zeros(1)))


def test_a_devices_own_tensors_are_set_by_name_and_grow(tiny_ir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled, request = load_ir(tiny_ir).compiled, Request()
    monkeypatch.setattr(ov, "RemoteTensor", Remote)
    cache = PagedCache(Core(), compiled, request, "GPU", 100)
    cache.reserve(20)
    names = {name for port in compiled.inputs for name in port.get_names() if "_cache." in name}
    assert set(request.tensors) == names and len(names) == 4
    before = dict(request.tensors)
    for number, tensor in enumerate(before.values(), 1):
        assert not tensor.held.any(), "a row nobody wrote is no NaN"
        tensor.held[...] = number
    cache.reserve(100)
    for number, (name, tensor) in enumerate(request.tensors.items(), 1):
        old = before[name].held
        assert tensor is not before[name] and len(tensor.held) > len(old)
        assert (tensor.held[: len(old)] == number).all() and not tensor.held[len(old) :].any()
    assert cache.nbytes == sum(tensor.held.nbytes for tensor in request.tensors.values())
    assert not cache.rows_can_move
