"""Where prompts come from: the target's own user turns, and real code and text that lies on this machine."""

from __future__ import annotations

import ast
import codecs
import re
import sysconfig
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import resources
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Literal

from edgespec.errors import SettingError

Kind = Literal["chat", "raw"]
_OPEN = re.compile(r"\b(MIT|BSD|Apache|PSF|Python Software Foundation|ISC)\b", re.IGNORECASE)
_CLOSED = re.compile(r"GPL|MPL|EUPL|CDDL|-NC|NonCommercial|Proprietary|Commercial|Mozilla|Other/", re.IGNORECASE)
CODE = {
    ".py",
    ".js",
    ".ts",
    ".java",
    ".c",
    ".h",
    ".cc",
    ".cpp",
    ".hpp",
    ".cs",
    ".go",
    ".rs",
    ".rb",
    ".php",
    ".sh",
    ".sql",
}
_ANSWER_STYLES = (
    "Write a Python function `{name}`. {doc}",
    "Implement this function:\n\n```python\n{head}```",
    "Write a Python function that does the following: {doc}",
    "Write unit tests for a function with this signature:\n\n```python\n{signature}\n```",
    "Explain what this code does:\n\n```python\n{body}```",
    "Add a docstring and type hints:\n\n```python\n{body}```",
)
_TEXT_STYLES = (
    "Summarize: {text}",
    "{text}\n\nSummarize the text above in two sentences.",
    "{text}\n\nWhat is the main point of this text?",
    "Answer from the text. Text: {text}\nQuestion: what does it say about {word}?",
    "Explain in simple words:\n\n{text}",
)


@dataclass(frozen=True)
class Prompt:
    """kind "chat": a user's turn. "raw": text to go on with, no template."""

    text: str
    kind: Kind
    source: str


@dataclass(frozen=True)
class Origin:
    """A folder of real text and under what licence it lies here."""

    name: str
    licence: str
    files: tuple[Path, ...]


def openers() -> list[str]:
    """Beginnings of user turns, "" among them."""
    return ["" if line == "<>" else line for line in _lines("openers.txt")]


def code_openers() -> list[str]:
    """Beginnings of Python files."""
    return [line.replace("\\n", "\n") for line in _lines("code_openers.txt")]


def _lines(name: str) -> list[str]:
    text = resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


@cache
def standard_library() -> Origin:
    root = Path(sysconfig.get_paths()["stdlib"])
    skipped = {"test", "tests", "site-packages", "idle_test", "lib2to3", "encodings", "pydoc_data"}
    files = [path for path in sorted(root.rglob("*.py")) if not skipped & set(path.relative_to(root).parts)]
    return Origin("python standard library", "PSF-2.0", tuple(files))


@cache
def installed_packages() -> tuple[Origin, ...]:
    """Packages of this environment whose metadata names a permissive licence."""
    return tuple(_installed_packages())


def _installed_packages() -> Iterator[Origin]:
    # This environment's own folders: what else is on the path may differ between the processes that make shards.
    folders = sorted({sysconfig.get_paths()[name] for name in ("purelib", "platlib")})
    for package in sorted(distributions(path=folders), key=lambda d: d.name or ""):
        licence = _licence(package)
        if licence is None or package.files is None:
            continue
        inside = [file for file in package.files if file.suffix == ".py" and "test" not in str(file).lower()]
        files = [path for file in inside if (path := Path(str(package.locate_file(file)))).is_file()]
        if files:
            yield Origin(f"{package.name} {package.version}", licence, tuple(sorted(files)))


def folder(path: Path) -> Origin:
    """The user's own files. Raises SettingError for a folder without any text."""
    if not path.is_dir():
        raise SettingError("no such corpus folder", got=str(path))
    files = tuple(file for file in sorted(path.rglob("*")) if file.is_file() and _is_text(file))
    if not files:
        raise SettingError("corpus folder has no text in it", got=str(path), hint="give a folder of code or text files")
    return Origin(path.name, "the user's own", files)


def code_prompts(origin: Origin) -> Iterator[Prompt]:
    """Parts of files to go on with; for each Python function with a docstring, its head or a request in words."""
    for path in origin.files:
        if path.suffix not in CODE:
            continue
        try:
            source = path.read_text(encoding="utf-8")
            tree = ast.parse(source if path.suffix == ".py" else "")
        except (OSError, ValueError, SyntaxError, RecursionError):
            continue
        lines = source.splitlines(keepends=True)
        imports = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
        preface = "".join("".join(lines[n.lineno - 1 : n.end_lineno]) for n in imports[:3])
        functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and ast.get_docstring(n)]
        for number, node in enumerate(functions):
            with suppress(ValueError, RecursionError):  # what ast cannot write again
                yield from list(_function_prompts(node, lines, preface if number % 2 else "", origin.name))
        for begin in range(0, len(lines) - 20, 120):
            part = "".join(lines[begin : begin + 12 + begin % 19])
            if 100 < len(part) < 1500:
                yield Prompt(part, "raw", origin.name)


def text_prompts(origin: Origin) -> Iterator[Prompt]:
    """Paragraphs of documentation, to go on with or to be asked about."""
    for path in origin.files:
        for text in paragraphs(path):
            number = zlib.crc32(text.encode(errors="replace"))
            if number % 3 == 0:
                yield Prompt(text[: len(text) // 2], "raw", origin.name)
                continue
            words = list(re.findall(r"[A-Za-z]{5,}", text))
            style = _TEXT_STYLES[number % len(_TEXT_STYLES)]
            yield Prompt(style.format(text=text, word=words[len(words) // 2] if words else "it"), "chat", origin.name)


def reference_manual() -> Origin:
    """The language reference that every Python brings along as text."""
    path = Path(sysconfig.get_paths()["stdlib"]) / "pydoc_data" / "topics.py"
    return Origin("python reference manual", "PSF-2.0", (path,))


def _function_prompts(node: ast.FunctionDef, lines: list[str], preface: str, source: str) -> Iterator[Prompt]:
    end_of_doc = node.body[0].end_lineno or node.lineno
    whole = "".join(lines[node.lineno - 1 : node.end_lineno])
    indent = len(whole) - len(whole.lstrip())
    whole = "".join(line[indent:] if not line[:indent].strip() else line for line in whole.splitlines(keepends=True))
    head = "".join(whole.splitlines(keepends=True)[: end_of_doc - node.lineno + 1])
    doc = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
    if not 20 < len(head) < 1200 or not doc:
        return
    yield Prompt(f"{preface}\n\n{head}" if preface else head, "raw", source)
    style = _ANSWER_STYLES[node.lineno % len(_ANSWER_STYLES)]
    bare = ast.FunctionDef(node.name, node.args, [ast.Pass()], [], node.returns, lineno=1, col_offset=0)
    signature = ast.unparse(ast.fix_missing_locations(bare)).split("\n")[0]
    text = style.format(name=node.name, doc=doc[:300], head=head, signature=signature, body=whole[:1200])
    yield Prompt(text, "chat", source)


def paragraphs(path: Path) -> Iterator[str]:
    """Blocks of prose of a file, 400 to 1600 characters each; of a Python file those in its long strings."""
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".py":
            strings = [
                n.value for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Constant) and isinstance(n.value, str)
            ]
            text = "\n\n".join(string for string in strings if len(string) > 400)
    except (OSError, ValueError, SyntaxError, RecursionError):
        return
    block = ""
    for paragraph in re.split(r"\n\s*\n", text):
        block = f"{block}\n\n{paragraph.strip()}" if block else paragraph.strip()
        if len(block) > 400:
            if len(block) < 1600:
                yield block
            block = ""


def _licence(package: Distribution) -> str | None:
    """The package's licence in its own words if it is a permissive one."""
    metadata = package.metadata.json
    classifiers = metadata.get("classifier", [])
    named = [str(metadata.get("license_expression", ""))]
    named += [text.split(" :: ")[-1] for text in classifiers if "License" in text]
    named += [str(metadata.get("license", ""))[:60]]
    if any(_CLOSED.search(text) for text in named):
        return None
    return next((text for text in named if _OPEN.search(text)), None)


def _is_text(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            head = file.read(4096)
        codecs.getincrementaldecoder("utf-8")().decode(head)  # the cut may be inside a character
    except (OSError, UnicodeDecodeError):
        return False
    return bool(head.strip()) and b"\0" not in head
