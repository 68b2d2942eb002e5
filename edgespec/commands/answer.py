"""Shows an answer: its text or one JSON object on stdout, and a summary of one line on stderr."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from edgespec.commands import screen
from edgespec.errors import printable
from edgespec.machine.plans import ENGINES

if TYPE_CHECKING:
    from edgespec.generation import Generation, Stream

STOPPED = 130
"""exit status after Ctrl-C"""


def show(stream: Stream, *, as_json: bool) -> Generation:
    """Read a stream to its end, and show it meanwhile, or as JSON afterwards."""
    try:
        for piece in stream:
            if not as_json:
                screen.write(piece)
    except KeyboardInterrupt:
        stream.close()
        if not as_json:
            screen.write("\n")
        click.echo("[stopped]", err=True)
        click.echo(summary(stream.result), err=True)
        sys.exit(STOPPED)
    result = stream.result
    if as_json:
        figures = result.as_dict() | {"versions": _versions()}
        screen.write(json.dumps(figures, ensure_ascii=False))
    screen.write("\n")
    click.echo(summary(result), err=True)
    return result


def summary(result: Generation) -> str:
    """One line: how many tokens, how fast, and with what."""
    stats = result.stats
    parts = [f"{len(result.token_ids)} tokens"]
    if result.decode_tok_per_s:
        parts.append(f"{result.decode_tok_per_s:.1f} tok/s")
    parts.append(f"first token {result.ttft_s or 0:.2f} s")
    if stats.acceptance_rate is not None:
        parts.append(f"{result.drafter} drafts accepted {stats.acceptance_rate:.0%}")
        parts.append(f"{stats.block_efficiency:.2f} tokens per forward")
    else:
        parts.append("no drafts" if result.drafter == "none" else f"{result.drafter} had nothing to propose")
    if result.finish_reason == "length":
        parts.append(f"cut short by {limit(result)}")
    if stats.forced:
        parts.append(f"forced by the format: {stats.forced}")
    engine = ENGINES.get(result.backend, result.backend)
    parts.append(f"{result.numerics} in {result.compute_precision} on {result.devices['target']} with {engine}")
    if stats.schedule == "overlapped":
        parts.append("overlapped")
    if result.verification == "rejection":
        parts.append("rejection")
    if result.seed is not None:
        parts.append(f"seed {result.seed}")
    return printable(f"[{result.model}: {' · '.join(parts)}]")


def limit(result: Generation) -> str:
    """What cut a text short, if its reason is "length"."""
    return "--max-new-tokens" if len(result.token_ids) == result.max_new_tokens else "the context"


def _versions() -> dict[str, str]:
    from importlib.metadata import version
    from platform import python_version

    from edgespec.machine.engine_choice import packages

    found = {name: version(name) for name in ("edgespec", "openvino", "tokenizers", "numpy")}
    return {"python": python_version(), **found, **packages()}
