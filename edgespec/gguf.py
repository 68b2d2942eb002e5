"""GGUF file -> OpenVINO IR folder, without torch.

OpenVINO GenAI writes the graph; the tokenizer, the chat template and the token ids that end a turn come from the
file's own metadata. GenAI reads few architectures and quantizations, so a file is checked before it is converted.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgespec import bundle
from edgespec.errors import ConversionError
from edgespec.gguf_tokenizer import CONTROL, PRE_TOKENIZERS, tokenizer_json
from edgespec.gguf_weights import requantize

ARCHITECTURES = ("llama", "qwen2", "qwen3")
QUANTIZATIONS = ("F32", "F16", "Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q6_K")

_ELSE = "make a bundle from the original model instead: edgespec export OWNER/NAME -o DIR"
_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<|endofturn|>", "<end_of_turn>")

# Its own process: engine messages stay off stdout, Ctrl-C works, a crash is an error, and memory comes back. The file
# names are relative because the GGUF reader takes no paths beyond the code page on Windows.
INPUT = "model.gguf"
_CONVERTER = f"""
import sys
sys.modules["openvino_telemetry"] = None  # see edgespec.engine
import openvino, openvino_genai
openvino_genai.LLMPipeline("{INPUT}", "CPU", enable_save_ov_model=True)
openvino.Core().read_model("openvino_model.xml")
"""


@dataclass(frozen=True)
class Header:
    """Metadata of a GGUF file, and type and shape (innermost first) of its tensors."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, tuple[str, tuple[int, ...]]]

    def get(self, key: str, default: Any = None) -> Any:
        """``ARCH.key`` for the architecture's own keys: ``get("{arch}.context_length")``."""
        return self.metadata.get(key.format(arch=self.metadata.get("general.architecture")), default)

    def token(self, key: str) -> str | None:
        """Text of a token that the metadata names by id, e.g. ``eos_token_id``."""
        token_id = self.get(f"tokenizer.ggml.{key}")
        return None if token_id is None else str(self.get("tokenizer.ggml.tokens")[token_id])

    @property
    def precision(self) -> str:
        from gguf import LlamaFileType

        try:
            name: str = LlamaFileType(self.get("general.file_type")).name
        except ValueError:
            return "unknown"
        return name.split("_", 1)[1].lower()  # MOSTLY_Q4_1

    @property
    def vocab_size(self) -> int:
        """Number of logits."""
        return self.tensors["output.weight" if "output.weight" in self.tensors else "token_embd.weight"][1][-1]


def read_header(path: Path) -> Header:
    """Raises ConversionError: not a GGUF file, cut short, or nothing the converter can read."""
    try:
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise ConversionError("not a GGUF file", got=str(path))
        header = _parse(path)
    except OSError as error:
        raise ConversionError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, IndexError, TypeError, OverflowError, MemoryError) as error:
        raise ConversionError(f"{path} is damaged or cut short ({error})", hint="download it again") from error
    _check(header)
    return header


def texts(header: Header) -> tuple[str, str | None, bundle.Generation]:
    """tokenizer.json, chat template, and what begins a prompt and ends a generation."""
    template = header.get("tokenizer.chat_template")
    tokens, types = header.get("tokenizer.ggml.tokens"), header.get("tokenizer.ggml.token_type")
    ends = [header.get(f"tokenizer.ggml.{key}") for key in ("eos_token_id", "eot_token_id")]
    ends += [
        tokens.index(text)
        for text in _TURN_ENDS
        if text in (template or "") and text in tokens and types[tokens.index(text)] == CONTROL
    ]
    return (
        tokenizer_json(header.get("tokenizer.ggml.pre"), tokens, types, header.get("tokenizer.ggml.merges")),
        template,
        bundle.Generation(
            eos_token_ids=tuple(dict.fromkeys(int(end) for end in ends if end is not None)),
            context_length=int(header.get("{arch}.context_length")),
            bos_token=header.token("bos_token_id"),
            eos_token=header.token("eos_token_id"),
            add_bos=bool(header.get("tokenizer.ggml.add_bos_token", header.get("tokenizer.ggml.pre") == "llama-bpe")),
        ),
    )


def convert(
    header: Header,
    folder: Path,
    *,
    name: str,
    source: str,
    weights: Literal["int8", "faithful"] = "faithful",
    merge: bool = True,
) -> bundle.Bundle:
    """Fill an empty folder: IR, texts, the JSON files other OpenVINO tools look for, and last of all bundle.json.

    weights: "faithful" keeps the file's own precision, "int8" compresses its weights anew (see ``gguf_weights``).
    merge: matrix products that read the same activations become one (see ``merge``).
    """
    tokenizer, template, generation = texts(header)
    precision = _write_ir(header.path, folder, weights, merge)
    config = {
        "model_type": header.get("general.architecture"),
        "vocab_size": header.vocab_size,
        "max_position_embeddings": generation.context_length,
        "edgespec_precision": precision,
    }
    tokenizer_config = {
        "bos_token": generation.bos_token,
        "eos_token": generation.eos_token,
        "add_bos_token": generation.add_bos,
    }
    for file, content in (
        ("config.json", config),
        ("generation_config.json", {"eos_token_id": generation.eos_token_ids}),
        ("tokenizer_config.json", tokenizer_config),
    ):
        (folder / file).write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    return bundle.write(
        folder,
        bundle.Manifest(
            format=bundle.FORMAT,
            name=name,
            target=bundle.ModelFile(
                precision=precision,
                vocab_size=header.vocab_size,
                file=bundle.IR_FILE,
                weights_bytes=(folder / bundle.IR_FILE).with_suffix(".bin").stat().st_size,
            ),
            tokenizer=_write(folder / "tokenizer.json", tokenizer),
            chat_template=None if template is None else _write(folder / "chat_template.jinja", template),
            generation=generation,
            provenance=bundle.Provenance(licence=header.get("general.license"), source=source),
        ),
    )


def _write(path: Path, text: str) -> bundle.HashedFile:
    path.write_bytes(text.encode())  # bytes: no line end is translated
    return bundle.HashedFile(file=path.name, sha256=bundle.sha256_of(path))


def _write_ir(gguf: Path, folder: Path, weights: Literal["int8", "faithful"], merge: bool) -> str:
    """Run the converter, which writes beside its input: the file is linked into the folder, or copied."""
    inside = folder / INPUT
    if gguf != inside:
        try:
            os.link(gguf.resolve(), inside)
        except OSError:
            shutil.copyfile(gguf, inside)
    run = subprocess.run(
        [sys.executable, "-c", _CONVERTER], cwd=folder, capture_output=True, stdin=subprocess.DEVNULL, check=False
    )
    if run.returncode != 0:
        lines = [line.strip() for line in run.stderr.decode(errors="replace").splitlines() if line.strip()]
        reason = lines[-1] if lines else f"the converter ended with code {run.returncode}"
        free = shutil.disk_usage(folder).free
        raise ConversionError(
            f"cannot convert {gguf.name}: {reason}", hint=f"free disk space: {free >> 20} MiB. {_ELSE}"
        )
    precision = requantize(folder / bundle.IR_FILE, inside, weights, merge=merge)
    for path in (inside, *folder.glob("openvino_tokenizer.*"), *folder.glob("openvino_detokenizer.*")):
        path.unlink()
    return precision


def _check(header: Header) -> None:
    what = header.path.name
    architecture = header.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise ConversionError(f"architecture of {what}", got=architecture, allowed=", ".join(ARCHITECTURES), hint=_ELSE)
    quantized = {kind for kind, _ in header.tensors.values()} - set(QUANTIZATIONS)
    if quantized:
        raise ConversionError(
            f"quantization of {what}",
            got=", ".join(sorted(quantized)),
            allowed=", ".join(QUANTIZATIONS),
            hint="get a Q4_0, Q4_K_M or Q8_0 file of the model",
        )
    kind = header.get("tokenizer.ggml.model")
    if kind != "gpt2":
        raise ConversionError(f"tokenizer of {what}", got=kind, allowed="gpt2 (byte-level BPE)", hint=_ELSE)
    pre = header.get("tokenizer.ggml.pre", "none")
    if pre not in PRE_TOKENIZERS:
        raise ConversionError(f"pre-tokenizer of {what}", got=pre, allowed=", ".join(PRE_TOKENIZERS), hint=_ELSE)
    if header.get("split.count", 1) > 1:
        raise ConversionError(f"{what} is one part of several", hint="join them first with llama-gguf-split --merge")
    needed = ["{arch}.context_length"] + [f"tokenizer.ggml.{key}" for key in ("tokens", "token_type", "merges")]
    missing = [key for key in needed if header.get(key) is None]
    if missing or "token_embd.weight" not in header.tensors:
        raise ConversionError(f"{what} is not a whole language model", got=f"no {(missing or ['tensors'])[0]}")
    count = len(header.get("tokenizer.ggml.tokens"))
    named = [header.get(f"tokenizer.ggml.{key}", 0) for key in ("bos_token_id", "eos_token_id", "eot_token_id")]
    if len(header.get("tokenizer.ggml.token_type")) != count or max(named) >= count:
        raise ConversionError(f"vocabulary of {what} is damaged", hint="download it again")


def _parse(path: Path) -> Header:
    from gguf import GGUFReader

    reader = GGUFReader(path)
    return Header(
        path,
        {name: field.contents() for name, field in reader.fields.items()},
        {t.name: (t.tensor_type.name, tuple(int(n) for n in t.shape)) for t in reader.tensors},
    )
