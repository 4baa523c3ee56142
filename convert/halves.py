"""A graph that computes in fp16 or bf16: every floating-point tensor and weight is 16 bits wide, but for islands in fp32.

Types stand in the graph, as strongly typed runtimes want them; Casts lead into islands and out of them. An input or output
has the type that its port asks for. Weights keep their names.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir

MASK_SHARE = 0.5  # of the largest number: what minus infinity becomes, so that adding to it stays finite
WIDE_INPUTS = {
    "Resize": (1, 2),
    "DequantizeLinear": (),
    "Range": (0, 1, 2),
}  # floats that stay fp32 by the operator's definition
OPSET = 19  # the first with 16-bit scales


@dataclass
class Narrowing:
    """One graph on its way; `dtype` is the 16-bit type."""

    graph: "ir.Graph"
    dtype: "ir.DataType"
    made: dict[tuple[str, "ir.DataType"], "ir.Value"] = field(default_factory=dict)
    """Casts and copies of weights, by what they are of."""


def narrow(
    model: "ir.Model", dtype: "ir.DataType", wide: Collection["ir.Node"], ports: Mapping[str, "ir.DataType"]
) -> None:
    """In place; `wide` nodes stay in fp32, `ports` says the types of inputs and outputs by name (fp32 if it does not)."""
    import onnx_ir as ir

    work, wide = Narrowing(model.graph, dtype), set(wide)
    nodes = list(model.graph)
    for value in model.graph.inputs:
        if value.dtype == ir.DataType.FLOAT:
            value.type = ir.TensorType(ports.get(value.name, ir.DataType.FLOAT))
    for node in nodes:
        kind = ir.DataType.FLOAT if node in wide else dtype
        _retype_outputs(node, kind)
        for place, value in enumerate(node.inputs):
            if value is not None and value.dtype in (ir.DataType.FLOAT, dtype):
                fixed = place in WIDE_INPUTS.get(node.op_type, ())
                node.replace_input_with(place, _as(work, value, ir.DataType.FLOAT if fixed else kind))
    _retype_ends(work, ports)
    _name_weights(work)
    model.opset_imports[""] = max(OPSET, model.opset_imports[""])


def _retype_outputs(node: "ir.Node", kind: "ir.DataType") -> None:
    """Floats become `kind`, in constants and in what a Cast says, too."""
    import onnx_ir as ir

    for value in node.outputs:
        if value.dtype == ir.DataType.FLOAT:
            value.type = ir.TensorType(kind)
            if node.op_type == "Cast":
                node.attributes["to"] = ir.AttrInt64("to", int(kind))
            elif node.op_type in ("Constant", "ConstantOfShape") and "value" in node.attributes:
                array = node.attributes["value"].as_tensor().numpy()
                node.attributes["value"] = ir.AttrTensor("value", ir.tensor(fitted(array, kind)))


def _as(work: Narrowing, value: "ir.Value", kind: "ir.DataType") -> "ir.Value":
    """`value` in `kind`: itself, a weight of that type, or a Cast."""
    import onnx_ir as ir

    if value.const_value is not None and value.name in work.graph.initializers:
        return _weight(work, value, kind)
    if value.dtype == kind:
        return value
    key = (value.name, kind)
    if key not in work.made:
        name = f"{value.name}.{kind.short_name()}"
        cast = ir.node("Cast", [value], {"to": kind}, name=f"{name}.cast")
        cast.outputs[0].name, cast.outputs[0].shape = name, value.shape
        cast.outputs[0].type = ir.TensorType(kind)
        producer = value.producer()
        if producer is None:
            work.graph.insert_before(work.graph[0], cast)
        else:
            work.graph.insert_after(producer, cast)
        work.made[key] = cast.outputs[0]
    return work.made[key]


def _weight(work: Narrowing, value: "ir.Value", kind: "ir.DataType") -> "ir.Value":
    """The narrow weight keeps the name; where an island reads the same one, it has a wide copy beside it."""
    from convert.storing import initializer

    if value.dtype == kind and (value.name, kind) not in work.made:
        work.made[value.name, kind] = value
    if (value.name, kind) not in work.made:
        array = value.const_value.numpy()
        name = f"{value.name}.{kind.short_name()}"
        made = initializer(name, fitted(array, kind))
        work.graph.initializers.add(made)
        work.made[value.name, kind] = made
    return work.made[value.name, kind]


def _name_weights(work: Narrowing) -> None:
    """Weights that nobody reads any more go; the narrow copy takes the name."""
    graph, ending = work.graph, f".{work.dtype.short_name()}"
    read = {value.name for node in graph for value in node.inputs if value is not None}
    read |= {value.name for value in graph.outputs}
    for name in [name for name in graph.initializers if name not in read]:
        del graph.initializers[name]
    for name in [name for name in graph.initializers if name.endswith(ending)]:
        if (plain := name.removesuffix(ending)) not in graph.initializers:
            value = graph.initializers.pop(name)
            value.name = value.const_value.name = plain
            graph.initializers.add(value)


def fitted(array: np.ndarray, kind: "ir.DataType") -> np.ndarray:
    """In `kind`, masks' minus infinity as a finite number."""
    import ml_dtypes

    top = float(ml_dtypes.finfo(kind.numpy()).max)
    if array.dtype.kind == "f" and np.abs(array).max(initial=0) > top:
        array = np.where(np.abs(array) > top, np.sign(array) * top * MASK_SHARE, array)
    return array.astype(kind.numpy())


def _retype_ends(work: Narrowing, ports: Mapping[str, "ir.DataType"]) -> None:
    """Outputs in the types of their ports, under their names."""
    import onnx_ir as ir

    for place, value in enumerate(list(work.graph.outputs)):
        wanted = ports.get(value.name, ir.DataType.FLOAT)
        if value.dtype not in (ir.DataType.FLOAT, work.dtype) or value.dtype == wanted:
            continue
        name, value.name = value.name, f"{value.name}.inner"
        end = _as(work, value, wanted)
        end.name = name
        work.graph.outputs[place] = end
