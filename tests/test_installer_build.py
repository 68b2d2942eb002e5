"""What the installer is made of: archives of Python, the comparison of its steps, and the script of Windows.

The slow test at the end builds the real one, installs it without a network, runs it, and removes it.
"""

from __future__ import annotations

import os
import py_compile
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from tests import installer_machine
from tests.installer_machine import APPLY, ROOT, Machine

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the stand-ins are shell scripts")
machine = installer_machine.machine


COMPARE = ROOT / "installer" / "compare.py"


@pytest.mark.skipif(not hasattr(tarfile, "tar_filter"), reason="an older tarfile has no filters")
def test_the_comparison_names_what_each_step_leaves(machine: Machine) -> None:
    payload = machine.payload("1.0")
    shutil.copy(APPLY.with_name("install.sh"), payload)
    archive = machine.root / "edgespec-1.0.tar.gz"
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(payload, "edgespec-1.0")
    ran = subprocess.run([sys.executable, COMPARE, archive], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    _, _, installed, removed, again, purged = [line.split(" | ")[-1] for line in ran.stdout.splitlines()]
    model = "~/.cache/edgespec: 1 (0.0 MB)"
    assert installed == again
    assert re.fullmatch(
        rf"{re.escape(model)}, ~/.local/opt/edgespec: \d+ \(.* MB\), ~/.local/share/applications: 1 .* \|", installed
    )
    assert (removed, purged) == (f"{model} |", "none |")


def test_the_windows_script_writes_what_the_manifest_lists() -> None:
    script = (ROOT / "installer" / "edgespec.nsi").read_text(encoding="utf-8")
    outside = tomllib.loads((ROOT / "installer" / "manifest.toml").read_text(encoding="utf-8"))["outside"]
    names = dict(re.findall(r'^!define (\w+) "(.*)"', script, re.M))
    keys = {f"HKCU\\{names[name]}" for name in re.findall(r'^ *WriteReg\w+ HKCU "\$\{(\w+)\}"', script, re.M)}
    assert keys == set(outside["windows-registry"])
    assert len(re.findall(r"^ *WriteReg", script, re.M)) == len(re.findall(r'^ *WriteReg\w+ HKCU "\$', script, re.M))
    removed = {f"HKCU\\{names[name]}" for name in re.findall(r'^ *DeleteRegKey HKCU "\$\{(\w+)\}"', script, re.M)}
    assert removed == keys
    shortcuts = set(re.findall(r'CreateShortcut "([^"]+)"', script))
    assert shortcuts == set(outside["windows-shortcuts"]) == set(re.findall(r'Delete "(\$SMPROGRAMS[^"]+)"', script))
    assert not re.search(r"Environment|\\Run\b|SMSTARTUP", script)


def test_removing_on_windows_begins_with_what_a_running_program_prevents() -> None:
    script = (ROOT / "installer" / "edgespec.nsi").read_text(encoding="utf-8")
    removing = script.split('Section "Uninstall"')[1]
    renamed = removing.index('Rename "$INSTDIR\\app" "$INSTDIR\\app.old"')
    assert renamed < removing.index('RMDir /r "$INSTDIR\\app.old"', renamed)
    assert removing[renamed:].index("Abort") < removing[renamed:].index("RMDir")
    assert not re.search(r"^ *(Delete|DeleteRegKey) ", removing[:renamed], re.M)


def test_the_shortcut_on_windows_starts_in_the_program_s_own_folder() -> None:
    """NSIS takes the last SetOutPath for it. In a folder of anybody's, a program of theirs would be found first."""
    script = (ROOT / "installer" / "edgespec.nsi").read_text(encoding="utf-8")
    for shortcut in re.finditer("CreateShortcut", script):
        assert re.findall(r'SetOutPath "(.*?)"', script[: shortcut.start()])[-1] == "$INSTDIR"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="the build needs Python 3.11")
@pytest.mark.parametrize(
    ("name", "folder"), [("cpython-3.11-install_only.tar.gz", "python"), ("python.3.11.nupkg", "tools")]
)
def test_cpython_is_taken_from_the_archives_that_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, folder: str
) -> None:
    monkeypatch.syspath_prepend(ROOT / "installer")
    import payload  # type: ignore[import-not-found, unused-ignore]

    source, archive = tmp_path / "source", tmp_path / name
    (source / folder / "Lib").mkdir(parents=True)
    (source / folder / "python.exe").write_text("program")
    (source / folder / "Lib" / "os.py").write_text("")
    if name.endswith(".nupkg"):
        shutil.make_archive(str(archive), "zip", source)
        Path(f"{archive}.zip").rename(archive)
    else:
        with tarfile.open(archive, "w:gz") as packed:
            packed.add(source / folder, folder)
    said = payload._python("windows-x86_64", tmp_path / "into", archive, tmp_path)
    assert (tmp_path / "into" / "python.exe").read_text() == "program"
    assert (tmp_path / "into" / "Lib" / "os.py").is_file()
    assert said == f"{name}, SHA-256 {payload.sha256_of(archive)}"


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg is not installed")
def test_the_deb_holds_the_model_and_what_no_user_could_compile(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "installer")
    import debian  # type: ignore[import-not-found, unused-ignore]
    from payload import Staged  # type: ignore[import-not-found, unused-ignore]

    folder = machine.payload("1.2.3")
    for name, text in (
        ("python/lib/python3.11/site.py", "import sys\n"),
        ("python/lib/python3.11/lib2to3/tests/old.py", "print 1\n"),
        ("model/m.whl", "model"),
        ("LICENSE", "free"),
    ):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    py_compile.compile(str(folder / "python/lib/python3.11/site.py"))  # as a Python leaves them when it starts
    [made] = debian.package(Staged(folder, "linux-x86_64", "1.2.3", "a stand-in"), machine.root)
    subprocess.run(["dpkg-deb", "-x", made, machine.root / "unpacked"], check=True)
    opt = machine.root / "unpacked" / "opt" / "edgespec"
    [compiled] = (opt / "app").rglob("*.pyc")
    assert (opt / "model" / "m.whl").read_text() == "model"
    assert b"/opt/edgespec/app/python/lib/python3.11/site.py" in compiled.read_bytes()
    assert str(machine.root).encode() not in compiled.read_bytes()
    assert compiled.read_bytes()[4:8] == b"\1\0\0\0", "checked against the source's time or content at each start"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("makensis") is None, reason="makensis is not installed")
def test_the_windows_script_compiles(tmp_path: Path) -> None:
    for name in ("python/python.exe", "wheels/a.whl", "model/m.whl", "apply.py"):
        path = tmp_path / "payload ü" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    out = tmp_path / "edgespec.exe"
    defines = {"VERSION": "1.2.3", "PAYLOAD": tmp_path / "payload ü", "OUTPUT": out, "PUBLISHER": "p", "SIZE_KB": 1}
    command = ["makensis", "-V3", "-WX", *(f"-D{name}={value}" for name, value in defines.items())]
    ran = subprocess.run([*command, ROOT / "installer" / "edgespec.nsi"], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stdout[-2000:]
    assert out.read_bytes()[:2] == b"MZ"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the stand-in is of Linux")
@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the lock has wheels for Python 3.11")
def test_the_real_installer_works_without_a_network(machine: Machine) -> None:
    dist = machine.root / "dist"
    build: list[str | Path] = [sys.executable, ROOT / "installer" / "build.py", "linux", "-o", dist]
    built = subprocess.run(build, capture_output=True, text=True, timeout=600)
    assert built.returncode == 0, built.stderr
    archive = next(dist.glob("*.tar.gz"))
    assert archive.stat().st_size < 320e6
    subprocess.run(["tar", "xzf", archive, "-C", machine.root], check=True)
    unpacked = machine.root / archive.name.removesuffix(".tar.gz")
    offline = {
        "HOME": str(machine.home),
        "PATH": "/usr/bin:/bin",
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "HTTP_PROXY": "http://127.0.0.1:9",
    }
    ran = subprocess.run([unpacked / "install.sh"], env=offline, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stderr
    command: list[str | Path] = [
        machine.target / "bin" / "edgespec",
        "--max-new-tokens",
        "8",
        "What is the capital of France?",
    ]
    ran = subprocess.run(command, env=offline, capture_output=True, text=True, timeout=600)
    assert "Paris" in ran.stdout, ran.stderr
    assert machine.apply("uninstall", machine.target, "--purge").returncode == 0
    assert {name for name in machine.files() if "edgespec" in name} == set()
