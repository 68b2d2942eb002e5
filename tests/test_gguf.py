"""A GGUF file becomes an IR folder with the model's own tokenizer, or is refused in one line and leaves nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from edgespec import bundle
from edgespec.errors import ConversionError
from edgespec.gguf.convert import convert, read_header, texts
from tests import tiny_gguf

VOCAB_SIZE = len(tiny_gguf.vocabulary()[0])
TEXTS = (
    "Hello, world! It's I'll we've they'd I'M DON'T",
    "def f(x):\n    return x**2  # sq\n\n\nif (a<=b && c!=d) {'k': [1, 2.5e-10, None]}",
    "In 1889 it rained 1,234.567 days; x²+½ ٣٤٥ Ⅷ",
    "naïve café Zürich Straße Ελληνικά Русский עברית العربية हिन्दी",
    "東京は日本の首都です。你好，世界！ 한국어",
    "👩‍👩‍👧‍👦 🇩🇪 🤖🏽 ✨",
    "  leading, trailing   ",
    "\t\ttabs\t and\r\nCRLF\r\n\r\n x",
    "a\n \n  \n   b",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nx<|endoftext|>y <|im_end|> <tool>call</tool>",
    "nbsp\u00a0 wide\u3000 ls\u2028 zw\u200b controls \x00\x01\x7f",
    "http://example.com/?q=1&r=%20#frag " + "a" * 100,
    " ",
    "",
)


def tokenizer_of(path: Path) -> Tokenizer:
    return Tokenizer.from_str(texts(read_header(path))[0])


def assert_same_ids(path: Path) -> None:
    """GenAI builds its own tokenizer from the same file."""
    openvino_genai = pytest.importorskip("openvino_genai")
    theirs, ours = openvino_genai.Tokenizer(str(path)), tokenizer_of(path)
    for text in TEXTS:
        expected = theirs.encode(text, add_special_tokens=False).input_ids.data[0].tolist()
        ids = ours.encode(text, add_special_tokens=False).ids
        assert ids == expected, text
        assert ours.decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("pre", ["smollm", "qwen2", "default"])
def test_ids_are_those_of_openvino_genai(tmp_path: Path, pre: str) -> None:
    assert_same_ids(tiny_gguf.write(tmp_path / "tiny.gguf", pre=pre))


def pieces(path: Path, text: str) -> list[str]:
    return [piece for piece, _ in tokenizer_of(path).pre_tokenizer.pre_tokenize_str(text)]


@pytest.mark.parametrize(
    ("pre", "text", "expected"),
    [
        ("smollm", " 1234 a", ["Ġ", "1", "2", "3", "4", "Ġa"]),
        ("refact", " 1234 a", ["Ġ", "1", "2", "3", "4", "Ġa"]),
        ("gpt-2", " 1234 a  #b", ["Ġ1234", "Ġa", "Ġ", "Ġ#", "b"]),
        ("llama-bpe", "1234567 a  #b", ["123", "456", "7", "Ġa", "Ġ", "Ġ#", "b"]),
        ("smaug-bpe", "1234567 a  #b", ["123", "456", "7", "Ġa", "Ġ", "Ġ#", "b"]),
        ("qwen2", "12 DON'T\n\n x", ["1", "2", "ĠDON", "'T", "ĊĊ", "Ġx"]),
    ],
)
def test_text_is_split_as_the_model_was_trained(tmp_path: Path, pre: str, text: str, expected: list[str]) -> None:
    assert pieces(tiny_gguf.write(tmp_path / "tiny.gguf", pre=pre), text) == expected


def test_qwen2_composes_characters(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tiny_gguf.write(tmp_path / "tiny.gguf", pre="qwen2"))
    assert tokenizer.encode("cafe\u0301").ids == tokenizer.encode("café").ids


def test_special_tokens_are_special_and_user_defined_ones_are_text(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tiny_gguf.write(tmp_path / "tiny.gguf"))
    ids = tokenizer.encode("<|im_start|><tool>").ids
    assert ids == [1, 3]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<tool>"


@pytest.mark.parametrize("quantize", ["F32", "F16", "Q4_0", "Q4_1", "Q8_0"])
def test_converted_folder_is_a_whole_bundle(tmp_path: Path, quantize: str) -> None:
    import openvino as ov

    source = tiny_gguf.write(tmp_path / "tiny.gguf", quantize=quantize)
    before = source.read_bytes()
    folder = tmp_path / "ir"
    folder.mkdir()
    made = convert(read_header(source), folder, name="tiny", source="tiny.gguf")

    assert source.read_bytes() == before
    assert sorted(path.name for path in folder.iterdir()) == [
        "bundle.json",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "openvino_model.bin",
        "openvino_model.xml",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    manifest = made.manifest
    model = ov.Core().read_model(made.model_path(manifest.target))
    assert model.output("logits").partial_shape[2].get_length() == manifest.target.vocab_size == VOCAB_SIZE
    assert manifest.target.precision == quantize.lower()
    assert manifest.generation.context_length == 256
    assert manifest.generation.eos_token_ids == (0, 2), "end of text, and what the template ends a turn with"
    assert made.chat_template() == tiny_gguf.TEMPLATE
    made.hashed(manifest.tokenizer)

    (folder / bundle.MANIFEST).unlink()
    plain = bundle.read(folder).manifest
    assert (plain.generation, plain.target.precision) == (manifest.generation, manifest.target.precision)


def test_end_tokens(tmp_path: Path) -> None:
    def ends(**options: object) -> tuple[int, ...]:
        path = tiny_gguf.write(tmp_path / "tiny.gguf", **options)  # type: ignore[arg-type]
        return texts(read_header(path))[2].eos_token_ids

    assert ends(template=None) == (0,)
    assert ends(template=None, extra={"tokenizer.ggml.eot_token_id": 2}) == (0, 2)
    assert ends(eos_token_id=2) == (2,)
    assert ends(eos_token_id=None, template=None) == ()
    assert ends(template=None, extra={"tokenizer.ggml.eom_token_id": 2}) == (0, 2)
    assert ends(template=None, extra={"tokenizer.ggml.eos_token_ids": [2, 0, 1]}) == (0, 2, 1)


@pytest.mark.parametrize("kind", [1, 4])
def test_what_ends_a_turn_is_a_control_token(tmp_path: Path, kind: int) -> None:
    """Whatever type the file gives it, as in llama.cpp."""
    types = [3, 3, kind] + [1] * (VOCAB_SIZE - 3)
    path = tiny_gguf.write(tmp_path / "tiny.gguf", extra={"tokenizer.ggml.token_type": types})
    tokenizer, _, generation = texts(read_header(path))
    assert generation.eos_token_ids == (0, 2)
    ids = Tokenizer.from_str(tokenizer).encode("Hi<|im_end|>").ids
    assert ids[-1] == 2
    assert Tokenizer.from_str(tokenizer).decode(ids, skip_special_tokens=True) == "Hi"


@pytest.mark.parametrize(("merge", "said"), [("a €", "'€' of 'a €' is no token"), ("a", "'' of 'a' is no token")])
def test_merges_that_do_not_fit_are_refused(tmp_path: Path, merge: str, said: str) -> None:
    path = tiny_gguf.write(tmp_path / "tiny.gguf", extra={"tokenizer.ggml.merges": [merge]})
    with pytest.raises(ConversionError, match=said):
        texts(read_header(path))


def test_conversion_says_nothing(tmp_path: Path) -> None:
    source = tiny_gguf.write(tmp_path / "tiny.gguf")
    (tmp_path / "ir").mkdir()
    code = (
        "import sys, pathlib; from edgespec.gguf import convert as gguf;"
        "gguf.convert(gguf.read_header(pathlib.Path(sys.argv[1])), pathlib.Path(sys.argv[2]), "
        "name='tiny', source='tiny')"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(source), str(tmp_path / "ir")], capture_output=True, text=True, check=True
    )
    assert (run.stdout, run.stderr) == ("", "")
    assert json.loads((tmp_path / "ir" / "config.json").read_text(encoding="utf-8"))["vocab_size"] == VOCAB_SIZE
