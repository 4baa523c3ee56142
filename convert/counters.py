"""What one call of an ONNX file costs, whatever the machine: multiply-accumulates, bytes moved, operators.

Counted from the graph that ships, for inputs of given shapes. Multiply-accumulates are those of convolutions and matrix
products, attention included; bytes moved are what every operator reads and writes as the graph is written, before a runtime
fuses any.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kdc_edge.errors import GateError

if TYPE_CHECKING:
    import onnx

LARGE = 1024  # bytes
Sizes = tuple[int, ...]
SYMBOL = re.compile(r"((?P<factor>\d+)\*)?(?P<name>\w+)")
Shapes = Callable[[str], Sizes]


@dataclass(frozen=True)
class Counters:
    """One call."""

    macs: int
    bytes_moved: int
    operators: dict[str, int]
    """Nodes by operator type."""


def count_file(path: Path, inputs: Mapping[str, Sizes]) -> Counters:
    """`inputs` are the shapes of what goes in. Raises GateError for a value whose shape cannot be told from them."""
    import onnx
    from onnx.shape_inference import infer_shapes

    model = onnx.load(path, load_external_data=False)
    _forget_weights(model.graph)
    _fix_sizes(model.graph, inputs)
    arrays = _arrays(infer_shapes(model, data_prop=True).graph)

    def shape(name: str) -> Sizes:
        if name not in arrays or 0 in arrays[name][0]:
            raise GateError(f"{path}: the shape of '{name}' cannot be told, so nothing can be counted")
        return arrays[name][0]

    macs = moved = 0
    for node in model.graph.node:
        used = [name for name in (*node.input, *node.output) if name]
        moved += sum(math.prod(shape(name)) * arrays[name][1] for name in used)
        if node.op_type in MACS:
            macs += MACS[node.op_type](node, shape)
    operators = Counter(node.op_type for node in model.graph.node)
    return Counters(macs, moved, dict(sorted(operators.items())))


def _forget_weights(graph: "onnx.GraphProto") -> None:
    """Large values decide no shape, and inference would copy them twice."""
    import onnx

    for tensor in graph.initializer:
        if len(tensor.raw_data) > LARGE:
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL


def _fix_sizes(graph: "onnx.GraphProto", inputs: Mapping[str, Sizes]) -> None:
    """Open axes become those of `inputs`; shapes with an axis that follows from none are forgotten, to be inferred."""
    known: dict[str, int] = {}
    for value in graph.input:
        for dim, size in zip(value.type.tensor_type.shape.dim, inputs[value.name], strict=True):
            if match := SYMBOL.fullmatch(dim.dim_param):
                known[match["name"]] = size // int(match["factor"] or 1)
    for values in (graph.input, graph.output, graph.value_info):
        for value in values:
            dims = value.type.tensor_type.shape.dim
            for dim in dims:
                if dim.dim_param and (size := _size(dim.dim_param, known)):
                    dim.dim_value = size
            if not all(dim.dim_value for dim in dims):
                value.type.tensor_type.ClearField("shape")


def _size(expression: str, known: Mapping[str, int]) -> int | None:
    """Of an axis that the exporter wrote in terms of others, such as `4*rows*columns`."""
    import sympy

    found = sympy.sympify(expression, locals={name: sympy.Integer(size) for name, size in known.items()})
    return int(found) if found.is_Integer else None


def _arrays(graph: "onnx.GraphProto") -> dict[str, tuple[Sizes, int]]:
    """Shape, 0 where unknown, and bytes of an element, of everything in the graph."""
    from onnx.helper import tensor_dtype_to_np_dtype

    found = {w.name: (tuple(w.dims), tensor_dtype_to_np_dtype(w.data_type).itemsize) for w in graph.initializer}
    for value in (*graph.input, *graph.output, *graph.value_info):
        tensor = value.type.tensor_type
        sizes = tuple(dim.dim_value for dim in tensor.shape.dim) if tensor.HasField("shape") else (0,)
        found[value.name] = (sizes, tensor_dtype_to_np_dtype(tensor.elem_type).itemsize)
    return found


def _convolution(node: "onnx.NodeProto", shape: Shapes) -> int:
    return math.prod(shape(node.output[0])) * math.prod(shape(node.input[1])[1:])


def _transposed_convolution(node: "onnx.NodeProto", shape: Shapes) -> int:
    return math.prod(shape(node.input[0])) * math.prod(shape(node.input[1])[1:])


def _matrix_product(node: "onnx.NodeProto", shape: Shapes) -> int:
    return math.prod(shape(node.output[0])) * shape(node.input[0])[-1]


def _gemm(node: "onnx.NodeProto", shape: Shapes) -> int:
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return math.prod(shape(node.output[0])) * shape(node.input[0])[0 if transposed else -1]


def _attention(node: "onnx.NodeProto", shape: Shapes) -> int:
    """Queries with keys, probabilities with values; heads divide the channels between them."""
    q, k, v = (shape(name) for name in node.input[:3])
    return math.prod(q) * k[1] + math.prod(q[:2]) * math.prod(v[1:])


MACS: dict[str, Callable[["onnx.NodeProto", Shapes], int]] = {
    "Conv": _convolution,
    "ConvInteger": _convolution,
    "ConvTranspose": _transposed_convolution,
    "Gemm": _gemm,
    "MatMul": _matrix_product,
    "MatMulInteger": _matrix_product,
    "MultiHeadAttention": _attention,
}
