"""The editor's extension: its own tests, run by node, and the size of what is packed."""

import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

EXTENSION = Path(__file__).parent.parent / "apps" / "vscode"
NPM = shutil.which("npm")


@pytest.mark.slow
@pytest.mark.skipif(NPM is None, reason="node is not installed")
def test_the_extension_passes_its_tests_and_is_packed_small(tmp_path: Path) -> None:
    work = tmp_path / "apps" / "vscode"
    shutil.copytree(EXTENSION, work, ignore=shutil.ignore_patterns("node_modules", "out", "*.vsix"))
    shutil.copy(EXTENSION.parent.parent / "LICENSE", tmp_path / "LICENSE")
    for command in (["ci", "--no-audit", "--no-fund"], ["test"], ["run", "package"]):
        ran = subprocess.run([str(NPM), *command], cwd=work, capture_output=True, text=True, timeout=600)
        assert ran.returncode == 0, ran.stdout + ran.stderr
    packed = work / "edgespec.vsix"
    assert packed.stat().st_size < 200_000
    names = zipfile.ZipFile(packed).namelist()
    assert "extension/out/src/extension.js" in names
    assert "extension/LICENSE.txt" in names
    assert not any("node_modules" in name or "test" in name for name in names)
