"""A process ends in order, though a thread of ours is still inside an engine."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from edgespec.commands import answer
from edgespec.generation import Stream
from tests.fake_server import fake_pipeline

BESIDE = """
import atexit, sys, threading, time
from edgespec import cli, start

def command():
    threading.Thread(target=time.sleep, args=(60,), daemon=True, name=sys.argv[1]).start()
    atexit.register(print, "the end")
    print("done")
    sys.exit(int(sys.argv[2]))

class AtLast:
    def __del__(self, say=sys.stdout.write):
        say("finalized\\n")

kept = AtLast()
cli.main = command
start.entry()
"""


@pytest.mark.parametrize("status", [0, 2])
@pytest.mark.parametrize(("name", "is_finalized"), [("edgespec-model", False), ("another", True)])
def test_the_interpreter_is_not_taken_down_around_our_threads(name: str, is_finalized: bool, status: int) -> None:
    """What is to be done at every end is done, and what is said is said."""
    ran = subprocess.run([sys.executable, "-c", BESIDE, name, str(status)], capture_output=True, text=True)
    assert ran.returncode == status and not ran.stderr
    assert ran.stdout.splitlines() == ["done", "the end", *["finalized"] * is_finalized]


def test_a_process_that_calls_the_command_line_goes_on() -> None:
    """A server's thread in the same process is no reason to end it."""
    code = (
        "import sys, threading, time; from edgespec import cli\n"
        "threading.Thread(target=time.sleep, args=(60,), daemon=True, name='edgespec-model').start()\n"
        "sys.argv = ['edgespec', '--version']\n"
        "try:\n    cli.main()\nexcept SystemExit as ended:\n    print('goes on', ended.code)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert ran.stdout.splitlines()[-1] == "goes on 0"


ROOT = Path(__file__).parents[1]
EARLY = """
import sys
from importlib.abc import MetaPathFinder

class Interrupts(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1]:
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupts())
"""
"""a user who presses Ctrl-C while a module is imported"""


def starts() -> dict[str, str]:
    """How a process of ours begins: as the script that is installed, and as a module."""
    script = re.search(r'^edgespec = "([\w.]+):(\w+)"$', (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
    assert script is not None
    return {
        "script": f"from {script[1]} import {script[2]}; {script[2]}()",
        "module": "import runpy; runpy.run_module('edgespec', run_name='__main__', alter_sys=False)",
    }


@pytest.mark.parametrize("start", ["script", "module"])
@pytest.mark.parametrize("imported", ["edgespec.cli", "click", "edgespec.errors", "edgespec.process_end"])
def test_a_process_that_is_interrupted_while_it_starts_ends_in_order(start: str, imported: str) -> None:
    code = f"{EARLY}\n{starts()[start]}"
    ran = subprocess.run([sys.executable, "-c", code, imported], capture_output=True, text=True, cwd=ROOT)
    assert (ran.returncode, ran.stdout, ran.stderr) == (130, "", "\n")


def test_a_text_that_is_stopped_says_what_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stream = fake_pipeline(tmp_path).stream("Sevens.", max_new_tokens=50, ignore_eos=True)

    def interrupted() -> Generator[str, None, None]:
        yield next(stream)
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        answer.show(Stream(interrupted(), stream.result), as_json=False)
    stream.close()
    assert ended.value.code == 130
    stopped, summary = capsys.readouterr().err.splitlines()
    assert stopped == "[stopped]" and " tokens" in summary and "cut short" not in summary


def test_a_summary_says_what_cut_a_text_short(tmp_path: Path) -> None:
    pipeline = fake_pipeline(tmp_path, capacity=128)
    for most, limit in ((9, "--max-new-tokens"), (1000, "the context")):
        found = pipeline.generate("Sevens.", max_new_tokens=most, ignore_eos=True)
        assert f"cut short by {limit} " in answer.summary(found)
