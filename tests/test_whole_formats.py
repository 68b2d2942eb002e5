"""A text of a format is complete, or says that it is not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import edgespec
from edgespec.pipeline import DEFAULT_NEW_TOKENS

LONG = "seven " * 600
SCHEMA = {"const": LONG}


@pytest.mark.real
def test_a_format_is_not_cut_at_the_default_length() -> None:
    pipeline = edgespec.load(draft="none", context_length=4096)
    wanted = {"type": "json_schema", "json_schema": {"schema": SCHEMA}}
    found = pipeline.generate("Sevens.", response_format=wanted)
    assert len(found.token_ids) > DEFAULT_NEW_TOKENS
    assert found.finish_reason == "stop" and json.loads(found.text) == LONG
    assert pipeline.generate("Sevens.", response_format=wanted, max_new_tokens=9).finish_reason == "length"


@pytest.mark.real
def test_a_text_that_is_cut_short_has_an_exit_status(tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    command = [sys.executable, "-m", "edgespec", "run", "Sevens.", "--json-schema", str(tmp_path / "schema.json")]
    ran = subprocess.run([*command, "-n", "9", "--json"], capture_output=True, text=True, check=False)
    assert ran.returncode == 3 and "error: the text is cut short" in ran.stderr
    assert json.loads(ran.stdout)["finish_reason"] == "length"
