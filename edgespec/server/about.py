"""What is known of a model, loaded or not: its context, its template, its tokens. No weights are read."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field, replace

from edgespec.bundle import Bundle
from edgespec.errors import EdgespecError
from edgespec.hub.unloaded import Texts, converted, texts_of_file
from edgespec.pipeline import Pipeline
from edgespec.text.fim import format_for
from edgespec.text.tokenizer import Tokenizer
from edgespec.types import GGUFWeights


@dataclass(frozen=True, kw_only=True)
class About:
    """template: "" where it has none. ends: the tokens that end a text. fills: whether it reads the text behind a
    hole. precision: of its weights; "" for a file that was not converted yet."""

    context_length: int
    vocab_size: int
    template: str
    ends: tuple[str, ...]
    fills: bool
    precision: str = field(default="", compare=False)


def of_loaded(pipeline: Pipeline) -> About:
    return About(
        context_length=pipeline.target.cache.capacity,
        vocab_size=pipeline.target.vocab_size,
        template=pipeline.template.source if pipeline.template else "",
        ends=tuple(map(pipeline.tokenizer.engine.id_to_token, sorted(pipeline.stop_ids))),
        fills=pipeline.fills_holes,
        precision=pipeline.bundle.manifest.target.precision,
    )


def of_files(ref: str, *, weights: GGUFWeights | None = None, context_length: int | None = None) -> About | None:
    """Of a model that is not loaded. None: it is not here, or something is wrong with it, which a load will say.

    weights, context_length: as ``load`` will be told.
    """
    with suppress(EdgespecError):
        if found := converted(ref, weights):
            about = _of_bundle(found)
        elif texts := texts_of_file(ref):
            about = _of_texts(texts)
        else:
            return None
        return replace(about, context_length=context_length or about.context_length)
    return None


def context_of(ref: str, *, weights: GGUFWeights | None = None, context_length: int | None = None) -> int | None:
    """The same of its context alone, for a list of models. None also for a file that was not converted yet: its header
    takes a while to read."""
    if context_length is not None:
        return context_length
    with suppress(EdgespecError):
        if found := converted(ref, weights):
            return found.manifest.generation.context_length
    return None


def _of_bundle(found: Bundle) -> About:
    engine = Tokenizer(found.hashed(found.manifest.tokenizer)).engine
    generation = found.manifest.generation
    return About(
        context_length=generation.context_length,
        vocab_size=found.manifest.target.vocab_size,
        template=found.chat_template() or "",
        ends=tuple(map(engine.id_to_token, sorted(generation.eos_token_ids))),
        fills=format_for(engine.token_to_id).fills,
        precision=found.manifest.target.precision,
    )


def _of_texts(found: Texts) -> About:
    ids = {token: index for index, token in enumerate(found.tokens)}
    return About(
        context_length=found.generation.context_length,
        vocab_size=found.vocab_size,
        template=found.template,
        ends=tuple(found.tokens[each] for each in sorted(found.generation.eos_token_ids)),
        fills=format_for(ids.get).fills,
    )
