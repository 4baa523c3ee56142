"""A graph in the form in which onnxruntime multiplies integers fastest, before `convert.integers` quantises it.

Where a shortcut convolution reads a concatenation, its halves get scales of their own (Q-Diffusion, arXiv 2302.04304). Where
a feed-forward layer is gated, value and gate are products of their own, so that nothing is split. A matrix product and its
bias become one Gemm of rows, whose kernel scales, adds and returns fp32 in one pass over what it computed.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from convert.rewrites import replace
from convert.storing import initializer

if TYPE_CHECKING:
    import onnx_ir as ir


def prepare(model: "ir.Model") -> None:
    """In place. A weight that is divided becomes `name.0`, `name.1`, …"""
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    graph = model.graph
    split_shortcuts(graph)
    for node in [node for node in graph if node.op_type == "Split"]:
        _split_gate(graph, node)
    rows: dict[ir.Value, ir.Value] = {}
    for node in [node for node in graph if node.op_type == "Add"]:
        _multiply_rows(graph, node, rows)
    RemoveUnusedNodesPass()(model)


def split_shortcuts(graph: "ir.Graph") -> None:
    """A 1×1 convolution of a concatenation → the sum of a convolution of each part, with weights `name.0`, `name.1`, …"""
    for node in list(graph):
        joined = node.inputs[0].producer() if node.op_type == "Conv" else None
        if joined is not None and joined.op_type == "Concat" and node.inputs[1].shape[2:] == (1, 1):
            _split(graph, node, joined.inputs)


def _split(graph: "ir.Graph", conv: "ir.Node", parts: Sequence["ir.Value"]) -> None:
    import onnx_ir as ir

    wide, bias = conv.inputs[1], conv.inputs[2:]
    weight = wide.const_value.numpy()
    ends = np.cumsum([part.shape[1] for part in parts])[:-1]
    total = None
    for number, (part, columns) in enumerate(zip(parts, np.split(weight, ends, axis=1), strict=True)):
        value = initializer(f"{wide.name}.{number}", columns)
        graph.initializers.add(value)
        attributes = list(conv.attributes.values())
        one = ir.Node("", "Conv", [part, value, *([] if total else bias)], attributes, name=f"{conv.name}.{number}")
        made = [one] if total is None else [one, ir.Node("", "Add", [total, one.outputs[0]], name=f"{conv.name}.sum")]
        for node in made:
            node.outputs[0].name = f"{node.name}.out"
            node.outputs[0].type, node.outputs[0].shape = conv.outputs[0].type, conv.outputs[0].shape
        graph.insert_before(conv, made)
        total = made[-1].outputs[0]
    ir.convenience.replace_all_uses_with(conv.outputs[0], total)
    graph.remove(conv, safe=True)
    del graph.initializers[wide.name]


def _split_gate(graph: "ir.Graph", split: "ir.Node") -> None:
    """The parts of a product and its bias → a product for each, if nothing else reads the whole."""
    import onnx_ir as ir

    whole = split.inputs[0].producer()
    found = None if whole is None else _linear(whole)
    if found is None or len(split.inputs[0].uses()) > 1:
        return
    parts = [np.split(value.const_value.numpy(), len(split.outputs), axis=-1) for value in found[1:]]
    for number, (old, *arrays) in enumerate(zip(split.outputs, *parts, strict=True)):
        weight, bias = (
            initializer(_numbered(value.name, number), array) for value, array in zip(found[1:], arrays, strict=True)
        )
        graph.initializers.add(weight)
        graph.initializers.add(bias)
        tape = ir.tape.Tape()
        product = tape.op("MatMul", [found[0], weight], name=f"{whole.name}.{number}.product")
        total = tape.op("Add", [product, bias], name=f"{whole.name}.{number}")
        for node in tape.nodes:
            node.outputs[0].name = f"{node.name}.out"
        product.type, product.shape = total.type, total.shape = old.type, old.shape
        graph.insert_before(split, tape.nodes)
        ir.convenience.replace_all_uses_with(old, total)
    graph.remove(split, safe=True)


def _multiply_rows(graph: "ir.Graph", end: "ir.Node", rows: "dict[ir.Value, ir.Value]") -> None:
    """The sum of a product and its bias → Reshape, Gemm, Reshape, where one axis at most is not known.

    `rows` are inputs that have been reshaped: two products may read one.
    """
    import onnx_ir as ir

    found = _linear(end)
    sizes = [axis if isinstance(axis, int) else -1 for axis in end.outputs[0].shape or ()]
    if found is None or len(sizes) < 3 or sizes.count(-1) > 1:
        return
    x, weight, bias = found
    shapes = {f"{end.name}.rows": (-1, weight.shape[0]), f"{end.name}.whole": sizes}
    flat, whole = (initializer(name, np.array(shape, np.int64)) for name, shape in shapes.items())
    tape = ir.tape.Tape()
    if x not in rows:
        graph.initializers.add(flat)
        rows[x] = tape.op("Reshape", [x, flat], name=f"{end.name}.flat")
    graph.initializers.add(whole)
    total = tape.op("Gemm", [rows[x], weight, bias], name=f"{end.name}.gemm")
    tape.op("Reshape", [total, whole], name=f"{end.name}.sum")
    replace(graph, end, tape.nodes)


def _linear(end: "ir.Node") -> "tuple[ir.Value, ir.Value, ir.Value] | None":
    """Input, weight and bias, if a node is the last of x W + b and the only one that reads x W."""
    for product, bias in (end.inputs, end.inputs[::-1]) if end.op_type == "Add" else ():
        node = product.producer()
        if node is not None and node.op_type == "MatMul" and len(product.uses()) == 1:
            x, weight = node.inputs
            if weight.is_initializer() and bias.is_initializer() and (len(weight.shape), len(bias.shape)) == (2, 1):
                return x, weight, bias
    return None


def _numbered(name: str, number: int) -> str:
    """A weight that was transposed keeps its ending."""
    stem = name.removesuffix(".T")
    return f"{stem}.{number}{name[len(stem) :]}"
