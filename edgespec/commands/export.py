"""``edgespec export``: writes a target and its draft into a bundle. The work is in the edgespec_export package."""

from __future__ import annotations

from pathlib import Path

import click

from edgespec.console import note
from edgespec.errors import SettingError

WEIGHTS = ("int8", "int4", "f16", "f32")
FORMATS = ("openvino", "onnx", "both")


@click.command(name="export")
@click.argument("source")
@click.option("--draft", metavar="SOURCE", help="Model that proposes; must have the target's tokenizer.")
@click.option("-o", "--output", metavar="DIR", required=True, type=click.Path(path_type=Path), help="Folder to make.")
@click.option("--weights", type=click.Choice(WEIGHTS), help="How weights are kept.  [default: int8]")
@click.option("--draft-weights", type=click.Choice(WEIGHTS), help="The same for the draft.  [default: as --weights]")
@click.option("--group-size", type=int, metavar="N", help="int4: weights that share a scale; -1 is a whole channel.")
@click.option("--sym", is_flag=True, help="int8, int4: no zero points. Faster on some devices, less exact.")
@click.option("--ratio", type=float, metavar="R", help="int4: share of the weights in int4, the rest in int8.")
@click.option(
    "--format",
    "output_format",
    type=click.Choice(FORMATS),
    default="openvino",
    show_default=True,
    help="For which engine. ONNX then runs with nothing to write first; both share most weights.",
)
@click.option(
    "--adaptive-token",
    "adaptive_tokens",
    type=int,
    multiple=True,
    metavar="ID",
    help="Placeholder that SOURCE was trained to guess at (SDSAT). One for all places, or one for each.",
)
@click.option("--adaptive-count", type=int, metavar="N", help="How many of them follow a token.")
@click.option("--aot", is_flag=True, help="Compile the models for the NPU of this machine too, into the bundle.")
@click.option("--trust-remote-code", is_flag=True, help="Run Python code that comes with SOURCE.")
@click.option("--force", is_flag=True, help="Replace the bundle at DIR.")
@click.option("--verbose", is_flag=True, help="Show what the conversion libraries print.")
def command(
    source: str,
    draft: str | None,
    output: Path,
    weights: str | None,
    draft_weights: str | None,
    group_size: int | None,
    sym: bool,
    ratio: float | None,
    output_format: str,
    adaptive_tokens: tuple[int, ...],
    adaptive_count: int | None,
    aot: bool,
    trust_remote_code: bool,
    force: bool,
    verbose: bool,
) -> None:
    """Convert a model, and a draft for it, into a bundle.

    SOURCE is a transformers folder, a .gguf file, or OWNER/NAME[@REVISION] on the Hugging Face hub. Prints the
    bundle's path. The result is compared with the original on a page of text; the figures go into bundle.json.

    With --draft and the folder of a trained draft, SOURCE is a bundle too: the draft is added to a copy of it.

    With --adaptive-token the target drafts for itself: edgespec run -m DIR --draft adaptive "...", or
    --draft adaptive-one-forward.

    With --format onnx or both, SOURCE may be a bundle: its models get the ONNX form, in a new bundle.

    \b
    edgespec export ./SmolLM2-1.7B-Instruct --draft ./SmolLM2-135M-Instruct -o pair --weights int4
    edgespec export ./pair -o pair-for-both --format both
    """
    from edgespec.machine import ahead_of_time
    from edgespec_export import Request, export, is_bundle, split_weights

    if aot:
        ahead_of_time.require_npu()
    if is_bundle(source):
        _require_no_weights(weights or draft_weights, group_size or sym or ratio is not None)
        if adaptive_tokens:
            raise SettingError("--adaptive-token of a bundle", got=source, hint="export the original model with it")
    own, draft_own = split_weights(
        weights or "int8", draft_weights, has_draft=draft is not None, group_size=group_size, sym=sym, ratio=ratio
    )
    request = Request(
        target=source,
        draft=draft,
        out=output,
        weights=own,
        draft_weights=draft_own,
        format=output_format,
        adaptive_tokens=adaptive_tokens,
        adaptive_count=adaptive_count,
        trust_remote_code=trust_remote_code,
        force=force,
        verbose=verbose,
    )
    folder = export(request, note)
    if aot:
        ahead_of_time.write_blobs(folder, note)
    click.echo(folder)


def _require_no_weights(kind: str | None, how: bool | int) -> None:
    """Of a bundle. kind: of weights. how: whether there is an option that says how to make them."""
    if kind or how:
        got = kind or "--group-size, --sym or --ratio"
        raise SettingError("the models of a bundle keep their weights", got=got, hint="export the original model")
