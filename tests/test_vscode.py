"""The editor's extension: its own tests, run by node, and the size of what is packed."""

import importlib.util
import json
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

EXTENSION = Path(__file__).parent.parent / "apps" / "vscode"
NPM = shutil.which("npm")


def test_a_folder_that_is_not_trusted_chooses_no_program_server_or_model_file() -> None:
    about = json.loads((EXTENSION / "package.json").read_text(encoding="utf-8"))
    restricted = about["capabilities"]["untrustedWorkspaces"]["restrictedConfigurations"]
    assert {f"edgespec.{name}" for name in ("command", "url", "model")} <= set(restricted)


def test_the_extension_knows_the_batch_file_that_the_installer_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = EXTENSION.parent.parent / "installer" / "payload" / "apply.py"
    spec = importlib.util.spec_from_file_location("apply", path)
    assert spec is not None and spec.loader is not None
    installer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(installer)
    monkeypatch.setattr(installer, "WINDOWS", True)
    installer._programs(tmp_path, {"programs": {"edgespec": "edgespec"}})
    source = (EXTENSION / "src" / "program.ts").read_text(encoding="utf-8")
    [known] = re.findall(r"^const BATCH = /(.+)/;$", source, re.MULTILINE)
    assert re.match(known, (tmp_path / "bin" / "edgespec.cmd").read_bytes().decode())


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
