"""Imports run one way, and importing edgespec loads nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import edgespec

ROOT = Path(edgespec.__file__).parent
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
}
BASE = {"errors", "types"}
# room -> rooms of edgespec it may import. A name ending in a dot is a package.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "types": {"errors"},
    "stats": BASE,
    "explain": BASE | {"stats"},
    "files": BASE | {"cache", "own_files"},
    "manifest": BASE | {"files"},
    "ir_folder": BASE | {"files", "manifest"},
    "bundle": BASE | {"files", "ir_folder", "manifest"},
    "pairing": BASE,
    "tokenizer": BASE | {"tokenizer_check"},
    "tokenizer_check": BASE | {"files"},
    "structured": BASE | {"tokenizer"},
    "control_tokens": BASE,
    "chat_template": BASE | {"sandbox"},
    "sandbox": BASE | {"template_budget", "template_filters", "template_tree"},
    "template_budget": BASE,
    "template_filters": BASE | {"template_budget"},
    "template_tree": {"template_filters"},
    "turn": BASE,
    "devices": BASE | {"engine"},
    "engine": set(),
    "telemetry": set(),
    "cache": BASE,
    "fetch": BASE | {"bundle", "known"},
    "gguf_tokenizer": BASE,
    "gguf_header": BASE,
    "gguf_keys": set(),
    "gguf_dimensions": BASE | {"gguf_header"},
    "gguf_check": BASE | {"gguf_dimensions", "gguf_header", "gguf_keys", "gguf_tokenizer"},
    "gguf_tensors": BASE | {"gguf_header"},
    "gguf_converter": BASE | {"gguf_dimensions", "gguf_header", "gguf_tensors", "gguf_vectors"},
    "gguf_vectors": BASE | {"engine", "gguf_dimensions", "gguf_tensors", "merge"},
    "merge": {"engine"},
    "gguf_weights": BASE | {"engine", "gguf_dimensions", "gguf_header", "gguf_tensors", "gguf_vectors", "merge"},
    "gguf": BASE | {"bundle", "gguf_check", "gguf_converter", "gguf_header", "gguf_tokenizer", "gguf_weights"},
    "repository": BASE | {"bundle", "cache", "fetch", "files", "manifest", "pairs"},
    "hub": BASE | {"bundle", "cache", "fetch", "files", "gguf", "known", "manifest", "pairs", "repository"},
    "known": BASE | {"bundle"},
    "pairs": BASE | {"known", "manifest"},
    "decode.sampling": BASE,
    "decode.verify": BASE | {"decode.sampling"},
    "protocols": BASE,
    "decode.policy": BASE | {"protocols", "drafters.base"},
    "decode.constraint": BASE,
    "decode.steering": BASE | {"protocols", "decode.constraint"},
    "decode.autoregressive": BASE | {"backends.base", "decode.constraint", "decode.sampling"},
    "decode.speculative": BASE
    | {
        "backends.base",
        "protocols",
        "decode.constraint",
        "decode.steering",
        "decode.tree",
        "decode.verify",
        "stats",
    },
    "decode.acceptance": BASE,
    "decode.tree": BASE,
    "decode.calibration": BASE | {"backends.base"},
    "decode.costs": BASE | {"decode.calibration"},
    "backends.base": BASE,
    "backends.rows": BASE,
    "backends.": BASE | {"backends.", "engine", "merge"},
    "own_files": set(),
    "chat_history": {"own_files"},
    "measurements": {"cache", "files", "own_files"},
    "faster_engine": BASE | {"backends.padded", "measurements"},
    "machine": BASE
    | {
        "backends.",
        "bundle",
        "cache",
        "decode",
        "decode.calibration",
        "decode.costs",
        "engine",
        "faster_engine",
        "files",
        "hub",
        "measurements",
    },
    "drafters.base": BASE | {"backends.base"},
    "drafters.arbiter": BASE | {"drafters.base", "drafters.judged", "drafters.trials", "decode.costs", "decode.tree"},
    "drafters.trials": set(),
    "drafters.judged": BASE | {"drafters.base", "decode.acceptance", "decode.tree"},
    "drafters.recycling": BASE | {"drafters.base", "drafters.table_file"},
    "drafters.table_file": {"own_files"},
    "drafters.": BASE | {"drafters.base", "backends.base", "decode.sampling"},
    "pipeline": BASE
    | {
        "protocols",
        "decode.",
        "drafters.base",
        "drafters.arbiter",
        "backends.base",
        "bundle",
        "chat_template",
        "control_tokens",
        "stats",
        "structured",
        "tokenizer",
        "turn",
    },
}
ABOVE = ("assembly", "commands.", "bench.", "cli", "__main__", "__init__")  # may import everything below


def room_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imports_of(path: Path) -> set[str]:
    """edgespec modules a file imports anywhere, lazily or not; names are relative to the package."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "edgespec":
            inner = node.module.removeprefix("edgespec").lstrip(".")
            found |= {inner} if inner else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.removeprefix("edgespec.") for a in node.names if a.name.startswith("edgespec.")}
    return found


def test_imports_run_one_way() -> None:
    wrong = []
    for path in sorted(ROOT.rglob("*.py")):
        room = room_of(path)
        if room.startswith(ABOVE) or path.name == "__init__.py":
            continue
        rule = next((ALLOWED[key] for key in (room, f"{room.split('.')[0]}.") if key in ALLOWED), None)
        assert rule is not None, f"{room} has no place in the house: add it to ALLOWED"
        for name in imports_of(path):
            if name not in rule and f"{name.split('.')[0]}." not in rule:
                wrong.append(f"{room} imports {name}")
    assert not wrong


def test_the_runtime_never_imports_torch_export_or_training() -> None:
    for path in ROOT.rglob("*.py"):
        if room_of(path) in ("commands.export", "commands.train") or room_of(path).startswith("bench.peers."):
            continue  # hand over to the packages for it, lazily; peers: the next test
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.split(".")[0] not in {
                    "torch",
                    "transformers",
                    "optimum",
                    "nncf",
                    "edgespec_export",
                    "edgespec_train",
                }, path


PEERS = {"llama_cpp", "onnxruntime_genai", "optimum", "torch", "transformers", "matplotlib"}
ONNX = {"onnx", "onnxruntime"}


def test_nothing_imports_a_peer_but_its_adapter() -> None:
    """And that only inside a function, in the process of the contender or of a conversion."""
    for path in ROOT.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        inside = room_of(path).startswith("bench.peers.")
        anywhere, at_the_top = roots_of(ast.walk(tree)), roots_of(tree.body)
        assert not at_the_top & (PEERS | {"openvino_genai", "openvino_tokenizers"}), path
        if not inside and room_of(path) not in ("commands.export", "commands.train"):
            assert not anywhere & (PEERS - ({"matplotlib"} if room_of(path) == "bench.plot" else set())), path
            if room_of(path) != "commands.bench":
                assert not any(name.startswith("bench.peers") for name in imports_of(path)), path


def test_only_its_backend_imports_onnx() -> None:
    """The extra that brings it need not be installed."""
    for path in ROOT.rglob("*.py"):
        if not room_of(path).startswith(("backends.onnx_", "bench.peers.")):
            assert not roots_of(ast.walk(ast.parse(path.read_text(encoding="utf-8")))) & ONNX, path


def test_the_parent_of_the_peers_loads_none() -> None:
    assert not loaded_after("import edgespec.bench.peers.bench, edgespec.bench.peers.worker") & (
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
        "from edgespec.devices import devices; devices()",
        "import edgespec.backends.openvino_paged",
        "from edgespec.machine import Machine; Machine(1, False)",
    ):
        loaded = loaded_after(code)
        assert "openvino" in loaded and "openvino_telemetry" not in loaded


def test_public_names_are_there() -> None:
    for name in edgespec.__all__:
        assert getattr(edgespec, name) is not None


def test_type_checkers_are_told_that_the_package_is_typed() -> None:
    assert (ROOT / "py.typed").is_file()
