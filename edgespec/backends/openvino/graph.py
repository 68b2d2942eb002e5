"""From a causal language model's IR to a compiled paged graph.

Changes to the graph: OpenVINO's own SDPA-to-PagedAttention transformation, a Gather of the wanted rows in front of the
output head, so that a prefill never makes logits for the whole prompt, and in small models products that read the same
activations become one. (Larger ones are written that way when they are converted or exported: merging here takes
memory for the weights once more.)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgespec.backends.layer_states import chosen, require_width, states_before_attention
from edgespec.backends.openvino import soft_caps, windows
from edgespec.backends.openvino.merge_matmuls import merge_products
from edgespec.backends.openvino.runtime import ops, ov, paged_attention_transformation
from edgespec.errors import BackendError, foreign, wrap_errors

SMALL = 64 * 2**20
"""bytes of weights that may be in memory twice"""
LOGITS_ROWS = "logits_rows"
"""Input of the changed graph: indices of the rows that get logits, ``(r,)`` int64."""
_PROGRAMS = {"If", "Loop", "TensorIterator"}
"""Operations that make a graph a program: one may run for ever, and an inference cannot be stopped from outside."""


class NoPagedForm(BackendError):
    """A model that this engine cannot run, whatever the machine; another may."""


def hidden_name(layer: int) -> str:
    """Output of the changed graph, on request: the hidden states of a layer, ``(tokens, 1, d)``."""
    return f"hidden.{layer}"


def paged_graph(core: ov.Core, xml: Path, layers: Sequence[int] = ()) -> ov.Model:
    """Read an IR and make it paged. Raises BackendError if it is damaged or not a causal language model, or if
    attention's scores are soft-capped.

    layers: whose hidden states it returns too (see ``types.Hidden``).
    """
    model, caps = uncapped_graph(core, xml, layers)
    if caps:
        raise NoPagedForm(
            f"OpenVINO's paged attention cannot cap the scores of {xml.parent.name}",
            got=f"a soft cap of {caps[0]:g} in {len(caps)} layers, as Gemma 2 has it",
            hint="run it on ONNX Runtime: --backend onnxruntime, device CPU",
        )
    return model


def decoder_layers(core: ov.Core, xml: Path) -> tuple[int, int]:
    """How many layers a model has, and how many numbers a hidden state of it. Raises BackendError as ``paged_graph``
    does."""
    model = paged_graph(core, xml)
    last = _output_head(model).input_value(0)
    return len(_states(model, last, "PagedAttentionExtension")), last.get_partial_shape()[-1].get_length()


def uncapped_graph(core: ov.Core, xml: Path, layers: Sequence[int] = ()) -> tuple[ov.Model, list[float]]:
    """The paged graph without the soft caps of attention's scores, and these, in the order of the layers. There is one
    for each layer or none."""
    model = read_graph(core, xml)
    with wrap_errors(BackendError, f"{xml} cannot be made a paged graph", hint="is it a decoder exported with past?"):
        if xml.with_suffix(".bin").stat().st_size <= SMALL:
            merge_products(model)
        caps = soft_caps.fold(model)
        expected = windows.named(model)
        paged_attention_transformation(model, allow_qq_bias=True)
        # The transformation moved tokens to the first axis: activations are (tokens, 1, d).
        choose_outputs(model, layers, attention="PagedAttentionExtension", tokens_axis=0)
        model.validate_nodes_and_infer_types()
    windows.require(model, expected)
    return model, caps


def read_graph(core: ov.Core, xml: Path) -> ov.Model:
    """An IR as it is. Raises BackendError if it is damaged, or a program."""
    damaged = "the files are damaged: export or pull the model again"
    with foreign(BackendError, f"cannot read {xml}", hint=damaged):
        if not _is_whole(xml):
            raise BackendError(f"cannot read {xml}: not a complete IR", hint=damaged)
        model = core.read_model(xml)
    refuse_programs(model, xml)
    return model


def refuse_programs(model: ov.Model, xml: Path) -> None:
    """Raises BackendError. What an operation holds inside need not be looked at: it is refused itself."""
    if found := sorted({node.get_type_name() for node in model.get_ops()} & _PROGRAMS):
        raise BackendError(
            f"{xml} is a program, not the graph of a model",
            got=f"operation {found[0]}",
            hint="export the model again with another exporter",
        )


def _is_whole(xml: Path) -> bool:
    """Looks at both ends: given anything else, OpenVINO tries all its other frontends, which write to stderr."""
    with xml.open("rb") as file:
        head = file.read(200)
        file.seek(-min(200, xml.stat().st_size), 2)
        return b"<net" in head and file.read().rstrip().endswith(b"</net>")


def choose_outputs(model: ov.Model, layers: Sequence[int], *, attention: str, tokens_axis: int) -> None:
    """Logits for the rows of the input LOGITS_ROWS alone, and the hidden states of ``layers``.

    attention: the operation that is one in each layer. tokens_axis: of activations.
    """
    last = _output_head(model).input_value(0)
    _gather_rows(model, last, tokens_axis)
    _add_hidden_outputs(model, last, layers, attention)


def _gather_rows(model: ov.Model, last: Any, axis: int) -> None:
    """last: what goes into the output head, which may be several products of it."""
    rows = ops.parameter([-1], np.int64, name=LOGITS_ROWS)
    rows.output(0).get_tensor().set_names({LOGITS_ROWS})
    readers = last.get_target_inputs()
    gathered = ops.gather(last, rows, ops.constant(axis, np.int64))
    for reader in readers:
        reader.replace_source_output(gathered.output(0))
    model.add_parameters([rows])


def _add_hidden_outputs(model: ov.Model, last: Any, layers: Sequence[int], attention: str) -> None:
    """last: what goes into the output head."""
    if not layers:
        return
    found = chosen([*_states(model, last, attention), last], layers)
    columns = {layer: states.get_partial_shape()[-1] for layer, states in found.items()}
    require_width(columns, last.get_partial_shape()[-1])
    for layer, states in found.items():
        result = ops.result(ops.convert(states, np.float32).output(0))
        result.output(0).get_tensor().set_names({hidden_name(layer)})
        model.add_results([result])


def _states(model: ov.Model, last: Any, attention: str) -> list[Any]:
    """What each decoder layer begins from."""
    nodes = model.get_ordered_ops()
    place = {node.get_name(): index for index, node in enumerate(nodes)}
    sources: list[list[int]] = []  # of each node, those that carry the tokens to it; a shape carries none
    carries = [False] * len(nodes)
    for index, node in enumerate(nodes):
        above = (place[value.get_node().get_name()] for value in node.input_values())
        sources.append([source for source in above if carries[source]])
        begins = "input_ids" in node.output(0).get_names() if node.get_type_name() == "Parameter" else False
        carries[index] = begins or (bool(sources[index]) and node.get_type_name() != "ShapeOf")
    attentions = {index for index, node in enumerate(nodes) if node.get_type_name() == attention}
    found = states_before_attention(sources, attentions, place[last.get_node().get_name()])
    return [nodes[index].output(0) for index in found]


def _output_head(model: ov.Model) -> Any:
    """The last MatMul before the logits; between them only a bias, a transpose or a soft cap."""
    node = model.output("logits").get_node().input_value(0).get_node()
    for _ in range(8):
        if node.get_type_name() == "MatMul":
            return node
        if node.get_type_name() not in ("Add", "Multiply", "Divide", "Tanh", "Transpose", "Convert", "Subtract"):
            break
        node = node.input_value(0).get_node()
    raise BackendError("no output head found before the logits", got=node.get_type_name(), allowed="MatMul")
