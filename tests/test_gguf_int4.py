"""A GGUF file coded again in 4 bits, by choice: what it costs, and that it is another model in the cache."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from edgespec.cli import cli
from edgespec.errors import SettingError
from edgespec.gguf import forms
from edgespec.gguf.forms import TABLES, Form, Losses, form_of
from edgespec.hub.resolve import resolve
from edgespec.loading import load
from tests import tiny_gguf
from tests.test_gguf_weights import MATRIX, stored


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGESPEC_CACHE", str(tmp_path / "cache"))
    return tiny_gguf.write(tmp_path / "tiny.gguf", quantize="Q4_K", hidden=256)


def test_four_bits_are_the_nearest_of_three_ranges(tmp_path: Path) -> None:
    matrix = stored(tmp_path, "F32")[MATRIX]
    values = matrix.rows(slice(0, 512))
    form = form_of("F32", 256, "int4")
    assert form == Form(4, 128)
    rows = forms.encoded(matrix, slice(0, 512), form, Losses())
    assert rows.codes.min() == -8 and rows.codes.max() == 7
    blocks = values.reshape(512, 2, 128)
    plain = np.abs(blocks).max(2, keepdims=True) / 8
    of_plain = np.clip(np.rint(blocks / plain), -8, 7) * plain
    assert ((rows.values() - values) ** 2).sum() < ((of_plain.reshape(values.shape) - values) ** 2).sum()


def test_tables_keep_eight_bits() -> None:
    assert [form_of("Q4_K", 1536, "int4", table=name in TABLES).bits for name in (*TABLES, MATRIX)] == [8, 8, 4]


def test_it_is_another_model_in_the_cache(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coded = resolve(str(tiny), weights="int4")
    assert "Q4_K as 4 bits over 128 (relative error 0.08" in capsys.readouterr().err
    own = resolve(str(tiny))
    assert (coded.manifest.target.precision, own.manifest.target.precision) == ("int4", "q4_k_m")
    assert coded.root != own.root
    capsys.readouterr()
    assert resolve(str(tiny), weights="int4").root == coded.root
    assert resolve(str(tiny), weights="faithful").root == own.root
    assert "converting" not in capsys.readouterr().err


def test_what_is_no_gguf_file_is_not_coded_again(tiny: Path) -> None:
    folder = str(resolve(str(tiny)).root)
    with pytest.raises(SettingError, match=r"no GGUF file.*weights; got int4; allowed: faithful"):
        resolve(folder, weights="int4")
    with pytest.raises(SettingError, match="weights; got int3"):
        load(str(tiny), weights="int3")  # type: ignore[arg-type]


def test_bench_weights_tells_them_apart(tiny: Path) -> None:
    found = {}
    for weights in ("faithful", "int4"):
        command = ["bench", "weights", str(tiny), "--tokens", "24", "--backend", "openvino", "--weights", weights]
        result = CliRunner().invoke(cli, command, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        assert "edgespec: computing tiny.gguf in full precision, which takes minutes\n" in result.stderr
        found[weights] = json.loads(result.stdout.splitlines()[-1])
    assert found["faithful"]["rows"] == 16
    assert 0 <= found["faithful"]["kl_mean"] < found["int4"]["kl_mean"] / 10
    assert found["faithful"]["nll_of_the_file"] == found["int4"]["nll_of_the_file"]
