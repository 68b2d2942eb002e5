"""Sizes of the model in a GGUF file."""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgespec.errors import ConversionError
from edgespec.gguf.architectures import ARCHITECTURES
from edgespec.gguf.header import Header
from edgespec.gguf.rotary import SHORT, Rope
from edgespec.gguf.values import DAMAGED, LARGEST_HEAD, number, size

_CAPS = {"gemma2": (50.0, 30.0)}
"""of scores and logits, where no key says them"""
_BY_EMBEDDING = (("gemma2", 46), ("gemma3", 62))
"""architecture and layers: Gemma's models of 27B scale scores by another size, as no key says"""


@dataclass(frozen=True)
class Dimensions:
    """Sizes of a model, and what it multiplies with.

    embedding: of a hidden state. head: of one head's queries, keys and values. Granite multiplies embeddings, and what
    a layer adds to the hidden states, and divides logits.

    window: tokens that the layers with a window see, 0 if they see all. period: every so many layers one sees all.
    score_cap, logit_cap: ``cap * tanh(x / cap)``, of attention's scores and of logits; 0 is none.
    """

    layers: int
    embedding: int
    feed_forward: int
    heads: int
    kv_heads: int
    head: int
    vocabulary: int
    context: int
    norm_epsilon: float
    rope: Rope
    attention_scale: float
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    window: int = 0
    period: int = 0
    unrotated: int = 0
    score_cap: float = 0.0
    logit_cap: float = 0.0

    @classmethod
    def of(cls, header: Header) -> Dimensions:
        """Raises ConversionError: a size is missing, of the wrong type, or fits no other."""
        embedding = size(header, "{arch}.embedding_length")
        heads = size(header, "{arch}.attention.head_count")
        head = size(header, "{arch}.attention.key_length", max(1, embedding // heads), most=LARGEST_HEAD)
        context = size(header, "{arch}.context_length")
        known = ARCHITECTURES[header.architecture]
        scales = {}
        if header.architecture == "granite":
            usually = {"embedding_scale": 1.0, "residual_scale": 1.0, "logit_scale": None}
            scales = {name: number(header, f"{{arch}}.{name}", usual) for name, usual in usually.items()}
        layers = size(header, "{arch}.block_count")
        local_base = number(header, "{arch}.rope.freq_base_swa", 10000.0) if header.architecture == "gemma3" else None
        rope = Rope.of(header, head, context, local_base)
        usual = 1 / math.sqrt(embedding / heads if (header.architecture, layers) in _BY_EMBEDDING else head)
        caps = _CAPS.get(header.architecture, (0.0, 0.0))
        window = size(header, "{arch}.attention.sliding_window", known.usual_window, least=0) if known.windows else 0
        longest = min(context, rope.trained) if SHORT in header.tensors else context
        found = cls(
            layers=layers,
            embedding=embedding,
            feed_forward=size(header, "{arch}.feed_forward_length"),
            heads=heads,
            kv_heads=size(header, "{arch}.attention.head_count_kv", heads),
            head=head,
            vocabulary=header.tensors["token_embd.weight"].shape[-1],
            context=longest,
            norm_epsilon=number(header, "{arch}.attention.layer_norm_rms_epsilon", None),
            rope=rope,
            attention_scale=number(header, "{arch}.attention.scale", usual) if scales else usual,
            embedding_scale=math.sqrt(embedding) if known.root_scale else scales.pop("embedding_scale", 1.0),
            window=window if window < longest else 0,
            period=size(header, "{arch}.attention.sliding_window_pattern", known.period, least=0),
            unrotated=known.unrotated,
            score_cap=_cap(header, "{arch}.attn_logit_softcapping", caps[0]),
            logit_cap=_cap(header, "{arch}.final_logit_softcapping", caps[1]),
            **scales,
        )
        if (
            found.head % 2
            or rope.rotated % 2
            or rope.rotated > head
            or heads % found.kv_heads
            or found.layers > len(header.tensors)
        ):
            got = f"{found.layers} layers, {heads} heads of {found.head}, {found.kv_heads} of keys"
            raise ConversionError(f"sizes of {header.path.name} do not fit each other", got=got, hint=DAMAGED)
        return found

    def local(self, layer: int) -> bool:
        """Whether a layer is one of those with a window, however wide it is."""
        return self.period == 0 or (layer + 1) % self.period != 0

    def rotates(self, layer: int) -> bool:
        return self.unrotated == 0 or (layer + 1) % self.unrotated != 0

    @property
    def fused_rows(self) -> int:
        return self.queries + 2 * self.keys

    @property
    def gate_and_up(self) -> int:
        return 2 * self.feed_forward

    @property
    def queries(self) -> int:
        return self.heads * self.head

    @property
    def keys(self) -> int:
        return self.kv_heads * self.head

    @property
    def frequencies(self) -> int:
        return self.rope.rotated // 2

    @property
    def usual_attention_scale(self) -> float:
        return 1 / math.sqrt(self.head)


def _cap(header: Header, key: str, usual: float) -> float:
    """0 in the file is none."""
    return number(header, key, usual) if header.get(key, usual) else 0.0
