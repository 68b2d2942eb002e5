"""The runtimes of the comparison: adapter, mode and weight formats of each."""

from __future__ import annotations

from dataclasses import dataclass

from edgespec.errors import SettingError


@dataclass(frozen=True)
class Runtime:
    """One entry of the comparison.

    module: its adapter in ``adapters``. mode: argument of the adapter's ``load``.
    package: its names on the package index, with spaces between them.
    weight_formats: the fields of ``WeightFormats`` that it needs. plain: the entry with its plain decoding.
    """

    name: str
    module: str
    mode: str
    package: str
    weight_formats: tuple[str, ...]
    plain: str

    @property
    def distributions(self) -> tuple[str, ...]:
        return tuple(self.package.split())


BASELINE, OWN_PLAIN = "edgespec auto", "edgespec plain"

_GGUF, _ORT = ("gguf",), "edgespec onnxruntime onnx"
_NGRAMS = ("ngram-cache", "ngram-map-k", "ngram-map-k4v", "ngram-mod", "ngram-simple")

_TABLE: tuple[tuple[str, str, str, str, tuple[str, ...]], ...] = (
    (OWN_PLAIN, "edgespec", "plain", "edgespec", ()),
    (BASELINE, "edgespec", "auto", "edgespec", ()),
    ("edgespec openvino plain", "edgespec", "openvino plain", "edgespec", ()),
    ("edgespec openvino auto", "edgespec", "openvino auto", "edgespec", ()),
    ("edgespec onnxruntime plain", "edgespec", "onnxruntime plain", _ORT, ()),
    ("edgespec onnxruntime auto", "edgespec", "onnxruntime auto", _ORT, ()),
    ("edgespec onnxruntime fast plain", "edgespec", "onnxruntime fast plain", _ORT, ()),
    ("edgespec onnxruntime fast auto", "edgespec", "onnxruntime fast auto", _ORT, ()),
    ("edgespec gguf openvino plain", "edgespec", "gguf openvino plain", "edgespec", _GGUF),
    ("edgespec gguf openvino auto", "edgespec", "gguf openvino auto", "edgespec", _GGUF),
    ("edgespec gguf onnxruntime plain", "edgespec", "gguf onnxruntime plain", _ORT, _GGUF),
    ("edgespec gguf onnxruntime auto", "edgespec", "gguf onnxruntime auto", _ORT, _GGUF),
    ("openvino-genai plain", "openvino_genai", "plain", "openvino-genai", ("ir",)),
    ("openvino-genai draft_model", "openvino_genai", "draft_model", "openvino-genai", ("ir", "draft_ir")),
    ("openvino-genai prompt_lookup", "openvino_genai", "prompt_lookup", "openvino-genai", ("ir",)),
    ("optimum-intel plain", "optimum_intel", "plain", "optimum-intel", ("ir",)),
    ("optimum-intel assistant_model", "optimum_intel", "assistant_model", "optimum-intel", ("ir", "draft_ir")),
    ("onnxruntime-genai plain", "onnxruntime_genai", "plain", "onnxruntime-genai onnx-ir", ("onnx",)),
    ("onnxruntime-genai draft", "onnxruntime_genai", "draft", "onnxruntime-genai onnx-ir", ("onnx", "onnx_draft")),
    ("onnxruntime-genai ngram", "onnxruntime_genai", "ngram", "onnxruntime-genai onnx-ir", ("onnx",)),
    ("llama.cpp plain", "llama_cpp", "plain", "xllamacpp", _GGUF),
    ("llama.cpp draft", "llama_cpp", "draft", "xllamacpp", ("gguf", "gguf_draft")),
    *((f"llama.cpp {mode}", "llama_cpp", mode, "xllamacpp", _GGUF) for mode in _NGRAMS),
)


def _plain(name: str) -> str:
    return f"{name.rpartition(' ')[0]} plain"


RUNTIMES = tuple(Runtime(*row, plain=_plain(row[0])) for row in _TABLE)


def choose(only: str | None) -> list[Runtime]:
    """Runtimes whose names start with a part of ``only``. The two references of the ratios are always included.

    >>> [c.name for c in choose("llama.cpp plain")]
    ['edgespec plain', 'edgespec auto', 'llama.cpp plain']
    """
    if only is None:
        return list(RUNTIMES)
    wanted = [part.strip() for part in only.split(",") if part.strip()]
    for part in wanted:
        if not any(c.name.startswith(part) for c in RUNTIMES):
            raise SettingError("runtime", got=part, allowed=", ".join(c.name for c in RUNTIMES))
    always = (OWN_PLAIN, BASELINE)
    return [c for c in RUNTIMES if c.name in always or any(c.name.startswith(part) for part in wanted)]
