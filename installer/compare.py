#!/usr/bin/env python3
"""Installs an archive into an empty home folder, without a network, and removes it: what is there after each step.

    python installer/compare.py dist/edgespec-VERSION-linux-x86_64.tar.gz

Prints a table in Markdown. The steps' own output goes to stderr.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

TARGET = Path(".local/opt/edgespec")
_DEPTH = 3
"""folders of a path that the table names"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path)
    archive = parser.parse_args().archive
    with tempfile.TemporaryDirectory() as work:
        home = Path(work) / "home"
        home.mkdir()
        with tarfile.open(archive) as packed:
            packed.extractall(work, filter="tar")
        install = Path(work) / archive.name.removesuffix(".tar.gz") / "install.sh"
        uninstall = home / TARGET / "uninstall.sh"
        print("| after | seconds | files there |\n| --- | --- | --- |")
        for name, command in (
            ("install.sh", [install]),
            ("uninstall.sh", [uninstall]),
            ("install.sh", [install]),
            ("uninstall.sh --purge", [uninstall, "--purge"]),
        ):
            began = time.monotonic()
            _run(command, home)
            print(f"| {name} | {time.monotonic() - began:.0f} | {_listed(home)} |", flush=True)
    return 0


def _run(command: Sequence[object], home: Path) -> None:
    nobody = "http://127.0.0.1:9"
    environment = {"HOME": str(home), "PATH": "/usr/bin:/bin", "HTTPS_PROXY": nobody, "HTTP_PROXY": nobody}
    subprocess.run([str(part) for part in command], env=environment, stdout=sys.stderr, check=True)


def _listed(home: Path) -> str:
    """Counts and sizes of all files, by the first folders of their paths."""
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for path in home.rglob("*"):
        if path.is_file() or path.is_symlink():
            place = "/".join(path.relative_to(home).parent.parts[:_DEPTH])
            counts[place] += 1
            sizes[place] += path.lstat().st_size
    return ", ".join(f"~/{place}: {counts[place]} ({sizes[place] / 1e6:.1f} MB)" for place in sorted(counts)) or "none"


if __name__ == "__main__":
    sys.exit(main())
