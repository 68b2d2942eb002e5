"""The bundle: a folder that holds a target, its drafters and their tokenizer. Format: docs/bundle.md.

A folder of another tool (``openvino_model.xml``, ``tokenizer.json``, ``config.json``) is read as a bundle without
drafters, and so is a folder with a ready ONNX model. So such repositories need no conversion.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from edgespec import cache, files, ir_folder, manifest, onnx_folder
from edgespec.console import line_to_type
from edgespec.errors import BundleError, IntegrityError, foreign
from edgespec.files import sha256_of
from edgespec.ir_folder import IR_FILE
from edgespec.manifest import (
    FORMAT,
    RELATIVE_FILE,
    Drafter,
    Generation,
    HashedFile,
    HubSource,
    Manifest,
    ModelFile,
    OnnxForm,
    Provenance,
    WheelSource,
    line,
)

__all__ = [
    "FORMAT",
    "IR_FILE",
    "MANIFEST",
    "Bundle",
    "Drafter",
    "Generation",
    "HashedFile",
    "HubSource",
    "Manifest",
    "ModelFile",
    "OnnxForm",
    "Provenance",
    "WheelSource",
    "line",
    "model_file",
    "read",
    "sha256_of",
    "write",
]

MANIFEST = "bundle.json"
FORM_FILES = ("model.onnx", "model.onnx.data", "rotary.npz", "rotary.xml", "rotary.bin")
"""of a model's form for ONNX Runtime; the first is its graph"""

_AGAIN = "export or pull the model again"


class Bundle:
    """A validated bundle on disk. ``root`` is its folder; paths in ``manifest`` are relative to it.

    attached: other folders that belong to it, each by the first part of its paths (see draft_folder).
    """

    def __init__(
        self,
        root: Path,
        manifest: Manifest,
        inline_template: str | None = None,
        *,
        attached: Mapping[str, Path] | None = None,
    ) -> None:
        self.root = root
        self.manifest = manifest
        self.inline_template = inline_template
        self.attached = dict(attached or {})

    @property
    def name(self) -> str:
        return self.manifest.name

    def path(self, relative: str) -> Path:
        """Path of a file of this bundle. Raises BundleError if the file is missing or its name leads out of the folder.

        Links may lead elsewhere: the hub's cache consists of links.
        """
        if not RELATIVE_FILE.accepts(relative):
            raise BundleError(f"{self.root / MANIFEST} names a file outside the bundle", got=relative)
        path = self._place(relative)
        if not os.path.isfile(path):  # noqa: PTH113 - Path.is_file raises for a name that is too long
            raise BundleError("bundle is missing a file", got=str(path), hint=_AGAIN)
        return path

    def _place(self, relative: str) -> Path:
        first, _, rest = relative.partition("/")
        return self.attached[first] / rest if first in self.attached else self.root / relative

    def hashed(self, entry: HashedFile) -> Path:
        """Path of a file after checking its SHA-256."""
        path = self.path(entry.file)
        self._check(path, entry.sha256)
        return path

    def chat_template(self) -> str | None:
        """Source text of the chat template, or None for a model without one."""
        if self.manifest.chat_template is None:
            return self.inline_template
        path = self.hashed(self.manifest.chat_template)
        with foreign(BundleError, f"{path} is not a chat template", hint=_AGAIN):
            return files.read_bytes(path).decode()

    def model_path(self, model: ModelFile) -> Path:
        """Path of a model's .xml or .onnx, after graph and weights are checked against recorded sizes and hashes."""
        if model.file is None and model.onnx is not None:
            return self.form_path(model.onnx)
        if model.file is None:
            raise BundleError(f"model of {self.name} is not in the bundle", hint=f"run: edgespec pull {self.name}")
        graph = self.path(model.file)
        weights = self._weights(model)
        size = weights.stat().st_size if weights else 0
        if model.weights_bytes not in (None, size):
            raise IntegrityError(
                f"{weights or graph} has the wrong size",
                got=f"{size} bytes",
                allowed=f"{model.weights_bytes} bytes",
                hint=f"it was cut short: {_AGAIN}",
            )
        for path, sha256 in ((graph, model.graph_sha256), (weights, model.sha256)):
            if sha256 is not None and path is not None:
                self._check(path, sha256)
        return graph

    def form_path(self, form: OnnxForm) -> Path:
        """Path of the .onnx of a model's form for ONNX Runtime, after all of it is checked against recorded hashes."""
        path, hashed = self.path(form.file), [self.hashed(entry) for entry in form.files]
        unhashed = {path, *(path.with_name(name) for name in FORM_FILES)} - {*hashed}
        if found := sorted(file.name for file in unhashed if file.is_file()):
            raise BundleError(f"the ONNX form of {self.name} has files without a hash: {', '.join(found)}", hint=_AGAIN)
        return path

    def _weights(self, model: ModelFile) -> Path | None:
        """The file with the weights. None: they are in the graph, as they may be in ONNX."""
        assert model.file is not None
        names = [path.as_posix() for path in manifest.data_files(Path(model.file))]
        there = [name for name in names if os.path.isfile(self._place(name))]  # noqa: PTH113 - as in ``path``
        if not there and model.sha256 is None and model.file.endswith(".onnx"):
            return None
        return self.path((there or names)[0])

    def contents(self) -> tuple[object, ...]:
        """What it is made of: equal for equal ones, whatever they are called and wherever they lie."""
        found = self.manifest
        hashes = [self._unhashed(model) for model in found.models if model.file is not None]
        return found.target, found.drafters, found.tokenizer, found.chat_template, found.generation, hashes

    def _unhashed(self, model: ModelFile) -> list[str]:
        """SHA-256 of a model's files of which the manifest says none, as that of a folder without ``bundle.json``."""
        parts = (self.path(model.file or ""), model.graph_sha256), (self._weights(model), model.sha256)
        with foreign(BundleError, f"cannot read the model of {self.name}", hint=_AGAIN):
            return [files.sha256(path) for path, known in parts if path is not None and known is None]

    def id_map_path(self, drafter: Drafter) -> Path | None:
        """Path of a drafter's id map, checked, or None if it has none."""
        if drafter.id_map is None:
            return None
        path = self.path(drafter.id_map)
        if drafter.id_map_sha256 is not None:
            self._check(path, drafter.id_map_sha256)
        return path

    def check(self) -> None:
        """Raises BundleError or IntegrityError unless all files that the manifest names exist and are intact."""
        for model in self.manifest.models:
            if model.file is not None:
                self.model_path(model)
            if model.onnx is not None:
                self.form_path(model.onnx)
        for drafter in self.manifest.drafters:
            self.id_map_path(drafter)
        for entry in filter(None, (self.manifest.tokenizer, self.manifest.chat_template)):
            self.hashed(entry)

    def _check(self, path: Path, sha256: str) -> None:
        files.check(path, sha256, made_with="this bundle was made with", hint=_AGAIN)


def read(folder: Path) -> Bundle:
    """Read and validate a bundle folder, or a folder with an OpenVINO IR or an ONNX model as a bundle without drafters.

    Raises BundleError: no such folder, no manifest or model, malformed manifest, missing files.
    """
    if not folder.is_dir():
        raise BundleError("no such bundle folder", got=str(folder))
    if (folder / MANIFEST).is_file():
        return Bundle(folder, manifest.read(folder / MANIFEST))
    if (folder / IR_FILE).is_file():
        return Bundle(folder, *ir_folder.describe(folder))
    if onnx_folder.is_one(folder):
        return Bundle(folder, *onnx_folder.describe(folder))
    hint = "make one with: edgespec export SOURCE -o DIR"
    if (folder / "config.json").is_file():
        convert = line_to_type(["edgespec", "export", str(folder), "-o", "DIR"]) or "edgespec export FOLDER -o DIR"
        hint = f"this is a model for transformers; convert it first: {convert}"
    raise BundleError(f"neither {MANIFEST} nor {IR_FILE} nor {onnx_folder.MODEL_FILES[0]} in {folder}", hint=hint)


def write(folder: Path, manifest: Manifest) -> Bundle:
    """Write ``bundle.json`` last and atomically: a folder without it is not a bundle."""
    temporary = folder / f"{MANIFEST}.tmp"
    temporary.write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")
    temporary.replace(folder / MANIFEST)
    return read(folder)


def onnx_form(folder: Path, file: str) -> OnnxForm:
    """The entry for the form at ``folder / file``, with the hashes of its files. They are the files beside it that are
    not the IR's."""
    place = (folder / file).parent
    names = [name for name in FORM_FILES if (place / name).is_file()]
    found = [(place / name).relative_to(folder).as_posix() for name in names]
    files = tuple(HashedFile(file=name, sha256=sha256_of(folder / name)) for name in found)
    return OnnxForm(file=file, version=cache.VERSIONS["onnx_form"], files=files)


def model_file(folder: Path, file: str, *, precision: str, vocab_size: int) -> ModelFile:
    """The entry for the model at ``folder / file``, with its size and hashes, so that it can be checked."""
    graph = folder / file
    weights = next((path for path in manifest.data_files(graph) if path.is_file()), None)
    return ModelFile(
        precision=line(precision),
        vocab_size=vocab_size,
        file=file,
        weights_bytes=weights.stat().st_size if weights else None,
        sha256=sha256_of(weights) if weights else None,
        graph_sha256=sha256_of(graph),
    )
