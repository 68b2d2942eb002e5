"""``edgespec train block TARGET``: all stages in one folder. An interrupted stage resumes.

target/         the target as a bundle, if it had to be exported
corpus/         shards of text by the target
states/         the same texts with the target's hidden states
checkpoint.pt   the head in training
curve.json      the learning curve
draft/          the trained head, ready for --draft
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgespec.bundle import Bundle
from edgespec.errors import SettingError
from edgespec_export import convert
from edgespec_export.settings import Kind, Weights
from edgespec_train import stages
from edgespec_train.block import graph
from edgespec_train.block.data import Batches
from edgespec_train.block.head import BlockHead, Shape
from edgespec_train.block.training import Point, Recipe, has_checkpoint, train
from edgespec_train.block.warm_start import Embeddings, initialise
from edgespec_train.corpus import shards
from edgespec_train.corpus.build import write_json
from edgespec_train.corpus.replay import Choice, replay
from edgespec_train.corpus.states import States
from edgespec_train.draft_model import choose_vocabulary
from edgespec_train.ship_head import TrainedHead, pack_head

Say = Callable[[str], None]
_JUDGED_TEXTS = 40


@dataclass(frozen=True)
class BlockSettings:
    """shape: its layers are () for the default ones. fit_rows: answer rows that the head is fitted to before training;
    0: it begins with random weights. embeddings_from: a checkpoint that has the target's embeddings."""

    target: str
    folder: Path
    recipe: Recipe
    shape: dict[str, Any]
    vocabulary: int
    weights: Kind
    corpus: Path
    states: Path
    fit_rows: int
    embeddings_from: str

    @property
    def makes_corpus(self) -> bool:
        """Whether the target writes the texts now."""
        return self.corpus == self.folder / "corpus" and self.makes_states

    @property
    def makes_states(self) -> bool:
        return self.states == self.folder / "states"

    @classmethod
    def of(cls, target: str, folder: Path, options: dict[str, Any]) -> BlockSettings:
        """From the options of the command line."""
        take = options.pop
        try:
            layers = tuple(int(layer) for layer in (take("layers") or "").split(",") if layer)
        except ValueError as error:
            raise SettingError("layers of the target", got=error, allowed="numbers with commas, as 14,25,28") from error
        names = ("width", "block", "depth", "heads", "intermediate", "window", "rank")
        shape = {"layers": layers} | {name: take(name) for name in names}
        return cls(
            target=target,
            folder=folder,
            shape=shape,
            vocabulary=take("vocabulary"),
            weights=take("weights"),
            corpus=take("corpus_folder") or folder / "corpus",
            states=take("states_folder") or folder / "states",
            fit_rows=take("fit_rows"),
            embeddings_from=take("embeddings_from") or target,
            recipe=Recipe(**options),
        )


def make_head(settings: BlockSettings, target: Bundle, say: Say) -> Path:
    """Train on the corpus and pack; returns the draft's folder."""
    source = stages._source(settings.embeddings_from)
    config = convert.read_config(source)
    last = int(config.num_hidden_layers)
    layers = settings.shape["layers"] or tuple(sorted({max(1, last // 2), max(1, last - 3), last}))
    shape = Shape(**settings.shape | {"layers": layers})
    if settings.makes_states:
        wanted = tuple(sorted({*layers, last}))
        replay(settings.corpus, target, settings.states, say, layers=wanted, choice=Choice())
    states, final = States(settings.states, layers), States(settings.states, (last,))
    vocab_size, ends = target.manifest.target.vocab_size, target.manifest.generation.eos_token_ids
    counts = shards.token_counts(states.paths, vocab_size)
    ids = choose_vocabulary(counts, settings.vocabulary, always=ends)
    ids = ids[ids >= 0]
    inverse = np.full(vocab_size, len(ids), np.int64)
    inverse[ids] = np.arange(len(ids))
    share = shards.held_out_share(len(states.texts))
    texts, held_out = states.split(share)
    if not texts.texts or not held_out.texts:
        raise SettingError("too few texts to train on", got=len(states.texts), hint="more --corpus-tokens")
    torch.manual_seed(settings.recipe.seed)
    head = BlockHead(shape, states.hidden_size, len(ids))
    say(f"head: {sum(p.numel() for p in head.parameters()) / 1e6:.1f} M parameters, layers {layers}, {len(ids)} ids")
    if settings.fit_rows and not has_checkpoint(settings.folder):
        embeddings = _embeddings(source, config, ids, counts)
        explained = initialise(head, texts, final.split(share)[0], inverse, embeddings, settings.fit_rows)
        say(f"fitted by least squares: R squared {explained:.2f}")
    curve = _train(settings, head, texts, held_out, inverse, say)
    write_json(settings.folder / "curve.json", {"curve": [asdict(point) for point in curve]})
    measured = {
        "recipe": asdict(settings.recipe) | asdict(shape) | {"fit_rows": settings.fit_rows},
        "corpus": {"texts": len(states.texts), "answer_tokens": states.answer_tokens},
        "training": asdict(curve[-1]) if curve else {},
    }
    packed = TrainedHead(
        "block", ids, layers, lambda xml: _write(head, xml, settings.weights, say), settings.weights, measured
    )
    return pack_head(packed, target, settings.target, settings.folder / "draft")


def _train(
    settings: BlockSettings, head: BlockHead, texts: States, held_out: States, inverse: NDArray[np.int64], say: Say
) -> list[Point]:
    shape = head.shape
    batches, judged = (Batches(some, inverse, head.vocabulary, shape.window, shape.block) for some in (texts, held_out))
    say(f"training on {texts.answer_tokens} tokens by the target, {held_out.answer_tokens} held out")
    greedy_first = sorted(held_out.texts, key=held_out.temperature)[:_JUDGED_TEXTS]
    return train(
        head,
        batches,
        list(judged.whole(greedy_first)),
        settings.recipe,
        settings.folder,
        say=lambda point: say(str(point)),
        same={"target": settings.target, "vocabulary": head.vocabulary, "texts": len(texts.texts)},
    )


def _embeddings(source: Any, config: Any, ids: NDArray[np.int32], counts: NDArray[np.int64]) -> Embeddings:
    target: Any = convert.load(source, Weights("f32"), config)
    rows = torch.from_numpy(ids.astype(np.int64))
    with torch.no_grad():
        read, written = (
            part.weight[rows].float().numpy()
            for part in (target.get_input_embeddings(), target.get_output_embeddings())
        )
    return Embeddings(np.concatenate([read, read.mean(0, keepdims=True)]), written, counts[ids])


def _write(head: BlockHead, xml: Path, kind: Kind, say: Say) -> None:
    if note := graph.write(head, xml, Weights(kind)):
        say(note)
    gap, same = graph.differences(head, xml)
    say(f"the graph against torch: logits differ by at most {gap:.3f} of their spread, {same:.0%} of first tokens same")
