"""``edgespec doctor``: devices, drivers, versions, memory, which engine will run on which device, and why.

``--plan`` measures the plans of a pair on this machine. ``--report`` is what owners of other machines can send.
"""

from __future__ import annotations

import json
import platform
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from edgespec import console
from edgespec.commands import screen
from edgespec.commands.options import fetch_options, model_options
from edgespec.errors import EdgespecError, SettingError

if TYPE_CHECKING:
    from edgespec.bundle import Bundle
    from edgespec.load_options import LoadOptions

RUNTIME = ("edgespec", "openvino", "onnx", "tokenizers", "numpy", "huggingface_hub")
EXPORT = ("torch", "optimum-intel", "nncf", "transformers")
"""packages that the extra ``export`` installs"""
_VERIFY_TURNS = 7
"""of each plan beside the one that is taken"""


@click.command(name="doctor")
@model_options
@fetch_options
@click.option("--plan", is_flag=True, help="Time all plans of the pair: devices, engines, schedules, drafters.")
@click.option("--again", is_flag=True, help="With --plan: measure, whatever was measured before.")
@click.option("--verify", is_flag=True, help="With --plan: time all plans once more, in turns, and judge the choice.")
@click.option("--report", is_flag=True, help="A report to send to the makers: no names of users or hosts, no paths.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def command(
    context: click.Context,
    /,
    plan: bool,
    again: bool,
    verify: bool,
    report: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Show what is here, and what will run where and why. Loads no model and fetches none, except for --plan and
    --report, which take minutes. A GGUF file is converted first.

    Other options restrict the plans: what you name stays as you say. What --device auto does is the plan taken here.

    \b
    edgespec doctor --plan
    edgespec doctor --plan --backend openvino --prefer battery
    edgespec doctor --report > report.json
    """
    model = options["model"]
    if report and (plan or again or verify):
        raise SettingError("--report measures the plans itself", hint="give it alone, or --plan without it")
    if not (plan or report):
        _refuse_plan_options(context)
        found = _facts(model)
        if as_json:
            screen.write(json.dumps(found, ensure_ascii=False) + "\n")
        else:
            _print(found)
        return
    ref, wanted = _wanted(context, options)
    if report:
        from edgespec.commands.report import report as make_report

        screen.write(json.dumps(make_report(ref, wanted, _facts(model)), ensure_ascii=False, indent=1) + "\n")
    else:
        _show_plans(ref, wanted, again, verify, as_json)


def _refuse_plan_options(context: click.Context) -> None:
    """The options of plans say nothing without one."""
    alone = ("model", "as_json")
    for name in context.params:
        if name not in alone and context.get_parameter_source(name) == ParameterSource.COMMANDLINE:
            typed = name.replace("_", "-")
            raise SettingError(f"--{typed} is for plans", hint=f"add --plan: edgespec doctor --plan --{typed}")


def _wanted(context: click.Context, options: dict[str, Any]) -> tuple[str, LoadOptions]:
    """What to plan for: every device, unless one is named."""
    from edgespec.commands.fetching import fetch_first
    from edgespec.load_options import LoadOptions

    if context.get_parameter_source("device") != ParameterSource.COMMANDLINE:
        options["device"] = "auto"
    options["ref"] = options.pop("model")
    fetch_first(options)
    ref = options.pop("ref")
    return ref, LoadOptions(**options, progress=True)


def _show_plans(ref: str, wanted: LoadOptions, again: bool, verify: bool, as_json: bool) -> None:
    from edgespec import loading
    from edgespec.commands import plan_table

    table = loading.plan(ref, wanted, again=again)
    verified = loading.verify(ref, wanted, table, _VERIFY_TURNS) if verify else None
    if as_json:
        screen.write(json.dumps(plan_table.as_dict(table, verified), ensure_ascii=False) + "\n")
    else:
        plan_table.show(table, verified)


def _facts(model: str) -> dict[str, Any]:
    return {
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "python": platform.python_version(),
        "versions": _versions(),
        "devices": _devices(),
        "onnxruntime": _onnx_devices(),
        "memory": _memory(),
        "model": _plan(model),
    }


def _versions() -> dict[str, str]:
    found = {name: _version(name) or "missing: reinstall edgespec" for name in RUNTIME}
    from edgespec.machine import engine_choice

    engines = engine_choice.packages()
    found |= engines or {"onnxruntime": "missing: reinstall edgespec"}
    if len(engines) > 1:
        found |= {
            name: f"{version}; installed over one another, the last one runs" for name, version in engines.items()
        }
    for name in EXPORT:
        missing = 'not installed; in a clone, pip install ".[export]" for edgespec export, ".[train]" for train'
        found[name] = _version(name) or missing
    return found


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _devices() -> list[dict[str, Any]]:
    from edgespec.machine.devices import devices

    return [asdict(device) for device in devices()]


def _onnx_devices() -> dict[str, str]:
    from edgespec.machine.devices import onnx_devices

    return onnx_devices()


def _memory() -> dict[str, int]:
    import psutil

    memory = psutil.virtual_memory()
    return {"total_bytes": memory.total, "available_bytes": memory.available}


def _plan(ref: str) -> dict[str, Any]:
    """Where the model is, and what it would need."""
    from edgespec.backends.openvino.settings import compute_precision
    from edgespec.hub import catalog
    from edgespec.hub.resolve import is_here, on_hub, resolve
    from edgespec.loading import drafter_name

    wanted = on_hub(ref)
    if wanted and not is_here(wanted):  # it has to be fetched to know more
        model = wanted.model
        if model is None:
            return {"name": ref, "repository": wanted.source.repo, "here": f"no; to fetch it: edgespec pull {ref}"}
        return {
            "name": ref,
            "repository": model.repo,
            "drafter": drafter_name(ref),
            "licence": f"{model.licence} (use: {catalog.load().licences[model.licence].use})",
        }
    found = resolve(ref, progress=True)
    manifest = found.manifest
    return {
        "name": manifest.name,
        "precision": manifest.target.precision,
        "context_length": manifest.generation.context_length,
        "target": "CPU: exact numerics are the default, and they are established on CPU only",
        "compute_precision": f"{compute_precision('CPU')} on CPU, {compute_precision('GPU')} elsewhere",
        "engine": _engine(found),
        "drafter": f"{drafter_name(ref)}; a draft model runs beside the target unless --draft-device says otherwise",
        "licence": manifest.provenance.licence,
    }


def _engine(found: Bundle) -> str:
    from edgespec import cache
    from edgespec.hub.resolve import path_here
    from edgespec.machine import engine_choice

    cache.cache_dir()  # without a folder for models there is no report
    try:
        return engine_choice.why(path_here(found, found.manifest.target), "exact")
    except EdgespecError as error:
        return f"none: {error}"


def _print(report: dict[str, Any]) -> None:
    from rich.table import Table

    things: list[Any] = [f"{report['system']}, Python {report['python']}"]
    table = Table("device", "is", "driver", "memory", "for edgespec", title="Devices", title_justify="left")
    for device in report["devices"]:
        memory = f"{device['memory_bytes'] / 1e9:.1f} GB" if device["memory_bytes"] else "shared"
        console.row(
            table, device["name"], device["full_name"], device["driver"] or "built in", memory, device["advice"]
        )
    things.append(table)
    table = Table("device", "here", title="Devices of ONNX Runtime, beside the CPU", title_justify="left")
    for name, reason in report["onnxruntime"].items():
        console.row(table, name, reason)
    things.append(table)
    memory = report["memory"]
    things.append(f"Memory: {memory['available_bytes'] / 1e9:.1f} of {memory['total_bytes'] / 1e9:.1f} GB free")
    table = Table("package", "version", title="Versions", title_justify="left")
    for name, found in report["versions"].items():
        console.row(table, name, found)
    things.append(table)
    table = Table("", "", title="What will run", title_justify="left", show_header=False)
    for key, value in report["model"].items():
        console.row(table, key, str(value))
    things.append(table)
    console.show(*things)
