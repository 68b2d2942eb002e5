"""Rotary positions that are stretched: each kind is that of transformers, or is refused by its name."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgespec.errors import ConversionError
from edgespec.gguf.convert import read_header, texts
from tests import tiny_gguf, tiny_models
from tests.test_gguf_graph import converted, paged, stateful

LENGTH, TRAINED = 120, 32
"""of the text, and before positions were stretched"""
KEYS: dict[str, dict[str, Any]] = {
    "linear": {"{arch}.rope.scaling.type": "linear", "{arch}.rope.scaling.factor": 4.0},
    "older": {"{arch}.rope.scale_linear": 4.0},
    "yarn": {
        "{arch}.rope.scaling.type": "yarn",
        "{arch}.rope.scaling.factor": 4.0,
        "{arch}.rope.scaling.original_context_length": TRAINED,
    },
    "betas": {
        "{arch}.rope.scaling.type": "yarn",
        "{arch}.rope.scaling.factor": 8.0,
        "{arch}.rope.scaling.original_context_length": 512,
        "{arch}.rope.scaling.yarn_beta_fast": 16.0,
        "{arch}.rope.scaling.yarn_beta_slow": 2.0,
    },
}
PARAMETERS: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "older": {"rope_type": "linear", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": TRAINED},
    "betas": {
        "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 512, "beta_fast": 16.0, "beta_slow": 2.0
    },
}  # fmt: skip


def ids_of(length: int) -> NDArray[np.int64]:
    return np.random.default_rng(1).integers(4, 400, length)


def expected_of(folder: Path, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """Logits of a transformers folder."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        found: NDArray[np.float32] = model(torch.from_numpy(ids[None])).logits[0].numpy()
    return found


@pytest.mark.parametrize("arch", ["llama", pytest.param("qwen2", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", list(KEYS))
def test_stretched_positions_are_the_originals(tmp_path: Path, kind: str, arch: str) -> None:
    pytest.importorskip("optimum.intel")
    parameters = PARAMETERS[kind] | {"rope_theta": 10000.0}
    built = tiny_models.build(arch, tmp_path / "hf", head_dim=32, hidden=128, rope_parameters=parameters)
    ids = ids_of(LENGTH)
    expected = expected_of(built, ids)
    xml = converted(tiny_models.write_gguf(built, tmp_path / "x.gguf", keys=KEYS[kind]))
    np.testing.assert_allclose(paged(xml, 256).forward(ids.tolist()).logits, expected, atol=2e-3)
    plain = converted(tiny_models.write_gguf(built, tmp_path / "plain.gguf"))
    without = stateful(plain)(ids[None], np.ones((1, LENGTH), np.int64))[0]
    assert np.abs(without - expected).max() > 0.1, "positions are stretched at all"


def longrope(folder: Path, **changed: Any) -> Path:
    """A Llama whose positions are stretched by a factor for each frequency."""
    random = np.random.default_rng(3)
    factors = {f"rope_factors_{of}.weight": random.uniform(1, 4, 8).astype(np.float32) for of in ("short", "long")}
    keys = {
        "{arch}.rope.scaling.type": "longrope",
        "{arch}.rope.scaling.attn_factor": math.sqrt(1 + math.log(512 / 64) / math.log(64)),
        "{arch}.rope.scaling.original_context_length": 64,
    }
    parameters = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": factors["rope_factors_short.weight"].tolist(),
        "long_factor": factors["rope_factors_long.weight"].tolist(),
        "original_max_position_embeddings": 64,
        "factor": 512 / 64,
    }
    built = tiny_models.build("llama", folder / "hf", rope_parameters=parameters)
    kept = {key: value for key, value in (keys | changed).items() if value is not None}
    return tiny_models.write_gguf(built, folder / "long.gguf", factors, kept)


def test_longrope_ends_where_its_factors_would_change(tmp_path: Path) -> None:
    pytest.importorskip("optimum.intel")
    source = longrope(tmp_path)
    assert texts(read_header(source))[2].context_length == 64
    ids = ids_of(60)
    found = paged(converted(source)).forward(ids.tolist()).logits
    np.testing.assert_allclose(found, expected_of(tmp_path / "hf", ids), atol=2e-3)


def test_longrope_has_to_say_where_it_ends(tmp_path: Path) -> None:
    pytest.importorskip("optimum.intel")
    with pytest.raises(ConversionError, match=r"got no llama\.rope\.scaling\.original_context_length"):
        read_header(longrope(tmp_path, **{"{arch}.rope.scaling.original_context_length": None}))


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"scaling.type": "dynamic"}, "is unknown here; got dynamic; allowed: none, linear, yarn, longrope"),
        ({"scaling.type": "longrope"}, "got longrope without the tensor rope_factors_short.weight"),
        ({"scaling.factor": -2.0}, "rope.scaling.factor of tiny.gguf; got -2.0"),
        ({"scaling.factor": float("nan")}, "rope.scaling.factor of tiny.gguf; got nan"),
        ({"scaling.type": "yarn", "scaling.yarn_beta_fast": 0.0}, "yarn_beta_fast of tiny.gguf; got 0.0"),
        ({"scaling.type": "yarn", "scaling.original_context_length": 0}, "original_context_length of tiny.gguf; got 0"),
        ({"scaling.type": "yarn", "scaling.factor": 4.0, "freq_base": 1.0}, "freq_base of tiny.gguf; got 1.0; allowed"),
        ({"scaling.factor": 1e-40}, "freq_base of tiny.gguf and its scaling; got no finite frequencies"),
        ({"scaling.yarn_log_multiplier": 0.5}, "yarn_log_multiplier .* rotary positions are scaled"),
        ({"scaling.yarn_ext_factor": 0.5}, "yarn_ext_factor .* rotary positions are scaled"),
    ],
)
def test_what_is_not_computed_is_refused_by_its_name(tmp_path: Path, extra: dict[str, Any], said: str) -> None:
    path = tiny_gguf.write(tmp_path / "tiny.gguf", extra={f"llama.rope.{key}": value for key, value in extra.items()})
    with pytest.raises(ConversionError, match=said):
        read_header(path)


def test_factors_belong_to_longrope(tmp_path: Path) -> None:
    short = {"rope_factors_short.weight": np.ones(8, np.float32)}
    path = tiny_gguf.write(tmp_path / "tiny.gguf", extra={"llama.rope.scaling.type": "linear"}, tensors=short)
    with pytest.raises(ConversionError, match=r"got linear with the tensor rope_factors_short\.weight"):
        read_header(path)
