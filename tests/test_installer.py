"""What the installer does to a user's files: the Linux twin, with small stand-ins for Python and uv.

The slow test at the end builds the real one, installs it without a network, runs it, and removes it.
"""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
COMPARE = ROOT / "installer" / "compare.py"
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

    def apply(self, *arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {"HOME": str(self.home), "PATH": os.environ["PATH"], **variables}
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
    program: list[str | Path] = [machine.target / "bin" / "edgespec", "--help"]
    ran = subprocess.run(program, env={"HOME": "/", "PATH": "/bin:/usr/bin"}, capture_output=True, text=True)
    assert "edgespec" in ran.stdout + ran.stderr  # the stand-in calls the Python of the tests


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


def test_purging_leaves_nothing(machine: Machine) -> None:
    machine.install("1.0")
    assert machine.apply("uninstall", machine.target, "--purge").returncode == 0
    assert machine.files() == {}


def test_purging_keeps_a_folder_that_the_user_has_chosen(machine: Machine) -> None:
    machine.install("1.0")
    others = machine.root / "elsewhere"
    for folder in ("edgespec", "data"):
        (others / folder).mkdir(parents=True)
        (others / folder / "thesis.txt").write_text("mine")
    chosen = {"EDGESPEC_CACHE": str(others / "edgespec"), "EDGESPEC_DATA": str(others / "data")}
    ran = machine.apply("uninstall", machine.target, "--purge", **chosen)
    assert ran.returncode == 0, ran.stderr
    assert (others / "edgespec/thesis.txt").exists() and (others / "data/thesis.txt").exists()
    assert str(others / "edgespec") in ran.stdout and str(others / "data") in ran.stdout


@pytest.mark.parametrize("names", [["bin"], ["app", "bin"], ["setup"], ["app.old"]])
def test_a_folder_of_the_users_own_programs_is_refused(machine: Machine, names: list[str]) -> None:
    for name in names:
        (machine.target / name).mkdir(parents=True)
        (machine.target / name / "mine").write_text("mine")
    before = machine.files()
    ran = machine.install("1.0")
    assert (ran.returncode, machine.files()) == (2, before)
    assert f"holds files of others ({names[0]})" in ran.stderr


def test_programs_that_a_user_has_put_beside_ours_are_kept(machine: Machine) -> None:
    machine.install("1.0")
    own = machine.target / "bin" / "mine"
    own.write_text("mine")
    assert f"kept, since it is not ours: {own.parent}" in machine.apply("uninstall", machine.target).stdout
    assert inside(machine.files()) == {".local/opt/edgespec/bin/mine"}


def test_the_folder_that_is_installed_from_is_no_target(machine: Machine) -> None:
    payload = machine.payload("1.0")
    before = sorted(payload.rglob("*"))
    for target in (payload, payload / "here", payload / "python" / "here"):
        ran = machine.apply("install", payload, target)
        assert ran.returncode == 2
        assert "is what is installed from" in ran.stderr
    assert sorted(payload.rglob("*")) == before


def test_a_target_that_is_a_link(machine: Machine) -> None:
    real, link = machine.root / "disk", machine.root / "link"
    real.mkdir()
    link.symlink_to(real)
    assert machine.install("1.0", link).returncode == 0
    ran = machine.apply("uninstall", link, "--purge")
    assert ran.returncode == 0, ran.stderr
    assert machine.files() == {}
    assert machine.apply("uninstall", link).returncode == 2


def test_a_removal_that_was_broken_off_can_be_done_again(machine: Machine) -> None:
    machine.install("1.0")
    shutil.rmtree(machine.target / "app")
    (machine.target / "uninstall.sh").unlink()
    ran = machine.apply("uninstall", machine.target, "--purge")
    assert ran.returncode == 0, ran.stderr
    assert not {name for name in machine.files() if "installed" in name or "applications" in name}


def test_an_entry_in_the_menu_that_another_installation_has_made_stays(machine: Machine) -> None:
    machine.install("1.0")
    other = machine.root / "other"
    assert machine.install("1.1", other).returncode == 0
    assert machine.apply("uninstall", machine.target).returncode == 0
    assert f"{other}/bin" in machine.files()[".local/share/applications/edgespec.desktop"]
    assert machine.apply("uninstall", other).returncode == 0
    assert ".local/share/applications/edgespec.desktop" not in machine.files()


def test_the_entry_in_the_menu_names_the_program_whatever_its_path(machine: Machine) -> None:
    """Unquoted as the specification of desktop entries says: escapes of the file, then quotes of a command."""
    target = machine.root / 'a "b" $c `d` \\e %f'
    assert machine.install("1.0", target).returncode == 0
    entry = machine.files()[".local/share/applications/edgespec.desktop"]
    [value] = [line.removeprefix("Exec=") for line in entry.splitlines() if line.startswith("Exec=")]
    assert re.fullmatch(r"([^\\]|\\[sntr\\])*", value)
    quoted = re.sub(r"\\(.)", lambda found: {"n": "\n", "t": "\t", "r": "\r"}.get(found[1], found[1]), value)
    assert re.fullmatch(r'"([^"`$\\]|\\["`$\\])*"', quoted)
    assert re.sub(r"\\(.)", r"\1", quoted[1:-1]).replace("%%", "%") == f"{target}/bin/edgespec-chat"


def test_a_console_without_the_letters_of_a_name_is_no_failure(machine: Machine) -> None:
    """As on Windows, where a pipe has the letters of one country."""
    call = "import io, runpy, sys; sys.stdout = io.TextIOWrapper(sys.stdout.buffer, 'ascii'); sys.argv = sys.argv[1:]; "
    call += "runpy.run_path(sys.argv[0], run_name='__main__')"
    command: list[str | Path] = [sys.executable, "-c", call, APPLY, "install", machine.payload("1.0"), machine.target]
    environment = {"HOME": str(machine.home), "PATH": os.environ["PATH"]}
    ran = subprocess.run(command, env=environment, capture_output=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert b"\\u5c71" in ran.stdout


@pytest.mark.parametrize(
    ("one", "other"), [("1.10", "1.9"), ("1.0", "1.0rc2"), ("1.0", "1.0.dev3"), ("1.0rc1", "1.0b2"), ("1.0.1", "1.0")]
)
def test_a_release_is_newer_than_what_came_before_it(one: str, other: str) -> None:
    newer = runpy.run_path(str(APPLY))["_newer"]
    assert (newer(one, other), newer(other, one), newer(one, one)) == (True, False, False)
    assert not newer("1.0", "1.0.0") and not newer("1.0.0", "1.0")


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
    """A server that runs, as edgespec leaves word of it; what it was asked. It takes its time to end."""
    asked: list[str] = []
    data = machine.home / ".local/share/edgespec"

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(f"{self.path} {self.headers['Authorization']}")
            self.send_response(200)
            self.end_headers()
            threading.Thread(target=end_slowly).start()

        def do_GET(self) -> None:
            self.send_response(503)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    there = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def end() -> None:
        there.shutdown()
        there.server_close()

    def end_slowly() -> None:
        time.sleep(0.5)
        end()
        asked.append("ended")
        (data / "server.json").unlink()

    thread = threading.Thread(target=there.serve_forever, args=(0.01,))
    thread.start()
    data.mkdir(parents=True)
    found = {"url": f"http://127.0.0.1:{there.server_port}", "token": "secret"}
    (data / "server.json").write_text(json.dumps(found))
    yield asked
    end()
    thread.join()


def test_a_running_server_is_asked_to_end(machine: Machine, server: list[str]) -> None:
    """And nothing is changed before it has ended, as files in use cannot be replaced on Windows."""
    assert machine.apply("stop").returncode == 0
    assert server == ["/shutdown Bearer secret", "ended"]


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
