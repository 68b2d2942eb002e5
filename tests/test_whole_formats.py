"""A text of a format is complete, or says that it is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgespec.commands import fetching, run
from edgespec.pipeline import DEFAULT_NEW_TOKENS
from tests import processes
from tests.fake_server import fake_pipeline

LONG = "seven " * 300
SCHEMA = {"const": LONG}


def test_a_format_is_not_cut_at_the_default_length(tmp_path: Path) -> None:
    pipeline = fake_pipeline(tmp_path, capacity=4096)
    wanted = {"type": "json_schema", "json_schema": {"schema": SCHEMA}}
    found = pipeline.generate("Sevens.", response_format=wanted)
    assert len(found.token_ids) > DEFAULT_NEW_TOKENS
    assert found.finish_reason == "stop" and json.loads(found.text) == LONG
    assert pipeline.generate("Sevens.", response_format=wanted, max_new_tokens=9).finish_reason == "length"


def test_a_text_that_is_cut_short_has_an_exit_status(tiny_ir: Path, tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    command = ["run", "Sevens.", "--json-schema", str(tmp_path / "schema.json"), "-n", "9", "--json"]
    ran = processes.decoded(processes.edgespec(*command, "-m", str(tiny_ir.parent), "--draft", "none"))
    assert ran.returncode == 3 and "error: the text is cut short" in ran.stderr
    assert json.loads(ran.stdout)["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("most", "longest", "remedy"),
    [
        (["-n", "9"], 512, "Raise --max-new-tokens"),
        ([], 512, "Raise --context-length, up to 512"),
        ([], 128, "No longer context than 128 tokens is possible here; shorten the prompt, or ask for less"),
        ([], 0, "No longer context than 128 tokens is possible here; shorten the prompt, or ask for less"),
    ],
)
def test_what_gives_it_more_room_can_be_done(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    most: list[str],
    longest: int,
    remedy: str,
) -> None:
    pipeline = fake_pipeline(tmp_path, capacity=128)
    pipeline.longest = longest
    monkeypatch.setattr(fetching, "fetch_and_load", lambda options: pipeline)
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    with pytest.raises(SystemExit) as ended:
        run.command.main(["Sevens.", "--json-schema", str(tmp_path / "schema.json"), *most], standalone_mode=False)
    assert ended.value.code == 3
    assert capsys.readouterr().err.endswith(f"the text is cut short, and does not fit its format. {remedy}\n")
