"""The commands of ``edgespec bench`` that are not for every user: they hold the parts of the loop to account."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal, get_args

import click
from click.core import ParameterSource

from edgespec.commands.options import fetch_options, load_pair, model_options, sampling_from, sampling_options
from edgespec.console import command_line
from edgespec.errors import SettingError
from edgespec.protocols import Model
from edgespec.types import Backend

_PATH = click.Path(path_type=Path)


@click.group(name="bench")
def command() -> None:
    """Measure the loop on this machine."""


@command.command()
@model_options
@fetch_options
@click.option("--pairs", type=click.IntRange(1), default=3, show_default=True, help="Interleaved repetitions.")
@click.option("--new-tokens", type=click.IntRange(1), default=96, show_default=True)
@click.option("--per-category", type=click.IntRange(1), metavar="N", help="Take the first N prompts of each category.")
@click.option("--bandwidth", is_flag=True, help="Only say whether forwards are bound by memory or by arithmetic.")
def engine(pairs: int, new_tokens: int, per_category: int | None, bandwidth: bool, **options: Any) -> None:
    """Time of a forward by width and context, and how much slower the whole loop is than its fastest forwards."""
    from edgespec_bench.bandwidth import bench_bandwidth
    from edgespec_bench.engine import bench_engine

    if bandwidth:
        bench_bandwidth(load_pair(options), turns=pairs)
        return
    bench_engine(load_pair(options), pairs=pairs, new_tokens=new_tokens, per_category=per_category)


@command.command()
@model_options
@fetch_options
@click.option("--pairs", type=click.IntRange(1), default=7, show_default=True, help="Interleaved repetitions.")
@click.option("--new-tokens", type=click.IntRange(1), default=128, show_default=True)
def loop(pairs: int, new_tokens: int, **options: Any) -> None:
    """Time of the loop outside the engine, and plain decoding compared with a minimal loop."""
    from edgespec_bench.loop import bench_loop

    bench_loop(load_pair(options), pairs=pairs, new_tokens=new_tokens)


@command.command()
@click.option("--model", "-m", metavar="REF", default="default", show_default=True)
@fetch_options
@click.option("--backend", type=click.Choice(get_args(Backend)), help="Default: the faster one.")
@click.option("--numerics", type=click.Choice(["exact", "fast"]))
@click.option("--layers", required=True, multiple=True, metavar="N,...", help="Layers to return; may be repeated.")
@click.option("--pairs", type=click.IntRange(1), default=9, show_default=True, help="Interleaved repetitions.")
def states(layers: tuple[str, ...], pairs: int, **options: Any) -> None:
    """What a forward costs more if the target returns hidden states of some layers.

    The target is loaded without them, and beside it once for each --layers, and once more without as a control.
    """
    from edgespec.types import Needs
    from edgespec_bench.states import bench_states

    def load(chosen: tuple[int, ...]) -> Model:
        pipeline = load_pair(options | {"draft": "none", "num_draft_tokens": 0, "needs": Needs(chosen)})
        options["backend"] = pipeline.target.capabilities.backend
        return pipeline.target

    bench_states(load, [tuple(_numbers(text, "layers")) for text in layers], pairs=pairs)


@command.command()
@model_options
@fetch_options
@sampling_options
@click.option("--pairs", type=click.IntRange(1), default=3, show_default=True, help="Interleaved repetitions.")
@click.option("--prompts", type=click.Path(path_type=Path), metavar="FILE", help="Lines of JSON (kind, text).")
@click.option("--per-category", type=click.IntRange(1), metavar="N", help="Take the first N prompts of each category.")
@click.option("--context", type=click.IntRange(0), default=0, help="Tokens of other text to put before each prompt.")
@click.option("--lengths", default="", metavar="K,K,...", help="Fixed draft lengths to compare with.")
@click.option("--alone/--no-alone", default=True, show_default=True, help="Measure each drafter alone too.")
@click.option("--beside", multiple=True, metavar="REF", help="Another draft to compare with; may be repeated.")
def drafters(
    pairs: int,
    prompts: Path | None,
    per_category: int | None,
    context: int,
    lengths: str,
    alone: bool,
    beside: tuple[str, ...],
    **options: Any,
) -> None:
    """Compare each drafter alone with the arbiter, by category: its speed-up, and how often it is chosen."""
    from edgespec.bench.prompts import read
    from edgespec.pipeline import DEFAULT_NEW_TOKENS
    from edgespec_bench.drafters import bench_drafters

    chosen = read(prompts, per_category)
    sampling, new_tokens, load_options = sampling_from(options)
    if (k := load_options["num_draft_tokens"]) is not None:
        raise SettingError("this compares lengths with each other: -k", got=k, hint=f"name them: --lengths {k}")
    pipeline = load_pair(dict(load_options))
    load_options["backend"] = pipeline.target.capabilities.backend
    bench_drafters(
        pipeline,
        chosen,
        new_tokens=DEFAULT_NEW_TOKENS if new_tokens is None else new_tokens,
        pairs=pairs,
        context=context,
        lengths=_numbers(lengths, "lengths"),
        alone=alone,
        sampling=sampling,
        beside={name: load_pair({**load_options, "draft": name}) for name in beside},
    )


def _numbers(text: str, setting: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise SettingError(setting, got=text, allowed="numbers with commas, as 1,2,4", setting=setting) from error


@command.command()
@model_options
@fetch_options
@click.option("--pairs", type=click.IntRange(1), default=1, show_default=True, help="Interleaved repetitions.")
@click.option("--new-tokens", type=click.IntRange(1), default=96, show_default=True)
def verify(pairs: int, new_tokens: int, **options: Any) -> None:
    """Compare coupled with rejection sampling: accepted drafts, tokens per forward, speed."""
    from edgespec_bench.verification import bench_verify

    bench_verify(load_pair(options), pairs=pairs, new_tokens=new_tokens)


@command.command()
@model_options
@fetch_options
@click.option("--pairs", type=click.IntRange(1), default=3, show_default=True, help="Interleaved repetitions.")
@click.option("--new-tokens", type=click.IntRange(2), default=64, show_default=True)
@click.option("--per-category", type=click.IntRange(1), metavar="N", help="Take the first N prompts of each category.")
@click.option("--lengths", default="1,2,4", show_default=True, metavar="K,K,...", help="Of synchronous drafts.")
@click.option("--own-cores-only", is_flag=True, help="Load the pair once, and leave out what runs with all cores.")
def overlapped(
    pairs: int, new_tokens: int, per_category: int | None, lengths: str, own_cores_only: bool, **options: Any
) -> None:
    """Compare the overlapped schedule with the synchronous one and plain decoding. The result is kept for later loads.

    Needs a pair with a draft model. It is loaded twice: each model with cores of its own, and both with all of them.
    """
    from edgespec.bench.prompts import read
    from edgespec_bench.overlapped import bench_overlapped

    if (asked := options.pop("schedule")) == "synchronous":
        raise SettingError("this compares both: --schedule", got=asked, allowed="overlapped")
    drafted = _numbers(lengths, "lengths")
    if not drafted or min(drafted) < 1:
        raise SettingError("lengths", got=lengths, allowed="numbers from 1 on, with commas", setting="lengths")
    beside = load_pair({**options, "schedule": "overlapped"})
    together = None if own_cores_only else load_pair({**options, "schedule": "synchronous"})
    bench_overlapped(beside, together, read(None, per_category), new_tokens=new_tokens, pairs=pairs, lengths=drafted)


@command.command()
@click.option("--model", "-m", metavar="REF", default="default", show_default=True)
@fetch_options
@click.option("--draft", metavar="REF", help="Draft model, for all that take one; default: the pair's own.")
@click.option("--gguf", type=_PATH, metavar="FILE", help="For llama.cpp and edgespec; default: the pair's own source.")
@click.option("--gguf-draft", type=_PATH, metavar="FILE", help="Draft model for llama.cpp.")
@click.option("--hf", type=_PATH, metavar="FOLDER", help="Weights for onnxruntime-genai's builder; default: the GGUF.")
@click.option("--hf-draft", type=_PATH, metavar="FOLDER", help="Its draft model.")
@click.option(
    "--only",
    metavar="NAME,...",
    help="Only runtimes whose names begin with one of these. edgespec plain and auto always run.",
)
@click.option("--prompts", type=click.Path(path_type=Path), metavar="FILE", help="Lines of JSON (kind, text).")
@click.option("--per-category", type=click.IntRange(1), default=2, show_default=True, help="Prompts of each category.")
@click.option("--pairs", type=click.IntRange(1), default=1, show_default=True, help="Answers to each prompt.")
@click.option("--new-tokens", type=click.IntRange(2), default=96, show_default=True)
@click.option(
    "--threads", type=click.IntRange(1), metavar="N", help="Threads of each runtime; default: physical cores."
)
@click.option("--report", type=click.Path(path_type=Path), metavar="FILE", help="Write a Markdown page, with pictures.")
def peers(
    model: str,
    report: Path | None,
    prompts: Path | None,
    per_category: int,
    yes: bool,
    mirror: str | None,
    **options: Any,
) -> None:
    """Compare with other runtimes on the same weights: speed, time to first token, memory, exactness.

    It needs more packages: pip install ".[bench]"
    """
    from edgespec.bench.prompts import read
    from edgespec.commands.fetching import fetch_missing
    from edgespec_bench.peers.run import bench_peers
    from edgespec_bench.peers.weights import Sources

    # Of a whole path its name: the page is for others.
    typed = command_line(Path(w).name if Path(w).is_absolute() else w for w in ("edgespec", *sys.argv[1:]))
    fetch_missing([model, options["draft"]], yes=yes, mirror=mirror)
    sources = Sources(**{name: options.pop(name) for name in ("gguf", "gguf_draft", "hf", "hf_draft")})
    bench_peers(model, read(prompts, per_category), page=report, command=typed, sources=sources, **options)


@command.command()
@model_options
@fetch_options
@click.option(
    "--gguf", type=_PATH, metavar="FILE", help="Ask llama.cpp too, with these weights (the model's own file)."
)
@click.option("--holes", type=click.IntRange(1), default=100, show_default=True)
@click.option("--new-tokens", type=click.IntRange(1), default=48, show_default=True)
@click.option("--threads", type=click.IntRange(1), metavar="N", help="Threads of llama.cpp; default: physical cores.")
@click.option("--lines", type=click.IntRange(1), metavar="N", help="Ask again with N typed lines behind the suffix.")
@click.option("--answers", type=_PATH, metavar="FILE", help="Keep each hole's answers there, and go on from them.")
@click.option("--latency", is_flag=True, help="Type lines key by key instead, and time each request to the server.")
@click.pass_context
def infill(
    context: click.Context,
    /,
    gguf: Path | None,
    holes: int,
    new_tokens: int,
    threads: int | None,
    lines: int | None,
    answers: Path | None,
    latency: bool,
    **options: Any,
) -> None:
    """Fill holes cut from Python's own library: lines that come back, tokens a second. llama.cpp's /infill beside it.

    \b
    edgespec bench infill --model coder.gguf --gguf coder.gguf
    edgespec bench infill --model coder.gguf --latency
    """
    if latency:
        for name in ("gguf", "holes", "new_tokens", "threads", "lines", "answers"):
            if context.get_parameter_source(name) == ParameterSource.COMMANDLINE:
                raise SettingError(f"--{name.replace('_', '-')} says nothing to --latency", hint="leave it out")
        from edgespec_bench.infill_latency import bench_latency

        bench_latency(load_pair(options))
        return
    from edgespec_bench.peers.infill import bench_infill
    from edgespec_bench.peers.run import physical_cores

    if gguf is not None and not gguf.is_file():
        raise SettingError("no such file", got=str(gguf), setting="gguf")
    pipeline = load_pair(options)
    threads = threads or physical_cores()
    bench_infill(
        pipeline,
        gguf=gguf,
        count=holes,
        new_tokens=new_tokens,
        threads=threads,
        lines=lines or 0,
        answers=answers,
    )


@command.command()
@model_options
@fetch_options
@click.option("--pairs", type=click.IntRange(1), default=15, show_default=True, help="Interleaved repetitions.")
@click.option("--start", is_flag=True, help="Time the start of processes, too.")
def server(pairs: int, start: bool, **options: Any) -> None:
    """What edgespec serve adds to the library: to a request and a batch of tokens, before the first byte, at rest."""
    from edgespec_bench.server import bench_server

    starts = {name: options[name] for name in ("model", "draft", "backend", "numerics", "device")} if start else None
    bench_server(load_pair(options), pairs=pairs, starts=starts)


@command.command()
@model_options
@fetch_options
@click.option("-o", "--output", metavar="FILE", required=True, type=click.Path(path_type=Path), help="File to write.")
@click.option("--prompts", type=click.Path(path_type=Path), metavar="FILE", help="Lines of JSON (kind, text).")
@click.option("--per-category", type=click.IntRange(1), metavar="N", help="Take the first N prompts of each category.")
@click.option("--new-tokens", type=click.IntRange(1), default=96, show_default=True)
def record(output: Path, prompts: Path | None, per_category: int | None, new_tokens: int, **options: Any) -> None:
    """Record texts, the draft model's proposals at every position, and costs. bench replay reads the file."""
    from edgespec.bench.prompts import read
    from edgespec.own_files import require_place
    from edgespec_bench import recording

    chosen = read(prompts, per_category)
    require_place(output, "the recording")
    recording.save(recording.record(load_pair(options), chosen, new_tokens=new_tokens), output)
    click.echo(output)


@command.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--costs", type=click.Path(path_type=Path), metavar="FILE", help="Take costs from another recording.")
@click.option(
    "--noise",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    help="Standard deviation of a forward's time, as 0.05.",
)
@click.option("--wrong", type=click.FloatRange(0, 1), default=0.0, show_default=True, help="Error of the calibration.")
@click.option("--slow", is_flag=True, help="Halve the machine's speed in every second part of a text.")
@click.option(
    "--seeds", type=click.IntRange(1), default=1, show_default=True, help="Repetitions, with other orders and noise."
)
def replay(file: Path, costs: Path | None, noise: float, wrong: float, slow: bool, seeds: int) -> None:
    """Run the policies on a recording, in virtual time, and compare the arbiter with each drafter alone.

    \b
    edgespec bench record -o texts.gz
    edgespec bench replay texts.gz --noise 0.2 --wrong 0.15 --slow --seeds 3
    edgespec bench replay texts.gz --costs other.gz
    """
    from edgespec_bench.recording import at_costs_of, read
    from edgespec_bench.replay import Trouble, bench_replay

    recording = at_costs_of(read(file), read(costs)) if costs else read(file)
    bench_replay(recording, Trouble(noise, wrong, slow), seeds=seeds)


@command.command()
@model_options
@fetch_options
def crop(**options: Any) -> None:
    """Times of a rollback, and of a step behind rejected rows, at contexts of 256 to 4096 tokens."""
    from edgespec_bench.crop import bench_crop

    bench_crop(load_pair(options))


@command.command()
@click.option("--model", "-m", metavar="REF", default="default", show_default=True)
@fetch_options
@click.option("--backend", type=click.Choice(get_args(Backend)))
@click.option("--numerics", type=click.Choice(["exact", "fast"]))
def memory(model: str, backend: Backend | None, numerics: str | None, yes: bool, mirror: str | None) -> None:
    """Peak memory of a prefill of 4,000 tokens."""
    from edgespec.commands.fetching import fetch_missing
    from edgespec_bench.memory import bench_memory

    fetch_missing([model], yes=yes, mirror=mirror)
    bench_memory({"ref": model, "backend": backend, "numerics": numerics})


@command.command()
@click.option("--model", "-m", metavar="REF", default="default", show_default=True)
@fetch_options
@click.option("--pairs", type=click.IntRange(1), default=5, show_default=True, help="Interleaved repetitions.")
def startup(model: str, pairs: int, yes: bool, mirror: str | None) -> None:
    """Time to the first token from the shell, and of import edgespec."""
    from edgespec.commands.fetching import fetch_missing
    from edgespec_bench.startup import bench_startup

    fetch_missing([model], yes=yes, mirror=mirror)
    bench_startup(model, pairs=pairs)


@command.command()
@click.option("-o", "--output", metavar="DIR", required=True, type=click.Path(path_type=Path), help="Folder to make.")
@click.option(
    "--parameters", type=float, metavar="N", default=1e9, show_default=True, help="Parameters of the whole model."
)
@click.option(
    "--weights",
    type=click.Choice(["int8", "int4"]),
    default="int8",
    show_default=True,
    help="Format of the added weights.",
)
def inflate(output: Path, parameters: float, weights: Literal["int8", "int4"]) -> None:
    """Make a target that costs like N parameters and answers like SmolLM2-135M.

    Each layer of the default target gets a block of random weights. The block's last projection is zero. So every
    forward reads all weights, and no logit changes. This measures the gain of a draft on a memory-bound target, without
    a download. Prints the bundle's path.

    \b
    edgespec bench inflate -o inflated --parameters 1e9
    edgespec bench speed --model inflated
    """
    from edgespec_bench import inflate as bench

    bundle = bench.inflate(output, parameters=parameters, weights=weights)
    click.echo(f"[{bundle.name}: {bundle.manifest.provenance.notes}]", err=True)
    click.echo(output)
