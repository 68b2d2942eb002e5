"""What the first words of a command line mean: a command, what was mistyped or is called so elsewhere, or a prompt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("prompt", ["Hello", "hi", "Paris", "what", "rain", "chat with me", "runs?!?"])
def test_other_words_are_prompts(here: Callable[..., Ended], tiny_ir: Path, prompt: str) -> None:
    assert here(prompt, "-m", str(tiny_ir.parent), "-n", "1", "--draft", "none")[0] == 0


def test_a_file_of_that_name_is_no_mistyped_command(
    here: Callable[..., Ended], tiny_ir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "chta").touch()
    assert here("chta", "-m", str(tiny_ir.parent), "-n", "1", "--draft", "none")[0] == 0
