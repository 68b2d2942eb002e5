"""What no key of a GGUF file says of an architecture: llama.cpp, too, tells it by the architecture's name."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Architecture:
    """in_pairs: rows of queries and keys are stored with what is rotated together side by side. fused: queries, keys
    and values are one tensor, and so are gate and up. partial: the first numbers of a head alone may be rotated.

    head_norms: of queries and keys. post_norms: of what attention and feed-forward give, before it is added.
    gelu: the activation function, approximated with tanh; else it is SiLU. root_scale: embeddings are multiplied with
    the root of their size.

    windows: some layers see the newest tokens only, as many as a key says, or usual_window. In each ``period`` layers
    the last one sees all; none does where the period is 0. unrotated: every so many layers one knows no positions.
    """

    in_pairs: bool = False
    fused: bool = False
    partial: bool = False
    head_norms: bool = False
    post_norms: bool = False
    gelu: bool = False
    root_scale: bool = False
    windows: bool = False
    usual_window: int | None = 0
    period: int = 0
    unrotated: int = 0


ARCHITECTURES = {
    "llama": Architecture(in_pairs=True, windows=True),
    "qwen2": Architecture(),
    "qwen3": Architecture(head_norms=True),
    "granite": Architecture(in_pairs=True),
    "smollm3": Architecture(in_pairs=True, unrotated=4),
    "phi3": Architecture(fused=True, partial=True, windows=True),
    "gemma2": Architecture(post_norms=True, gelu=True, root_scale=True, windows=True, usual_window=4096, period=2),
    "gemma3": Architecture(
        head_norms=True, post_norms=True, gelu=True, root_scale=True, windows=True, usual_window=None, period=6
    ),
}
"""llama is Mistral, too, whose layers all have a window where the file says so"""
