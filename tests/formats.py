"""Formats to constrain a text with, random schemas among them, a small vocabulary, and a fake target that uses it."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import tokenizers

from edgespec.adaptive.arbiter import Arbiter
from edgespec.adaptive.calibration import ForwardTimes
from edgespec.adaptive.forward_cost import ForwardCost
from edgespec.backends.fake import FakeModel, Table, random_table
from edgespec.decode.autoregressive import autoregressive
from edgespec.decode.speculative import speculative
from edgespec.drafters.adaptive_tokens import AdaptiveTokens
from edgespec.drafters.ngram import NGram
from edgespec.drafters.none import NoDrafter
from edgespec.drafters.small_model import SmallModel
from edgespec.protocols import Drafter
from edgespec.sampling_params import SamplingParams
from edgespec.stats import Stats
from edgespec.text.response_format import Grammar, Grammars, grammar_of
from edgespec.text.tokenizer import Tokenizer
from edgespec.types import Allowed, Draft
from tests.heads import KnowingGraph, knowing
from tests.policies import fixed

# A byte-level vocabulary with a few longer tokens, so that one text can be written in many ways.
PIECES = ("true", "name", "size", "null", "abc", '{"', '":', '": "', '",', '"}', '["', '"]', "]}", "}}", "12", "00")
END = "<|end|>"
LAYERS = (1,)
"""of the target, for heads"""
OWN = 7
"""the k at which an arbiter goes by its own length"""
NAMES = ("name", "size", "a", "na", "abc", "n-1")
MODES = {
    "greedy": SamplingParams(),
    "sampled": SamplingParams(temperature=0.9, top_k=40, top_p=0.95, repetition_penalty=1.1, seed=5),
}
REJECTION = replace(MODES["sampled"], verification="rejection")


def small_tokenizer(folder: Path, without: str = "") -> Tokenizer:
    """The vocabulary above as a tokenizer; without the given letters if told."""
    letters = [letter for letter in tokenizers.pre_tokenizers.ByteLevel.alphabet() if letter not in without]
    vocab = {letter: index for index, letter in enumerate(sorted(letters))}
    merges = []
    for piece in (piece.replace(" ", "Ġ") for piece in PIECES):
        for end in range(2, len(piece) + 1):
            left, right = piece[: end - 1], piece[end - 1]
            if left in vocab and right in vocab and left + right not in vocab:
                vocab[left + right] = len(vocab)
                merges.append((left, right))
    engine = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, merges))
    engine.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    engine.decoder = tokenizers.decoders.ByteLevel()
    engine.add_special_tokens([END, "<|other|>"])
    path = folder / f"tokenizer{without}.json"
    engine.save(str(path))
    return Tokenizer(path)


def random_schema(rng: random.Random, depth: int = 3) -> dict[str, Any]:
    kinds = ["enum", "const", "integer", "number", "boolean", "null", "string", "pattern"]
    if depth:
        kinds += ["object", "object", "object", "array", "array", "anyOf"]
    match rng.choice(["object"] if depth == 3 else kinds):
        case "object":
            names = rng.sample(NAMES, rng.randint(0, 4))
            return {
                "type": "object",
                "properties": {name: random_schema(rng, depth - 1) for name in names},
                "required": rng.sample(names, rng.randint(0, len(names))),
                "additionalProperties": rng.choice([False, False, {"type": "boolean"}]),
            }
        case "array":
            low = rng.randint(0, 2)
            items = random_schema(rng, depth - 1)
            return {"type": "array", "items": items, "minItems": low, "maxItems": low + rng.randint(0, 3)}
        case "anyOf":
            return {"anyOf": [random_schema(rng, depth - 1) for _ in range(rng.randint(2, 3))]}
        case "enum":
            return {"enum": rng.sample(["name", "nam", "size", 12, 120, -1.5, None, True, "", "é", ["a"]], 3)}
        case "const":
            return {"const": rng.choice(["a long text that is forced", {"size": [1, 2, {"name": "x"}]}, 1200])}
        case "integer":
            low = rng.randint(-200, 200)
            return {"type": "integer", rng.choice(["minimum", "exclusiveMinimum"]): low, "maximum": low + 50}
        case "number":
            return {"type": "number", "minimum": 0, "maximum": rng.choice([1, 99.5])}
        case "string":
            low = rng.randint(0, 3)
            return {"type": "string", "minLength": low, "maxLength": low + rng.randint(0, 8)}
        case "pattern":
            return {"type": "string", "pattern": rng.choice([r"^[a-c]{2,5}$", r"^\d{2}-\d{2}$", "^(na|me)+$"])}
        case kind:
            return {"type": kind}


def schema_format(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}


FORMATS: dict[str, dict[str, Any]] = {
    **{f"schema-{seed}": schema_format(random_schema(random.Random(seed))) for seed in range(15)},
    "const": schema_format({"const": "a long text that is forced"}),
    "object": {"type": "json_object"},
    "regex": {"type": "regex", "regex": r"\d{3}-\d{4}( ext [a-c]+)?"},
    "grammar": {"type": "grammar", "grammar": 'start: sum\nsum: N | sum "+" N | "(" sum ")"\nN: /[0-9]{1,3}/'},
    "certain": {"type": "regex", "regex": "([x-z]bbbb){2,9}"},
    "lazy": {"type": "grammar", "grammar": 'start: word "." word\nword[suffix="!"]: /[ab!]*/'},
    "cannot go back": {"type": "grammar", "grammar": 'start: "<" s ">" ("x" | "yy")+\ns[max_tokens=4]: /[a-z]*/'},
}


def says(response_format: dict[str, Any], text: str) -> None:
    """A finished text must be what its format says; judged without llguidance."""
    match response_format["type"]:
        case "json_schema":
            jsonschema.validate(json.loads(text), response_format["json_schema"]["schema"])
        case "json_object":
            assert isinstance(json.loads(text), dict)
        case "regex":
            assert re.fullmatch(response_format["regex"], text, re.ASCII)
        case "grammar" if "sum" in response_format["grammar"]:
            assert re.fullmatch(r"[0-9()+]+", text) and isinstance(eval(re.sub(r"0+(\d)", r"\1", text)), int)


class Fake:
    """A target that likes to come to an end, its drafters, and texts under a constraint."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.end = tokenizer.engine.token_to_id(END)
        self.vocab = tokenizer.vocab_size + 3  # a few more logits than tokens, as padded models have
        self.grammars = Grammars(tokenizer, self.vocab, [self.end])
        self.likes = np.zeros(self.vocab, np.float32)
        for piece, much in {END: 9, '"': 5, "}": 5, "]": 5, "!": 4, ".": 4, ",": 2, ">": 4}.items():
            self.likes[tokenizer.engine.token_to_id(piece)] = much
        self.plain = cache(self._plain)

    def table(self, seed: int, weight: float = 1.0) -> Table:
        mine, other = random_table(self.vocab, seed=1), random_table(self.vocab, seed=seed)
        return lambda text: ((1 - weight) * mine(text) + weight * other(text) + self.likes).astype(np.float32)

    def model(self) -> FakeModel:
        return FakeModel(self.table(1), self.vocab, layers=LAYERS)

    def constraint(self, name: str) -> Grammar:
        grammar = grammar_of(FORMATS[name])
        assert grammar is not None
        return self.grammars.constraint(grammar)

    def drafter(self, name: str) -> Drafter | Arbiter:
        close = SmallModel(FakeModel(self.table(7, 0.2), self.vocab), self.vocab, name="close")
        known = np.flatnonzero(np.arange(self.vocab) % 3).astype(np.int32)
        match name:
            case "none":
                return NoDrafter()
            case "ngram":
                return NGram(longest=2, shortest=1)
            case "random":
                return SmallModel(FakeModel(self.table(9), self.vocab), self.vocab, name="random")
            case "close":
                return close
            case "equal":
                return SmallModel(self.model(), self.vocab)
            case "trimmed":
                table = self.table(7, 0.2)
                return SmallModel(FakeModel(lambda t: table(t)[known], len(known)), self.vocab, id_map=known)
            case "block" | "redrafter":
                graph = KnowingGraph(self.table(7, 0.2), known, LAYERS, kind=name)
                return knowing(name, graph, LAYERS, self.vocab)
            case "adaptive":
                return AdaptiveTokens([self.vocab], self.vocab, count=3, one_forward=True)
            case "arbiter":
                return arbiter([NGram(longest=2, shortest=1)], close)
            case "merged trees":
                close.alternatives = True
                return arbiter([NGram(longest=2, shortest=1)], close, trees=True)
            case "unruly trees":
                return UnrulyTrees(self)
        raise AssertionError(name)

    def prompt(self, name: str) -> list[int]:
        return self.tokenizer.encode('{"name": "abc", "size": 12}' + name)

    def _plain(self, name: str, mode: str, budget: int = 55) -> list[int]:
        context = self.prompt(name)
        start = len(context)
        for _ in autoregressive(
            self.model(), context, MODES[mode], stop=[self.end], budget=budget, constraint=self.constraint(name)
        ):
            pass
        return context[start:]

    def speculate(
        self, name: str, mode: str | SamplingParams, drafter: Drafter | Arbiter, k: int, budget: int = 55
    ) -> tuple[list[int], Stats, FakeModel]:
        context, target = self.prompt(name), self.model()
        start, stats = len(context), Stats(clock=target.clock)
        policy = drafter if k == OWN and isinstance(drafter, Arbiter) else fixed(drafter, k)
        for _ in speculative(
            target, policy, context, MODES[mode] if isinstance(mode, str) else mode,
            stop=[self.end], budget=budget, stats=stats,
            constraint=self.constraint(name),
        ):  # fmt: skip
            pass
        assert target.cache.length == len(context) - 1
        return context[start:], stats, target


def arbiter(free: Sequence[Drafter], model: SmallModel | None = None, *, trees: bool = False) -> Arbiter:
    target_s, draft_s = (ForwardCost(ForwardTimes((1, 8), 0, 1, at, at)) for at in ((1.0, 1.5), (0.1, 0.1)))
    return Arbiter(free, model, target_s=target_s, draft_s=draft_s if model else None, trees=trees)


class UnrulyTrees(NoDrafter):
    """Knows what plain decoding says next and hides it among forbidden tokens and others, in a tree."""

    name = "unruly trees"

    def __init__(self, fake: Fake) -> None:
        self.fake = fake

    def propose(self, context: Sequence[int], k: int, allowed: Allowed | None = None) -> Draft:
        assert allowed is not None
        if k < 4:
            return Draft(tuple((len(context) * 31 + i * 7) % self.fake.vocab for i in range(k)))
        first = np.flatnonzero(allowed(()))
        best = int(first[self.fake.table(1)(tuple(context))[first].argmax()])
        bad = (best + 11) % self.fake.vocab
        second = np.flatnonzero(allowed((best,)))
        if not len(second):
            return Draft((bad, best), tree=(0, 0))
        after = int(second[self.fake.table(1)((*context, best))[second].argmax()])
        return Draft((bad, best, after, bad), tree=(0, 0, 2, 3))
