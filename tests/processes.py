"""The command line in processes of their own, many of them: each begins with the libraries of others imported already.

Python and these libraries take most of the time of a command that does little. So one process imports them, and forks
for each command, which imports everything of ours itself, and huggingface_hub, whose settings are read at import.
Streams, variables, folder and exit code are those of a process. Elsewhere than on Linux it is an ordinary one.
A command that takes too long is ended, and so is one whose starter has ended.
"""

from __future__ import annotations

import atexit
import io
import json
import os
import runpy
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from select import select
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any

import psutil

PATIENCE = float(os.environ.get("EDGESPEC_TEST_PATIENCE", "1"))
"""how many times as long tests may take as on two cores: for a slow machine"""
LONGEST_S = 600 * PATIENCE
"""that a command may take, less than a worker may (tests/workers.py): so it is the test that fails"""
LOOK_S = 0.01
"""between two looks whether a command has ended"""
OF_OTHERS = (
    *("numpy", "openvino", "tokenizers", "gguf", "msgspec", "jinja2", "jinja2.sandbox", "click", "psutil", "httpx"),
    *("platformdirs", "rich.console", "rich.table", "rich.progress", "yaml", "fsspec", "filelock", "packaging.version"),
)
"""what commands import: none reads a variable that a test sets, and all bear a fork"""
STREAMS = ("stdin", "stdout", "stderr")
_turn = Lock()


def edgespec(
    *arguments: str, stdin: bytes = b"", env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[bytes]:
    """``python -m edgespec ARGUMENTS``. env: all variables, if not those of this process."""
    return _run(["-m", "edgespec", *arguments], stdin, env, cwd)


def python(
    code: str, *arguments: str, stdin: bytes = b"", env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[bytes]:
    """``python -c CODE ARGUMENTS``."""
    return _run(["-c", code, *arguments], stdin, env, cwd)


def decoded(ran: subprocess.CompletedProcess[bytes]) -> subprocess.CompletedProcess[str]:
    """Lines end as Python reads them."""
    said, told = (each.decode().replace("\r\n", "\n") for each in (ran.stdout, ran.stderr))
    return subprocess.CompletedProcess(ran.args, ran.returncode, said, told)


def started_by(pid: int) -> list[psutil.Process]:
    """And what those started."""
    with suppress(psutil.Error):
        return psutil.Process(pid).children(recursive=True)
    return []


def kill(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.Error):
            process.kill()


def _run(
    command: Sequence[str], stdin: bytes, env: Mapping[str, str] | None, cwd: Path | None
) -> subprocess.CompletedProcess[bytes]:
    environment = dict(os.environ if env is None else env)
    if sys.platform != "linux":  # elsewhere a fork of a process that loaded libraries may not be safe
        environment |= {"PYTHONIOENCODING": "utf-8"}
        return subprocess.run(
            [sys.executable, *command], input=stdin, capture_output=True, env=environment, cwd=cwd, timeout=LONGEST_S
        )
    with TemporaryDirectory() as name, _turn:
        folder = Path(name)
        (folder / "stdin").write_bytes(stdin)
        asked = {
            "command": command,
            "env": environment,
            "cwd": str(cwd or Path.cwd()),
            "folder": name,
            "longest_s": LONGEST_S,
        }
        server = _server()
        assert server.stdin is not None and server.stdout is not None
        server.stdin.write(json.dumps(asked).encode() + b"\n")
        server.stdin.flush()
        code = json.loads(server.stdout.readline())
        said, told = ((folder / stream).read_bytes() for stream in STREAMS[1:])
    if code is None:
        raise subprocess.TimeoutExpired(command, LONGEST_S, said, told)
    return subprocess.CompletedProcess([sys.executable, *command], code, said, told)


@cache
def _server() -> subprocess.Popen[bytes]:
    root = Path(__file__).parents[1]
    paths = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
    server = subprocess.Popen(
        [sys.executable, "-m", __name__],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root, env=os.environ | {"PYTHONPATH": paths},
    )  # fmt: skip
    atexit.register(server.communicate)
    return server


def _serve() -> None:
    """Fork for each line. A child returns from here, and ends as a process does."""
    for name in OF_OTHERS:
        with suppress(ImportError):
            import_module(name)
    while line := sys.stdin.buffer.readline():
        asked = json.loads(line)
        child = os.fork()
        if not child:
            _become(asked)
            return
        code = _code_of(child, asked["longest_s"])
        with suppress(BrokenPipeError):
            os.write(1, json.dumps(code).encode() + b"\n")


def _code_of(child: int, longest_s: float) -> int | None:
    """None: it took longer, or nobody waits for it any more. Seconds are those in which this process ran."""
    left_s = longest_s
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        is_alone = bool(select([0], [], [], LOOK_S)[0])  # the next line comes behind this one's answer: it is the end
        left_s -= LOOK_S
        if is_alone or left_s < 0:
            kill([*started_by(child), psutil.Process(child)])
            os.waitpid(child, 0)
            return None
    return os.waitstatus_to_exitcode(ended[1])


def _become(asked: Mapping[str, Any]) -> None:
    os.environ.clear()
    os.environ.update(asked["env"])
    os.chdir(asked["cwd"])
    folder = Path(asked["folder"])
    for number, stream in enumerate(STREAMS):
        reads = stream == "stdin"
        opened = os.open(folder / stream, os.O_RDONLY if reads else os.O_WRONLY | os.O_CREAT)
        os.dup2(opened, number)
        os.close(opened)
        file = os.fdopen(number, "rb" if reads else "wb", closefd=False)
        errors = "backslashreplace" if stream == "stderr" else "strict"
        setattr(sys, stream, io.TextIOWrapper(file, "utf-8", errors, line_buffering=stream == "stderr"))
    how, what, *arguments = asked["command"]
    if how == "-m":
        sys.argv = [what, *arguments]
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        sys.argv = ["-c", *arguments]
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})


if __name__ == "__main__":
    _serve()
