"""What the first words of a command line mean: a command, what was mistyped or is called so elsewhere, or a prompt.

And what is said of a wrong value of an option.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from edgespec import cli
from edgespec.commands import run
from edgespec.console import line_to_type
from tests import test_commands
from tests.test_commands import Ended, refused

here = test_commands.here


@pytest.mark.parametrize("word", ["chta", "Run", "modles", "pul", "rnu"])
def test_a_mistyped_command_is_not_a_prompt(here: Callable[..., Ended], word: str) -> None:
    told = refused(here(word))
    assert f'no command "{word}"; did you mean "' in told and told.endswith(f"edgespec run {word}\n")
    assert f"edgespec run {word} -n 5\n" in refused(here(word, "-n", "5"))


@pytest.mark.parametrize(
    ("word", "command"),
    [("list", "models"), ("ls", "models"), ("install", "pull"), ("download", "pull"), ("start", "serve")],
)
def test_a_command_of_other_programs_is_not_a_prompt(
    here: Callable[..., Ended], word: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / word).touch()  # a file of that name is no prompt either
    told = refused(here(word))
    assert told.endswith(
        f'no command "{word}"; did you mean "{command}". To send it as a prompt: edgespec run {word}\n'
    )


@pytest.mark.parametrize(
    ("arguments", "same"),
    [
        (["help"], ["--help"]),
        (["help", "run"], ["run", "--help"]),
        (["help", "bench", "speed"], ["bench", "speed", "--help"]),
        (["help", "run", "--", "x"], ["run", "--help"]),
        (["help", "run", "-n", "5"], ["run", "--help"]),
        (["version"], ["--version"]),
    ],
)
def test_help_and_version_are_answered_without_dashes(
    here: Callable[..., Ended], arguments: list[str], same: list[str]
) -> None:
    status, text, said = here(*arguments)
    assert (status, said) == (0, "") and text == here(*same)[1] != ""


@pytest.mark.parametrize("arguments", [["help", "me"], ["version", "2"]])
def test_words_behind_them_are_no_command(here: Callable[..., Ended], arguments: list[str]) -> None:
    told = refused(here(*arguments))
    assert "a prompt is one argument" in told and f'no command "{arguments[0]}"' not in told


@pytest.mark.parametrize(("word", "command"), [("list", "models"), ("pul", "pull"), ("Run", "run")])
def test_help_of_no_command_names_the_one_that_is_meant(here: Callable[..., Ended], word: str, command: str) -> None:
    assert f'no command "{word}"; did you mean "{command}"' in refused(here("help", word))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["rnu", "x"], 'no command "rnu"; did you mean "run". To send it as a prompt: edgespec run "rnu x"\n'),
        (["chta", "-m", "x"], 'did you mean "chat". To send it as a prompt: edgespec run chta -m x\n'),
        (["seve", "q", "-p", "1"], 'did you mean "serve". To send it as a prompt: edgespec run "seve q" -p 1\n'),
        (["Dictator", "x"], 'a prompt is one argument. To send it as a prompt: edgespec run "Dictator x"\n'),
        (["hello there", "world"], 'a prompt is one argument. Put it in quotes: "hello there world"\n'),
        (["hello", "-n", "5", "world"], 'a prompt is one argument. Put it in quotes: "hello world"\n'),
        (["What", "is", "it?"], 'a prompt is one argument. To send it as a prompt: edgespec run "What is it?"\n'),
    ],
)
def test_words_behind_no_command_are_told_how_to_be_a_prompt(
    here: Callable[..., Ended], arguments: list[str], said: str
) -> None:
    assert refused(here(*arguments)).endswith(said)


@pytest.mark.parametrize(
    ("word", "typed"),
    [
        ("plain", "plain"),
        ("C:\\models\\a.gguf", "C:\\models\\a.gguf"),
        ("--max-new-tokens", "--max-new-tokens"),
        ("", ""),
        ("two words", '"two words"'),
        ("R & D", '"R & D"'),
        ("a | b > c < d ^ e", '"a | b > c < d ^ e"'),
        ("C:\\my models\\R&D", '"C:\\my models\\R&D"'),
        ("C:\\models\\R&D", ""),
        ("x!y&calc", ""),
        ("x\u00a0y&calc", ""),
        ("a|b", ""),
        ("a>b", ""),
        ("a<b", ""),
        ("a^b", ""),
        ("&", ""),
        ("it's", '"it\'s"'),
        ("a,b", '"a,b"'),
        ("@x", '"@x"'),
        ("#x", '"#x"'),
        ("{x}", '"{x}"'),
        ("-p.5", '"-p.5"'),
        ("山", '"山"'),
        ("%PATH%", ""),
        ("50%&b", ""),
        ("a$&calc", ""),
        ("$(calc)", ""),
        ("`x", ""),
        ('say "a & b"', ""),
        ("say “a & b”", ""),
        ("C:\\my models\\", ""),
        ("a\nb", ""),
    ],
)
def test_a_line_for_the_shells_of_windows_runs_and_replaces_nothing(word: str, typed: str) -> None:
    """cmd.exe replaces %NAME% between quotes too, PowerShell $name; outside of them ``&`` begins another command. To a
    batch file PowerShell passes quotes only around a space."""
    assert line_to_type([word], windows=True) == typed
    assert line_to_type(["edgespec", word], windows=True) == (typed and f"edgespec {typed}")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["say", '"a & b"'], "To send it as a prompt: edgespec run, with the prompt on standard input\n"),
        (["say it", '"a & b"'], "Put it in quotes, or send it to standard input\n"),
    ],
)
def test_a_prompt_without_a_safe_line_is_told_in_words(
    here: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.setattr(cli, "line_to_type", partial(line_to_type, windows=True))
    monkeypatch.setattr(run, "line_to_type", partial(line_to_type, windows=True))
    assert refused(here(*arguments)).endswith(said)


@pytest.mark.skipif(os.name == "nt", reason="asks a POSIX shell")
@pytest.mark.parametrize(
    "word", ["", "x y", "a$HOME", "50%", "`id`", "it's", 'say "a & b"', "a\\", "!x", "a\nb", "~", "*"]
)
def test_a_line_for_a_posix_shell_is_read_as_these_words(word: str) -> None:
    line = f"printf '%s.' {line_to_type([word])}"
    assert subprocess.run(line, shell=True, capture_output=True, text=True).stdout == f"{word}."


@pytest.mark.parametrize("prompt", ["Hello", "hi", "Paris", "what", "rain", "chat with me", "runs?!?"])
def test_other_words_are_prompts(here: Callable[..., Ended], tiny_ir: Path, prompt: str) -> None:
    assert here(prompt, "-m", str(tiny_ir.parent), "-n", "1", "--draft", "none")[0] == 0


def test_a_file_of_that_name_is_no_mistyped_command(
    here: Callable[..., Ended], tiny_ir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "chta").touch()
    assert here("chta", "-m", str(tiny_ir.parent), "-n", "1", "--draft", "none")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serve", "--queue", "abc"], "error: --queue; got abc; allowed: x>=1, a whole number (see --help)"),
        (["serve", "--port", "1.5"], "error: -p/--port; got 1.5; allowed: 0<=x<=65535, a whole number (see --help)"),
        (["serve", "--port", "-1"], "error: -p/--port; got -1; allowed: 0<=x<=65535 (see --help)"),
        (["bench", "replay", "x", "--noise", "a"], "error: --noise; got a; allowed: 0<=x<=1, a number (see --help)"),
        (["run", "x", "-n", ""], "error: -n/--max-new-tokens; got ''; allowed: a whole number (see --help)"),
        (["run", "x", "-n", "a\x1b\nb"], "error: -n/--max-new-tokens; got a\\x1b b; allowed: a whole number"),
        (["run", "x", "--numerics", ""], "error: --numerics; got ''; allowed: 'exact', 'fast'"),
        (
            ["run", "x", "--seed", "a' is not in the range 'z"],
            "error: --seed; got a' is not in the range 'z; allowed: a whole number (see --help)",
        ),
        (
            ["run", "x", "--seed", """it's "x' is not one of y"""],
            """error: --seed; got it's "x' is not one of y; allowed: a whole number (see --help)""",
        ),
    ],
)
def test_a_wrong_value_is_shown_with_those_of_its_option(
    here: Callable[..., Ended], arguments: list[str], message: str
) -> None:
    assert message in refused(here(*arguments))
