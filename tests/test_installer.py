"""What the installer does to a user's files: the Linux twin. It writes its folder, and removes no files of others."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import installer_machine
from tests.installer_machine import APPLY, Machine, inside

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the stand-ins are shell scripts")
machine = installer_machine.machine


OUTSIDE = {".local/share/applications/edgespec.desktop", ".cache/edgespec/model"}


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


@pytest.mark.parametrize("folder", ["mit Leerzeichen & ü", "山" * 60, "/".join(["long"] * 60)])
def test_any_name_of_a_folder_will_do(machine: Machine, folder: str) -> None:
    target = machine.root / "elsewhere" / folder
    ran = machine.install("1.0", target)
    assert ran.returncode == 0, ran.stderr
    assert (target / "bin" / "edgespec").is_file()
    assert machine.apply("uninstall", target).returncode == 0
    assert not target.exists()
