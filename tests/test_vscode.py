"""The editor's extension: its own tests, run by node, and the size of what is packed."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
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


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The extension, built and packed in a copy, with its own tests passed."""
    if NPM is None:
        pytest.skip("node is not installed")
    root = tmp_path_factory.mktemp("extension")
    work = root / "apps" / "vscode"
    shutil.copytree(EXTENSION, work, ignore=shutil.ignore_patterns("node_modules", "out", "*.vsix"))
    shutil.copy(EXTENSION.parent.parent / "LICENSE", root / "LICENSE")
    for command in (["ci", "--no-audit", "--no-fund"], ["test"], ["run", "package"]):
        ran = subprocess.run([NPM, *command], cwd=work, capture_output=True, text=True, timeout=600)
        assert ran.returncode == 0, ran.stdout + ran.stderr
    return work / "edgespec.vsix"


@pytest.mark.slow
def test_the_extension_passes_its_tests_and_is_packed_small(packed: Path) -> None:
    assert packed.stat().st_size < 200_000
    names = zipfile.ZipFile(packed).namelist()
    assert "extension/out/src/extension.js" in names
    assert "extension/LICENSE.txt" in names
    assert not any("node_modules" in name or "test" in name for name in names)


@pytest.mark.slow
@pytest.mark.real
def test_a_real_editor_starts_the_server_completes_and_stops_it(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    editor, browser = (
        os.environ.get(name) or shutil.which(name.lower().replace("_", "-")) for name in ("CODE_SERVER", "CHROMIUM")
    )
    driver = EXTENSION.parent / "chat" / "node_modules" / "playwright-core"
    if editor is None or browser is None or not driver.is_dir():
        pytest.skip("needs code-server and Chromium (CODE_SERVER, CHROMIUM), and playwright-core: npm ci in apps/chat")
    packed: Path = request.getfixturevalue("packed")
    program = tmp_path / "edgespec"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m edgespec "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    places = {"CODE_SERVER": editor, "CHROMIUM": browser, "EDGESPEC": str(program)}
    ran = subprocess.run(
        ["node", EXTENSION / "e2e" / "run.mjs", packed],
        env=os.environ | places | {"PYTHONPATH": str(EXTENSION.parent.parent)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
