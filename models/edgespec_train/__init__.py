"""Training of draft models, and the measurements of their worth.

    corpus/      the texts
      sources        prompts: from the target itself, real code, real text
      generate       many texts at a time by the target, with its best log-probabilities at every token
      decontaminate  leaves out texts that share words with a benchmark
      build          writes all texts into shards on disk (shards), on any number of machines
      plain          real text and code, for the stages before alignment
      replay         completes a corpus: log-probabilities and hidden states of texts that are there
      layers         whose states are kept
      texts          reads shards back, and in which order; batches, states: for a draft, for a head
      split          what is held out, and what is not trained on because of that or of a benchmark
    target       the target as a bundle, and as a checkpoint that torch reads
    draft_model  the draft: shape, trimmed vocabulary, weights of the target
    initialise   the output head fitted to the layers that were copied
    loop         training of any recipe: schedule, checkpoint, learning curve; judging, what held-out text says
    pretrain     stages before alignment, for a draft from scratch
    trainer      the task of a small draft; losses
    heads        what the recipes of heads share: corpus, states, ids, a run of the loop; ship_head, the packed draft
    pack         OpenVINO IR and bundle; narrow, its embeddings in 4 bits
    ship         a draft as a folder of its own
    stages       runs all of the above in order, in one folder
    evaluate     acceptance, block efficiency and speed-up by category (needs no torch)
    table        several drafters of a target on the same texts, as models/README.md has them
    latency      time of a step on this machine, by shape

See models/README.md for the recipe of the draft that ships.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgespec.errors import SettingError
from edgespec_export import quiet

if TYPE_CHECKING:
    from edgespec.bundle import Bundle
    from edgespec_train.latency import Recipe, Timed

Say = Callable[[str], None]
_EXPORT = ("torch", "transformers", "optimum.intel", "nncf")


def write_corpus(
    target: str,
    folder: Path,
    say: Say,
    *,
    corpus_tokens: int,
    ray: bool,
    keep: dict[str, Any] | None = None,
    **plan: Any,
) -> Path:
    """Generate ``corpus_tokens`` tokens with ``target``, in shards in ``folder/corpus``; returns that folder.

    keep: hidden states in ``folder/states`` too, of ``layers``, as the command line has them, and of the texts that the
    rest of it chooses, for ``replay.Choice``.
    """
    _check_installed(*_EXPORT, *(["ray"] if ray else []))
    with quiet.libraries(verbose=False):
        from edgespec_train import stages
        from edgespec_train.target import target_bundle

        pair = target_bundle(target, folder, say)
        keeper = None
        if keep is not None:
            from edgespec_train.corpus.replay import Choice, Keeper, replay

            layers = _layers(pair, keep.pop("layers"))
            if not layers:
                raise SettingError("--states keeps those of some layers: --layers", got="none")
            keeper = Keeper.of(
                *(folder / "states", pair, layers, Choice(**keep)), corpus=folder / "corpus", tokens=corpus_tokens
            )
        corpus = stages.corpus_of(pair, folder / "corpus", corpus_tokens, say, ray=ray, keep=keeper, **plan)
        if keeper:  # of shards that an earlier run made, or whose states were lost
            replay(corpus, pair, keeper.folder, say, layers=keeper.layers, choice=keeper.choice)
        return corpus


def replay_corpus(target: str, corpus: Path, folder: Path, say: Say, layers: str | None, **choice: Any) -> Path:
    """Let ``target`` read a corpus once more, into ``folder``, which is returned.

    layers: whose states are kept, as the command line has them; None: ``layers.usual_layers``. choice: of
    ``replay.Choice``.
    """
    from edgespec.hub.resolve import resolve
    from edgespec_train.corpus.replay import Choice, replay

    pair = resolve(target)
    return replay(corpus, pair, folder, say, layers=_layers(pair, layers), choice=Choice(**choice))


def _layers(target: Bundle, text: str | None) -> tuple[int, ...]:
    """Of an option. Raises SettingError for layers that the target does not have."""
    from edgespec.backends.openvino.graph import decoder_layers
    from edgespec.backends.openvino.runtime import ov
    from edgespec_train.corpus.layers import check_layers, layers_in, usual_layers
    from edgespec_train.corpus.paged_texts import graph_of

    if text == "none":
        return ()
    depth, _ = decoder_layers(ov.Core(), graph_of(target))
    chosen = layers_in(text) or usual_layers(depth)
    check_layers(chosen, depth)
    return chosen


def train_fastdraft(target: str, folder: Path, say: Say, plan: dict[str, Any], options: dict[str, Any]) -> Path:
    """Train a draft for ``target``; returns the folder of the bundle with both.

    plan: arguments of ``write_corpus``, unused if ``options`` names a corpus.
    options: those of ``stages.StageSettings.of``.
    """
    _check_installed(*_EXPORT, "accelerate", "matplotlib", *(["ray"] if plan["ray"] else []))
    with quiet.libraries(verbose=False):
        from accelerate import PartialState

        from edgespec_train import stages
        from edgespec_train.target import target_bundle

        settings = stages.StageSettings.of(
            target, folder, options | {name: tuple(plan[name]) for name in ("folders", "exclude")}
        )
        stages.check(settings)
        with PartialState().main_process_first():  # the other processes find target and corpus
            pair = target_bundle(target, folder, say)
            stages.check_donor(settings, pair)
            if settings.corpus == folder / "corpus":
                stages.corpus_of(pair, settings.corpus, plan.pop("corpus_tokens"), say, **plan)
            stages.completed(settings, pair, say)
        return stages.make_draft(settings, pair, say)


def train_head(recipe: str, target: str, folder: Path, say: Say, options: dict[str, Any]) -> Path:
    """Train a head for ``target`` by a recipe, and return the folder it packed.

    recipe: a package here with a module ``recipe``, which has ``make(settings, schedule, options, say)``. options:
    those of ``heads.HeadSettings.of``, and the recipe's own.
    """
    _check_installed(*_EXPORT, "accelerate", "matplotlib", *(["ray"] if options["ray"] else []))
    with quiet.libraries(verbose=False):
        from edgespec_train.heads import HeadSettings

        settings, schedule = HeadSettings.of(target, folder, options)
        made: Path = import_module(f"edgespec_train.{recipe}.recipe").make(settings, schedule, options, say)
        return made


def train_sdsat(target: str, folder: Path, say: Say, options: dict[str, Any]) -> Path:
    """Train adaptive tokens for ``target``; returns the bundle's folder.

    options: those of ``sdsat.recipe.Settings.of``.
    """
    _check_installed(*_EXPORT, "accelerate", "matplotlib", *(["ray"] if options["ray"] else []))
    with quiet.libraries(verbose=False):
        from edgespec_train.sdsat import recipe

        folder.mkdir(parents=True, exist_ok=True)
        return recipe.make(recipe.Settings.of(target, folder, options), say)


def pack_draft(packing: dict[str, Any], say: Say) -> Path:
    """Pack a trained draft as a folder of its own. packing: arguments of ``ship.Packing``."""
    _check_installed(*_EXPORT)
    with quiet.libraries(verbose=False):
        from edgespec_train import ship

        return ship.pack(ship.Packing(out=packing.pop("output"), **packing), say)


def sweep(target: str, rounds: int, recipe: Recipe) -> Iterator[Timed]:
    """Time draft shapes of a recipe against ``target``: a known name or a bundle."""
    _check_installed(*_EXPORT)
    with quiet.libraries(verbose=False):
        from edgespec_train import latency

        yield from latency.sweep_for(target, rounds, recipe)


def _check_installed(*names: str) -> None:
    missing = []
    for name in names:
        try:
            if find_spec(name) is None:
                missing.append(name)
        except (ModuleNotFoundError, ValueError):
            missing.append(name)
    if missing:
        raise SettingError(
            f"training needs packages that are not installed: {', '.join(missing)}",
            hint='install them: pip install "edgespec[train]" (--ray: train-ray); in a clone: pip install ".[train]"',
        )
