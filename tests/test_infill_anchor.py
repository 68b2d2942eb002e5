"""Where a hole is anchored, and what is read behind the anchor: a key or a line itself, in a full prompt too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgespec.drafters.ngram import NGram
from edgespec.errors import SettingError
from edgespec.text.infill import Infill
from edgespec.text.tokenizer import Tokenizer
from tests.test_infill import BEFORE, BEHIND, FIM, PLAIN, QWEN, faked, spelt, tokenizers_

__all__ = ["tokenizers_"]


@pytest.mark.parametrize("special", [QWEN, FIM])
def test_a_finished_line_behind_an_anchor_is_all_that_is_read(tmp_path: Path, special: tuple[str, ...]) -> None:
    """And the suffix is not, which would be read behind an anchor at the new line."""
    pipeline = faked(tmp_path, special, NGram())
    suffix, line = BEHIND + "x = 1\n" * 20, "    area = width * height\n"
    pipeline.infill(BEFORE, suffix, max_new_tokens=8)
    anchored = pipeline.infill(BEFORE + line, suffix, anchor=len(BEFORE), max_new_tokens=8).stats
    assert anchored.prompt_tokens - anchored.reused_tokens <= len(pipeline.tokenizer.encode(line)) + 2
    moved = pipeline.infill(BEFORE + line, suffix, max_new_tokens=8).stats
    assert moved.prompt_tokens - moved.reused_tokens > len(pipeline.tokenizer.encode(suffix))


@pytest.mark.parametrize("room", [512, 2048])
@pytest.mark.parametrize("special", [QWEN, FIM])
def test_in_a_full_prompt_too_a_key_and_a_line_read_themselves(
    tmp_path: Path, special: tuple[str, ...], room: int
) -> None:
    """What is typed moves no cut of the files and the prefix."""
    pipeline = faked(tmp_path, special, NGram(), capacity=room + 64)
    prefix = "".join(f"value_{n} = {n}\n" for n in range(400))
    suffix = BEHIND + "x = 1\n" * 300
    files = {f"{name}.py": "".join(f"{name}_{n} = {n}\n" for n in range(300)) for name in "ab"}
    anchor, typed, tokens = len(prefix), "", 0

    def read() -> int:
        text = prefix + typed
        stats = pipeline.infill(
            text, suffix, files=files, path="c.py", anchor=anchor, prompt_tokens=room, max_new_tokens=4
        ).stats
        assert room * 3 // 4 < stats.prompt_tokens <= room, "full"
        return stats.prompt_tokens - stats.reused_tokens

    read()
    for letter in "    return w":
        typed += letter
        assert read() <= 3, "the new token, and the one it may be part of"
    typed += "\n"
    for number in range(3):
        line = f"    area_{number} = width\n"
        typed, tokens = typed + line, len(pipeline.tokenizer.encode(line))
        assert read() <= tokens + 3


def test_an_anchor_is_at_the_start_of_a_line_with_little_text_behind_it(
    tokenizers_: dict[tuple[str, ...], Tokenizer],
) -> None:
    tokenizer, before = tokenizers_[QWEN], "x = 1\ny = 2\n" + BEFORE
    infill = Infill(tokenizer)

    def typed(prefix: str, anchor: int | None, room: int = 2048) -> str:
        prompt = infill.prompt(prefix, BEHIND, anchor=anchor, room=room, heal=False)
        assert len(prompt.tokens) <= room
        return spelt(tokenizer, prompt.tokens[prompt.anchor :])

    assert (
        typed(before + "  ret", len(before))
        == typed(before + "  ret", None)
        == typed(before + "  ret", 10**9)
        == "  ret"
    )
    assert typed(before + "  ret", len("x = 1\n")) == before[len("x = 1\n") :] + "  ret"
    assert typed(before + "  ret", len("x = 1\ny")) == before[len("x = 1\n") :] + "  ret", "to the start of its line"
    assert typed(before + "  ret", 0) == typed(before + "  ret", -5) == before + "  ret"
    assert typed(before + "  ret", 0, room=64) == "  ret", "a quarter of the room holds no more"
    assert typed(before + "x = 1\n" * 60 + "  ret", len(before)) == "  ret", "models know short texts there"
    plain = infill.prompt(before, BEHIND, room=400).tokens
    assert infill.prompt(before, BEHIND, anchor=len(before), room=400).tokens == plain
    last = Infill(tokenizers_[PLAIN])
    assert last.prompt(before, BEHIND, anchor=0, room=400).tokens == last.prompt(before, BEHIND, room=400).tokens


@pytest.mark.parametrize("anchor", ["x", 1.5, True])
def test_an_anchor_that_is_no_number_is_refused(tokenizers_: dict[tuple[str, ...], Tokenizer], anchor: Any) -> None:
    for special in (QWEN, PLAIN):
        with pytest.raises(SettingError, match="anchor"):
            Infill(tokenizers_[special]).prompt(BEFORE, BEHIND, anchor=anchor, room=400)
