"""``edgespec doctor``: devices, drivers, versions, memory, which engine will run on which device, and why."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import click

from edgespec import console
from edgespec.commands import screen

RUNTIME = ("edgespec", "openvino", "onnx", "tokenizers", "numpy", "huggingface_hub")
EXPORT = ("torch", "optimum-intel", "nncf", "transformers")
"""packages that the extra ``export`` installs"""


@click.command(name="doctor")
@click.option("--model", "-m", metavar="REF", default="default", show_default=True, help="Plan for this model.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(model: str, as_json: bool) -> None:
    """Show what is here, and what will run where and why. Loads no model and fetches none. A GGUF file is converted
    first."""
    report = {
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "python": platform.python_version(),
        "versions": _versions(),
        "devices": _devices(),
        "onnxruntime": _onnx_devices(),
        "memory": _memory(),
        "model": _plan(model),
    }
    if as_json:
        screen.write(json.dumps(report, ensure_ascii=False) + "\n")
    else:
        _print(report)


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
        missing = "not installed; only needed for edgespec export and train: pip install 'edgespec[export]'"
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
    from edgespec.machine import engine_choice

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
    manifest = resolve(ref, progress=True).manifest
    return {
        "name": manifest.name,
        "precision": manifest.target.precision,
        "context_length": manifest.generation.context_length,
        "target": "CPU: exact numerics are the default, and they are established on CPU only",
        "compute_precision": f"{compute_precision('CPU')} on CPU, {compute_precision('GPU')} elsewhere",
        "engine": engine_choice.why(manifest.name, "exact"),
        "drafter": f"{drafter_name(ref)}; a draft model runs beside the target unless --draft-device says otherwise",
        "licence": manifest.provenance.licence,
    }


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
