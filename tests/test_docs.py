"""What the documents say is what the project does."""

from __future__ import annotations

import doctest
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("models/*.md")])


def test_the_help_page_is_fresh() -> None:
    ran = subprocess.run([sys.executable, ROOT / "scripts/help-page", "--check"], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_and_named_files_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), target
    for name in re.findall(r"`((?:docs|tests|scripts|edgespec|export|models)/[\w./-]+\.\w+)`", text):
        assert (ROOT / name).exists(), name


EXAMPLES = [p for p in sorted((ROOT / "edgespec").rglob("*.py")) if ">>> " in p.read_text(encoding="utf-8")]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: str(p.relative_to(ROOT)))
def test_worked_examples_in_docstrings_are_true(path: Path) -> None:
    module = import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    failed, tried = doctest.testmod(module)
    assert tried and not failed


def test_ci_runs_the_readmes_commands_as_they_are_written() -> None:
    for name in ("run", "test"):
        ran = subprocess.run([sys.executable, ROOT / "scripts/readme-command", name], capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.strip() in (ROOT / "README.md").read_text(encoding="utf-8")
    assert "scripts/check" in ran.stdout
    script = (ROOT / ".ci/run").read_text(encoding="utf-8")
    assert "readme-command run" in script and "readme-command test" in script


def test_the_glossarys_words_are_the_codes_words() -> None:
    # Adapters speak the words of the runtimes they adapt.
    files = [p for p in (ROOT / "edgespec").rglob("*.py") if p.parent != ROOT / "edgespec/bench/peers"]
    code = "\n".join(p.read_text(encoding="utf-8") for p in files)
    for word in ("acceptance_rate", "block_efficiency", "num_draft_tokens", "committed", "proposed", "evaluated"):
        assert word in code
    assert not re.search(r"\bgamma\b|num_assistant_tokens", code)
