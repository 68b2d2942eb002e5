"""What the installers are made of: the manifest, files with a SHA-256, and commands that may fail."""

from __future__ import annotations

import hashlib
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import tomllib

HERE = Path(__file__).parent
ROOT = HERE.parent
PLATFORMS = {
    "linux-x86_64": (*(f"manylinux_2_{minor}_x86_64" for minor in range(35, 16, -1)), "manylinux2014_x86_64"),
    "windows-x86_64": ("win_amd64",),
    "macos-arm64": ("macosx_12_0_arm64", "macosx_11_0_arm64"),
}
"""pip's names of each platform's wheels"""


class BuildError(Exception):
    """What is missing, in one line."""


def manifest() -> dict[str, Any]:
    return tomllib.loads((HERE / "manifest.toml").read_text(encoding="utf-8"))


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def require_sha256(path: Path, expected: str) -> Path:
    if (actual := sha256_of(path)) != expected:
        raise BuildError(f"{path.name} has SHA-256 {actual}, and {expected} is named")
    return path


def fetch(url: str, sha256: str, into: Path) -> Path:
    path = into / url.rsplit("/", 1)[-1]
    with urllib.request.urlopen(url) as answer, path.open("wb") as file:
        while block := answer.read(1 << 20):
            file.write(block)
    return require_sha256(path, sha256)


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Standard output. Raises BuildError with the end of what it said."""
    try:
        ran = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True)
    except FileNotFoundError:
        raise BuildError(f"{command[0]} is not installed") from None
    if ran.returncode:
        raise BuildError(f"{Path(str(command[0])).name} failed: {(ran.stderr or ran.stdout).strip()[-1500:]}")
    return ran.stdout
