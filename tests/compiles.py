"""Every compile of the suite is looked at: does it name its numeric properties, and did it get what it named?

What a device would choose differs from CPU to CPU, so a compile that leaves it open passes on one machine and fails on
another.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import openvino as ov

from edgespec.backends.openvino.settings import NUMERIC, reported, spelled

_ENGINE = Path(ov.__file__).resolve().parent
_OURS = [Path(__file__).resolve().parent.parent / name for name in ("edgespec", "export", "models", "tests")]


@contextmanager
def watched() -> Iterator[list[str]]:
    """What was wrong with the compiles of this repository's code while the block runs. Those of other packages are
    theirs."""
    wrong: list[str] = []
    compile_model = ov.Core.compile_model

    def watching(core: ov.Core, *arguments: Any, **options: Any) -> ov.CompiledModel:
        compiled = compile_model(core, *arguments, **options)
        if (place := _place()) is not None:
            asked = _spelled(next((value for value in (*arguments, *options.values()) if isinstance(value, dict)), {}))
            on_npu = "NPU" in arguments  # its cache and its products are as they are, and it tells nothing
            missing = [name for name in (NUMERIC[:1] if on_npu else NUMERIC) if name not in asked]
            if missing:
                wrong.append(f"{place} compiles without {', '.join(missing)}")
            for name, got in ({} if on_npu else reported(compiled, asked)).items():
                if name in NUMERIC and got != asked[name]:
                    wrong.append(f"{place} asked for {name} {asked[name]} and got {got}")
        return compiled

    ov.Core.compile_model = watching
    try:
        yield wrong
    finally:
        ov.Core.compile_model = compile_model


def _place() -> str | None:
    """File and line that asked for the compile, if it is ours: the first one up the stack outside OpenVINO."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and _ENGINE in Path(frame.f_code.co_filename).resolve().parents:
        frame = frame.f_back
    assert frame is not None
    path = Path(frame.f_code.co_filename).resolve()
    return f"{path.name}:{frame.f_lineno}" if any(folder in path.parents for folder in _OURS) else None


def _spelled(config: Mapping[Any, Any]) -> dict[str, str]:
    return {str(name() if callable(name) else name): spelled(value) for name, value in config.items()}
