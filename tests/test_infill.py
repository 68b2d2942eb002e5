"""The text of a hole: formats by tokens, prompts within a budget, where a text ends, and what a keystroke costs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from edgespec.backends.fake import FakeModel, random_table
from edgespec.bundle import Bundle
from edgespec.decode.policy import FixedLength
from edgespec.drafters.ngram import NGram
from edgespec.drafters.none import NoDrafter
from edgespec.drafters.text_pool import Pool
from edgespec.errors import SettingError
from edgespec.pipeline import Pipeline
from edgespec.protocols import Drafter
from edgespec.text.fim import FILES, FORMATS, PREFIX, SUFFIX, format_for
from edgespec.text.hole_end import HoleEnd, LineRules
from edgespec.text.infill import Infill
from edgespec.text.tokenizer import Tokenizer
from edgespec.types import Logits
from tests.tiny_models import train_tokenizer

FIM = ("<|endoftext|>", "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
QWEN = (*FIM, "<|repo_name|>", "<|file_sep|>")
PLAIN = ("<|endoftext|>", "<repo_name>", "<file_sep>")
BEFORE = "def area(shape):\n    width, height = shape\n"
BEHIND = "\n\nprint(area((2, 3)))\n"


@pytest.fixture(scope="module")
def tokenizers_(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], Tokenizer]:
    folder = tmp_path_factory.mktemp("infill")
    return {
        special: Tokenizer(train_tokenizer(folder / str(index) / "tokenizer.json", special=special))
        for index, special in enumerate((FIM, QWEN, PLAIN))
    }


def spelt(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    return str(tokenizer.engine.decode(list(ids), skip_special_tokens=False))


def faked(
    path: Path, special: tuple[str, ...], drafter: Drafter, *, capacity: int = 512, table: Any = None
) -> Pipeline:
    """A pipeline with a real tokenizer and a random Markov model."""
    tokenizer = train_tokenizer(path / "tokenizer.json", special=special)
    generation = SimpleNamespace(eos_token_ids=[0], bos_token=None, eos_token=special[0], add_bos=False)
    bundle = SimpleNamespace(
        name="fake",
        manifest=SimpleNamespace(generation=generation, tokenizer=None),
        chat_template=lambda: None,
        hashed=lambda file: tokenizer,
    )
    vocab_size = Tokenizer(tokenizer).vocab_size
    model = FakeModel(table or random_table(vocab_size, 3), vocab_size, capacity=capacity, max_width=16)
    return Pipeline(cast(Bundle, bundle), model, drafter, num_draft_tokens=4)


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: "+".join(form.tokens) or "none")
def test_a_format_is_found_by_its_tokens_alone(form: Any) -> None:
    known = {token: index for index, token in enumerate(form.tokens)}
    assert format_for(known.get) is form
    assert set(form.layout) <= {FILES, PREFIX, SUFFIX, *form.tokens} and PREFIX in form.layout
    for missing in form.tokens:
        assert format_for({token: 1 for token in form.tokens if token != missing}.get) is not form


def test_the_layout_is_that_of_the_models(tokenizers_: dict[tuple[str, ...], Tokenizer]) -> None:
    """As Qwen2.5-Coder was trained: repository, files, then the file with the hole."""
    prompt = Infill(tokenizers_[QWEN]).prompt(
        BEFORE + "    ret", BEHIND, files={"b.py": "x = 1\n"}, path="a.py", room=400, heal=False
    )
    assert spelt(tokenizers_[QWEN], prompt.tokens) == (
        f"<|repo_name|>project\n<|file_sep|>b.py\nx = 1\n<|file_sep|>a.py\n"
        f"<|fim_prefix|>{BEFORE}<|fim_suffix|>{BEHIND}<|fim_middle|>    ret"
    )
    assert spelt(tokenizers_[QWEN], prompt.tokens[prompt.anchor :]) == "    ret"
    alone = Infill(tokenizers_[FIM]).prompt(BEFORE, BEHIND, room=400)
    assert spelt(tokenizers_[FIM], alone.tokens) == f"<|fim_prefix|>{BEFORE}<|fim_suffix|>{BEHIND}<|fim_middle|>"
    without = Infill(tokenizers_[PLAIN]).prompt(
        BEFORE + "  r", BEHIND, files=[("b.py", "x = 1\n")], room=400, heal=False
    )
    assert spelt(tokenizers_[PLAIN], without.tokens) == (
        f"<repo_name>project<file_sep>b.py\nx = 1\n<file_sep>filename\n{BEFORE}  r"
    )


def test_a_key_encodes_its_own_line_alone(
    tokenizers_: dict[tuple[str, ...], Tokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, encoded = tokenizers_[QWEN], []
    infill, encode = Infill(tokenizer), tokenizer.encode

    def counted(text: str, *, raw: bool = False) -> list[int]:
        encoded.append(text)
        return encode(text, raw=raw)

    monkeypatch.setattr(tokenizer, "encode", counted)
    first = infill.prompt(BEFORE + "    re", BEHIND, files={"b.py": "x = 1\n"}, room=400)
    encoded.clear()
    infill.prompt(BEFORE + "    ret", BEHIND, files={"b.py": "x = 1\n"}, room=400)
    assert [text for text in encoded if text] == ["    ret"]
    assert infill.prompt(BEFORE + "    re", BEHIND, files={"b.py": "x = 1\n"}, room=400) == first


def test_thousands_of_files_cost_no_more_than_those_that_fit(tokenizers_: dict[tuple[str, ...], Tokenizer]) -> None:
    files = [(f"folder/name{number}.py", f"x = {number}\n") for number in range(20_000)]
    began = time.process_time()
    prompt = Infill(tokenizers_[QWEN]).prompt(BEFORE, BEHIND, files=files, path="a.py", room=300)
    assert time.process_time() - began < 5
    text = spelt(tokenizers_[QWEN], prompt.tokens)
    assert "name19999.py\nx = 19999\n" in text and "name19000.py" not in text
    assert len(prompt.tokens) <= 300


def test_a_path_longer_than_the_budget_is_not_read(tokenizers_: dict[tuple[str, ...], Tokenizer]) -> None:
    infill = Infill(tokenizers_[QWEN])
    long = "folder/" * 100_000
    prompt = infill.prompt(BEFORE, BEHIND, files=[(long, "x = 1\n")], path=long, room=300)
    assert prompt.tokens == infill.prompt(BEFORE, BEHIND, room=300).tokens


def test_of_a_long_line_only_its_end_is_encoded(
    tokenizers_: dict[tuple[str, ...], Tokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Code that was packed into one line, at every key."""
    tokenizer, longest = tokenizers_[FIM], []
    encode = Tokenizer.encode

    def noted(self: Tokenizer, text: str, **options: Any) -> list[int]:
        longest.append(len(text))
        return encode(self, text, **options)

    monkeypatch.setattr(Tokenizer, "encode", noted)
    line = "".join(f"f({number});" for number in range(50_000))
    prompts = [Infill(tokenizer).prompt(line[:size], "", room=200, heal=False) for size in range(300_000, 300_005)]
    assert max(longest) <= 2 * 50 * 16
    for size, prompt in zip(range(300_000, 300_005), prompts, strict=True):
        assert line[:size].endswith(spelt(tokenizer, prompt.tokens[prompt.anchor :]))
        assert len(prompt.tokens) - prompt.anchor == 50


def test_a_text_that_spells_special_tokens_stays_text(tokenizers_: dict[tuple[str, ...], Tokenizer]) -> None:
    """An editor's file may be this project's own source."""
    tokenizer = tokenizers_[QWEN]
    ids = {token: tokenizer.engine.token_to_id(token) for token in QWEN}
    text = 'TOKENS = ["<|fim_middle|>", "<|file_sep|>", "<|endoftext|>"]\n'
    prompt = Infill(tokenizer).prompt(
        text + "x<|fim_middle|>", text, files={"<|file_sep|>": text}, room=400, heal=False
    )
    assert spelt(tokenizer, prompt.tokens).count("<|fim_middle|>") == 5
    assert [prompt.tokens.count(ids[token]) for token in QWEN] == [0, 1, 1, 1, 1, 2]


@pytest.mark.parametrize("special", [FIM, QWEN, PLAIN])
@pytest.mark.parametrize("room", [16, 40, 100, 300])
def test_what_is_nearest_to_the_hole_is_kept_within_the_budget(
    tokenizers_: dict[tuple[str, ...], Tokenizer], special: tuple[str, ...], room: int
) -> None:
    tokenizer = tokenizers_[special]
    prefix = "".join(f"value_{n} = {n}\n" for n in range(200)) + "value"
    suffix = "\n" + "".join(f"print({n})\n" for n in range(200))
    prompt = Infill(tokenizer).prompt(prefix, suffix, room=room)
    assert 0 < len(prompt.tokens) <= room
    text = spelt(tokenizer, prompt.tokens)
    if room >= 100:
        kept = text.split("<|fim_prefix|>")[-1].split("<|fim_suffix|>")[0]
        assert kept.split("\n")[0].startswith("value_") and "value_199 = 199\n" in kept, "cut at a line"
        assert special == PLAIN or "print(0)\n" in text
    with_files = Infill(tokenizer).prompt(prefix, suffix, files={"far.py": prefix, "near.py": "y = 1\n"}, room=room)
    assert len(with_files.tokens) <= room
    if room >= 100:
        assert "y = 1\n" in spelt(tokenizer, with_files.tokens)


def test_one_line_that_is_longer_than_the_budget(tokenizers_: dict[tuple[str, ...], Tokenizer]) -> None:
    prompt = Infill(tokenizers_[QWEN]).prompt("a = 1; " * 500, "b = 2; " * 500, files={"c": "c;" * 999}, room=64)
    assert len(prompt.tokens) <= 64 and "a = 1" in spelt(tokenizers_[QWEN], prompt.tokens[prompt.anchor :])
    with pytest.raises(SettingError, match="no room"):
        Infill(tokenizers_[QWEN]).prompt("a", "b", room=8)


def test_a_long_prefix_moves_in_steps(tokenizers_: dict[tuple[str, ...], Tokenizer]) -> None:
    """A new line does not change where the prefix begins, most of the time: the cache stays useful."""
    begins = set()
    for lines in range(200, 216):
        prefix = "".join(f"value_{n} = {n}\n" for n in range(lines))
        begins.add(spelt(tokenizers_[FIM], Infill(tokenizers_[FIM]).prompt(prefix, "", room=300).tokens).split("\n")[0])
    assert len(begins) <= 3


def test_of_a_line_that_is_too_long_its_end_is_read(tokenizers_: dict[tuple[str, ...], Tokenizer]) -> None:
    """As of a minified file. Its beginning moves in steps, so a key changes the end of the prompt only."""
    line = "".join(f"x{number}=0;" for number in range(4000))
    for special in (QWEN, PLAIN):
        infill = Infill(tokenizers_[special])
        for prefix in (f"{line}y=", f"{line}\n"):
            prompt = infill.prompt(prefix, "\n", room=200, heal=False)
            assert len(prompt.tokens) <= 200 and "x3999=0;" in spelt(tokenizers_[special], prompt.tokens)


def test_files_do_not_move_when_the_text_grows(tokenizers_: dict[tuple[str, ...], Tokenizer]) -> None:
    """They are in front of everything."""
    files = {"a.py": "a = 1\n" * 200}
    prompts = [Infill(tokenizers_[QWEN]).prompt("b = 2\n" * n, "", files=files, room=200).tokens for n in (1, 3, 30)]
    shared = prompts[0].index(tokenizers_[QWEN].engine.token_to_id("<|fim_prefix|>"))
    assert shared > 60 and prompts[0][:shared] == prompts[1][:shared] == prompts[2][:shared]


@pytest.mark.parametrize(
    ("rules", "text", "expected"),
    [
        (LineRules.meeting("\n\nend()\n"), "a\nb\n\nend()\nmore\n", "a\nb"),
        (LineRules.meeting("\n    end()\n"), "a\nend()\n    end() + 1\n    end()", "a\nend()\n    end() + 1"),
        (LineRules.meeting("\nend()"), "end()\nb", "end()\nb"),  # on the hole's own line nothing is met
        (LineRules.meeting(") + 1\n"), "len(x)) + 1\nprint(2)", "len(x)"),
        (LineRules.meeting(")"), "1, 2", "1, 2"),
        (LineRules.meeting(")"), "1, \nprint(2)", "1, "),
        (LineRules.meeting(""), "a\n\nb\n", "a\n\nb\n"),
        (LineRules(indent=4), "a\n    b\n     c\n  d\n    e", "a\n    b\n     c"),
        (LineRules(indent=4), "a\n    b\n\n    c", "a\n    b"),
        (LineRules(indent=4), "  a", "  a"),
        (LineRules(fence=True), "    return 1\n```\n\nThis code", "    return 1"),
        (LineRules(fence=True), "a\n\n  ```python\nb", "a"),
        (LineRules(fence=True), "```python\na\n\nb\n```\nText", "a\n\nb"),
        (LineRules(fence=True), "\n ```py\na\n``b\n", "\na\n``b\n"),
        (LineRules(fence=True), "\n```\nText", ""),
        (LineRules(fence=True), "```\nx = 1\n```", ""),
        (LineRules(fence=True), 's = """\n```\n"""', 's = """'),
        (LineRules(fence=True), "```py", ""),
        (LineRules(fence=True), "a = '```'\n\n``", "a = '```'\n\n``"),
        (LineRules(fence=True, rest=")"), "```py\n1, 2)\nb", "1, 2"),
        (LineRules(fence=True, next_line="end()"), "a\n```\nend()", "a"),
        (LineRules(), "```python\na\n```\n", "```python\na\n```\n"),
    ],
)
def test_where_the_text_of_a_hole_ends(rules: LineRules, text: str, expected: str) -> None:
    """However the text comes in pieces."""
    for size in (1, 2, 3, 5, 100):
        scan = HoleEnd(["STOP"], {}, rules, lambda: 0.0)
        said = [scan.push(text[begin : begin + size]) for begin in range(0, len(text), size)]
        assert "".join(said) + scan.flush() == expected
        assert scan.flush() == ""
        skipping = HoleEnd(["STOP"], {}, rules, lambda: 0.0, skip=3)
        said = [skipping.push(f"abc{text}"[begin : begin + size]) for begin in range(0, len(text) + 3, size)]
        assert "".join(said) + skipping.flush() == expected


def test_fences_are_cut_where_the_text_around_the_hole_shows_none(
    tokenizers_: dict[tuple[str, ...], Tokenizer],
) -> None:
    """A model that is shown the suffix writes what stands there."""

    def cuts(special: tuple[str, ...], prefix: str, suffix: str = "", path: str | None = None) -> bool:
        return Infill(tokenizers_[special]).prompt(prefix, suffix, path=path, room=400).rules.fence

    assert cuts(PLAIN, BEFORE, BEHIND, "a.py") and cuts(PLAIN, BEFORE)
    assert not cuts(FIM, BEFORE, BEHIND, "a.py")
    assert not cuts(PLAIN, BEFORE, path="docs/READ.MD")
    assert not cuts(PLAIN, "Run it:\n```sh\nmake\n") and not cuts(PLAIN, BEFORE, "```\n")


def test_a_stop_string_and_a_rule_in_one_text() -> None:
    scan = HoleEnd(["STOP"], {7: "<end>"}, LineRules.meeting("\nnext"), lambda: 0.0)
    assert scan.push("a\nST") + scan.push("OP") + scan.flush() == "a\n" and scan.found == "STOP"
    scan = HoleEnd(["STOP"], {7: "<end>"}, LineRules.meeting("\nnext"), lambda: 0.0)
    assert scan.push("a\nne") == "a" and scan.ends_at(7)
    assert scan.flush() == "\nne" and scan.found == "<end>"
    scan = HoleEnd(["nextSTOP"], {}, LineRules.meeting("\nnext"), lambda: 0.0)
    assert scan.push("a\nnext") + scan.flush() == "a", "what both hold back"


def test_time_ends_a_text_behind_its_first_line() -> None:
    now_s = [0.0]
    scan = HoleEnd([], {}, LineRules(seconds=1.0), lambda: now_s[0])
    assert scan.push("a") == "a"
    now_s[0] = 5.0
    assert scan.push("b") == "b" and scan.found is None
    assert scan.push("\nc") == "\nc" and scan.found is not None and scan.push("d") == ""


@pytest.mark.parametrize("special", [FIM, PLAIN])
def test_a_keystroke_is_all_that_is_read(tmp_path: Path, special: tuple[str, ...]) -> None:
    pipeline = faked(tmp_path, special, NGram())
    prefix = BEFORE + "    "
    suffix = BEHIND + "x = 1\n" * 20
    first = pipeline.infill(prefix, suffix, max_new_tokens=8)
    assert first.stats.prompt_tokens > 20 and first.stats.reused_tokens == 0
    for letter in "return w":
        prefix += letter
        stats = pipeline.infill(prefix, suffix, max_new_tokens=8).stats
        assert stats.prompt_tokens - stats.reused_tokens <= 3, "the new token, and the one it may be part of"


def test_the_tokens_are_those_of_plain_decoding(tmp_path: Path) -> None:
    """Also those of a token that is chosen again."""
    pipeline = faked(tmp_path, QWEN, NGram())
    for typed in ("", "    ", "    wid", "    x = width * he"):
        plain = pipeline.infill(BEFORE + typed, BEHIND, max_new_tokens=24, drafter=NoDrafter())
        drafted = pipeline.infill(BEFORE + typed, BEHIND, max_new_tokens=24)
        assert (drafted.token_ids, drafted.text) == (plain.token_ids, plain.text)


def test_the_last_token_is_chosen_again_with_what_follows(tmp_path: Path) -> None:
    """After ``wid`` the model may write the token ``width``, and its first letters are not repeated in the text."""
    tokenizer = Tokenizer(train_tokenizer(tmp_path / "tokenizer.json", special=FIM))
    words = [word for word in tokenizer.engine.get_vocab() if word.isalpha() and tokenizer.encode(word)[1:] == []]
    word, size = next((w, n) for w in words for n in range(2, len(w)) if len(tokenizer.encode(w[:n])) == 1)
    [whole] = tokenizer.encode(word)

    def table(text: tuple[int, ...]) -> Logits:
        logits = np.zeros(tokenizer.vocab_size, np.float32)
        logits[whole], logits[0] = 5.0, 9.0 if text[-1] == whole else 4.0
        return logits

    pipeline = faked(tmp_path, FIM, NoDrafter(), table=table)
    result = pipeline.infill(f"x = 1\n({word[:size]}", ")", max_new_tokens=4)
    assert result.token_ids == [whole, 0] and result.text == word[size:] and result.finish_reason == "stop"
    written = pipeline.infill("x = 1\n", ")", max_new_tokens=4)
    assert written.token_ids == [whole, 0] and written.text == word


def test_lookups_read_the_hole_as_it_stands_in_its_file() -> None:
    """The hole's beginning follows the prefix, which is far from it in the prompt; a suffix is known that the prompt
    does not have."""
    prefix, suffix, middle = [5, 6, 7], [8, 9, 5, 6, 7, 11, 12, 13], 99
    prompt = [97, *prefix, 98, *suffix, middle]
    for drafter in (NGram(longest=3), Pool(longest=3, shortest=3)):
        policy = FixedLength(drafter, 4)
        policy.begin(prompt, SimpleNamespace(rejects=False))  # type: ignore[arg-type]
        assert not len(policy.draft(prompt, 8)), drafter.name
        drafter.read_as(len(prompt), [*suffix, *prefix])
        policy.begin(prompt, SimpleNamespace(rejects=False))  # type: ignore[arg-type]
        if drafter.name == "ngram":
            assert policy.draft(prompt, 8).tokens == (11, 12, 13, 5)
            assert policy.draft([*prompt, 11], 8).tokens == (12, 13, 5, 6)
        policy.commit([*prompt, 11, 12], policy.draft(prompt, 0), SimpleNamespace(tokens=[11, 12]), None)  # type: ignore
        policy.begin(prompt, SimpleNamespace(rejects=False))  # type: ignore[arg-type]
        if drafter.name == "pool":
            assert policy.draft([1, *prefix], 8).tokens == (11, 12), "the answer is kept behind the prefix"
        else:
            assert not len(policy.draft(prompt, 8)), "one generation only"


def test_the_text_behind_a_hole_that_was_given_up_is_read_as_it_is(tmp_path: Path) -> None:
    drafter = NGram()
    pipeline = faked(tmp_path, PLAIN, drafter)
    given_up = pipeline.stream_infill("a = 1\n" * 40, "b", cancelled=lambda: True)
    assert not list(given_up) and not given_up.result.stats.rounds, "while its prompt was read"
    text = [7, 8, 9, 10] * 20
    assert pipeline.generate(text, max_new_tokens=2).stats.proposed and drafter.reading(text) is text


def test_a_hole_needs_text_and_right_arguments(tmp_path: Path) -> None:
    pipeline = faked(tmp_path, PLAIN, NGram())
    with pytest.raises(SettingError, match="no text before the hole"):
        pipeline.infill("", "x")
    for wrong in ({"prompt_tokens": 0}, {"files": ["a.py"]}, {"files": {"a.py": 3}}, {"max_new_tokens": "4"}):
        with pytest.raises(SettingError, match="got .*; allowed"):
            pipeline.infill("a", "b", **wrong)
    with pytest.raises(SettingError, match="no room .* got 2 tokens; .* shorter text"):
        pipeline.infill("a", "b", max_new_tokens=510)


def test_the_default_model_fills_holes_exactly_and_a_keystroke_reads_itself(pipeline: Pipeline) -> None:
    """It has no tokens for holes: files in front, and an end where the text meets the suffix."""
    prefix = "def area(width, height):\n    return width * height\n\n\ndef volume(width, height, depth):\n    re"
    suffix = "\n\n\nprint(volume(1, 2, 3))\n"
    files = {"shapes.py": "def perimeter(width, height):\n    return 2 * (width + height)\n"}
    plain = pipeline.infill(prefix, suffix, files=files, max_new_tokens=24, drafter=NoDrafter())
    drafted = pipeline.infill(prefix, suffix, files=files, max_new_tokens=24)
    assert (drafted.token_ids, drafted.text) == (plain.token_ids, plain.text)
    assert drafted.text.startswith("turn ") and "print(volume" not in drafted.text
    more = pipeline.infill(prefix + "t", suffix, files=files, max_new_tokens=4)
    assert more.text.startswith("urn ") and more.stats.prompt_tokens - more.stats.reused_tokens <= 2
    capacity = pipeline.target.cache.capacity
    long = pipeline.infill(
        prefix * capacity, suffix * capacity, files={"a.py": prefix * capacity}, max_new_tokens=2, prompt_tokens=256
    )
    assert long.stats.prompt_tokens <= 256
