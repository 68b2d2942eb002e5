"""Imports run one way, and importing edgespec loads nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable, Sequence
from functools import cache
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path

import edgespec
import edgespec_bench

ROOT = Path(edgespec.__file__).parent
LABORATORY = Path(edgespec_bench.__file__).parent
FILES = [*sorted(ROOT.rglob("*.py")), *sorted(LABORATORY.rglob("*.py"))]
HEAVY = {
    "openvino",
    "openvino_genai",
    "onnxruntime",
    "torch",
    "transformers",
    "numpy",
    "tokenizers",
    "jinja2",
    "rich",
    "llguidance",
    "starlette",
    "uvicorn",
    "prometheus_client",
}
GROUND = {
    "arguments",
    "bundle",
    "cache",
    "cancelling",
    "console",
    "draft_folder",
    "errors",
    "exact_devices",
    "explain",
    "files",
    "generation",
    "ir_folder",
    "load_options",
    "manifest",
    "onnx_folder",
    "own_files",
    "own_python",
    "process_end",
    "protocols",
    "sampling",
    "sampling_params",
    "stats",
    "telemetry",
    "turn",
    "types",
}
"""modules at the root that every wing may import"""
BELOW = {"adaptive", "backends", "decode", "drafters", "gguf", "hub", "machine", "text"}
WINGS: dict[str, set[str]] = {
    "ground": set(),
    "text": set(),
    "decode": set(),
    "adaptive": set(),
    "drafters": set(),
    "backends": set(),
    "gguf": {"backends"},  # writes IR with OpenVINO itself
    "hub": {"gguf"},
    "machine": {"adaptive", "backends", "hub"},
    "pipeline": {"adaptive", "decode", "drafters", "filling", "text"},
    "filling": {"text"},
    "engine_trial": {"adaptive", "decode", "drafters"},
    "adaptive_loading": {"backends", "drafters", "text"},
    "plan_trial": {"engine_trial", "machine", "pipeline"},
    "plan_race": {"plan_trial"},
    "plan_rows": {"machine", "plan_trial"},
    "planner": {"backends", "machine", "pipeline", "plan_race", "plan_rows", "plan_trial"},
    "plan_verify": {"machine", "plan_race", "plan_rows", "plan_trial", "planner"},
    "drafter_loading": {"adaptive", "adaptive_loading", "backends", "drafters", "hub", "machine", "text"},
    "trial_loading": {"backends", "drafter_loading", "engine_trial", "machine"},
    "loading": {
        "adaptive",
        "adaptive_loading",
        "backends",
        "drafter_loading",
        "drafters",
        "hub",
        "machine",
        "pipeline",
        "plan_rows",
        "plan_verify",
        "planner",
        "text",
        "trial_loading",
    },
    "simulate": set(),
    "bench": BELOW | {"loading", "pipeline", "simulate"},
    "server": {"backends", "hub", "loading", "pipeline", "text"},
    "commands": {
        "bench",
        "hub",
        "loading",
        "machine",
        "pipeline",
        "plan_rows",
        "plan_verify",
        "server",
        "simulate",
        "text",
    },
    "laboratory": BELOW | {"bench", "commands", "door", "loading", "pipeline", "server"},
    "door": {"commands", "loading", "pipeline"},
}
"""wing -> the wings it may import beside itself and the ground. A wing is a folder of edgespec; "laboratory" is
edgespec_bench, and "door" is what a user imports or starts: __init__, __main__, start and cli"""
EXCEPTIONS = {
    ("commands.bench", "laboratory"): "the command that loads it when a bench is named",
    ("commands.doctor", "backends.openvino.settings"): "says in which precision models would be compiled",
    ("commands.report", "backends.cores"): "says how many cores a model gets",
    ("commands.report", "decode.policy"): "writes texts without drafts, to compare those with drafts",
}
"""importer, imported -> why a rule is broken; each must still be needed"""


def module_of(path: Path) -> str:
    """``decode.verify`` of edgespec/decode/verify.py; the laboratory's names begin with edgespec_bench."""
    inside = path.is_relative_to(ROOT)
    name = ".".join(path.relative_to(ROOT if inside else LABORATORY.parent).with_suffix("").parts)
    return name.removesuffix(".__init__")


def wing_of(module: str) -> str:
    first = module.split(".")[0]
    if first == "edgespec_bench":
        return "laboratory"
    if first in ("__init__", "__main__", "cli", "start"):
        return "door"
    return "ground" if module in GROUND else first


MODULES = {module_of(path): path for path in FILES}


@cache
def imports_in(path: Path) -> Sequence[ast.Import | ast.ImportFrom]:
    """Anywhere in a file, lazily or not."""
    return [each for each in ast.walk(tree_of(path)) if isinstance(each, ast.Import | ast.ImportFrom)]


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports_of(path: Path) -> set[str]:
    """Modules of edgespec and of its laboratory that a file imports anywhere, lazily or not."""
    found = set()
    for node in imports_in(path):
        if isinstance(node, ast.ImportFrom) and node.module:
            inside = node.module.removeprefix("edgespec").removeprefix(".")
            for alias in node.names if node.module.split(".")[0] in ("edgespec", "edgespec_bench") else ():
                base = node.module if node.module.startswith("edgespec_bench") else inside
                whole = f"{base}.{alias.name}".removeprefix(".")
                found.add(whole if whole in MODULES else base or "__init__")
        elif isinstance(node, ast.Import):
            names = [a.name for a in node.names if a.name.split(".")[0] in ("edgespec", "edgespec_bench")]
            found |= {name.removeprefix("edgespec.") if name != "edgespec" else "__init__" for name in names}
    return found


def test_every_module_has_a_place() -> None:
    assert MODULES.keys() >= GROUND
    lost = {module for module in MODULES if wing_of(module) not in WINGS}
    assert not lost, "a module at the root belongs to the ground, or gets a rule in WINGS"


def test_imports_run_one_way() -> None:
    wrong, needed = [], set()
    for module, path in MODULES.items():
        wing = wing_of(module)
        for name in imports_of(path):
            if wing_of(name) in WINGS[wing] | {wing, "ground"}:
                continue
            excused = {(module, name), (module, wing_of(name))} & EXCEPTIONS.keys()
            needed |= excused
            if not excused:
                wrong.append(f"{module} imports {name}")
    assert not wrong
    assert needed == EXCEPTIONS.keys(), "an exception that is not needed any more"


def test_there_is_no_circle() -> None:
    """Lazy imports count: a circle is two modules that cannot be understood one after the other."""
    graph = {module: imports_of(path) - {"__init__"} for module, path in MODULES.items()}
    TopologicalSorter({module: names - {module} for module, names in graph.items()}).prepare()


def test_no_module_hides_a_public_name() -> None:
    """Importing a file sets an attribute of its package: a file load.py would take the place of the function
    ``load``."""
    for module in MODULES:
        assert module not in set(edgespec.__all__) - {"__version__"}
    import_module("edgespec.loading")
    assert callable(edgespec.load)


def test_only_its_command_loads_the_laboratory() -> None:
    for module, path in MODULES.items():
        if wing_of(module) != "laboratory" and module != "commands.bench":
            assert not any(name.startswith("edgespec_bench") for name in imports_of(path)), module
    assert "edgespec_bench" not in loaded_after("import edgespec.commands.bench")


def test_the_runtime_never_imports_torch_export_or_training() -> None:
    for path in FILES:
        module = module_of(path)
        if module == "commands.export" or module.startswith(("commands.train", "edgespec_bench.peers.")):
            continue  # hand over to the packages for it, lazily; peers: the next test
        assert not roots_of(imports_in(path)) & {
            "torch",
            "transformers",
            "optimum",
            "nncf",
            "edgespec_export",
            "edgespec_train",
        }, path


PEERS = {"xllamacpp", "onnxruntime_genai", "optimum", "torch", "transformers", "matplotlib"}
ONNX = {"onnx", "onnxruntime"}


def test_nothing_imports_a_peer_but_its_adapter() -> None:
    """And that only inside a function, in the process of the runtime or of a conversion."""
    for path in FILES:
        module = module_of(path)
        anywhere, at_the_top = roots_of(imports_in(path)), roots_of(tree_of(path).body)
        assert not at_the_top & (PEERS | {"openvino_genai", "openvino_tokenizers"}), path
        if not module.startswith(("edgespec_bench.peers.", "commands.train")) and module != "commands.export":
            assert not anywhere & (PEERS - ({"matplotlib"} if module == "bench.plot" else set())), path
            if module != "edgespec_bench.commands":
                assert not any(name.startswith("edgespec_bench.peers") for name in imports_of(path)), path


def test_only_its_backend_imports_onnx() -> None:
    """The extra that brings it need not be installed."""
    for path in FILES:
        if not module_of(path).startswith(("backends.onnx.", "edgespec_bench.peers.")):
            assert not roots_of(imports_in(path)) & ONNX, path


def test_the_parent_of_the_peers_loads_none() -> None:
    assert not loaded_after("import edgespec_bench.peers.run, edgespec_bench.peers.worker") & (
        PEERS | ONNX | {"openvino_genai"}
    )


def roots_of(nodes: Iterable[ast.AST]) -> set[str]:
    """Top-level names of the packages that some nodes import."""
    names = set()
    for node in nodes:
        names |= {a.name for a in node.names} if isinstance(node, ast.Import) else set()
        names |= {node.module or ""} if isinstance(node, ast.ImportFrom) else set()
    return {name.split(".")[0] for name in names}


def loaded_after(code: str) -> set[str]:
    ran = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(' '.join(sys.modules))"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return {name.split(".")[0] for name in ran.stdout.split()}


def test_importing_edgespec_is_light() -> None:
    assert not loaded_after("import edgespec") & HEAVY


def test_the_command_line_is_light_until_a_model_is_loaded() -> None:
    engines = HEAVY - {"numpy"}
    assert not loaded_after("from edgespec.cli import cli; cli.get_command(None, 'run')") & engines


def test_openvino_is_loaded_without_its_telemetry() -> None:
    for code in (
        "from edgespec.machine.devices import devices; devices()",
        "import edgespec.backends.openvino.paged",
        "from edgespec.machine.devices import require_device; require_device('CPU')",
    ):
        loaded = loaded_after(code)
        assert "openvino" in loaded and "openvino_telemetry" not in loaded


def test_public_names_are_there() -> None:
    for name in edgespec.__all__:
        assert getattr(edgespec, name) is not None


def test_type_checkers_are_told_that_the_package_is_typed() -> None:
    assert (ROOT / "py.typed").is_file()
