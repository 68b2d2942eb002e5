"""Nothing phones home: every command under ``strace`` in a fresh home folder, with all variables of ours unset.

A command that needs no network connects to none, and leaves no file in the home folder but edgespec's own. Where
``strace`` cannot be used the test says so, and looks at the home folder alone.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from edgespec import telemetry
from tests import tiny_gguf

PYTHON = [sys.executable, "-m"]
EDGESPEC = [*PYTHON, "edgespec"]
Watched = Callable[..., str]


@cache
def tracer() -> tuple[str, ...]:
    """The beginning of a command that writes what it does with sockets to the file that is named next; () if none.

    With --seccomp-bpf nothing but these calls is stopped, where the kernel and strace can.
    """
    calls = ("-e", "trace=connect,sendto,sendmsg,sendmmsg", "-o")
    for command in (("strace", "-f", "--seccomp-bpf", *calls), ("strace", "-f", *calls)):
        if (
            shutil.which("strace")
            and subprocess.run([*command, os.devnull, "true"], capture_output=True).returncode == 0
        ):
            return command
    warnings.warn("strace cannot be used here: sockets are not watched, only the home folder is", stacklevel=2)
    return ()


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    """Run a command. ours: folders of the home that it may write to. Returns its stdout."""
    home, trace = tmp_path / "home", tmp_path / "trace"

    def run(*command: str, ours: tuple[str, ...] = (".cache/edgespec",), stdin: str = "", **more: str) -> str:
        home.mkdir(exist_ok=True)  # before: some libraries write only to a home that is there
        kept = {
            name: value
            for name, value in os.environ.items()
            if name not in (*telemetry.VARIABLES, "CI") and not name.startswith(("EDGESPEC_", "XDG_", "HF_"))
        }
        own = {"HOME": str(home), "USERPROFILE": str(home), "EDGESPEC_CACHE": str(home / ".cache" / "edgespec")}
        traced = [*tracer(), str(trace)] if tracer() else []
        ran = subprocess.run(
            [*traced, *command], input=stdin, capture_output=True, encoding="utf-8", env=kept | own | more, cwd=tmp_path
        )
        assert ran.returncode == 0, ran.stderr
        files = [path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file()]
        assert not [file for file in files if not file.startswith(ours)]
        return ran.stdout

    return run


@pytest.fixture
def sockets(tmp_path: Path) -> Callable[[], list[str]]:
    """What the last command sent over a network or connected to, name servers included, line by line.

    A socket that does neither is harmless: uuid1 asks one for a network card's address, urllib3 whether there is IPv6.
    """

    def lines() -> list[str]:
        trace = tmp_path / "trace"
        text = trace.read_text(encoding="utf-8", errors="replace") if trace.is_file() else ""
        return [line for line in text.splitlines() if re.search(r"(connect|send\w+)\(.*AF_INET", line)]

    return lines


def test_the_variables_are_set_before_anything_can_read_them() -> None:
    script = (
        "import edgespec, os, sys; print({k: os.environ.get(k) for k in sys.argv[1:]}, 'onnxruntime' in sys.modules)"
    )
    without = {name: value for name, value in os.environ.items() if name not in telemetry.VARIABLES}

    def variables(**given: str) -> str:
        command = [sys.executable, "-c", script, *telemetry.VARIABLES]
        return subprocess.run(command, check=True, capture_output=True, text=True, env=without | given).stdout.strip()

    assert variables() == f"{telemetry.VARIABLES} False"
    assert "'ORT_DISABLE_TELEMETRY': '0'" in variables(ORT_DISABLE_TELEMETRY="0"), "the user's word stands"


def test_commands_that_load_no_model(watched: Watched, sockets: Callable[[], list[str]], tmp_path: Path) -> None:
    gguf = tiny_gguf.write(tmp_path / "tiny.gguf")
    for command in (["--version"], ["doctor"], ["pull", str(gguf)], ["models"]):
        watched(*EDGESPEC, *command)
        assert not sockets(), command


@pytest.mark.parametrize(
    "backend", [None, *(pytest.param(name, marks=pytest.mark.slow) for name in ("openvino", "onnxruntime"))]
)
def test_a_first_run(
    watched: Watched, sockets: Callable[[], list[str]], tiny_fast_ir: Path, backend: str | None
) -> None:
    """None: both engines are measured."""
    asked = ["--backend", backend] if backend else []
    watched(*EDGESPEC, "run", "hi", "-n", "4", "-m", str(tiny_fast_ir.parent), *asked)
    assert not sockets()


def test_chat_and_bench(watched: Watched, sockets: Callable[[], list[str]], tiny_fast_ir: Path) -> None:
    options = ["-m", str(tiny_fast_ir.parent), "--backend", "onnxruntime"]
    watched(*EDGESPEC, "chat", "-n", "4", *options, stdin="hi\nand you?\n")
    assert not sockets()
    watched(*EDGESPEC, "bench", "loop", "--pairs", "1", "--new-tokens", "8", *options)
    assert not sockets()


def test_the_process_of_a_runtime(watched: Watched, sockets: Callable[[], list[str]], tiny_fast_ir: Path) -> None:
    weight_formats = {"ref": str(tiny_fast_ir.parent)}
    requests = [
        {"do": "load", "weight_formats": weight_formats, "mode": "onnxruntime plain", "threads": 1, "cache": None},
        {"do": "generate", "prompt": [5, 6, 7], "new_tokens": 4},
    ]
    module = ["edgespec_bench.peers.worker", "edgespec_bench.peers.adapters.edgespec"]
    answers = watched(*PYTHON, *module, stdin="".join(json.dumps(request) + "\n" for request in requests))
    assert [list(json.loads(line)) for line in answers.splitlines()][1][0] == "tokens", answers
    assert not sockets()


@pytest.mark.slow
def test_export_and_training(watched: Watched, sockets: Callable[[], list[str]], tmp_path: Path) -> None:
    from tests.tiny_models import build

    folder = str(build("llama", tmp_path / "torch"))
    ours = (".cache/edgespec", ".cache/matplotlib")  # its list of the fonts that are here
    watched(*EDGESPEC, "export", folder, "-o", "out", ours=ours)
    assert not sockets()
    small = ["--corpus-tokens", "400", "--texts-per-shard", "8", "--new-tokens", "24", "--vocabulary", "300"]
    watched(*EDGESPEC, "train", "fastdraft", folder, "-o", "work", *small, "--steps", "2", ours=ours)
    assert not sockets()


def test_a_socket_and_a_file_of_a_strangers_are_noticed(watched: Watched, sockets: Callable[[], list[str]]) -> None:
    script = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(('127.0.0.1', 9))"
    watched(sys.executable, "-c", script)
    assert len(sockets()) == bool(tracer())
    script = "from pathlib import Path; Path.home().joinpath('intel').write_text('')"
    with pytest.raises(AssertionError, match="intel"):
        watched(sys.executable, "-c", script)
