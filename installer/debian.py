"""The .deb: the same program, unpacked under /opt/edgespec by dpkg for all users. Models and chats stay each user's.

The default model lies in ``model`` there, where edgespec looks for it (``edgespec.hub.wheel.installed``).
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from parts import manifest, run
from payload import Staged

_ROOT = "opt/edgespec"


def package(staged: Staged, output: Path) -> list[Path]:
    product = manifest()["product"]
    with tempfile.TemporaryDirectory() as work:
        root = Path(work) / "root"
        app = root / _ROOT / "app"
        app.mkdir(parents=True)
        shutil.copytree(staged.folder / "python", app / "python", symlinks=True)
        command = [
            staged.folder / "uv",
            "pip",
            "install",
            "--python",
            app / "python/bin/python3",
            "--offline",
            "--no-index",
        ]
        command += ["--break-system-packages", "--no-config", "--no-cache", "--require-hashes"]
        command += ["--find-links", staged.folder / "wheels", "-r", staged.folder / "requirements.txt"]
        run(*command)
        _compile(app / "python", root)
        shutil.copytree(staged.folder / "model", root / _ROOT / "model")
        for name, module in _programs(staged).items():
            text = f'#!/bin/sh\nexec /{_ROOT}/app/python/bin/python3 -I -m {module} "$@"\n'
            _write(root / "usr/bin" / name, text, 0o755)
        _write(root / "usr/share/doc/edgespec/copyright", (staged.folder / "LICENSE").read_text(encoding="utf-8"))
        size = sum(path.stat().st_size for path in root.rglob("*") if path.is_file() and not path.is_symlink())
        control = (
            f"Package: edgespec\nVersion: {staged.version}\nArchitecture: amd64\nMaintainer: {product['publisher']}\n"
            f"Installed-Size: {size // 1024}\nSection: utils\nPriority: optional\nDepends: libc6 (>= 2.28)\n"
            f"Description: {product['description']}\n"
        )
        _write(root / "DEBIAN/control", control)
        path = output / f"edgespec_{staged.version}_amd64.deb"
        run("dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "--build", root, path)
    return [path]


def _compile(python: Path, root: Path) -> None:
    """No user may write there, so what is not compiled now is compiled at each start. root: what becomes / later."""
    # Without -f it would keep what this Python has written for itself: by the time, with the path of the build.
    command = [python / "bin/python3", "-I", "-B", "-m", "compileall", "-f", "-q", "-s", root, "-p", "/"]
    # By the sources' times a build that sets them would not hold. Tests may be of Python 2.
    run(*command, "--invalidation-mode", "unchecked-hash", "-x", "/lib/python3.*/tests?/", python / "lib")


def _programs(staged: Staged) -> dict[str, str]:
    facts = json.loads((staged.folder / "payload.json").read_text(encoding="utf-8"))
    return dict(facts["programs"])


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)
