"""What the recipes of heads share: the target, its text, the states of it, the ids of the head, and a run of the loop.

A recipe says how its head is made, a loss of it, and how it is packed; see ``loop.Task``. All work is in one folder:

target/       the target as a bundle, if it had to be exported
corpus/       shards of text by the target, unless a corpus was named
states/       hidden states of the corpus, unless they were named
checkpoint/   the head in training
curve.json    the learning curve (curve.png beside it)
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from numpy.typing import NDArray

from edgespec.backends.openvino.graph import decoder_layers
from edgespec.backends.openvino.runtime import ov
from edgespec.bundle import Bundle
from edgespec.commands.training_options import PLAN
from edgespec.errors import SettingError
from edgespec_export import convert
from edgespec_train import loop
from edgespec_train.checkpoint import has_checkpoint
from edgespec_train.corpus.build import identity, read_manifest, record_of, same_weights, write_json
from edgespec_train.corpus.layers import check_layers, layers_in, usual_layers
from edgespec_train.corpus.paged_texts import graph_of
from edgespec_train.corpus.replay import MANIFEST as STATES
from edgespec_train.corpus.replay import Choice, Keeper, replay
from edgespec_train.corpus.split import parted, require_both
from edgespec_train.corpus.states import States
from edgespec_train.draft_model import choose_vocabulary
from edgespec_train.loop import Point, Schedule, Task
from edgespec_train.plot import plot
from edgespec_train.progress import progress_bar
from edgespec_train.ship_head import HeadKind, TrainedHead, pack_head
from edgespec_train.stages import corpus_of
from edgespec_train.started import Start
from edgespec_train.target import check_vocabulary, checkpoint_of, target_bundle

Say = Callable[[str], None]
B = TypeVar("B")


@dataclass(frozen=True)
class HeadSettings:
    """The settings that all heads have. layers: of the target, whose states the head reads; (): ``usual_layers``.
    vocabulary: how many ids it can propose. corpus, states: folders that are there already. plan: of a corpus to be
    made, see ``stages.corpus_of``. target_names: how other files of the target are called. from_draft: of
    a run whose head this one begins with; start: that, as ``prepared`` finds it."""

    target: str
    folder: Path
    layers: tuple[int, ...]
    vocabulary: int
    corpus: Path | None = None
    states: Path | None = None
    choice: Choice = field(default_factory=Choice)
    precision: str = "f32"
    plan: dict[str, Any] = field(default_factory=dict)
    target_names: tuple[str, ...] = ()
    from_draft: Path | None = None
    start: Start | None = None

    @classmethod
    def of(cls, target: str, folder: Path, options: dict[str, Any]) -> tuple[HeadSettings, Schedule]:
        """From the options of the command line, which it takes out of ``options``: those left are the recipe's own."""
        take = options.pop
        layers = layers_in(take("layers"))
        choice = Choice(*(take(name) for name in ("longest", "prompt_share", "state_tokens")))
        corpus, states = take("corpus_folder"), take("states_folder")
        plan = {name: take(name) for name in PLAN}
        vocabulary, precision, names = take("vocabulary"), take("precision"), take("target_names")
        start = take("from_draft")
        schedule = Schedule(**{name: take(name) for name in list(options) if name in Schedule.__dataclass_fields__})
        known = target, folder, layers, vocabulary, corpus, states, choice, precision, plan, names, start
        return cls(*known), schedule


@dataclass(frozen=True)
class Ground:
    """What a head is made and trained from. id_map: the target id of each head id, ascending; behind them UNKNOWN, for
    all others, unless the head has every id."""

    target: Bundle
    states: States
    held_out: States
    id_map: NDArray[np.int32]
    accelerator: Accelerator


def prepared(settings: HeadSettings, embeddings: str | None, say: Say, *, reads: bool) -> tuple[HeadSettings, Bundle]:
    """The settings with their layers, and the target. Raises SettingError and others for what does not fit it, before
    hours go into a corpus.

    embeddings: the checkpoint of ``--embeddings-from``. reads: whether the head begins with weights of it.
    """
    settings.folder.mkdir(parents=True, exist_ok=True)
    with PartialState().main_process_first():  # the other processes find it
        target = target_bundle(settings.target, settings.folder, say)
    depth, width = decoder_layers(ov.Core(), graph_of(target))
    start = None
    if settings.from_draft is not None:
        start = Start.of(settings.from_draft, target, settings.folder)
    layers = settings.layers or (start and start.layers) or usual_layers(depth)
    if start and layers != start.layers:
        raise SettingError(
            "--from-draft reads other layers", got=start.layers, allowed=layers, hint="leave out --layers"
        )
    check_layers(layers, depth)
    if layers[-1] != depth:
        raise SettingError(
            "the last layer whose states a head reads", got=layers[-1], allowed=f"{depth}, the final one"
        )
    if reads and not has_checkpoint(settings.folder):
        hint = "name a checkpoint of it: --embeddings-from SOURCE"
        source = checkpoint_of(settings.target, embeddings, "embeddings", hint)
        found = getattr(convert.read_config(source), "hidden_size", width)
        if found != width:
            raise SettingError(f"the embeddings of {source.name} are of another width", got=found, allowed=width)
        check_vocabulary(source, target)
    return replace(settings, layers=layers, start=start), target


def ground(settings: HeadSettings, target: Bundle, say: Say) -> Ground:
    """Make what is not there yet. Raises SettingError and others for what cannot be trained on."""
    with PartialState().main_process_first():  # the other processes find all of it
        states = settings.states or _replayed(settings, target, say)
        read = States(states, settings.layers)
    vocab_size = target.manifest.target.vocab_size
    read.check_ids(vocab_size)
    if not same_weights(read.target, identity(target)):
        raise SettingError("the states are another target's", got=read.target, allowed=identity(target))
    ends = target.manifest.generation.eos_token_ids
    rest, held_out = parted(read, target, say, settings.plan.get("exclude", ()))
    if settings.start:
        id_map = settings.start.id_map
    else:
        id_map = choose_vocabulary(rest.token_counts(vocab_size), settings.vocabulary, always=ends)
    for part in (rest, held_out):  # an answer of one token has nothing to draft behind it
        part.texts = [text for text in part.texts if part.length(text) > part.answer(text) + 1]
    require_both(rest, held_out)
    say(f"training on {rest.answer_tokens} tokens by the target, {held_out.answer_tokens} held out, {len(id_map)} ids")
    precision = "bf16" if settings.precision == "bf16" else "no"
    return Ground(target, rest, held_out, id_map, Accelerator(mixed_precision=precision))


def begins(head: torch.nn.Module, settings: HeadSettings, say: Say) -> bool:
    """Whether the head has weights to begin with: a checkpoint's, or now those of ``--from-draft``."""
    if has_checkpoint(settings.folder):
        return True
    if settings.start is None:
        return False
    settings.start.load(head)
    say(f"begins with the head of {settings.from_draft}")
    return True


def trained(
    task: Task[B], schedule: Schedule, settings: HeadSettings, on: Ground, say: Say, same: dict[str, Any]
) -> list[Point]:
    """Run the loop, and write the learning curve. same: what else must be equal to go on."""
    digest = hashlib.sha256(on.id_map.tobytes()).hexdigest()
    own: dict[str, Any] = {
        "target": identity(on.target).rpartition(" ")[2],
        "layers": settings.layers,
        "vocabulary": digest,
    }
    own |= {"precision": settings.precision, "texts": len(on.states.texts)}
    own["from_draft"] = settings.start and settings.start.sha256
    with progress_bar(schedule.steps) as advance:
        curve = loop.run(
            *(task, schedule, settings.folder),
            say=lambda point: say(str(point)),
            same=own | same,
            advance=advance,
            accelerator=on.accelerator,
        )
    if on.accelerator.is_main_process:
        write_json(settings.folder / "curve.json", {"curve": [asdict(point) for point in curve]})
        plot(curve, settings.folder / "curve.png")
    return curve


def packed(
    kind: HeadKind,
    ids: NDArray[np.int32],
    options: Any,
    write: Callable[[Path], None],
    *,
    settings: HeadSettings,
    schedule: Schedule,
    on: Ground,
    curve: Sequence[Point],
    trees: bool = False,
) -> Path:
    """The folder of the packed draft, which the main process writes. options: of the recipe, a dataclass with
    ``weights``. ids, write, trees: see ``TrainedHead``."""
    out = settings.folder / "draft"
    if not on.accelerator.is_main_process:
        return out
    recipe = asdict(schedule) | asdict(options) | {"layers": settings.layers}
    if source := recipe.get("embeddings_from"):  # the folder is this machine's, and the draft goes to others
        recipe["embeddings_from"] = Path(source).name
    measured = {
        "recipe": recipe,
        "corpus": {"texts": len(on.states.texts), "answer_tokens": on.states.answer_tokens, "of": _corpus(settings)},
        "training": asdict(curve[-1]) if curve else {},
    }
    if settings.start:
        measured["before"] = settings.start.measured
    head = TrainedHead(kind, ids, settings.layers, write, options.weights, measured, trees)
    return pack_head(head, on.target, settings.target, out, settings.target_names)


def _corpus(settings: HeadSettings) -> dict[str, Any]:
    """What is known of the corpus: states say it, or it lies beside them."""
    states = settings.states or settings.folder / "states"
    told: dict[str, Any] = read_manifest(states, STATES).get("corpus", {})
    return told or record_of(settings.corpus or states.with_name("corpus"))


def right_ahead(places: Sequence[int], right: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    """``right`` of a batch's places, one array a text; places: how many each text has."""
    return np.split(right, np.cumsum(places)[:-1])


def _replayed(settings: HeadSettings, target: Bundle, say: Say) -> Path:
    corpus = settings.corpus
    out = settings.folder / "states"
    if corpus is None:
        corpus, plan = settings.folder / "corpus", dict(settings.plan)
        tokens = plan.pop("corpus_tokens")
        keep = None
        if settings.choice.tokens is None:
            keep = Keeper.of(out, target, settings.layers, settings.choice, corpus=corpus, tokens=tokens)
        corpus_of(target, corpus, tokens, say, keep=keep, **plan)
    return replay(corpus, target, out, say, layers=settings.layers, choice=settings.choice)
