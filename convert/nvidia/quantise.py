"""Explicit symmetric quantisation: weights stored small with a scale for each output channel, Q/DQ on what meets them.

int8 weights are rounded by GPTQ, fp8 ones (e4m3) to the nearest; zero points are 0, scales are of the type of the data, and
biases stay as they are.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from convert.rounding import Rounded
from convert.storing import initializer

if TYPE_CHECKING:
    import onnx_ir as ir

PRODUCTS = ("Conv", "MatMul", "Gemm")
TOPS = {"int8": 127.0, "float8e4m3": 448.0}
LEAST = 2.0**-24  # of a scale: fp16's smallest number
Small = tuple[np.ndarray, np.ndarray]
"""Values in the shape of the weight (O, …), and a scale for each output channel (O,)."""


def int8_values(stored: Rounded) -> Small:
    return stored.values.numpy(), np.maximum(stored.scale.numpy(), LEAST)


def fp8_values(weight: np.ndarray) -> Small:
    """Each output channel's largest magnitude becomes e4m3's."""
    import ml_dtypes

    largest = np.abs(weight).reshape(len(weight), -1).max(1)
    scale = np.maximum(largest / TOPS["float8e4m3"], LEAST).astype(np.float32)
    return (weight / _spread(scale, weight)).astype(ml_dtypes.float8_e4m3fn), scale


def restored(small: Small) -> np.ndarray:
    """What the network will compute with."""
    values, scale = small
    return values.astype(np.float32) * _spread(scale, values)


def _spread(scale: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return scale.reshape(-1, *[1] * (weight.ndim - 1))


def store_weights(graph: "ir.Graph", plan: Mapping[str, Small]) -> None:
    """Each weight that `plan` names (without ".T") becomes a small one and the DequantizeLinear that restores it."""
    import onnx_ir as ir

    for name in [name for name in graph.initializers if name.removesuffix(".T") in plan]:
        wide = graph.initializers[name]
        values, scale = plan[name.removesuffix(".T")]
        axis = 0
        if name.endswith(".T"):
            values, axis = np.ascontiguousarray(values.T), 1
        del graph.initializers[name]
        wide.name = None
        inputs = [initializer(name, values), initializer(f"{name}.scale", scale)]
        for value in inputs:
            graph.initializers.add(value)
        node = ir.node("DequantizeLinear", inputs, {"axis": axis}, name=f"{name}.dequantize")
        _type(node.outputs[0], f"{name}.restored", wide)
        ir.convenience.replace_all_uses_with(wide, node.outputs[0])
        graph.insert_before(graph[0], node)


def quantise_inputs(graph: "ir.Graph", peak: Mapping[str, float], kind: str) -> None:
    """A Q/DQ pair before every product whose weight is small, one for each value that is read."""
    import ml_dtypes
    import onnx_ir as ir

    dtype = np.int8 if kind == "int8" else ml_dtypes.float8_e4m3fn
    made: dict[str, ir.Value] = {}
    for node in [node for node in graph if node.op_type in PRODUCTS]:
        value, weight = node.inputs[0], node.inputs[1].producer()
        if weight is None or weight.op_type != "DequantizeLinear":
            continue
        if value.name not in made:
            scale = initializer(f"{value.name}.scale", np.float32(max(peak[value.name] / TOPS[kind], LEAST)))
            zero = initializer(f"{value.name}.zero", np.zeros((), dtype))
            for constant in (scale, zero):
                graph.initializers.add(constant)
            small = ir.node("QuantizeLinear", [value, scale, zero], name=f"{value.name}.quantize")
            small.outputs[0].name, small.outputs[0].type = f"{value.name}.small", ir.TensorType(zero.dtype)
            small.outputs[0].shape = value.shape
            wide = ir.node("DequantizeLinear", [small.outputs[0], scale, zero], name=f"{value.name}.dequantize")
            _type(wide.outputs[0], f"{value.name}.rounded", value)
            graph.insert_before(node, [small, wide])
            made[value.name] = wide.outputs[0]
        node.replace_input_with(0, made[value.name])


def _type(value: "ir.Value", name: str, like: "ir.Value") -> None:
    value.name, value.type, value.shape = name, like.type, like.shape
