"""The command line from outside: output, exit codes, and one-line errors for bad input.

What a process adds (streams, exit codes, pipes) is seen from a process of its own; the rest in this one, where the
default pair is loaded once. Where the words do not matter a tiny model writes them.
"""

from __future__ import annotations

import inspect
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.table import Table

from edgespec import cli, console, loading
from edgespec.commands.answer import _versions, summary
from edgespec.hub import catalog
from edgespec.loading import load
from edgespec.machine import engine_choice
from edgespec.pipeline import Pipeline
from edgespec.stats import Stats
from tests import processes
from tests.conftest import as_if_alone

QUESTION = "What is the capital of France?"


def edgespec(*arguments: str, stdin: bytes = b"", **environment: str) -> subprocess.CompletedProcess[bytes]:
    return processes.edgespec(*arguments, stdin=stdin, env=os.environ | environment)


Ended = tuple[int | str | None, str, str]
"""exit code, stdout, stderr"""


@pytest.fixture
def here(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Ended]:
    """The command line in this process. The default pair as it is by default is the one of all tests."""
    real = loading.load
    usual = {name: option.default for name, option in inspect.signature(real).parameters.items()}
    usual |= {"draft": "auto", "progress": True}  # as commands ask for it

    def shared(**options: Any) -> Pipeline:
        if all(value == usual[name] for name, value in options.items()):
            pipeline.forget()
            return pipeline
        return real(**options)

    def run(*arguments: str, stdin: bytes = b"") -> Ended:
        monkeypatch.setattr("sys.argv", ["edgespec", *arguments])
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        try:
            cli.main()
            code: int | str | None = 0
        except SystemExit as ended:
            code = ended.code
        return code, *capsys.readouterr()

    monkeypatch.setattr(loading, "load", shared)
    return run


def refused(ended: Ended) -> str:
    """As ``error_of``."""
    code, said, told = ended
    assert (code, said) == (2, ""), told
    assert told.startswith("error: ") and told.count("\n") == 1 and "Traceback" not in told, told
    return told


def error_of(ran: subprocess.CompletedProcess[bytes]) -> str:
    """The message of a failed run: exit 2, nothing on stdout, one line on stderr."""
    text = ran.stderr.decode()
    assert ran.returncode == 2, text
    assert ran.stdout == b""
    assert text.startswith("error: ") and text.count("\n") == 1 and "Traceback" not in text, text
    return text


def test_run_is_the_default_command_and_answers(pipeline: Pipeline) -> None:
    ran = subprocess.run([sys.executable, "-m", "edgespec", QUESTION], input=b"", capture_output=True)
    assert ran.returncode == 0, ran.stderr
    assert "Paris" in ran.stdout.decode()
    summary = ran.stderr.decode()
    assert summary.count("\n") == 1 and "tok/s" in summary and "exact in f32 on CPU" in summary


def test_json_is_one_object_with_everything_in_it(here: Callable[..., Ended], tiny_ir: Path) -> None:
    options = ["run", "--model", str(tiny_ir.parent), "--json", "-n", "24", "--temperature", "0.8", "--seed", "7"]
    options += ["--ignore-eos", QUESTION]
    drafted = json.loads(here(*options, "--draft", "ngram", "-k", "3")[1])
    plain = json.loads(here(*options, "--draft", "none")[1])
    assert set(drafted) >= {
        "text", "token_ids", "prompt_tokens", "new_tokens", "finish_reason", "ttft_s", "decode_tok_per_s", "rounds",
        "proposed", "accepted", "acceptance_rate", "block_efficiency", "numerics", "devices", "versions", "model",
        "tpot_s", "longest_gap_s",
    }  # fmt: skip
    assert drafted["token_ids"] == plain["token_ids"] and drafted["verification"] == "coupled"
    assert (drafted["new_tokens"], drafted["finish_reason"]) == (24, "length")
    assert plain["proposed"] == 0 and plain["acceptance_rate"] is None and plain["rounds"] == 24


def test_json_names_the_package_of_onnx_runtime_that_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows it may be onnxruntime-directml, in place of onnxruntime."""

    def version_of(name: str) -> str:
        if name != "onnxruntime-directml":
            raise PackageNotFoundError(name)
        return "1.20"

    monkeypatch.setattr(engine_choice, "version_of", version_of)
    monkeypatch.setattr("importlib.metadata.version", lambda name: version_of(name) if "onnx" in name else "1")
    found = _versions()
    assert found["onnxruntime-directml"] == "1.20" and "onnxruntime" not in found


def test_a_prompt_comes_from_standard_input_too(here: Callable[..., Ended], tiny_ir: Path) -> None:
    for arguments in (["run"], ["run", "-"], ["-"]):
        _, said, told = here(*arguments, "-n", "12", stdin=QUESTION.encode())
        assert "Paris" in said, told
    tiny = ["-n", "8", "--ignore-eos", "--draft", "none", "--model", str(tiny_ir.parent)]
    piped, (_, given, _) = edgespec("-", *tiny, stdin=QUESTION.encode()), here(QUESTION, *tiny)
    assert piped.returncode == 0 and piped.stdout == given.encode() != b"", piped.stderr
    assert "standard input is not valid UTF-8" in refused(here("-", stdin=b"caf\xe9"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", QUESTION, "--temperature", "-1"], "error: -t/--temperature; got -1.0; allowed: 0 (greedy)"),
        (["run", QUESTION, "--temperature", "nan"], "--temperature; got nan"),
        (["run", QUESTION, "--top-p", "0"], "error: --top-p; got 0.0"),
        (["run", QUESTION, "--top-k", "-3"], "error: --top-k; got -3"),
        (["run", QUESTION, "--min-p", "2"], "error: --min-p; got 2.0"),
        (["run", QUESTION, "--seed", "-1"], "error: --seed; got -1"),
        (["run", QUESTION, "--device", "TPU"], "no such device here; got TPU; allowed: CPU"),
        (["run", QUESTION, "--model", "./missing"], "no such model: there is no such file or folder; got ./missing. C"),
        (["run", QUESTION, "--model", "missing.gguf"], "no such model: there is no such file or folder; got missing"),
        (["run", QUESTION, "--grammar", "missing"], "error: --grammar: cannot read missing: No such file or directory"),
        (["infill", "missing.py:1:1"], "error: cannot read missing.py: No such file or directory. Give a text file"),
        (["infill", "-:1:1", "--files", "missing"], "error: --files: cannot read missing: No such file or directory"),
        (["run", QUESTION, "--model", "smollm2-134m"], "smollm2-135m"),
        (["run", QUESTION, "--draft", "./missing"], "error: --draft: no such draft"),
        ([QUESTION, "--top-p", "0"], "error: --top-p; got 0.0"),
        (["chat", "--top-p", "0"], "error: --top-p; got 0.0"),
        (["bench", "speed", "-k", "-1"], "error: -k/--num-draft-tokens: number of draft tokens; got -1"),
        (["run", QUESTION, "--regex", ""], "error: --regex; got"),
        (["run", QUESTION, "--regex", "("], "error: --regex: this regex cannot be used"),
        (["run", QUESTION, "-k", "-1"], "error: -k/--num-draft-tokens: number of draft tokens; got -1"),
        (
            ["bench", "peers", "--prompts", "./missing"],
            "error: --prompts: cannot read prompts from missing: No such file or directory;",
        ),
        (
            ["run", QUESTION, "-k", "3", "--draft", "none"],
            "error: -k/--num-draft-tokens: without a drafter there is nothing to draft",
        ),
        (
            ["run", QUESTION, "--draft", "ngram", "--draft-device", "CPU"],
            "error: --draft-device: only a draft model has a draft device, and ngram is none; got CPU",
        ),
        (
            ["run", QUESTION, "--draft-from", "./missing"],
            "error: --draft-from: folder to draft from; got missing; allowed: an existing",
        ),
        (
            ["run", QUESTION, "--draft-from", ".", "--draft", "none"],
            "error: --draft-from: without a drafter there is nothing to draft from a folder; got .",
        ),
        (
            ["run", QUESTION, "--remember"],
            "error: --remember: only the draft recycling can be remembered; got draft auto",
        ),
        (["run", QUESTION, "--context-length", "0"], "error: --context-length; got 0"),
        (["run", QUESTION, "--max-new-tokens", "0"], "error: -n/--max-new-tokens; got 0"),
        (["run", QUESTION, "-n", "0", "--model", "./missing"], "error: -n/--max-new-tokens; got 0"),
        (["run", QUESTION, "--stop", ""], "stop string is empty"),
        (["run", ""], "prompt is empty"),
        (["run", "   "], "prompt is empty"),
        (["run", QUESTION, "--no-such-option"], "No such option"),
        (["run", QUESTION, "-t", "hot"], "error: -t/--temperature; got hot; allowed: a number (see --help)"),
        (["run", QUESTION, "-n", "1.5"], "error: -n/--max-new-tokens; got 1.5; allowed: a whole number (see --help)"),
        (["serve", "--queue", "0"], "error: --queue; got 0; allowed: x>=1 (see --help)"),
        (["run", QUESTION, "--numerics", "perfect"], "error: --numerics; got perfect; allowed: 'exact', 'fast'"),
        (["run", QUESTION, "--numerics", "perfect"], "'exact', 'fast'"),
        (["run", QUESTION, "--verification", "typical"], "'coupled', 'rejection'"),
        (["run", "--raw", "--system", "x", QUESTION], "error: --system: a system prompt needs a chat template"),
        (["run", "word " * 9000], "prompt is longer than the context; got 9"),
        (["run", "two", "prompts"], "unexpected extra argument"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(here: Callable[..., Ended], arguments: list[str], message: str) -> None:
    assert message in refused(here(*arguments))


HOMELESS = """
import os, pwd, sys
def nobody(uid): raise KeyError(uid)
pwd.getpwuid = nobody
for name in ("HOME", "XDG_CACHE_HOME", "HF_HOME"): os.environ.pop(name, None)
sys.argv = ["edgespec", *sys.argv[1:]]
from edgespec.cli import main
try:
    main()
finally:
    if "pull" in sys.argv: print("hub:", sys.modules["huggingface_hub.constants"].HF_HOME)
"""
"""as in a container whose user has a number only"""


def homeless(folder: Path, *arguments: str, cache: str) -> subprocess.CompletedProcess[bytes]:
    own = {"EDGESPEC_BACKEND": "", "EDGESPEC_CACHE": cache, "HF_HUB_OFFLINE": "1"}
    return processes.python(HOMELESS, *arguments, cwd=folder, env=os.environ | own)


@pytest.mark.skipif(os.name == "nt", reason="Windows asks the registry")
@pytest.mark.parametrize("cache", ["", "~/models"])
def test_without_a_home_the_message_names_the_variable_to_set(tmp_path: Path, cache: str) -> None:
    for command in ("models", "doctor"):
        assert "set EDGESPEC_CACHE" in error_of(homeless(tmp_path, command, cache=cache)).replace("Set", "set")


@pytest.mark.skipif(os.name == "nt", reason="Windows asks the registry")
def test_without_a_home_a_named_cache_will_do(tmp_path: Path, tiny_ir: Path) -> None:
    cache = str(tmp_path / "cache")
    assert homeless(tmp_path, "models", cache=cache).returncode == 0
    assert homeless(tmp_path, "doctor", cache=cache).returncode == 0
    ran = homeless(tmp_path, "hi", "-m", str(tiny_ir.parent), "-n", "1", "--backend", "openvino", cache=cache)
    assert ran.returncode == 0, ran.stderr
    ran = homeless(tmp_path, "pull", "no/such", cache=cache)
    assert ran.returncode == 2 and f"hub: {cache}".encode() in ran.stdout, ran
    assert {path.name for path in tmp_path.iterdir()} <= {"cache"}


def test_a_draft_wider_than_a_forward_is_refused_with_the_limit(here: Callable[..., Ended], pipeline: Pipeline) -> None:
    """Which is this machine's: the widest forward that is exact here, less the token before the draft."""
    most = pipeline.target.capabilities.max_width - 1
    assert most in (15, 31, 63, 255)
    message = f"number of draft tokens; got 1000; allowed: 0 to {most}"
    assert refused(here("run", QUESTION, "-k", "1000")) == f"error: -k/--num-draft-tokens: {message}\n"


def test_a_process_of_its_own_ends_like_that_too(tiny_ir: Path) -> None:
    assert "error: --top-k; got -3" in error_of(edgespec("run", QUESTION, "--top-k", "-3"))
    assert "prompt is empty" in error_of(edgespec("run", "  ", "--model", str(tiny_ir.parent)))


def test_a_corrupt_bundle_is_named(here: Callable[..., Ended], tmp_path: Path, tiny_ir: Path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(tiny_ir.parent, folder)
    weights = folder / "openvino_model.bin"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "openvino_model" in refused(here("run", QUESTION, "--model", str(folder)))
    (folder / "openvino_model.xml").write_text("<net><broken")
    assert "cannot read" in refused(here("run", QUESTION, "--model", str(folder)))


def test_a_draft_of_another_vocabulary_is_refused(here: Callable[..., Ended], tiny_ir: Path) -> None:
    message = refused(here("run", QUESTION, "--draft", str(tiny_ir.parent)))
    assert "does not fit target" in message and "ids differ" in message


@pytest.mark.skipif(os.name == "nt", reason="a shell pipe that closes early")
def test_a_closed_pipe_is_quiet(
    here: Callable[..., Ended], tiny_ir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader is gone before the first piece is written."""
    monkeypatch.setenv("EDGESPEC_CACHE", str(tmp_path))
    arguments = ["run", "--model", str(tiny_ir.parent), "--raw", "sea", "-n", "500", "--ignore-eos"]
    assert here(*arguments)[0] == 0  # measures, once
    as_if_alone(tmp_path)
    ran = subprocess.run(
        f"'{sys.executable}' -m edgespec {shlex.join(arguments)} | true; exit ${{PIPESTATUS[0]}}",
        shell=True, executable="/bin/bash", capture_output=True,
    )  # fmt: skip
    assert ran.returncode == 141
    assert ran.stderr == b""


def test_chat_reuses_the_conversation_and_survives_bad_commands(here: Callable[..., Ended]) -> None:
    turns = b"What is the capital of France?\n/nonsense\nAnd of Italy?\n/stats\n/exit\nnever asked\n"
    code, said, told = here("chat", "-n", "40", stdin=turns)
    assert code == 0, told
    assert "Paris" in said and "Rome" in said
    assert "no such command: /nonsense" in told
    reused = next(line for line in told.splitlines() if line.startswith("reused_tokens"))
    assert int(reused.split()[1]) > 40
    assert "None" not in told and "{" not in told and not re.search(r"\d\.\d{7}", told), "figures are for people"
    assert told.count("tok/s") == 2


def test_doctor_reports_and_plans(here: Callable[..., Ended]) -> None:
    report = json.loads(here("doctor", "--json")[1])
    assert report["devices"][0]["name"] == "CPU"
    assert report["model"]["context_length"] == 8192
    assert {"edgespec", "openvino"} <= set(report["versions"])
    assert report["onnxruntime"].keys() == {"OPENVINO", "DML", "CUDA"}
    _, text, _ = here("doctor")
    assert "exact" in text and "Memory:" in text


def test_doctor_names_the_drafters_as_a_run_does(here: Callable[..., Ended], pipeline: Pipeline, tiny_ir: Path) -> None:
    for ref, model in (("default", pipeline), (str(tiny_ir.parent), load(tiny_ir.parent))):
        planned = loading.drafter_name(ref)
        assert model.arbiter is not None and planned == model.arbiter.name
        assert json.loads(here("doctor", "--json", "-m", ref)[1])["model"]["drafter"].startswith(f"{planned};")
    assert loading.drafter_name("qwen3-8b") == f"ngram+pool+recycling+{catalog.default_draft('qwen3-8b')}"


def test_a_first_run_without_a_terminal_says_what_takes_long(tiny_ir: Path, tmp_path: Path) -> None:
    arguments = ["hi", "-m", str(tiny_ir.parent), "-n", "2", "--ignore-eos"]
    first = edgespec(*arguments, EDGESPEC_CACHE=str(tmp_path)).stderr.decode()
    as_if_alone(tmp_path)
    second = edgespec(*arguments, EDGESPEC_CACHE=str(tmp_path)).stderr.decode()
    *lines, summary = first.splitlines()
    assert any("measuring forwards of the target (one-time)" in line for line in lines), first
    assert all(line.startswith("edgespec: ") for line in lines), first
    assert summary.startswith("[") and second.count("\n") == 1, second


def test_without_arguments_it_says_what_it_can_do() -> None:
    ran = edgespec()
    assert ran.returncode == 0 and ran.stderr == b""
    assert "edgespec chat" in ran.stdout.decode()


def test_a_short_context_is_honoured_with_and_without_what_was_remembered(
    here: Callable[..., Ended], tiny_ir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--json", "--context-length", "60", "-n", "200", "--ignore-eos", "--model", str(tiny_ir.parent)]
    monkeypatch.setenv("EDGESPEC_CACHE", str(tmp_path))
    for run in (lambda: here("run", *options, "Tides.")[1], lambda: edgespec("run", *options, "Tides.").stdout):
        told = json.loads(run())
        assert told["prompt_tokens"] + told["new_tokens"] == 61  # the last token needs no row
        assert len(list(tmp_path.glob("measured/*.json"))) == 2, "widths and costs"
        as_if_alone(tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell to close a stream")
@pytest.mark.parametrize("close", ["<&-", ">&-", "| true"])
def test_closed_streams_are_no_traceback(close: str) -> None:
    ran = subprocess.run(
        f"'{sys.executable}' -m edgespec models {close}", shell=True, executable="/bin/bash", capture_output=True
    )
    assert b"Traceback" not in ran.stderr


EVIL = "evil\x1b]0;title\x07\x9b2J"


def test_what_a_model_writes_does_not_steer_a_terminal(
    here: Callable[..., Ended], tiny_ir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["hi", "-m", str(tiny_ir.parent), "-n", "40", "--draft", "none", "--regex", "a\x1b\\[2J\n\t\x07b"]
    code, piped, _ = here(*arguments)
    assert (code, piped) == (0, "a\x1b[2J\n\t\x07b\n")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert here(*arguments)[1] == "a\\u001b[2J\n\t\\u0007b\n"
    assert json.loads(here(*arguments, "--json")[1])["text"] == piped.removesuffix("\n")


def test_names_of_strangers_do_not_steer_a_terminal(
    here: Callable[..., Ended], tiny_ir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    console.show(EVIL)
    table = Table("name")
    console.row(table, EVIL)
    console.show(table)
    shown = capsys.readouterr().out
    assert shown.count("evil\\x1b]0;title\\x07\\x9b2J") == 2 and not {"\x1b", "\x07", "\x9b"} & set(shown)
    stats = Stats(prompt_tokens=1)
    told = summary(SimpleNamespace(model=EVIL, drafter=EVIL, token_ids=[], decode_tok_per_s=None, ttft_s=None, stats=stats, numerics="exact", compute_precision="f32", devices={"target": "CPU"}, backend="openvino", verification=None, seed=None, finish_reason="stop"))  # type: ignore[arg-type]  # fmt: skip  # noqa: E501
    assert told.count("evil\\x1b") == 2 and told.isprintable()
