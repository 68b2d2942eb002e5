"""SentencePiece's BPE of a GGUF file gives the ids of the tokenizer that transformers builds of the same pieces."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
from tokenizers import Tokenizer

from edgespec.errors import ConversionError
from edgespec.gguf import sentencepiece
from edgespec.gguf.convert import convert, read_header, texts
from edgespec.text.tokenizer import Detokenizer
from edgespec.text.tokenizer import Tokenizer as TextTokenizer
from tests import tiny_gguf
from tests.test_gguf import TEXTS

SPECIAL = ("<unk>", "<s>", "</s>", "<|user|>", "<|end|>", "\n\n", "  ")
TYPES = (2, 3, 3, 3, 3, 4, 4)
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
SIZE = len(tiny_gguf.vocabulary()[0])
"""of the model"""


def pieces() -> list[str]:
    """A small vocabulary, trained: special tokens, bytes, and pieces by rank."""
    from tokenizers import models, normalizers, trainers

    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "\u2581")
    corpus = [word for text in tiny_gguf.CORPUS for word in text.replace(" ", " \n").split("\n")]
    trained.train_from_iterator(corpus * 3, trainers.BpeTrainer(vocab_size=400, show_progress=False))
    found = json.loads(trained.to_str())["model"]
    letters = [token for token in found["vocab"] if len(token) == 1]
    merged = ["".join(merge) for merge in found["merges"]]
    room = SIZE - len(SPECIAL) - len(BYTES) - len(letters)
    return [*SPECIAL, *BYTES, *[token for token in merged if token not in SPECIAL][:room], *letters]


def written(path: Path, arch: str = "llama", **keys: Any) -> Path:
    tokens = keys.pop("tokens", pieces())
    rank = len(SPECIAL) + len(BYTES)
    extra = {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [*TYPES, *[6] * len(BYTES), *[1] * (len(tokens) - rank)],
        "tokenizer.ggml.scores": [0.0] * rank + [float(-at) for at in range(len(tokens) - rank)],
        "tokenizer.ggml.merges": None,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": None,
    }
    given = {f"tokenizer.ggml.{key}": value for key, value in keys.items()}
    return tiny_gguf.write(path, arch=arch, tokenizer_model="llama", pre=None, eos_token_id=2, extra=extra | given)


def lines() -> list[str]:
    """Words and signs of the corpus and of hard texts, mixed."""
    random = Random(0)
    parts = [part for text in (*TEXTS, *tiny_gguf.CORPUS) for part in text.replace(" ", "\0 \0").split("\0")]
    parts += ["  ", "\n", "\n\n\n", "<|user|>", "<|end|>", "</s>", "\u2581", "\u2581\u2581", "ee", "aaa", "é", "\t"]
    return [*TEXTS, *("".join(random.choices(parts, k=random.randrange(1, 12))) for _ in range(2000))]


@pytest.mark.parametrize("prefixed", [True, False])
def test_ids_are_those_of_transformers(tmp_path: Path, prefixed: bool) -> None:
    """Merges of transformers' own making, in its tokenizer of Gemma, or with its normalizer of Llama 2."""
    pytest.importorskip("transformers")
    from tokenizers import AddedToken, normalizers
    from transformers import GemmaTokenizer
    from transformers.tokenization_utils_base import generate_merges

    source = written(tmp_path / "x.gguf", add_space_prefix=prefixed)
    ours = Tokenizer.from_str(texts(read_header(source))[0])
    header = read_header(source)
    tokens, scores = (header.get(f"tokenizer.ggml.{key}") for key in ("tokens", "scores"))
    vocabulary = {token: index for index, token in enumerate(tokens)}
    ranked = {token: scores[index] for token, index in vocabulary.items() if index >= len(SPECIAL) + len(BYTES)}
    merges = generate_merges(vocabulary, ranked, skip_tokens=[*SPECIAL[:5]])
    theirs = GemmaTokenizer(
        vocabulary, merges, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>", mask_token="<unk>"
    )
    theirs.add_tokens(["<|user|>", "<|end|>"], special_tokens=True)
    theirs.add_tokens([AddedToken(token, normalized=False) for token in SPECIAL[5:]])
    engine = theirs.backend_tokenizer
    if prefixed:
        engine.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), engine.normalizer])
    for text in lines():
        expected = engine.encode(text, add_special_tokens=False).ids
        assert ours.encode(text, add_special_tokens=False).ids == expected, text


@pytest.mark.parametrize("prefixed", [True, False])
def test_texts_come_back(tmp_path: Path, prefixed: bool) -> None:
    """Whole, and in pieces as they are streamed."""
    source = written(tmp_path / "x.gguf", add_space_prefix=prefixed)
    (tmp_path / "ir").mkdir()
    made = convert(read_header(source), tmp_path / "ir", name="tiny", source="tiny")
    assert (made.manifest.generation.add_bos, made.manifest.generation.bos_token) == (True, "<s>")
    tokenizer = TextTokenizer(tmp_path / "ir" / "tokenizer.json", bos_token="<s>", add_bos=True)
    assert tokenizer.encode("Hi", raw=True)[0] == 1
    for text in TEXTS:
        if any(special in text for special in SPECIAL):
            continue  # the space behind a special token is the model's own
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        stream = Detokenizer(tokenizer)
        assert "".join(map(stream.push, ids)) + stream.flush() == text


def test_what_no_piece_spells_becomes_bytes(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_str(texts(read_header(written(tmp_path / "x.gguf")))[0])
    assert tokenizer.encode("\u2603").tokens[-3:] == ["<0xE2>", "<0x98>", "<0x83>"]


@pytest.mark.parametrize(("arch", "stripped"), [("llama", False), ("phi3", True)])
def test_control_tokens_of_phi3_take_the_spaces_behind_them(tmp_path: Path, arch: str, stripped: bool) -> None:
    from edgespec.gguf.sentencepiece import Pieces

    header = read_header(written(tmp_path / "x.gguf"))
    tokens, types, scores = (header.get(f"tokenizer.ggml.{key}") for key in ("tokens", "token_type", "scores"))
    tokenizer = Tokenizer.from_str(
        Pieces(tokens, types, scores, unknown=0, prefixed=True, stripping=arch == "phi3").tokenizer_json()
    )
    ids = tokenizer.encode("<|user|>\n a<s> b").ids
    assert ("\n" in tokenizer.decode(ids)) is not stripped
    assert tokenizer.decode(ids).endswith(" b"), "<s> takes none"


def test_a_vocabulary_of_merges_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each way to cut a piece is one: a small file had taken gigabytes."""
    monkeypatch.setattr(sentencepiece, "_MOST_MERGES", 400)
    path = written(tmp_path / "tiny.gguf", tokens=[*pieces()[:-40], *("x" * length for length in range(1, 41))])
    with pytest.raises(ConversionError, match="more ways than any known one; got over 400"):
        texts(read_header(path))


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"scores": None}, "not a whole language model; got no tokenizer.ggml.scores"),
        ({"scores": [1.0]}, f"scores do not fit the vocabulary, or are no numbers; got {SIZE} pieces, 1 scores"),
        ({"scores": [float("nan")] * SIZE}, "scores do not fit the vocabulary, or are no numbers"),
        ({"scores": [1] * SIZE}, f"scores of tiny.gguf; got array of {SIZE} int32; allowed: numbers"),
        ({"unknown_token_id": 512}, "vocabulary of tiny.gguf is damaged; got tokenizer.ggml.unknown_token_id: 512"),
        ({"tokens": [token.replace("<0x41>", "<A>") for token in pieces()]}, "no piece for a byte; got no <0x41>"),
        ({"tokens": [*pieces()[:-1], "a" * 300]}, "too long a piece; got one of 300 characters; allowed: 256"),
        ({"model": "t5"}, r"got t5; allowed: gpt2 \(byte-level BPE\), llama \(SentencePiece's BPE\)"),
    ],
)
def test_pieces_that_are_no_vocabulary_are_refused(tmp_path: Path, keys: dict[str, Any], said: str) -> None:
    path = written(tmp_path / "tiny.gguf", **keys)
    with pytest.raises(ConversionError, match=said):
        texts(read_header(path))
