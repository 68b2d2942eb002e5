"""The examples run as their docstrings say."""

from __future__ import annotations

import ast
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import edgespec
from edgespec.pipeline import Pipeline

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
EXPECTED = {
    "quickstart": r"Paris.*\d+ tokens in \d+ forwards, numerics exact",
    "ray_serve": r"(.*Paris.*\n){4}2 copies\n",
    "stream": r".{20}.*\n\[(length|stop)\]",
    "chat": r"> Name.*0 of them reused.*> And one.*[1-9]\d* of them reused",
    "own_drafter": r"Paris.*[1-9]\d* of \d+ drafted tokens accepted\nthe same tokens",
}
_LONGEST_DRAFTER = 40

SLOW = {"ray_serve": (pytest.mark.slow, pytest.mark.alone)}
HERE = {"chat", "stream"}
"""run in this process, on the pair that is loaded already: others show that they run in one of their own"""


@pytest.mark.real
@pytest.mark.parametrize("path", [pytest.param(p, marks=SLOW.get(p.stem, ()), id=p.stem) for p in EXAMPLES])
def test_example_runs_as_its_docstring_says(
    path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    run_line = re.search(r"^ *python (\S+)$", docstring, re.MULTILINE)
    assert run_line
    if path.stem in HERE:
        pipeline: Pipeline = request.getfixturevalue("pipeline")
        pipeline.forget()
        pipeline.target.cache.reset()
        monkeypatch.setattr(edgespec, "load", lambda: pipeline)
        runpy.run_path(str(ROOT / run_line[1]), run_name="__main__")
        assert re.search(EXPECTED[path.stem], capsys.readouterr().out, re.DOTALL)
        return
    if path.stem == "ray_serve":
        pytest.importorskip("ray.serve", reason="Ray Serve is not installed: pip install edgespec[ray]")
    ran = subprocess.run(
        [sys.executable, run_line[1]], cwd=ROOT, capture_output=True, text=True, encoding="utf-8", timeout=300
    )
    assert ran.returncode == 0, ran.stderr
    assert re.search(EXPECTED[path.stem], ran.stdout, re.DOTALL), ran.stdout


def test_a_drafter_of_your_own_takes_less_than_40_lines() -> None:
    tree = ast.parse((ROOT / "examples/own_drafter.py").read_text(encoding="utf-8"))
    (drafter,) = (node for node in tree.body if isinstance(node, ast.ClassDef))
    assert drafter.end_lineno is not None
    assert drafter.end_lineno - drafter.lineno < _LONGEST_DRAFTER
