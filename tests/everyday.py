"""What no drafter may change: chats that go on where they stood, streams that are dropped, stop strings, formats."""

from __future__ import annotations

from typing import Any

from edgespec.pipeline import Pipeline

PROMPT = "The lighthouse"


def check_everyday(plain: Pipeline, drafted: Pipeline, tokens: int) -> None:
    """plain: of the same target on the same engine, without drafts. tokens: of a text."""
    text: dict[str, Any] = {"max_new_tokens": tokens, "raw": True, "ignore_eos": True}
    messages = [{"role": "user", "content": PROMPT}]
    for question in ("leaned slowly", "towards the sea", ""):
        before, after = (pipeline.chat(messages, max_new_tokens=16, ignore_eos=True) for pipeline in (plain, drafted))
        assert before.token_ids == after.token_ids
        assert len(messages) == 1 or after.stats.reused_tokens > 0
        messages += [{"role": "assistant", "content": before.text}, {"role": "user", "content": question}]
    whole = plain.generate(PROMPT, **text)
    for pieces in (1, 3):
        stream = drafted.stream(PROMPT, **text)
        for _ in zip(range(pieces), stream, strict=False):
            pass
        stream.close()
        again = drafted.generate(PROMPT, **text)
        assert again.token_ids == whole.token_ids and again.stats.reused_tokens > 0
    assert again.stats.proposed > 0
    stop = whole.text[8:11]
    stopped, expected = (pipeline.generate(PROMPT, **text | {"stop": stop}) for pipeline in (drafted, plain))
    assert stopped.stop_string == stop and stopped.token_ids == expected.token_ids
    form: dict[str, Any] = {"max_new_tokens": 24, "response_format": {"type": "regex", "regex": "(ab|c[d-f]){4,9}"}}
    formed, expected = (pipeline.generate(PROMPT, **form) for pipeline in (drafted, plain))
    assert formed.token_ids == expected.token_ids and formed.stats.proposed > 0
