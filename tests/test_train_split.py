"""What is held out of a corpus, and what is not trained on because it says the same, or what a benchmark says."""

from __future__ import annotations

import dataclasses
import json
import random
import re
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgespec import bundle
from edgespec.bundle import Bundle
from edgespec.text.chat_template import ChatTemplate
from edgespec.text.tokenizer import Tokenizer

pytest.importorskip("optimum.intel", reason="training needs the train extra")
pytest.importorskip("accelerate", reason="training needs the train extra")

from edgespec_train.corpus import shards, sources
from edgespec_train.corpus.split import parted
from edgespec_train.corpus.texts import TargetTexts, TextId
from edgespec_train.pretrain import EarlierStages
from edgespec_train.stages import train_draft
from tests import test_train, test_train_ready_corpus
from tests.test_train_heads import begun
from tests.test_train_heads import settings_of as head_of
from tests.test_train_ready_corpus import rewrite, settings_of

target_folder, target, corpus = test_train.target_folder, test_train.target, test_train.corpus
bare = test_train_ready_corpus.bare
FUNCTIONS = 60
SYSTEM = "You are an assistant that was made for the tests of this file, and each chat begins with these words."
TEMPLATE = (
    "<|bos|>system: " + SYSTEM + "\n{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"
)


def quiet(line: str) -> None:
    """Says nothing."""


@pytest.fixture
def chatting(target: Path) -> Bundle:
    """The target with a template that has more than ten words of its own."""
    read = bundle.read(target)
    return Bundle(read.root, msgspec.structs.replace(read.manifest, chat_template=None), TEMPLATE)


@pytest.fixture
def twins(chatting: Bundle, tmp_path: Path) -> tuple[TargetTexts, list[int]]:
    """The prompts of each documented function of a file, as any shard has them; and whose each text is."""
    words = random.Random(0)
    docs = [" ".join("".join(words.choices("abcdefgh", k=6)) for _ in range(14)) for _ in range(FUNCTIONS)]
    functions = [f'def f{n}(x):\n    """{doc}."""\n    return x + {n}\n\n\n' for n, doc in enumerate(docs)]
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "a.py").write_text("".join(functions), encoding="utf-8")
    tokenizer, template = Tokenizer(chatting.hashed(chatting.manifest.tokenizer)), ChatTemplate(TEMPLATE)
    tokens: list[int] = []
    begins, answers, owners = [0], [], []
    for prompt in sources.code_prompts(sources.folder(tmp_path / "own")):
        owner = [n for n, doc in enumerate(docs) if doc in prompt.text]
        if len(owner) != 1:
            continue  # a part of the file, or a prompt without the docstring
        chat = prompt.kind == "chat"
        tokens += tokenizer.encode(template.render([{"role": "user", "content": prompt.text}]) if chat else prompt.text)
        answers.append(len(tokens))
        tokens += tokenizer.encode(" return x")
        begins.append(len(tokens))
        owners += owner
    path = tmp_path / "shard-00000.npz"
    np.savez(path, tokens=np.array(tokens), begins=np.array(begins), answers=np.array(answers))
    return TargetTexts([path]), owners


def test_twins_of_held_out_texts_are_not_trained_on_and_all_others_are(
    chatting: Bundle, twins: tuple[TargetTexts, list[int]]
) -> None:
    texts, owners = twins

    def of(part: list[TextId]) -> list[int]:
        return [owners[text] for _, text in part]

    said: list[str] = []
    apart = texts.split(shards.held_out_share(len(texts.texts)))
    assert set(of(apart[0].texts)) & set(of(apart[1].texts)), "by their prompts alone twins part"
    rest, held_out = parted(texts, chatting, said.append)
    assert held_out.texts == apart[1].texts, "what was held out of a corpus stays so"
    assert not set(of(rest.texts)) & set(of(held_out.texts))
    assert sorted(of(rest.texts)) == sorted(n for n in of(apart[0].texts) if n not in of(held_out.texts))
    left_out = f"{len(apart[0].texts) - len(rest.texts)} of {len(apart[0].texts)} texts share ten words in a row with a"
    assert said == [f"{left_out} held-out text or a benchmark: left out"]


def test_benchmarks_are_left_out_of_a_ready_corpus(
    bare: Path, target: Path, target_folder: Path, tmp_path: Path
) -> None:
    """Of a head's and of a draft's. The benchmark is what three texts say."""
    tokenizer, head = Tokenizer(target / "tokenizer.json"), head_of(target, bare, tmp_path / "head")
    states = begun(head).states
    wholes = [tokenizer.decode(states.tokens(text).tolist()) for text in states.texts]
    asked = [whole for whole in wholes if len(re.findall(r"\w+", whole)) > 12][:3]
    benchmark = tmp_path / "benchmark.jsonl"
    benchmark.write_text("\n".join(json.dumps({"text": whole}) for whole in asked), encoding="utf-8")
    said: list[str] = []
    exclude = (str(benchmark),)
    again = begun(dataclasses.replace(head, plan={"exclude": exclude}), said.append).states
    assert len(asked) == 3 and len(again.texts) <= len(states.texts) - 3
    draft = settings_of(target_folder, tmp_path / "draft", bare, steps=1)
    draft = dataclasses.replace(draft, earlier=EarlierStages(exclude=exclude))
    train_draft(draft, bundle.read(target), said.append)
    left_out = [int(line.split()[0]) for line in said if line.endswith("left out")]
    assert len(left_out) == 2 and min(left_out) >= 3


def test_ids_are_chosen_by_what_is_trained_on(bare: Path, target: Path, target_folder: Path, tmp_path: Path) -> None:
    """An id that only held-out answers have is none of a draft's, and none of a head's."""
    rare = 503
    texts = TargetTexts(shards.shard_paths(bare))
    _, held_out = texts.split(shards.held_out_share(len(texts.texts)))
    changed = tmp_path / "corpus"
    changed.mkdir()
    for number, path in enumerate(shards.shard_paths(bare)):
        with np.load(path) as data:
            tokens, begins, answers = data["tokens"].copy(), data["begins"], data["answers"]
        for text in (text for shard, text in held_out.texts if shard == number):
            tokens[answers[text] : begins[text + 1]] = rare
        rewrite(path, changed / path.name, tokens=tokens)
    of_head = begun(head_of(target, changed, tmp_path / "head")).id_map
    of_draft = train_draft(settings_of(target_folder, tmp_path / "draft", changed, steps=1), bundle.read(target), quiet)
    assert rare not in of_head and rare not in of_draft[1]
