"""Carries a plan out in the graph: each weight becomes a small one of the same name and the node that restores it.

Runtimes restore weights once, when they load the file; 4-bit integers and blocks need opset 21.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from convert.rounding import Rounded
from convert.weights import Half, Plan

if TYPE_CHECKING:
    import onnx_ir as ir

BLOCKS_OPSET = 21


def store(model: "ir.Model", initializers: Iterable[str], plan: Plan) -> None:
    """`initializers` are the graph's weights; where one was transposed, `plan` has it without its ".T".

    A matrix or convolution that the plan does not know, a constant folded out of a weight, becomes float16.
    """
    first = model.graph[0]
    for name in initializers:
        wide = model.graph.initializers[name]
        tensor = wide.const_value
        if len(tensor.shape) < 2:
            continue
        stored = plan.get(name.removesuffix(".T"))
        small = _half(name, tensor.numpy()) if stored is None or isinstance(stored, Half) else _integers(name, stored)
        if isinstance(stored, Rounded) and (stored.scale.ndim > 1 or stored.grid.bits == 4):
            model.opset_imports[""] = BLOCKS_OPSET
        _insert(model.graph, first, wide, *small)


def _half(name: str, weight: np.ndarray) -> tuple[list["ir.Value"], "ir.Node"]:
    import onnx_ir as ir

    narrow = initializer(name, weight.astype(np.float16))
    return [narrow], ir.node("Cast", [narrow], {"to": ir.DataType.FLOAT}, name=f"{name}.cast")


def _integers(name: str, stored: Rounded) -> tuple[list["ir.Value"], "ir.Node"]:
    import ml_dtypes
    import onnx_ir as ir

    values, scale = stored.values.numpy(), stored.scale.numpy()
    blocks = {} if scale.ndim == 1 else {"block_size": values.shape[1] // scale.shape[1]}
    axis = 1 if blocks else 0
    if name.endswith(".T"):
        values, scale, axis = values.T, scale.T, 1 - axis
    if stored.grid.bits == 4:
        values = values.astype(ml_dtypes.int4)
    inputs = [initializer(name, values), initializer(f"{name}.scale", scale)]
    return inputs, ir.node("DequantizeLinear", inputs, {"axis": axis, **blocks}, name=f"{name}.dequantize")


def initializer(name: str, array: np.ndarray) -> "ir.Value":
    """A weight of the graph."""
    import onnx_ir as ir

    tensor = ir.tensor(np.asarray(array, order="C"), name=name)
    value = ir.Value(name=name, const_value=tensor)
    value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape(array.shape)
    return value


def _insert(graph: "ir.Graph", first: "ir.Node", wide: "ir.Value", small: list["ir.Value"], node: "ir.Node") -> None:
    """`node` restores `wide` from `small`."""
    import onnx_ir as ir

    del graph.initializers[wide.name]
    restored = node.outputs[0]
    restored.name = f"{small[0].name}.fp32"
    restored.type, restored.shape = wide.type, wide.shape
    ir.convenience.replace_all_uses_with(wide, restored)
    wide.name = None
    for value in small:
        graph.initializers.add(value)
    graph.insert_before(first, node)
