"""Drafts from files: the longest match, what most of the matches go on with, and which files are read."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

import edgespec
from edgespec.drafters.retrieval import Retrieval
from edgespec.drafters.retrieval_folder import read_folder
from edgespec.errors import SettingError
from edgespec.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer(Path(__file__).parents[1] / "models/default/tokenizer.json")
CODE = '''def running_total(values):
    """Sums of the first 1, 2, 3 ... values."""
    totals = []
    for value in values:
        totals.append(value + (totals[-1] if totals else 0))
    return totals
'''


def write(folder: Path, name: str, text: str | bytes = CODE, age_s: int = 0) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    os.utime(path, (1_800_000_000 - age_s,) * 2)


class Listening:
    """A tokenizer that remembers what it was given."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def encode(self, text: str) -> list[int]:
        self.texts.append(text)
        return TOKENIZER.encode(text)


def of_folder(folder: str | Path, **limits: int) -> Retrieval:
    return Retrieval(read_folder(folder, TOKENIZER, **limits).texts)


def found(folder: Path, text: str, **limits: int) -> str:
    """The word that is proposed after ``text``."""
    drafter = of_folder(folder, **limits)
    return TOKENIZER.decode(drafter.propose(TOKENIZER.encode(text), 1).tokens).strip()


def test_it_drafts_a_majority_of_the_longest_matches() -> None:
    rng = random.Random(3)
    drafted = 0
    for _ in range(400):
        texts = [rng.choices(range(3), k=rng.randint(0, 14)) for _ in range(rng.randint(0, 5))]
        context = rng.choices(range(3), k=rng.randint(0, 8))
        shortest, longest, k = rng.randint(1, 3), rng.randint(3, 6), rng.randint(0, 5)
        got = Retrieval(texts, shortest=shortest, longest=longest).propose(context, k).tokens
        after: list[list[int]] = []
        for length in range(min(longest, len(context)), shortest - 1, -1):
            end = context[len(context) - length :]
            after = [text[i:] for text in texts for i in range(length, len(text) + 1) if text[i - length : i] == end]
            if after:
                break
        for token in got:
            said = [text[0] for text in after if text]
            assert said.count(token) == max(map(said.count, said))
            after = [text[1:] for text in after if text[:1] == [token]]
        assert len(got) == k or not any(after)  # shorter only where there is nothing more to say
        drafted += len(got)
    assert drafted > 300


def test_code_is_found_in_a_file_and_proposed_to_its_end(tmp_path: Path) -> None:
    write(tmp_path, "deep/er/sums.py")
    write(tmp_path, "other.txt", "Nothing to see here, for value in words.")
    drafter = of_folder(str(tmp_path))
    code, before = TOKENIZER.encode(CODE), TOKENIZER.encode("import math\n\n\n")
    for end in (5, 17, 40):
        assert drafter.propose([*before, *code[:end]], 100).tokens == tuple(code[end:])
    drafter.reset()  # files are no text of a generation
    assert drafter.propose([*before, *code[:17]], 5).tokens == tuple(code[17:22])
    assert drafter.propose(TOKENIZER.encode("a text that stands in none of the files"), 5).tokens == ()
    assert drafter.propose(code[:17], 0).tokens == ()


def test_of_many_matches_the_commonest_continuation_wins(tmp_path: Path) -> None:
    write(tmp_path, "a.txt", "the colour of the sky is grey\n")
    for name in "bcd":
        write(tmp_path, f"{name}.txt", "the colour of the sky is blue\n")
    assert found(tmp_path, "the colour of the sky is") == "blue"


@pytest.mark.parametrize(
    "name",
    [".secrets", ".git/config", "sub/.hidden/x.py", "node_modules/x/index.js", "__pycache__/x.py",
     "env/lib/site-packages/x.py"],
)  # fmt: skip
def test_what_is_hidden_or_was_put_there_by_tools_is_left_out(tmp_path: Path, name: str) -> None:
    write(tmp_path, "a.txt", "the colour of the sky is blue\n")
    for number in range(3):
        write(tmp_path, name + str(number), "the colour of the sky is grey\n")
    assert found(tmp_path, "the colour of the sky is") == "blue"


def test_virtual_environments_binary_files_and_links_are_left_out(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    write(inside, "a.txt", "the colour of the sky is blue\n")
    grey = b"the colour of the sky is grey\n" * 3
    write(inside, "tools/pyvenv.cfg", b"home = /usr")
    write(inside, "tools/bin/x.py", grey)
    write(inside, "picture.bin", grey + b"\0")
    write(inside, "latin.txt", grey + "é".encode("latin-1"))
    write(outside, "b.txt", grey)
    try:
        (inside / "link.txt").symlink_to(outside / "b.txt")
        (inside / "linked").symlink_to(outside, target_is_directory=True)
    except OSError:
        pass  # Windows asks for a privilege
    assert found(inside, "the colour of the sky is") == "blue"


def test_limits_are_kept_and_the_newest_files_come_first(tmp_path: Path) -> None:
    write(tmp_path, "c.txt", "the colour of the sky is grey\n" * 2, age_s=50)
    write(tmp_path, "b.txt", "the colour of the sky is blue\n", age_s=20)
    write(tmp_path, "a.txt", "a heading of this many words\n" * 60, age_s=90)
    text = "the colour of the sky is"
    assert found(tmp_path, text) == "grey"
    assert found(tmp_path, text, max_file_bytes=40) == "blue"
    assert found(tmp_path, text, max_tokens=8) == "blue"
    assert found(tmp_path, text, max_tokens=6) == ""
    assert found(tmp_path, text, max_files=2) == "blue"  # by name
    assert found(tmp_path, text, max_files=1) == ""
    assert found(tmp_path, "a heading of this", max_tokens=24) == ""
    assert found(tmp_path, "a heading of this") == "many"


def test_no_file_is_tokenized_beyond_the_limit(tmp_path: Path) -> None:
    for name in "abcd":
        write(tmp_path, f"{name}.txt", "the colour of the sky is blue\n")
    tokenizer = Listening()
    read_folder(tmp_path, tokenizer, max_tokens=10)
    assert len(tokenizer.texts) == 2


def test_windows_line_ends_and_marks_are_read_as_a_model_writes_them(tmp_path: Path) -> None:
    write(tmp_path, "a.py", b"\xef\xbb\xbf" + CODE.replace("\n", "\r\n").encode())
    tokenizer = Listening()
    read_folder(tmp_path, tokenizer)
    assert tokenizer.texts == [CODE]


def test_a_folder_that_is_none_or_has_no_text_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "full/a.txt")
    (tmp_path / "empty").mkdir()
    write(tmp_path, "empty/picture.png", b"\0\1\2")
    for folder in ("missing", "full/a.txt"):
        with pytest.raises(SettingError, match="folder to draft from; got .*; allowed: an existing folder"):
            read_folder(tmp_path / folder, TOKENIZER)
    with pytest.raises(SettingError, match="no text to draft from; got .*empty"):
        read_folder(tmp_path / "empty", TOKENIZER)


def test_a_loaded_pair_drafts_from_a_folder_first(tmp_path: Path, tiny_ir: Path) -> None:
    write(tmp_path, "a.txt", "one two three four five six seven")
    pipeline = edgespec.load(tiny_ir.parent, draft="ngram", draft_from=tmp_path, numerics="fast")
    text = pipeline.tokenizer.encode("one two three four five six seven")
    assert pipeline.drafter.name == "retrieval+ngram"
    assert pipeline.drafter.propose(text[:4], 2).tokens == tuple(text[4:6])
    stats = pipeline.generate(text[:5], max_new_tokens=3, num_draft_tokens=2).stats
    assert stats.proposed == 2
    with pytest.raises(SettingError, match="nothing to draft from a folder"):
        edgespec.load(tiny_ir.parent, draft="none", draft_from=tmp_path)


@pytest.fixture
def deep(tmp_path: Path) -> Iterator[Path]:
    """Folders in folders, with a text in the innermost."""
    folders = [tmp_path]
    try:
        while len(folders) <= 1500:
            (folders[-1] / "d").mkdir()
            folders.append(folders[-1] / "d")
    except OSError:
        pytest.skip("paths are short here")
    write(folders[-1], "deep.py")
    yield tmp_path
    (folders[-1] / "deep.py").unlink()  # by hand: what removes a tree may go down by recursion
    for folder in reversed(folders[1:]):
        folder.rmdir()


def test_folders_in_folders_are_read_to_any_depth(deep: Path) -> None:
    read = read_folder(deep, TOKENIZER)
    assert (len(read.texts), read.left_out.total()) == (1, 0)


def test_what_is_left_out_is_counted_by_reason(tmp_path: Path) -> None:
    write(tmp_path, "a.txt", "the colour of the sky is blue\n")
    write(tmp_path, "large.txt", "many words " * 50)
    write(tmp_path, "picture.bin", b"\0\1\2")
    write(tmp_path, "latin.txt", "é".encode("latin-1"))
    read = read_folder(tmp_path, TOKENIZER, max_file_bytes=100)
    assert (len(read.texts), dict(read.left_out)) == (1, {"too large": 1, "no text": 2})
    write(tmp_path, "b.txt", "the colour of the sea is blue\n", age_s=99)
    read = read_folder(tmp_path, TOKENIZER, max_tokens=3)
    assert sum(map(len, read.texts)) == 3
    assert read.left_out["beyond the limit of tokens"] >= 1
    assert read_folder(tmp_path, TOKENIZER, max_files=1).left_out["or more beyond the limit of files"] == 1


def test_a_file_that_cannot_be_read_is_counted_and_passed_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "a.txt")
    write(tmp_path, "locked.txt")
    whole = Path.read_bytes

    def read_bytes(path: Path) -> bytes:
        if path.name == "locked.txt":
            raise PermissionError(path)
        return whole(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    read = read_folder(tmp_path, TOKENIZER)
    assert (len(read.texts), dict(read.left_out)) == (1, {"unreadable": 1})


def test_scores_follow_the_votes_and_the_length_of_the_match() -> None:
    drafter = Retrieval([[1, 2, 3, 4, 5], [1, 2, 3, 4, 6], [9, 1, 2, 3, 4, 5], [7, 8, 9, 6]])
    agreed = drafter.propose([0, 1, 2, 3], 2)
    assert agreed.tokens == (4, 5) and agreed.scores[0] > agreed.scores[1] > 0
    short, long = drafter.propose([0, 2, 3, 4], 1), drafter.propose([9, 1, 2, 3, 4], 1)
    assert short.tokens == long.tokens == (5,) and long.scores > short.scores
