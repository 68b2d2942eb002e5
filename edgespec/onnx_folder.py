"""A folder with a ready ONNX model, described as a bundle without drafters.

onnxruntime-genai's model builder writes ``genai_config.json`` beside the model, optimum writes ``config.json``. Only
what the model is is read of them. How an engine should run it, as providers and libraries of operators, is not.
"""

from __future__ import annotations

from pathlib import Path

from edgespec import ir_folder
from edgespec.errors import BundleError
from edgespec.ir_folder import described, json_object, part
from edgespec.manifest import RELATIVE_FILE, Manifest

GENAI_FILE = "genai_config.json"
MODEL_FILES = ("model.onnx", "onnx/model.onnx")
_OTHER_PARTS = ("vision", "speech", "embedding", "encoder")
"""of a model: it has more than a decoder of text"""
_UNKNOWN = "unknown"
"""precision of the weights: no file but the graph says it"""


def is_one(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (GENAI_FILE, *MODEL_FILES))


def describe(folder: Path) -> tuple[Manifest, str | None]:
    """The manifest, and the chat template if it stands in a JSON file. Raises BundleError."""
    if (folder / GENAI_FILE).is_file():
        return _of_genai(folder)
    model = next(name for name in MODEL_FILES if (folder / name).is_file())
    source = folder / "config.json"
    ir_folder.require(folder, model, source.name)
    return described(folder, model, source, ir_folder.transformers_config(source), _UNKNOWN)


def _of_genai(folder: Path) -> tuple[Manifest, str | None]:
    source = folder / GENAI_FILE
    model = part(json_object(source), "model", source)
    decoder = part(model, "decoder", source)
    others = [name for name in _OTHER_PARTS if name in model] + [name for name in ("pipeline",) if name in decoder]
    if others:
        raise BundleError(f"{source} describes several graphs", got=others[0], allowed="a decoder of text alone")
    file = decoder.get("filename", MODEL_FILES[0])
    if not isinstance(file, str) or not RELATIVE_FILE.accepts(file) or not file.endswith(".onnx"):
        raise BundleError(f"{source}: filename of the decoder", got=file, allowed="an .onnx file inside the folder")
    ir_folder.require(folder, GENAI_FILE, file)
    config = {
        "vocab_size": model.get("vocab_size"),
        "max_position_embeddings": model.get("context_length"),
        "eos_token_id": model.get("eos_token_id"),
    }
    return described(folder, file, source, config, _UNKNOWN)
