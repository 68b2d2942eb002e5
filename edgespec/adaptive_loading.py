"""Adaptive tokens of a pair (SDSAT): which drafter of the manifest is meant, checked and constructed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgespec.bundle import Bundle
from edgespec.bundle import Drafter as DrafterEntry
from edgespec.drafters.adaptive_tokens import AdaptiveTokens
from edgespec.errors import SettingError
from edgespec.text.placeholder_ids import require_placeholders
from edgespec.text.tokenizer import Tokenizer
from edgespec.text.vocabulary import Vocabulary

if TYPE_CHECKING:
    from edgespec.backends.engine_model import PaddedModel


def named(pair: Bundle, draft: str | None) -> DrafterEntry | None:
    """The entry that ``draft`` means. ``auto`` never means one: the arbiter does not know yet what a round's
    placeholders are worth to the next one."""
    entries = (entry for entry in pair.manifest.drafters if entry.adaptive is not None)
    return next((entry for entry in entries if draft is not None and entry.is_called(draft)), None)


def length(entry: DrafterEntry, asked: int | None) -> int:
    """Tokens that are drafted a round."""
    assert entry.adaptive is not None
    most = entry.adaptive.count
    found = asked if asked is not None else entry.num_draft_tokens if entry.num_draft_tokens is not None else most
    if not 0 <= found <= most:
        raise SettingError(
            f"number of draft tokens of {entry.name}", got=found, allowed=f"0 to {most}", setting="num_draft_tokens"
        )
    return found


def drafter(entry: DrafterEntry, pair: Bundle, target: PaddedModel) -> AdaptiveTokens:
    """Raises SettingError for placeholders that the tokenizer uses or the model does not read."""
    assert entry.adaptive is not None
    manifest, own = pair.manifest, entry.adaptive
    tokenizer = Tokenizer(pair.hashed(manifest.tokenizer))
    vocabulary = Vocabulary.of(tokenizer.engine, pair.name, manifest.target.vocab_size)
    require_placeholders(own.tokens, own.count, vocabulary, rows=own.rows, ends=manifest.generation.eos_token_ids)
    return AdaptiveTokens(
        own.tokens,
        target.vocab_size,
        count=own.count,
        one_forward=own.one_forward,
        least=target.min_width,
        step=target.width_step,
        name=entry.name,
    )
