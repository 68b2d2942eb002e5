"""The operators that a stranger's ONNX graph may have: those that exporters of language models write.

A list of what is allowed, since a list of what is not would grow with each release of ONNX Runtime. Nothing in it holds
a graph of its own, reads a file or runs code of another library.
"""

from __future__ import annotations

from typing import Any

_ARITHMETIC = "Abs Add Ceil Clip Cos Div Erf Exp Floor Log Max Min Mod Mul Neg Pow Reciprocal Round Sign Sin Sqrt Sub"
_LOGIC = "And Equal Greater GreaterOrEqual IsInf IsNaN Less LessOrEqual Not Or Where Xor"
_SHAPES = """
    Concat Constant ConstantOfShape Expand Flatten Gather GatherElements GatherND Identity Range Reshape ScatterElements
    ScatterND Shape Size Slice Split Squeeze Tile Transpose Trilu Unsqueeze
"""
_PRODUCTS = "Conv Einsum Gemm MatMul MatMulInteger"
_SUMS = "CumSum ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum TopK"
_LAYERS = """
    Attention Gelu LayerNormalization LpNormalization Relu RMSNormalization RotaryEmbedding Sigmoid
    SimplifiedLayerNormalization Softmax Softplus Swish Tanh
"""
_TYPES = "Cast CastLike DequantizeLinear DynamicQuantizeLinear QuantizeLinear"
_MICROSOFT = """
    BiasGelu DequantizeLinear DynamicQuantizeMatMul FastGelu FusedMatMul GatherBlockQuantized Gelu GroupQueryAttention
    MatMulIntegerToFloat MatMulNBits MoE MultiHeadAttention QMoE QuantizeLinear QuickGelu RotaryEmbedding
    SimplifiedLayerNormalization SkipLayerNormalization SkipSimplifiedLayerNormalization
"""
_STANDARD = frozenset(" ".join((_ARITHMETIC, _LOGIC, _SHAPES, _PRODUCTS, _SUMS, _LAYERS, _TYPES)).split())
ALLOWED = {"": _STANDARD, "ai.onnx": _STANDARD, "com.microsoft": frozenset(_MICROSOFT.split())}
"""by domain; "" and "ai.onnx" are one. What optimum and onnxruntime-genai's model builder write, and edgespec."""
_PROGRAMS = ("If", "Loop", "Scan", "SequenceMap")


def refuse_others(model: Any) -> None:
    """Raises ValueError for operators that are not allowed, programs inside, and weights in unusual places."""
    if model.functions or model.training_info or model.graph.sparse_initializer:
        raise ValueError("it has functions, training steps or sparse weights")
    for domain in (*(entry.domain for entry in model.opset_import), *(node.domain for node in model.graph.node)):
        if domain not in ALLOWED:
            raise ValueError(f"it has operators of the domain {domain}; allowed: those of ONNX and com.microsoft")
    for node in model.graph.node:
        held = [option for option in node.attribute if option.HasField("g") or option.graphs]
        if held or node.op_type in _PROGRAMS:
            raise ValueError(f"it is a program: operator {node.op_type}")
        if node.op_type not in ALLOWED[node.domain]:
            of = f" of {node.domain}" if node.domain else ""
            raise ValueError(f"operator {node.op_type}{of}; allowed: those that language models are exported with")
        for option in node.attribute:
            if option.HasField("sparse_tensor") or option.sparse_tensors:
                raise ValueError(f"sparse weights of operator {node.op_type}")
            if any(tensor.external_data or tensor.data_location for tensor in (option.t, *option.tensors)):
                raise ValueError(f"weights of operator {node.op_type} outside the file")
