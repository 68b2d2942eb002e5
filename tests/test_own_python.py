"""Processes that edgespec starts run no file that lies in the current folder."""

import subprocess
import sys
from pathlib import Path

import edgespec
from edgespec import own_python

ROOT = Path(edgespec.__file__).parent


def test_a_module_is_run_past_the_current_folder(tmp_path: Path) -> None:
    for name in ("edgespec", "json", "runpy", "pip"):
        (tmp_path / f"{name}.py").write_text("print('theirs')")
    for module, begins in (("edgespec", f"edgespec, version {edgespec.__version__}"), ("pip", "pip ")):
        command = [*own_python.module(module), "--version"]
        ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert (ran.returncode, ran.stderr) == (0, "")
        assert ran.stdout.startswith(begins)


def test_a_module_gets_its_arguments(tmp_path: Path) -> None:
    (tmp_path / "text.json").write_text('{"ü 山": 1}', encoding="utf-8")
    command = [*own_python.module("json.tool"), "--no-ensure-ascii", "--compact", "text.json", "a b.json"]
    subprocess.run(command, cwd=tmp_path, check=True)
    assert (tmp_path / "a b.json").read_text(encoding="utf-8").strip() == '{"ü 山":1}'


def test_nothing_starts_python_by_itself() -> None:
    """``sys.executable`` stands where commands are made, and in a hint."""
    uses = {path.name for path in ROOT.rglob("*.py") if "sys.executable" in path.read_text(encoding="utf-8")}
    assert uses == {"own_python.py", "package_index.py"}
    assert '"-m"' not in (ROOT / "hub" / "package_index.py").read_text(encoding="utf-8")
    assert sys.executable == own_python.module("pip")[0]
