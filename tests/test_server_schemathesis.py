"""Every route against its description in docs/openapi.json, by schemathesis."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from edgespec.server import wire
from edgespec.server.openapi import NOT_OFFERED
from tests.fake_server import fake_pipeline, on_a_port, service_of
from tests.tiny_models import SPECIAL, train_tokenizer

pytestmark = pytest.mark.slow
DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "openapi.json"
LEFT_OUT = (
    "positive_data_acceptance",  # a model's context, ids and formats, and fields that must agree, are in no schema
    "ignored_auth",  # a server without a key lets all in; tests/test_server_security.py has one with a key
)
FIM = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|repo_name|>", "<|file_sep|>")


def test_every_answer_is_as_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("schemathesis") is None:
        pytest.skip("schemathesis is not installed: pip install edgespec[clients]")
    monkeypatch.setenv("EDGESPEC_DATA", str(tmp_path))
    monkeypatch.setattr(wire, "BODY_S", 300.0)  # on a busy machine the client itself may stand still for long
    train_tokenizer(tmp_path / "tokenizer.json", special=(*SPECIAL, *FIM))
    not_offered = [argument for path in sorted(NOT_OFFERED) for argument in ("--exclude-path", path)]
    with on_a_port(service_of(fake_pipeline(tmp_path))) as url:
        ran = subprocess.run(
            [
                *(sys.executable, "-m", "schemathesis.cli", "run", str(DOCUMENT), "--url", url, "--no-color"),
                *("--checks", "all", "--exclude-checks", ",".join(LEFT_OUT), "--phases", "coverage,fuzzing"),
                *("--max-examples", "15", "--suppress-health-check", "all", "--seed", "1"),
                *("--request-timeout", "100", "--max-response-time", "100"),
                *("--exclude-path", "/api/delete", *not_offered),  # 501 by design
            ],
            cwd=tmp_path,
            capture_output=True,
            encoding="utf-8",
        )
    assert ran.returncode == 0, ran.stdout
