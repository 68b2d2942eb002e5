"""torch model -> stateful OpenVINO IR -> compressed weights, and proof that the paged runtime takes the result."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import nncf
import torch
from optimum.exporters.openvino.convert import export_from_model
from optimum.exporters.tasks import TasksManager
from optimum.intel import OVConfig
from packaging.version import Version
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers import __version__ as transformers_version

from edgespec.backends.openvino.merge_matmuls import merge_products
from edgespec.backends.openvino.runtime import ov, paged_attention_transformation
from edgespec.bundle import IR_FILE
from edgespec.errors import ConversionError, EdgespecError, SettingError
from edgespec_export.settings import GROUP_SIZES, Weights
from edgespec_export.sources import Source

TASK = "text-generation-with-past"
IR_INPUTS = frozenset({"input_ids", "attention_mask", "position_ids", "beam_idx"})


def read_config(source: Source, *, trust_remote_code: bool = False) -> PretrainedConfig:
    """The model's configuration. Raises ConversionError if it is not a causal LM that optimum-intel can export."""
    with _blamed(
        f"transformers cannot read the configuration of {source.name}",
        hint="it may need --trust-remote-code or a newer transformers",
    ):
        config: PretrainedConfig = AutoConfig.from_pretrained(
            source.folder, trust_remote_code=trust_remote_code, **_gguf_option(source)
        )
    kind = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        raise ConversionError("an encoder-decoder model", got=kind, allowed="decoder-only causal language models")
    if hasattr(config, "vision_config") or hasattr(config, "audio_config"):
        raise ConversionError("a multimodal model", got=kind, allowed="text-only causal language models")
    if getattr(config, "quantization_config", None):
        raise ConversionError(
            "weights are already quantised", got=_method(config), hint="export the original checkpoint or its GGUF"
        )
    try:
        tasks = TasksManager.get_supported_tasks_for_model_type(kind, exporter="openvino", library_name="transformers")
    except KeyError:
        tasks = {}
    if TASK not in tasks:
        raise ConversionError("optimum-intel has no causal LM export for this architecture", got=kind)
    _check_version(kind, tasks[TASK])
    return config


def load(
    source: Source, weights: Weights, config: PretrainedConfig, *, trust_remote_code: bool = False
) -> PreTrainedModel:
    """The torch model: in float32 for float output, in the checkpoint's own type (smaller) when it is compressed."""
    with _blamed(f"cannot load {source.name}"):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source.folder,
            config=config,
            dtype="auto" if weights.integer and source.gguf is None else torch.float32,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            **_gguf_option(source),
        )
    model: PreTrainedModel = loaded[0]
    if missing := sorted(loaded[1]["missing_keys"]):
        # transformers fills these with random numbers and goes on.
        raise ConversionError(f"{source.name} lacks weights", got=f"{len(missing)} missing, first: {missing[0]}")
    model.eval()
    return model


def export_ir(model: PreTrainedModel, folder: Path, weights: Weights) -> Path:
    """Write the uncompressed IR; returns its .xml."""
    # Optimum pins a float16 KV cache in the IR unless it hears that the weights will be quantised.
    ov_config = OVConfig(quantization_config={"bits": 8}) if weights.integer else None
    with _blamed("optimum-intel could not export this model"):
        export_from_model(
            model,
            folder,
            task=TASK,
            ov_config=ov_config,
            stateful=True,
            preprocessors=[],
            patch_16bit_model=model.dtype in (torch.float16, torch.bfloat16),
        )
    return folder / IR_FILE


def compress(raw: Path, out: Path, weights: Weights) -> tuple[Weights, str | None]:
    """Write ``raw`` to ``out`` with compressed weights: (settings used, why they are not the usual ones)."""
    if not weights.integer:
        _save(ov.Core().read_model(raw), out, to_fp16=weights.kind == "f16")
        return weights, None
    sign = "SYM" if weights.sym else "ASYM"
    mode = nncf.CompressWeightsMode[f"{weights.kind.upper()}_{sign}"]
    if weights.kind == "int8":
        _save(nncf.compress_weights(ov.Core().read_model(raw), mode=mode), out)
        return weights, None
    sizes = GROUP_SIZES if weights.group_size is None else (weights.group_size,)
    channels = ""
    for size in sizes:
        try:
            model = nncf.compress_weights(ov.Core().read_model(raw), mode=mode, group_size=size, ratio=weights.ratio)
        except nncf.InvalidGroupSizeError as error:
            failed = sorted(set(re.findall(r"channel size: (\d+)", str(error))), key=int)
            channels = channels or ", ".join(failed)
            continue
        _save(model, out)
        note = f"int4 group size {size}, because {sizes[0]} does not divide channels of {channels}"
        return replace(weights, group_size=size), note if channels else None
    raise SettingError(
        "int4 group size does not divide the model's channels",
        got=", ".join(map(str, sizes)),
        allowed=f"a divisor of {channels}",
        hint="--group-size -1 takes the whole channel as one group",
    )


def check_ir(xml: Path) -> int:
    """Rows of logits of an IR the paged runtime accepts. Raises ConversionError for one it does not."""
    model = ov.Core().read_model(xml)
    inputs = {port.get_any_name() for port in model.inputs}
    width = model.output("logits").partial_shape[-1]
    if not inputs >= IR_INPUTS - {"position_ids"} or width.is_dynamic:
        raise ConversionError("the exported graph is no causal LM with state", got=", ".join(sorted(inputs)))
    hint = "the architecture has layers the paged runtime cannot cache"
    with _blamed("the exported graph does not take paged attention", hint=hint):
        paged_attention_transformation(model, allow_qq_bias=True)
    if not any(port.get_any_name().startswith("key_cache") for port in model.inputs):
        raise ConversionError("the exported graph does not take paged attention", hint=hint)
    return int(width.get_length())


def parameter_bytes(model: PreTrainedModel) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def _save(model: ov.Model, out: Path, *, to_fp16: bool = False) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    with _blamed("the matrix products cannot be merged"):
        merge_products(model)
    with _blamed(f"cannot write {out.name}", hint="is the disk full?"):
        ov.save_model(model, out, compress_to_fp16=to_fp16)


@contextmanager
def _blamed(what: str, *, hint: str = "see --verbose") -> Iterator[None]:
    """``errors.mapped`` for libraries that let any exception out when they meet a model they do not know."""
    try:
        yield
    except EdgespecError:
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        telling = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
        reason = " ".join((telling or lines or ["no reason given"])[:2])[:300]
        raise ConversionError(f"{what}: {type(error).__name__}: {reason}", hint=hint) from error


def _check_version(kind: str, exporter: Any) -> None:
    """Optimum says this too, but after the weights are loaded."""
    limits = getattr(exporter, "func", exporter)
    least, most = (getattr(limits, f"{end}_TRANSFORMERS_VERSION", None) for end in ("MIN", "MAX"))
    installed = Version(transformers_version)
    if (least and installed < Version(str(least))) or (most and installed > Version(str(most))):
        wanted = [f">={least}" if least else "", f"<={most}" if most else ""]
        raise ConversionError(
            f"optimum-intel exports {kind} with other versions of transformers only",
            got=transformers_version,
            allowed=",".join(filter(None, wanted)),
            hint="make an environment with that version and export there",
        )


def _gguf_option(source: Source) -> dict[str, Any]:
    return {} if source.gguf is None else {"gguf_file": source.gguf.name}


def _method(config: PretrainedConfig) -> str:
    settings = config.quantization_config
    method = settings.get("quant_method") if isinstance(settings, dict) else getattr(settings, "quant_method", None)
    return str(method or "quantised")
