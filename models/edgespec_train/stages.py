"""``edgespec train fastdraft TARGET``: all stages in one folder. An interrupted stage resumes.

target/       the target as a bundle, if it had to be exported
corpus/       shards of text by the target, and manifest.json
completed/    the texts of a ready corpus with the target's log-probabilities, if they lacked them
pretrain/, continue/    plain text and the checkpoints of the stages that read it, if asked for (see pretrain)
checkpoint/   the draft in training
draft/        the trained draft as a transformers folder, with id_map.npy
curve.json    the learning curve (curve.png beside it)
bundle/       target and draft, ready to run
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, PreTrainedModel

from edgespec import bundle
from edgespec.bundle import Bundle
from edgespec.errors import SettingError
from edgespec.machine.devices import machine
from edgespec.text.tokenizer import Tokenizer
from edgespec_export import Weights, convert
from edgespec_export import sources as models
from edgespec_export.settings import Kind
from edgespec_train.corpus import shards
from edgespec_train.corpus.batches import Texts
from edgespec_train.corpus.build import Plan, identity, make_corpus, record_of, require_target, write_json
from edgespec_train.corpus.replay import Keeper, replay
from edgespec_train.corpus.split import parted
from edgespec_train.corpus.texts import TargetTexts
from edgespec_train.draft_model import Shape, build, choose_vocabulary, initialise_from, invert
from edgespec_train.initialise import check_earlier, fit_head, take_over
from edgespec_train.pack import convert_draft, save_draft, write_bundle
from edgespec_train.plot import plot
from edgespec_train.pretrain import EarlierStages, PlainReader
from edgespec_train.pretrain import run as run_earlier
from edgespec_train.progress import progress_bar
from edgespec_train.target import check_vocabulary, checkpoint_of, is_checkpoint, source_of
from edgespec_train.trainer import Diverged, Point, Recipe, has_checkpoint, train

Say = Callable[[str], None]


@dataclass(frozen=True)
class StageSettings:
    """The settings of all stages.

    layers_from: the model whose layers, embeddings and head the draft begins with; None: the target. corpus: folder of
    existing shards, else ``folder/corpus``. from_draft: the ``draft`` folder of an earlier run, whose draft is trained
    further.
    """

    target: str
    folder: Path
    recipe: Recipe
    shape: Shape
    vocabulary: int
    from_scratch: bool
    from_draft: Path | None
    weights: Kind
    corpus: Path
    precision: str
    layers_from: str | None = None
    earlier: EarlierStages = field(default_factory=EarlierStages)

    @property
    def donor(self) -> str:
        return self.layers_from or self.target

    @classmethod
    def of(cls, target: str, folder: Path, options: dict[str, Any]) -> StageSettings:
        """From the options of the command line. Raises SettingError for those that contradict each other."""
        take = options.pop
        count, chosen, scratch = take("layers"), take("from_layers"), take("from_scratch")
        try:
            layers = tuple(range(count)) if chosen is None else tuple(int(n) for n in chosen.split(","))
        except ValueError as error:
            raise SettingError("layers of the target", got=chosen, allowed="numbers with commas, as 0,1") from error
        shape = Shape(layers, take("hidden"), take("intermediate"), take("heads"))
        if not scratch and (shape.hidden or shape.intermediate or shape.heads):
            raise SettingError("a draft initialised from the target has its widths", hint="or use --from-scratch")
        earlier = take("from_draft")
        if scratch and earlier:
            raise SettingError("a draft is initialised from scratch or from an earlier one", got="both")
        if earlier and chosen is not None:
            raise SettingError("an earlier draft has its own layers: --from-layers", got=chosen, hint="leave it out")
        if earlier and not (earlier / "id_map.npy").is_file():
            raise SettingError("no trained draft there", got=str(earlier), allowed="the draft folder of an earlier run")
        corpus = take("corpus_folder") or folder / "corpus"
        vocabulary, weights, precision = take("vocabulary"), take("weights"), take("precision")
        layers_from = take("layers_from")
        stages = EarlierStages(*(take(name) for name in ("pretrain_tokens", "continue_tokens", "folders", "exclude")))
        return cls(
            *(target, folder, Recipe(**options), shape, vocabulary, scratch, earlier, weights, corpus, precision),
            *(layers_from, stages),
        )


def corpus_of(
    target: Bundle, folder: Path, tokens: int, say: Say, *, ray: bool = False, keep: Keeper | None = None, **plan: Any
) -> Path:
    """Shards by ``target`` in ``folder``; see ``corpus.make_corpus``."""
    make_corpus(Plan(target=identity(target), **plan), target.root, folder, tokens, say, ray=ray, keep=keep)
    return folder


def completed(settings: StageSettings, target: Bundle, say: Say) -> Path:
    """The folder of the shards to train on: the corpus, or its texts replayed if it lacks what the loss needs."""
    if settings.recipe.loss == "ce" or shards.has_top(shards.require_shards(settings.corpus)):
        return settings.corpus
    return replay(settings.corpus, target, settings.folder / "completed", say)


def make_draft(settings: StageSettings, target: Bundle, say: Say) -> Path:
    """Train on the corpus and pack; returns the bundle's folder."""
    out = settings.folder / "bundle"
    draft, id_map, curve, text = train_draft(settings, target, say)
    if not PartialState().is_main_process:
        return out
    work = settings.folder / "ir"
    name = f"fastdraft-{len(settings.shape.layers)}x{draft.config.hidden_size}-{len(id_map)}"
    say(f"converting the draft to OpenVINO, weights {settings.weights}")
    entry = convert_draft(draft, id_map, work, settings.weights, name=name, text=text, say=say)
    provenance = {
        "recipe": asdict(settings.recipe)
        | asdict(settings.shape)
        | {"from_scratch": settings.from_scratch, "from_draft": settings.from_draft is not None}
        | {f"{name}_tokens": tokens for name, tokens in settings.earlier.tokens.items()}
        | ({"layers_from": source_of(settings.donor).name} if settings.layers_from else {}),
        "corpus": record_of(settings.corpus),
        "training": asdict(curve[-1]) if curve else {},
        "machine": machine(),
    }
    own_name = Path(settings.target).name if is_checkpoint(settings.target) else target.name
    return write_bundle(target, work, out, entry, own_name, provenance)


def train_draft(
    settings: StageSettings, target: Bundle, say: Say
) -> tuple[PreTrainedModel, NDArray[np.int32], list[Point], NDArray[np.int64]]:
    """Train on the corpus, a part of its texts held out. Goes on from a checkpoint if there is one.

    Returns the draft, its id map, the learning curve, and a held-out text in the draft's ids.
    """
    paths = shards.shard_paths(completed(settings, target, say))
    require_target(settings.corpus, target)
    parts = parted(_read(paths, target, say), target, say, settings.earlier.exclude)
    vocab_size, ends = target.manifest.target.vocab_size, target.manifest.generation.eos_token_ids
    id_map = choose_vocabulary(parts[0].token_counts(vocab_size), settings.vocabulary, always=ends)
    inverse, readable = invert(id_map, vocab_size), np.isin(np.arange(vocab_size), id_map)
    texts, held_out = (Texts.of(part, inverse, readable) for part in parts)
    accelerator = Accelerator(mixed_precision="bf16" if settings.precision == "bf16" else "no")
    draft = _initialise(settings, id_map, texts, accelerator, say)
    millions = sum(parameter.numel() for parameter in draft.parameters()) / 1e6
    say(f"draft: {len(settings.shape.layers)} layers, {len(id_map)} ids, {millions:.1f} M parameters")
    say(f"training on {texts.answer_tokens} tokens by the target, {held_out.answer_tokens} held out")
    same = _identity(settings, id_map, texts)
    with _keeping(draft, id_map, settings.folder, accelerator):
        before: dict[str, list[Point]] = {}
        if settings.earlier.tokens:
            before = run_earlier(
                settings.earlier,
                draft,
                _plain_reader(target, held_out, inverse, readable),
                *(held_out, settings.recipe, settings.folder),
                say=say,
                same=same,
                accelerator=accelerator,
            )
        with progress_bar(settings.recipe.steps) as advance:
            curve = train(
                draft,
                texts,
                held_out,
                settings.recipe,
                settings.folder,
                say=lambda point: say(str(point)),
                advance=advance,
                accelerator=accelerator,
                same=same,
            )
    text = inverse[held_out.padded(held_out.texts[:1])[0]]
    if not accelerator.is_main_process:
        return draft, id_map, curve, text
    save_draft(draft, id_map, settings.folder / "draft")
    curves = {"curve": curve, **before}
    write_json(settings.folder / "curve.json", {name: [asdict(p) for p in points] for name, points in curves.items()})
    plot(curve, settings.folder / "curve.png")
    return draft, id_map, curve, text


def _read(paths: Sequence[Path], target: Bundle, say: Say) -> TargetTexts:
    """All texts. Raises SettingError for those of another vocabulary."""
    texts, ends = TargetTexts(paths), target.manifest.generation.eos_token_ids
    texts.check_ids(target.manifest.target.vocab_size)
    if ends and not any(int(texts.tokens(text)[-1]) in ends for text in texts.texts):
        say("no text of the corpus ends as the target ends its texts: is it another model's corpus?")
    return texts


def _identity(settings: StageSettings, id_map: NDArray[np.int32], texts: Texts) -> dict[str, Any]:
    """What a run has to have in common with the checkpoint that it goes on from."""
    return {
        "target": settings.target,
        "layers_from": settings.layers_from,
        "vocabulary": hashlib.sha256(id_map.tobytes()).hexdigest(),
        "shape": asdict(settings.shape) | {"from_scratch": settings.from_scratch},
        "from_draft": settings.from_draft and bundle.sha256_of(settings.from_draft / "id_map.npy"),
        "precision": settings.precision,
        "texts": len(texts.texts),
        "earlier_stages": settings.earlier.tokens or None,
    }


def _plain_reader(
    target: Bundle, held_out: Texts, inverse: NDArray[np.int64], readable: NDArray[np.bool_]
) -> PlainReader:
    """Reads any text as the target does. The prompts of held-out texts are left out of it."""
    tokenizer, ends = Tokenizer(target.hashed(target.manifest.tokenizer)), target.manifest.generation.eos_token_ids
    return PlainReader(
        encode=lambda text: tokenizer.encode(text, raw=True),
        unseen=[tokenizer.decode(held_out.prompt(text).tolist()) for text in held_out.texts],
        end=ends[0] if ends else None,
        tokenizer=target.manifest.tokenizer.sha256,
        inverse=inverse,
        readable=readable,
    )


@contextmanager
def _keeping(
    draft: PreTrainedModel, id_map: NDArray[np.int32], folder: Path, accelerator: Accelerator
) -> Iterator[None]:
    """Saves the draft of the last good step if training ends in no number."""
    try:
        yield
    except Diverged as error:
        if accelerator.is_main_process and error.kept:
            save_draft(draft, id_map, folder / "draft")
        raise


def check(settings: StageSettings) -> None:
    """Raises SettingError or SourceError for an unusable target or shape, before hours go into a corpus."""
    if settings.corpus != settings.folder / "corpus":
        shards.require_shards(settings.corpus)
    config = convert.read_config(_source_of_layers(settings))
    with torch.device("meta"):
        draft = build(config, settings.shape, settings.vocabulary, seed=0)
    if not hasattr(draft, "model") or not all(hasattr(draft.model, part) for part in ("layers", "norm")):
        raise SettingError("a draft of this architecture cannot be trained yet", got=config.model_type)
    if settings.from_draft is not None:
        check_earlier(settings.from_draft, draft.config)


def check_donor(settings: StageSettings, target: Bundle) -> None:
    """Raises IncompatiblePair unless the model that gives the layers has the target's vocabulary."""
    if settings.layers_from is None:
        return
    check_vocabulary(source_of(settings.donor), target)


def _source_of_layers(settings: StageSettings) -> models.Source:
    hint = "name a model of the same vocabulary whose layers the draft begins with: --layers-from SOURCE"
    return checkpoint_of(settings.target, settings.layers_from, "layers", hint)


def _initialise(
    settings: StageSettings, id_map: NDArray[np.int32], texts: Texts, accelerator: Accelerator, say: Say
) -> PreTrainedModel:
    """The draft before training: with the target's layers and a fitted head, or random."""
    source = source_of(settings.donor)
    config = convert.read_config(source)
    draft: Any = build(config, settings.shape, len(id_map), seed=settings.recipe.seed)
    if settings.from_scratch or has_checkpoint(settings.folder) or settings.earlier.begun(settings.folder):
        return draft  # type: ignore[no-any-return]
    target = convert.load(source, Weights("f32"), config)
    initialise_from(draft, target, settings.shape, id_map)
    draft.to(accelerator.device)
    share = fit_head(draft, target, texts, rows=min(20_000, texts.answer_tokens))
    say(f"output head fitted to layer {settings.shape.layers[-1]} of {source.name}: {share:.2f} of its squares")
    if settings.from_draft is not None:
        earlier = AutoModelForCausalLM.from_pretrained(settings.from_draft, dtype=torch.float32)
        taken = take_over(draft, id_map, earlier.to(accelerator.device), np.load(settings.from_draft / "id_map.npy"))
        say(f"goes on from {settings.from_draft.name}: {taken} of its ids")
    return draft  # type: ignore[no-any-return]
