"""``edgespec train latency``: what does a layer, a wider layer, a token of vocabulary cost per draft step here?

Latency is decided by depth and by the bytes of the output head, not by the count of parameters; both differ between
machines. So the shape of a draft is chosen from measured steps of random weights, before any training. A head drafts a
whole round in one call, and that call is its step: its shapes are in ``redrafter.shapes``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, Literal, Protocol

import numpy as np
from transformers import AutoConfig, PretrainedConfig

from edgespec import Pipeline, load
from edgespec.backends.openvino.paged import OpenVINOPagedModel
from edgespec.backends.openvino.runtime import ov
from edgespec.backends.openvino.settings import Settings
from edgespec.errors import SettingError
from edgespec.hub import catalog
from edgespec.hub.resolve import model_path
from edgespec_export import convert, sources
from edgespec_export.settings import Kind
from edgespec_train.draft_model import Shape, build
from edgespec_train.pack import convert_draft
from edgespec_train.redrafter import shapes
from edgespec_train.weights_read import bytes_read, target_bytes

Recipe = Literal["fastdraft", "redrafter"]
_CONTEXT = 256


class Candidate(Protocol):
    """A shape to time."""

    def write(self, folder: Path) -> Path:
        """An IR of random weights."""

    def opened(self, xml: Path) -> Callable[[], object]:
        """One draft step of it."""


@dataclass(frozen=True)
class Timed:
    """megabytes: of the weights file. ratio, ratio_in_bytes: to a step of the target, in time at a context of 256, and
    in weights that are read."""

    candidate: Candidate
    megabytes: float
    step_ms: float
    ratio: float
    ratio_in_bytes: float


@dataclass(frozen=True)
class SmallDraft:
    """A small model, a token at a time. hidden, heads: None is the target's."""

    config: PretrainedConfig
    layers: int
    vocabulary: int
    weights: Kind = "int8"
    hidden: int | None = None
    heads: int | None = None

    def __str__(self) -> str:
        width = f", width {self.hidden}" if self.hidden else ""
        return f"{self.layers} layers, {self.vocabulary} ids, {self.weights}{width}"

    def write(self, folder: Path) -> Path:
        shape = Shape(tuple(range(self.layers)), self.hidden, heads=self.heads)
        model = build(self.config, shape, self.vocabulary, seed=0)
        convert_draft(model, np.arange(self.vocabulary, dtype=np.int32), folder / "shape", self.weights, name="shape")
        return folder / "shape" / "draft" / "openvino_model.xml"

    def opened(self, xml: Path) -> Callable[[], object]:
        return _step(OpenVINOPagedModel(ov.Core(), xml, "CPU", Settings.of_draft("CPU"), capacity=2 * _CONTEXT))


def small_drafts(config: PretrainedConfig) -> list[SmallDraft]:
    """One dimension at a time around two layers and 8192 ids."""
    full, heads = config.vocab_size, config.num_attention_heads
    head = config.hidden_size // heads
    found = [SmallDraft(config, layers, 8192) for layers in (1, 2, 3, 4, 6)]
    found += [SmallDraft(config, 2, size) for size in (4096, 16384, 32768, full)]
    share = heads // config.num_key_value_heads
    narrow, wide = (max(share, round(heads * part / share) * share) for part in (2 / 3, 4 / 3))
    found += [SmallDraft(config, 2, 8192, hidden=head * n, heads=n) for n in (narrow, wide)]
    found += [SmallDraft(config, layers, 8192, "int4") for layers in (2, 4)]
    return [c for c in found if c.vocabulary <= full]


def sweep_for(reference: str, rounds: int, recipe: Recipe) -> Iterator[Timed]:
    """``sweep`` for a target by name or folder."""
    pipeline = load(reference, draft="none")
    found: Iterable[Candidate]
    if recipe == "redrafter":
        found = shapes.heads_for(pipeline)
    else:
        found = small_drafts(_config(reference, pipeline))
    yield from sweep(found, pipeline, rounds)


def sweep(candidates: Iterable[Candidate], pipeline: Pipeline, rounds: int) -> Iterator[Timed]:
    """Steps of draft and target in turns; the median of each."""
    target, whole = _step(pipeline.target), target_bytes(pipeline)
    for candidate in candidates:
        with TemporaryDirectory(prefix="edgespec-", ignore_cleanup_errors=True) as name:
            xml = candidate.write(Path(name))
            draft = candidate.opened(xml)
            times = [(_seconds(draft), _seconds(target)) for _ in range(rounds + 3)][3:]
            found = Timed(
                candidate,
                megabytes=xml.with_suffix(".bin").stat().st_size / 1e6,
                step_ms=median(a for a, _ in times) * 1e3,
                ratio=median(a / b for a, b in times),
                ratio_in_bytes=bytes_read(xml) / whole,
            )
            del draft  # its file can go
        yield found


def _config(reference: str, pipeline: Pipeline) -> PretrainedConfig:
    config: PretrainedConfig
    if reference in catalog.shipped_names():
        with TemporaryDirectory(prefix="edgespec-", ignore_cleanup_errors=True) as scratch:
            config = convert.read_config(sources.resolve(reference, Path(scratch)))
    else:
        config = AutoConfig.from_pretrained(model_path(pipeline.bundle, pipeline.bundle.manifest.target).parent)
    if config.vocab_size != pipeline.target.vocab_size or "hidden_size" not in config.to_diff_dict():
        raise SettingError("the target's config.json does not say what shape it has", got=reference)
    return config


def _step(model: Any) -> Callable[[], object]:
    """One token, at a context of so many."""

    def step() -> None:
        model.cache.crop(_CONTEXT)
        model.forward([2])

    model.prefill([1] * _CONTEXT)
    return step


def _seconds(step: Callable[[], object]) -> float:
    began = perf_counter()
    step()
    return perf_counter() - began
