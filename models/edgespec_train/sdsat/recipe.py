"""``edgespec train sdsat TARGET``: all stages in one folder. An interrupted stage resumes.

target/       the target as a bundle, if it had to be exported
corpus/       shards of text by the target, unless a corpus was named
checkpoint/   the placeholders in training
curve.json    the learning curve (curve.png beside it)
held_out.json what held-out texts say in the end, at 0 to 13 guesses and by source
bundle/       the target with its placeholders, ready to run
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import torch
from accelerate import Accelerator, PartialState

from edgespec import bundle
from edgespec.bundle import IR_FILE, Bundle
from edgespec.errors import SettingError
from edgespec.machine.devices import machine
from edgespec.manifest import Adaptive, adaptive_drafters
from edgespec_export import staging
from edgespec_train import loop
from edgespec_train.corpus import shards
from edgespec_train.corpus.build import identity, record_of, require_target, write_json
from edgespec_train.corpus.paged_texts import graph_of
from edgespec_train.corpus.split import parted
from edgespec_train.corpus.texts import TargetTexts
from edgespec_train.plot import plot
from edgespec_train.progress import progress_bar
from edgespec_train.sdsat.check import compare
from edgespec_train.sdsat.graph import with_placeholders
from edgespec_train.sdsat.placeholders import GROUPS, Placeholders
from edgespec_train.sdsat.task import Guesses, Recipe, allowed_guesses, figures, require_long_answers
from edgespec_train.stages import corpus_of
from edgespec_train.target import target_bundle, torch_model

Say = Callable[[str], None]
NAME = "sdsat"


@dataclass(frozen=True)
class Settings:
    """corpus: folder of existing shards, else ``folder/corpus``, made by ``plan`` (see ``stages.corpus_of``)."""

    target: str
    folder: Path
    recipe: Recipe
    schedule: loop.Schedule
    corpus: Path | None = None
    precision: str = "f32"
    plan: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, target: str, folder: Path, options: dict[str, Any]) -> Settings:
        """From the options of the command line."""
        take = options.pop
        corpus, precision = take("corpus_folder"), take("precision")
        schedule = loop.Schedule(**{name: take(name) for name in list(options) if name in _fields(loop.Schedule)})
        groups = tuple(take("adapt").split(","))
        if unknown := [group for group in groups if group not in GROUPS]:
            raise SettingError("products to adapt", got=", ".join(unknown), allowed=", ".join(GROUPS))
        recipe = Recipe(groups=groups, **{name: take(name) for name in list(options) if name in _fields(Recipe)})
        return cls(target, folder, recipe, schedule, corpus, precision, options)


def _fields(kind: Any) -> Any:
    return kind.__dataclass_fields__


def make(settings: Settings, say: Say) -> Path:
    """Train and pack; returns the bundle's folder."""
    recipe, folder = settings.recipe, settings.folder
    if settings.corpus is not None:
        shards.require_shards(settings.corpus)
    model: Any = torch_model(settings.target)
    torch.manual_seed(settings.schedule.seed)
    count = recipe.count if recipe.separate else 1
    placeholders = Placeholders(model, count, rank=recipe.rank, groups=recipe.groups)
    with PartialState().main_process_first():  # the other processes find target and corpus
        pair = target_bundle(settings.target, folder, say)
        with TemporaryDirectory(prefix="edgespec-") as scratch:  # a graph that cannot have them is refused first
            with_placeholders(graph_of(pair), Path(scratch) / IR_FILE, placeholders)
        plan = dict(settings.plan)
        corpus = settings.corpus or corpus_of(pair, folder / "corpus", plan.pop("corpus_tokens"), say, **plan)
    require_target(corpus, pair)
    texts = TargetTexts(shards.shard_paths(corpus))
    texts.check_ids(pair.manifest.target.vocab_size)
    texts, held_out = parted(texts, pair, say, settings.plan.get("exclude", ()))
    greedy = [text for text in held_out.texts if held_out.temperature(text) == 0] or held_out.texts
    require_long_answers(held_out, greedy, recipe)
    task = Guesses(
        *(model, placeholders, texts, held_out, recipe, settings.schedule), bf16=settings.precision == "bf16"
    )
    millions = sum(parameter.numel() for parameter in placeholders.parameters()) / 1e6
    say(f"{recipe.count} placeholders, {millions:.2f} M trained numbers; the target's own stay as they are")
    say(f"training on {texts.answer_tokens} tokens by the target, {held_out.answer_tokens} held out")
    accelerator = Accelerator()
    model.to(accelerator.device)
    same = {"sdsat": asdict(recipe), "target": identity(pair), "precision": settings.precision}
    with progress_bar(settings.schedule.steps) as advance:
        curve = loop.run(
            *(task, settings.schedule, folder),
            say=lambda point: say(str(point)),
            same=same | {"texts": len(texts.texts)},
            advance=advance,
            accelerator=accelerator,
        )
    out = folder / "bundle"
    if not accelerator.is_main_process:
        return out
    write_json(folder / "curve.json", {"curve": [asdict(point) for point in curve]})
    plot(curve, folder / "curve.png")
    found = figures(model, placeholders, held_out, greedy, recipe)
    two, one = found["two_step"], found["one_forward"]
    say(f"tokens a forward at {found['k_places']} held-out places: {two:.2f} two-step, {one:.2f} one-forward")
    write_json(folder / "held_out.json", found)
    provenance = {
        "recipe": asdict(settings.schedule) | asdict(recipe),
        "corpus": record_of(corpus),
        "training": asdict(curve[-1]) if curve else {},
        "held_out": found,
        "machine": machine(),
    }
    text = held_out.tokens(max(greedy, key=held_out.length))
    return pack(pair, model.to("cpu"), placeholders.to("cpu"), recipe, out, provenance, text, say)


def pack(
    pair: Bundle,
    model: Any,
    placeholders: Placeholders,
    recipe: Recipe,
    out: Path,
    provenance: dict[str, Any],
    text: Any,
    say: Say,
) -> Path:
    """A bundle at ``out``: the target's own graph with placeholders. text: tokens on which the two are compared."""
    own, manifest = graph_of(pair), pair.manifest
    with staging.staged(out) as new:
        for file in filter(None, (manifest.tokenizer, manifest.chat_template)):
            shutil.copyfile(pair.path(file.file), new / file.file)
        first = with_placeholders(own, new / IR_FILE, placeholders)
        found = compare(own, new / IR_FILE, first, model, placeholders, text, recipe.count)
        difference = f"largest difference {found.standard_difference:.3g}"
        say(f"real tokens' logits: {difference}; guesses: {found.agreement:.2f} alike")
        ids = tuple(range(first, first + len(placeholders.embeddings)))
        adaptive = Adaptive(
            tokens=ids,
            count=allowed_guesses(recipe),
            rows=ids[-1] + 1 - manifest.target.vocab_size,
        )
        best = {one: int(provenance["held_out"]["one_forward_k" if one else "two_step_k"]) for one in (False, True)}
        target = bundle.model_file(
            new, IR_FILE, precision=manifest.target.precision, vocab_size=manifest.target.vocab_size
        )
        lookups = tuple(drafter for drafter in manifest.drafters if drafter.kind == "ngram")
        measured = manifest.measured | {"draft": provenance | {"compared": found.as_dict()}}
        bundle.write(
            new,
            msgspec.structs.replace(
                manifest,
                target=target,
                drafters=(*lookups, *adaptive_drafters(NAME, adaptive, best)),
                measured=measured,
            ),
        )
    return out
