"""``edgespec train latency``: what does a layer, a wider layer, a token of vocabulary cost per draft step here?

Latency is decided by depth and by the bytes of the output head, not by the count of parameters; both differ between
machines. So the shape of a draft is chosen from measured steps of random weights, before any training.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
from transformers import AutoConfig, PretrainedConfig

from edgespec import load
from edgespec.backends.openvino.paged import OpenVINOPagedModel
from edgespec.backends.openvino.runtime import ov
from edgespec.backends.openvino.settings import Settings
from edgespec.errors import SettingError
from edgespec.hub import catalog
from edgespec.hub.resolve import model_path
from edgespec.protocols import Model
from edgespec_export import convert, sources
from edgespec_export.settings import Kind
from edgespec_train.draft_model import Shape, build
from edgespec_train.pack import convert_draft

_CONTEXT = 256


@dataclass(frozen=True)
class Candidate:
    """A shape to time. hidden, intermediate: None is the target's."""

    layers: int
    vocabulary: int
    weights: Kind = "int8"
    hidden: int | None = None
    heads: int | None = None

    def __str__(self) -> str:
        width = f", width {self.hidden}" if self.hidden else ""
        return f"{self.layers} layers, {self.vocabulary} ids, {self.weights}{width}"


@dataclass(frozen=True)
class Timed:
    """megabytes: of the weights file. step_ms: one token, at a context of 256. ratio: to a step of the target."""

    candidate: Candidate
    megabytes: float
    step_ms: float
    ratio: float


def candidates(config: PretrainedConfig) -> list[Candidate]:
    """One dimension at a time around two layers and 8192 ids."""
    full, heads = config.vocab_size, config.num_attention_heads
    head = config.hidden_size // heads
    found = [Candidate(layers, 8192) for layers in (1, 2, 3, 4, 6)]
    found += [Candidate(2, size) for size in (4096, 16384, 32768, full)]
    share = heads // config.num_key_value_heads
    narrow, wide = (max(share, round(heads * part / share) * share) for part in (2 / 3, 4 / 3))
    found += [Candidate(2, 8192, hidden=head * n, heads=n) for n in (narrow, wide)]
    found += [Candidate(layers, 8192, "int4") for layers in (2, 4)]
    return [c for c in found if c.vocabulary <= full]


def sweep_for(reference: str, rounds: int) -> Iterator[Timed]:
    """``sweep`` for a target by name or folder."""
    pipeline = load(reference, draft="none")
    if reference in catalog.shipped_names():
        with TemporaryDirectory(prefix="edgespec-", ignore_cleanup_errors=True) as scratch:
            config = convert.read_config(sources.resolve(reference, Path(scratch)))
    else:
        config = AutoConfig.from_pretrained(model_path(pipeline.bundle, pipeline.bundle.manifest.target).parent)
    if config.vocab_size != pipeline.target.vocab_size or "hidden_size" not in config.to_diff_dict():
        raise SettingError("the target's config.json does not say what shape it has", got=reference)
    yield from sweep(config, pipeline.target, rounds)


def sweep(config: PretrainedConfig, target: Model, rounds: int) -> Iterator[Timed]:
    """Steps of draft and target in turns; the median of each."""
    core = ov.Core()
    for candidate in candidates(config):
        with TemporaryDirectory(prefix="edgespec-", ignore_cleanup_errors=True) as name:
            folder = Path(name) / "shape"
            shape = Shape(tuple(range(candidate.layers)), candidate.hidden, heads=candidate.heads)
            model = build(config, shape, candidate.vocabulary, seed=0)
            convert_draft(model, np.arange(candidate.vocabulary, dtype=np.int32), folder, candidate.weights, name="")
            xml = folder / "draft" / "openvino_model.xml"
            draft = OpenVINOPagedModel(core, xml, "CPU", Settings.of_draft("CPU"), capacity=2 * _CONTEXT)
            times = [(_step(draft), _step(target)) for _ in range(rounds + 3)][3:]
            step = median(a for a, _ in times)
            ratio = median(a / b for a, b in times)
            megabytes = xml.with_suffix(".bin").stat().st_size / 1e6
            del draft
        yield Timed(candidate, megabytes, step * 1e3, ratio)


def _step(model: Any) -> float:
    if model.cache.length < _CONTEXT:
        model.prefill([1] * _CONTEXT)
    model.cache.crop(_CONTEXT)
    began = perf_counter()
    model.forward([2])
    return perf_counter() - began
