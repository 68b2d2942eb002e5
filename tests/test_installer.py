"""What the installer does to a user's files: the Linux twin, with small stand-ins for Python and uv.

The slow test at the end builds the real one, installs it without a network, runs it, and removes it.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
APPLY = ROOT / "installer" / "payload" / "apply.py"

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the stand-ins are shell scripts")

PYTHON = """#!/bin/sh
case "$*" in
*pull*) mkdir -p "$HOME/.cache/edgespec" && echo model > "$HOME/.cache/edgespec/model";;
*) exec {python} "$@";;
esac
"""
UV = """#!/bin/sh
while [ "$1" != --python ]; do shift; done
echo program > "$(dirname "$2")/../edgespec"
"""


class Machine:
    """A user's home folder, and payloads to install in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.home = root / "home" / "jürgen 山 o'neil"
        self.home.mkdir(parents=True)
        self.target = self.home / ".local" / "opt" / "edgespec"

    def payload(self, version: str, *, room: int = 0, uv: str = UV) -> Path:
        folder = self.root / f"payload {version}"
        (folder / "python" / "bin").mkdir(parents=True, exist_ok=True)
        for path, text in (
            (folder / "python/bin/python3", PYTHON.format(python=sys.executable)),
            (folder / "uv", uv),
        ):
            path.write_text(text)
            path.chmod(0o755)
        shutil.copy(APPLY, folder)
        programs = {"edgespec": "edgespec", "edgespec-chat": "edgespec_chat"}
        facts = {"version": version, "programs": programs, "model": "m.whl", "unpacked_bytes": room}
        (folder / "payload.json").write_text(json.dumps(facts))
        return folder

    def apply(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        environment = {"HOME": str(self.home), "PATH": os.environ["PATH"]}
        command = [sys.executable, "-I", APPLY, *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)

    def install(self, version: str, target: Path | None = None, **payload: object) -> subprocess.CompletedProcess[str]:
        return self.apply("install", self.payload(version, **payload), target or self.target)  # type: ignore[arg-type]

    def files(self) -> dict[str, str]:
        paths = (path for path in self.home.rglob("*") if path.is_file() or path.is_symlink())
        return {path.relative_to(self.home).as_posix(): path.read_text(errors="replace") for path in paths}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


OUTSIDE = {".local/share/applications/edgespec.desktop", ".cache/edgespec/model"}


def inside(files: dict[str, str]) -> set[str]:
    return {name for name in files if name.startswith(".local/opt/edgespec/")}


def test_installing_writes_its_folder_and_what_the_manifest_lists(machine: Machine) -> None:
    before = machine.files()
    ran = machine.install("1.0")
    assert ran.returncode == 0, ran.stderr
    after = machine.files()
    assert before == {}
    assert set(after) - inside(after) == OUTSIDE
    assert f'Exec="{machine.target}/bin/edgespec-chat"' in after[".local/share/applications/edgespec.desktop"]
    ran = subprocess.run(
        [machine.target / "bin" / "edgespec", "--help"], env={"HOME": "/", "PATH": "/bin:/usr/bin"}, capture_output=True
    )
    assert b"edgespec" in ran.stdout + ran.stderr  # the stand-in calls the Python of the tests


def test_removing_leaves_models_and_chats_and_says_so(machine: Machine) -> None:
    machine.install("1.0")
    chats = machine.home / ".local/share/edgespec/chats.sqlite"
    chats.parent.mkdir(parents=True)
    chats.write_text("chats")
    ran = subprocess.run(
        [machine.target / "uninstall.sh"],
        env={"HOME": str(machine.home), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert set(machine.files()) == {".cache/edgespec/model", ".local/share/edgespec/chats.sqlite"}
    assert not machine.target.exists()
    assert f"kept models: {machine.home}/.cache/edgespec" in ran.stdout
    assert f"kept chats and settings: {chats.parent}" in ran.stdout


def test_purging_leaves_nothing(machine: Machine) -> None:
    machine.install("1.0")
    assert machine.apply("uninstall", machine.target, "--purge").returncode == 0
    assert machine.files() == {}


def test_files_of_others_in_the_folder_are_kept(machine: Machine) -> None:
    machine.install("1.0")
    own = machine.target / "notes.txt"
    own.write_text("mine")
    ran = machine.apply("uninstall", machine.target)
    assert f"kept, since it is not ours: {own}" in ran.stdout
    assert inside(machine.files()) == {".local/opt/edgespec/notes.txt"}
    ran = machine.install("1.0")
    assert ran.returncode == 2
    assert "notes.txt" in ran.stderr


def test_an_upgrade_keeps_models_and_a_downgrade_is_refused(machine: Machine) -> None:
    machine.install("1.9")
    model = machine.home / ".cache/edgespec/other"
    model.write_text("another model")
    assert machine.install("1.10").returncode == 0
    assert json.loads((machine.target / "installed.json").read_text())["version"] == "1.10"
    assert model.read_text() == "another model"
    before = machine.files()
    ran = machine.install("1.9")
    assert (ran.returncode, machine.files()) == (2, before)
    assert "1.10 is installed, which is newer than 1.9" in ran.stderr


def test_the_same_version_again_repairs(machine: Machine) -> None:
    machine.install("1.0")
    whole = machine.files()
    (machine.target / "app" / "python" / "edgespec").unlink()
    (machine.target / "bin" / "edgespec").write_text("broken")
    assert machine.install("1.0").returncode == 0
    assert machine.files() == whole


@pytest.mark.parametrize("folder", ["mit Leerzeichen & ü", "山" * 60, "/".join(["long"] * 60)])
def test_any_name_of_a_folder_will_do(machine: Machine, folder: str) -> None:
    target = machine.root / "elsewhere" / folder
    ran = machine.install("1.0", target)
    assert ran.returncode == 0, ran.stderr
    assert (target / "bin" / "edgespec").is_file()
    assert machine.apply("uninstall", target).returncode == 0
    assert not target.exists()


def test_a_disk_without_room_is_said_before_anything_is_written(machine: Machine) -> None:
    ran = machine.install("1.0", room=10**18)
    assert ran.returncode == 2
    assert "MB are needed" in ran.stderr
    assert machine.files() == {}


def test_a_disk_that_fills_up_leaves_what_was_there(machine: Machine) -> None:
    full = "#!/bin/sh\necho 'error: No space left on device (os error 28)' >&2\nexit 2\n"
    ran = machine.install("1.0", uv=full)
    assert ran.returncode == 2
    assert "no space left on the disk" in ran.stderr
    assert machine.files() == {}
    machine.install("1.0")
    before = machine.files()
    assert machine.install("1.1", uv=full).returncode == 2
    assert machine.files() == before


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_refused(machine: Machine) -> None:
    locked = machine.root / "locked"
    locked.mkdir(mode=0o500)
    ran = machine.install("1.0", locked / "edgespec")
    assert ran.returncode == 2
    assert "cannot be written" in ran.stderr


def test_a_kill_between_the_two_renames_is_mended(machine: Machine) -> None:
    machine.install("1.0")
    whole = machine.files()
    (machine.target / "app").rename(machine.target / "app.old")
    assert machine.install("1.0").returncode == 0
    assert machine.files() == whole


@pytest.fixture
def server(machine: Machine) -> Iterator[list[str]]:
    """A server that runs, as edgespec leaves word of it; the requests to end it."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(f"{self.path} {self.headers['Authorization']}")
            self.send_response(200)
            self.end_headers()
            threading.Thread(target=end).start()

        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    there = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def end() -> None:
        there.shutdown()
        there.server_close()

    thread = threading.Thread(target=there.serve_forever, args=(0.01,))
    thread.start()
    data = machine.home / ".local/share/edgespec"
    data.mkdir(parents=True)
    found = {"url": f"http://127.0.0.1:{there.server_port}", "token": "secret"}
    (data / "server.json").write_text(json.dumps(found))
    yield asked
    end()
    thread.join()


def test_a_running_server_is_asked_to_end(machine: Machine, server: list[str]) -> None:
    assert machine.install("1.0").returncode == 0
    assert server == ["/shutdown Bearer secret"]


def test_word_of_a_server_elsewhere_is_not_followed(machine: Machine) -> None:
    data = machine.home / ".local/share/edgespec"
    data.mkdir(parents=True)
    (data / "server.json").write_text('{"url": "http://192.0.2.1:80", "token": "x"}')
    assert machine.apply("stop").returncode == 0


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
    build = [sys.executable, ROOT / "installer" / "build.py", "linux", "-o", dist]
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
    command = [machine.target / "bin" / "edgespec", "--max-new-tokens", "8", "What is the capital of France?"]
    ran = subprocess.run(command, env=offline, capture_output=True, text=True, timeout=600)
    assert "Paris" in ran.stdout, ran.stderr
    assert machine.apply("uninstall", machine.target, "--purge").returncode == 0
    assert {name for name in machine.files() if "edgespec" in name} == set()
