"""Graphs in fewer operators, for the shapes that are known.

The exporter transposes attention's keys by way of their shape, and scales queries and keys apart: eleven operators where two
do. After a normalisation it asks for a shape of which only the batch is open. Shapes that are computed while the network runs
keep phones' accelerators from taking it. Its GELU halves before it multiplies, which hides it from onnxruntime.
"""

# q (B, S, N, H), k and v (B, T, N, H): N heads of H channels

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from convert.storing import initializer

if TYPE_CHECKING:
    import onnx_ir as ir

HEADS_FIRST, KEYS_TRANSPOSED = (0, 2, 1, 3), (0, 2, 3, 1)
CONTRIB = "com.microsoft"


@dataclass(frozen=True)
class Site:
    """One attention: what goes in, and what comes out: the product of probabilities and values, (B, N, S, H)."""

    q: "ir.Value"
    k: "ir.Value"
    v: "ir.Value"
    scale: float
    end: "ir.Node"


def rewrite(model: "ir.Model", fused: bool) -> None:
    """In place; with `fused`, attention is one operator of onnxruntime's own instead of standard ones."""
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    for site in list(attentions(model.graph)):
        if not (fused and _fuse(model, site)):
            _simplify(model.graph, site)
    for node in list(model.graph):
        if node.op_type == "Reshape":
            _reshape_to_known(model.graph, node)
        elif node.op_type == "Erf":
            _halve_last(node)
    RemoveUnusedNodesPass()(model)


def attentions(graph: "ir.Graph") -> Iterator[Site]:
    """Those that `torch.onnx.export` made of a scaled_dot_product_attention without a mask."""
    for node in graph:
        if node.op_type != "Softmax" or (scores := node.inputs[0].producer()) is None or scores.op_type != "MatMul":
            continue
        (end, _), *others = node.outputs[0].uses()
        q = _above(scores.inputs[0], "Mul", "Transpose")
        k = _above(scores.inputs[1], "Mul", "Reshape", "Transpose", "Reshape", "Transpose")
        v = _above(end.inputs[1], "Transpose")
        if q is None or k is None or v is None or others or end.op_type != "MatMul":
            continue
        scale = float(np.prod([_constant(side.producer().inputs[1]).item() for side in scores.inputs]))
        yield Site(q, k, v, scale, end)


def _simplify(graph: "ir.Graph", site: Site) -> None:
    """Scales once and transposes the keys once."""
    import onnx_ir as ir

    name = site.end.name
    scale = initializer(f"{name}_factor", np.array(site.scale, np.float32))
    graph.initializers.add(scale)
    tape = ir.tape.Tape()
    q = tape.op("Transpose", [site.q], {"perm": HEADS_FIRST}, name=f"{name}.q")
    k = tape.op("Transpose", [site.k], {"perm": KEYS_TRANSPOSED}, name=f"{name}.k")
    v = tape.op("Transpose", [site.v], {"perm": HEADS_FIRST}, name=f"{name}.v")
    scaled = tape.op("Mul", [q, scale], name=f"{name}.scaled")
    scores = tape.op("MatMul", [scaled, k], name=f"{name}.scores")
    probabilities = tape.op("Softmax", [scores], {"axis": -1}, name=f"{name}.probabilities")
    tape.op("MatMul", [probabilities, v], name=f"{name}.values")
    replace(graph, site.end, tape.nodes)


def _fuse(model: "ir.Model", site: Site) -> bool:
    """onnxruntime's MultiHeadAttention, which never holds all probabilities; False where heads are split another way."""
    import onnx_ir as ir

    q, k, v = (_above(value, "Reshape") for value in (site.q, site.k, site.v))
    end = _below(site.end, "Transpose", "Reshape")
    if q is None or k is None or v is None or end is None:
        return False
    attributes: dict[str, Any] = {"num_heads": int(site.q.shape[2]), "scale": site.scale}
    tape = ir.tape.Tape()
    tape.op("MultiHeadAttention", [q, k, v], attributes, domain=CONTRIB, name=f"{site.end.name}.attention")
    replace(model.graph, end, tape.nodes)
    model.opset_imports[CONTRIB] = 1
    return True


def _reshape_to_known(graph: "ir.Graph", node: "ir.Node") -> None:
    """A constant in place of the shape of something of which one axis at most is not known."""
    source = node.inputs[1].producer()
    if source is None or source.op_type != "Shape" or source.inputs[0].shape is None:
        return
    sizes = [axis if isinstance(axis, int) else -1 for axis in source.inputs[0].shape]
    if sizes.count(-1) > 1:
        return
    value = initializer(f"{node.name}_shape", np.array(sizes, np.int64))
    graph.initializers.add(value)
    node.replace_input_with(1, value)


def _halve_last(erf: "ir.Node") -> None:
    """GELU (arXiv 1606.08415), x (0.5 (1 + erf)) → (x (1 + erf)) 0.5: the order in which onnxruntime knows it."""
    (plus, _), *_ = erf.outputs[0].uses()
    (half, _), *_ = plus.outputs[0].uses()
    (whole, place), *others = half.outputs[0].uses()
    if others or (plus.op_type, half.op_type, whole.op_type) != ("Add", "Mul", "Mul"):
        return
    side = 1 - [value.producer() for value in half.inputs].index(plus)
    factor, x = half.inputs[side], whole.inputs[1 - place]
    if factor.is_initializer() and x is erf.inputs[0].producer().inputs[0]:
        half.replace_input_with(side, x)
        whole.replace_input_with(1 - place, factor)


def replace(graph: "ir.Graph", end: "ir.Node", nodes: "list[ir.Node]") -> None:
    """What `end` returned, the last of `nodes` returns."""
    import onnx_ir as ir

    for node in nodes:
        node.outputs[0].name = f"{node.name}.out"
    old, new = end.outputs[0], nodes[-1].outputs[0]
    new.type, new.shape = old.type, old.shape
    graph.insert_before(end, nodes)
    ir.convenience.replace_all_uses_with(old, new)


def _above(value: "ir.Value", *operators: str) -> "ir.Value | None":
    """What goes into a chain of operators that ends in `value`, the last one first; None if there is another."""
    for operator in operators:
        node = value.producer()
        if node is None or node.op_type != operator:
            return None
        value = node.inputs[0]
    return value


def _below(node: "ir.Node", *operators: str) -> "ir.Node | None":
    """The end of a chain of operators that begins after `node`; None if there is another, or something else reads it."""
    for operator in operators:
        (node, _), *others = node.outputs[0].uses()
        if others or node.op_type != operator:
            return None
    return node


def _constant(value: "ir.Value") -> np.ndarray:
    return value.const_value.numpy()
