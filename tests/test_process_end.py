"""A process ends in order, though a thread of ours is still inside an engine."""

from __future__ import annotations

import subprocess
import sys

import pytest

BESIDE = """
import atexit, sys, threading, time
from edgespec import cli

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
cli.entry()
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
