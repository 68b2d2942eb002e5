"""What the documents say is what the project does."""

from __future__ import annotations

import ast
import doctest
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import lru_cache
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
_NOT_OURS = ("build", "dist")
_FOLDERS = [p for p in sorted(ROOT.iterdir()) if p.is_dir() and not p.name.startswith(".") and p.name not in _NOT_OURS]
_OWN = (page for folder in _FOLDERS for page in sorted(folder.rglob("*.md")) if "node_modules" not in page.parts)
PAGES = [*sorted(ROOT.glob("*.md")), *_OWN]
LOGS = sorted((ROOT / "docs/log").glob("*.md"))
_LONGEST_ENTRY = 25
"""lines that are not blank, title included"""


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def test_the_help_page_is_fresh() -> None:
    ran = subprocess.run([sys.executable, ROOT / "scripts/help-page", "--check"], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def _prose(page: Path) -> str:
    """A page without its code."""
    return re.sub(r"^```.*?^```", "", _text(page), flags=re.DOTALL | re.MULTILINE)


@lru_cache
def _anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page, a repeated one ``-1`` and so on."""
    seen: dict[str, int] = defaultdict(int)
    found = set()
    for heading in re.findall(r"^#+ +(.+?) *$", _prose(page), re.MULTILINE):
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        anchor = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        found.add(f"{anchor}-{seen[anchor]}" if seen[anchor] else anchor)
        seen[anchor] += 1
    return found


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_anchors_and_named_files_exist(page: Path) -> None:
    prose = _prose(page)
    inline = re.findall(r"\]\(\s*<?([^)>\s]+)", prose)
    by_reference = re.findall(r"^\[[^]]+\]:\s*(\S+)", prose, re.MULTILINE)
    for link in [*inline, *by_reference]:
        if "://" in link or link.startswith("mailto:"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists() and target.is_relative_to(ROOT), link
        if anchor:
            assert anchor in _anchors(target), link
    for name in re.findall(r"`((?:docs|tests|scripts|edgespec|bench|export|models|examples)/[\w./-]+\.\w+)`", prose):
        assert (ROOT / name).exists(), name


def test_pages_that_code_points_to_exist() -> None:
    code = [
        p
        for folder in ("edgespec", "bench", "export", "models", "tests", "examples")
        for p in (ROOT / folder).rglob("*.py")
    ]
    code += [p for p in (ROOT / "scripts").iterdir() if p.is_file()]
    code += [*ROOT.glob("models/*.toml"), *ROOT.glob("models/*/bundle.json"), ROOT / "pyproject.toml"]
    for path in code:
        for name in re.findall(r"(?<![\w/])(docs/[\w./-]+\.md)\b", _text(path)):
            assert (ROOT / name).is_file(), f"{_name(path)} points to {name}"


def test_the_readme_is_short() -> None:
    assert len(_text(ROOT / "README.md").splitlines()) < 90


def _entries(log: Path) -> dict[str, str]:
    """Title of each entry of a log -> the whole entry."""
    return {part.splitlines()[0]: part for part in re.split(r"^## ", _text(log), flags=re.MULTILINE)[1:]}


@pytest.mark.parametrize("log", LOGS, ids=_name)
def test_log_entries_are_short_dated_newest_first_and_say_how_sure_they_are(log: Path) -> None:
    dates = []
    for title, entry in _entries(log).items():
        date, verdict = title.split(": ", 1)
        dates.append(date)
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", date) and verdict, title
        head = " ".join(entry.split("\n\n")[1].split())
        assert re.match(r"Status: (holds|superseded by \[.+\]\(.+\))", head), title
        machine = re.search(r"Machine: ([\w-]+)", head)
        assert machine and "Spread: " in head, title
        assert machine[1] == "none" or f"| {machine[1]} |" in _text(ROOT / "docs/findings.md"), title
        assert len([line for line in entry.splitlines() if line.strip()]) <= _LONGEST_ENTRY, title
    assert dates == sorted(dates, reverse=True)


def _figures(text: str) -> list[str]:
    """``"1.26, 2,000 and 12 of 12"`` -> ``["1.26", "2,000", "12", "12"]``"""
    return re.findall(r"\d+(?:,\d{3})*(?:\.\d+)?", text)


def _rows(text: str) -> Iterator[list[str]]:
    """Cells of the rows of all tables, without heads."""
    for table in re.findall(r"^\|[ -]*-[-| ]*\|\n((?:\|.*\n)+)", text, re.MULTILINE):
        for line in table.splitlines():
            yield [cell.strip() for cell in line.strip("|").split("|")]


def test_the_figures_of_findings_stand_in_the_log_entry_they_link_to() -> None:
    seen = 0
    for cells in _rows(_text(ROOT / "docs/findings.md")):
        if len(cells) == 4:
            link = re.search(r"\]\((log/\w+\.md)#([^)]+)\)", cells[3])
            assert link, cells
            log = ROOT / "docs" / link[1]
            entries = {
                re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-"): e for title, e in _entries(log).items()
            }
            known = _figures(entries[link[2]])
            assert set(_figures(cells[1])) <= set(known), cells
            seen += 1
    assert seen > 20


def test_the_figures_of_the_readme_stand_in_findings() -> None:
    known = {tuple(_figures(cells[1])) for cells in _rows(_text(ROOT / "docs/findings.md")) if len(cells) == 4}
    rows = [cells for cells in _rows(_text(ROOT / "README.md")) if len(cells) == 4]
    assert len(rows) == 4
    for _, openvino, onnxruntime, command in rows:
        one, other = tuple(_figures(openvino)), tuple(_figures(onnxruntime))
        assert {one, other} <= known or one + other in known, (openvino, onnxruntime)
        assert re.fullmatch(r"`edgespec bench \w+`", command)


PACKAGES = (ROOT / "edgespec", ROOT / "bench/edgespec_bench")
EXAMPLES = [p for package in PACKAGES for p in sorted(package.rglob("*.py")) if ">>> " in _text(p)]


@pytest.mark.parametrize("path", EXAMPLES, ids=_name)
def test_worked_examples_in_docstrings_are_true(path: Path) -> None:
    module = import_module(".".join(path.relative_to(ROOT).with_suffix("").parts).removeprefix("bench."))
    failed, tried = doctest.testmod(module)
    assert tried and not failed


def test_ci_runs_the_readmes_commands_as_they_are_written() -> None:
    for name in ("run", "test"):
        ran = subprocess.run([sys.executable, ROOT / "scripts/readme-command", name], capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.strip() in _text(ROOT / "README.md")
    assert "scripts/check" in ran.stdout
    script = _text(ROOT / ".ci/run")
    assert "readme-command run" in script and "readme-command test" in script and "scripts/check --slow" in script


@pytest.mark.parametrize("script", [p for p in sorted((ROOT / "scripts").iterdir()) if p.is_file()], ids=_name)
def test_every_script_says_what_it_does_and_how_to_run_it(script: Path) -> None:
    said = ast.get_docstring(ast.parse(_text(script))) or ""
    assert re.search(rf"python3? {_name(script)}\b", said), "its docstring has no run line"


def test_the_glossarys_words_are_the_codes_words() -> None:
    code = "\n".join(_text(path) for path in (ROOT / "edgespec").rglob("*.py"))
    for word in ("acceptance_rate", "block_efficiency", "num_draft_tokens", "committed", "proposed", "evaluated"):
        assert word in code
    assert not re.search(r"\bgamma\b|num_assistant_tokens", code)


_ORDINARY = """
    adjust at begin by change check choose clock distribution done first fresh is kept learn left line long longest
    merge model name next nothing of per pick read reset reused s scale seconds short times token under uniform update
"""
"""words of English, of numpy and of programming"""


def _stem(word: str) -> str:
    """Of a noun or verb, good enough to find ``probing`` under *probe*."""
    return re.sub(r"(?:ing|ed|es|s|e)$", "", word.lower()) if len(word) > 3 else word.lower()


def _concept_words() -> dict[str, set[str]]:
    """Stems of the words in public names that two files of ``decode/`` and ``adaptive/`` use -> those names."""
    folders = [ROOT / "edgespec/decode", ROOT / "edgespec/adaptive"]
    files = [p for folder in folders for p in sorted(folder.glob("*.py"))]
    defined: set[str] = set()
    users: dict[str, set[Path]] = defaultdict(set)
    for path in files:
        for node in ast.walk(ast.parse(_text(path))):
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
                defined.add(node.name)
                users[node.name].add(path)
                for field in node.body:
                    if isinstance(node, ast.ClassDef) and isinstance(field, ast.AnnAssign):
                        defined.add(ast.unparse(field.target))
            elif isinstance(node, ast.Attribute):
                users[node.attr].add(path)
                if isinstance(node.ctx, ast.Store):
                    defined.add(node.attr)
            elif isinstance(node, (ast.Name, ast.arg)):
                users[node.id if isinstance(node, ast.Name) else node.arg].add(path)
    words: dict[str, set[str]] = defaultdict(set)
    for name in defined:
        if not name.startswith("_") and len(users[name]) >= 2:
            for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name):
                words[_stem(word)].add(name)
    return words


def test_every_concept_word_of_two_files_is_in_the_glossary() -> None:
    explained = {
        _stem(word) for cells in _rows(_text(ROOT / "docs/glossary.md")) for word in re.findall(r"[A-Za-z]+", cells[0])
    }
    used = _concept_words()
    known = explained | {_stem(word) for word in _ORDINARY.split()}
    unknown = {word: sorted(names) for word, names in used.items() if word not in known}
    assert not unknown, "explain these words in docs/glossary.md, or use the ones it has"
