"""The Windows installer: edgespec.nsi, compiled on any system, and the manifest for winget."""

from __future__ import annotations

import shutil
from pathlib import Path

from parts import HERE, manifest, run, sha256_of
from payload import Staged


def installer(staged: Staged, output: Path) -> list[Path]:
    product = manifest()["product"]
    path = output / f"{staged.stem}.exe"
    size_kb = sum(file.stat().st_size for file in staged.folder.rglob("*") if file.is_file()) // 1024
    defines = {
        "VERSION": staged.version,
        "PAYLOAD": staged.folder,
        "OUTPUT": path,
        "PUBLISHER": product["publisher"],
        "SIZE_KB": size_kb,
    }
    log = run("makensis", "-V3", *(f"-D{name}={value}" for name, value in defines.items()), HERE / "edgespec.nsi")
    listing = output / f"{staged.stem}.log"
    listing.write_text(log, encoding="utf-8")
    winget = output / f"{staged.stem}.winget.yaml"
    winget.write_text(_winget(staged, product, path), encoding="utf-8")
    if hook := shutil.which("edgespec-sign"):  # a release's own program, which takes the file and signs it in place
        run(hook, path)
    return [path, winget]


def _winget(staged: Staged, product: dict[str, str], path: Path) -> str:
    return f"""PackageIdentifier: edgespec.edgespec
PackageVersion: {staged.version}
PackageLocale: en-US
Publisher: {product["publisher"]}
PackageName: {product["name"]}
License: {product["licence"]}
ShortDescription: {product["description"]}
Installers:
- Architecture: x64
  InstallerType: nullsoft
  Scope: user
  InstallerUrl: {path.name}
  InstallerSha256: {sha256_of(path).upper()}
  InstallerSwitches:
    Silent: /S
    SilentWithProgress: /S
    InstallLocation: /D=<INSTALLPATH>
  UpgradeBehavior: install
ManifestType: singleton
ManifestVersion: 1.6.0
"""
