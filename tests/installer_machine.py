"""A user's home folder, and payloads of the installer with small stand-ins for Python and uv."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

APPLY = ROOT / "installer" / "payload" / "apply.py"

PYTHON = """#!/bin/sh
case "$*" in
*pull*) mkdir -p "$HOME/.cache/edgespec" && echo model > "$HOME/.cache/edgespec/model";;
*) exec {python} "$@";;
esac
"""

UV = """#!/bin/sh
while [ "$1" != --python ]; do shift; done
echo program > "$(dirname "$2")/../edgespec"
"""


class Machine:
    """A user's home folder, and payloads to install in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.home = root / "home" / "jürgen 山 o'neil"
        self.home.mkdir(parents=True)
        self.target = self.home / ".local" / "opt" / "edgespec"

    def payload(self, version: str, *, room: int = 0, uv: str = UV) -> Path:
        folder = self.root / f"payload {version}"
        (folder / "python" / "bin").mkdir(parents=True, exist_ok=True)
        for path, text in (
            (folder / "python/bin/python3", PYTHON.format(python=sys.executable)),
            (folder / "uv", uv),
        ):
            path.write_text(text)
            path.chmod(0o755)
        shutil.copy(APPLY, folder)
        programs = {"edgespec": "edgespec", "edgespec-chat": "edgespec_chat"}
        facts = {"version": version, "programs": programs, "model": "m.whl", "unpacked_bytes": room}
        (folder / "payload.json").write_text(json.dumps(facts))
        return folder

    def apply(self, *arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {"HOME": str(self.home), "PATH": os.environ["PATH"], **variables}
        command = [sys.executable, "-I", APPLY, *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)

    def install(self, version: str, target: Path | None = None, **payload: object) -> subprocess.CompletedProcess[str]:
        return self.apply("install", self.payload(version, **payload), target or self.target)  # type: ignore[arg-type]

    def files(self) -> dict[str, str]:
        paths = (path for path in self.home.rglob("*") if path.is_file() or path.is_symlink())
        return {path.relative_to(self.home).as_posix(): path.read_text(errors="replace") for path in paths}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def inside(files: dict[str, str]) -> set[str]:
    return {name for name in files if name.startswith(".local/opt/edgespec/")}
