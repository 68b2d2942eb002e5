"""Who runs, in what mode, with which form of the weights."""

from __future__ import annotations

from dataclasses import dataclass

from edgespec.errors import SettingError


@dataclass(frozen=True)
class Contender:
    """module: adapter in this package. mode: what it is asked for. forms: fields of ``Forms`` it needs.
    package: what pip calls it, or several names. plain: the contender that is its own plain decoding."""

    name: str
    module: str
    mode: str
    package: str
    forms: tuple[str, ...]
    plain: str

    @property
    def distributions(self) -> tuple[str, ...]:
        return tuple(self.package.split())


YARDSTICK, OWN_PLAIN = "edgespec auto", "edgespec plain"

_TABLE: tuple[tuple[str, str, str, str, tuple[str, ...]], ...] = (
    (OWN_PLAIN, "edgespec", "plain", "edgespec", ()),
    (YARDSTICK, "edgespec", "auto", "edgespec", ()),
    ("edgespec openvino plain", "edgespec", "openvino plain", "edgespec", ()),
    ("edgespec openvino auto", "edgespec", "openvino auto", "edgespec", ()),
    ("edgespec onnxruntime plain", "edgespec", "onnxruntime plain", "edgespec onnxruntime onnx", ()),
    ("edgespec onnxruntime auto", "edgespec", "onnxruntime auto", "edgespec onnxruntime onnx", ()),
    ("openvino-genai plain", "openvino_genai", "plain", "openvino-genai", ("ir",)),
    ("openvino-genai draft_model", "openvino_genai", "draft_model", "openvino-genai", ("ir", "draft_ir")),
    ("openvino-genai prompt_lookup", "openvino_genai", "prompt_lookup", "openvino-genai", ("ir",)),
    ("optimum-intel plain", "optimum_intel", "plain", "optimum-intel", ("ir",)),
    ("optimum-intel assistant_model", "optimum_intel", "assistant_model", "optimum-intel", ("ir", "draft_ir")),
    ("onnxruntime-genai plain", "onnxruntime_genai", "plain", "onnxruntime-genai", ("onnx",)),
    ("onnxruntime-genai draft", "onnxruntime_genai", "draft", "onnxruntime-genai", ("onnx", "onnx_draft")),
    ("onnxruntime-genai ngram", "onnxruntime_genai", "ngram", "onnxruntime-genai", ("onnx",)),
    ("llama-cpp-python plain", "llama_cpp", "plain", "llama-cpp-python", ("gguf",)),
    ("llama-cpp-python prompt_lookup", "llama_cpp", "prompt_lookup", "llama-cpp-python", ("gguf",)),
)


def _plain(name: str) -> str:
    return f"{name.rpartition(' ')[0]} plain"


CONTENDERS = tuple(Contender(*row, plain=_plain(row[0])) for row in _TABLE)


def choose(only: str | None) -> list[Contender]:
    """Contenders by name or by the beginning of it. The two that ratios are taken to are always among them.

    >>> [c.name for c in choose("llama-cpp-python plain")]
    ['edgespec plain', 'edgespec auto', 'llama-cpp-python plain']
    """
    if only is None:
        return list(CONTENDERS)
    wanted = [part.strip() for part in only.split(",") if part.strip()]
    for part in wanted:
        if not any(c.name.startswith(part) for c in CONTENDERS):
            raise SettingError("contender", got=part, allowed=", ".join(c.name for c in CONTENDERS))
    always = (OWN_PLAIN, YARDSTICK)
    return [c for c in CONTENDERS if c.name in always or any(c.name.startswith(part) for part in wanted)]
