"""Convolutions and matrix products in int8, by onnxruntime's own quantiser: weights per channel, activations unsigned.

Statically scaled, an activation's range is the least and the greatest that calibration met; dynamically, it is found on every
call. Weights use 7 bits: a processor without VNNI adds two products in 16 bits, where products of 8 bits overflow. Where a
shortcut convolution reads a concatenation, its halves get scales of their own (Q-Diffusion, arXiv 2302.04304).
"""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from convert.calibration import Calls
from convert.schemes import Dynamic, Static, excluded
from convert.storing import initializer
from kdc_edge.files import replacing

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

OPERATORS = ["Conv", "MatMul", "Gemm"]


def quantise(path: Path, scheme: Static | Dynamic, calls: Calls | None, leave: Sequence[str]) -> None:
    """The fp32 model at `path` becomes an int8 one; `leave` are patterns of weights or operators that stay fp32."""
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static

    graph = onnx.load(path, load_external_data=False).graph
    kept = [node.name for node in graph.node if _left(node, leave)]
    with replacing(path) as target, _quiet():
        if isinstance(scheme, Dynamic):
            quantize_dynamic(
                path, target, ["MatMul", "Gather"], weight_type=QuantType.QInt8, per_channel=True, reduce_range=True,
                nodes_to_exclude=kept, extra_options={"MatMulConstBOnly": True},
            )  # fmt: skip
        else:
            quantize_static(
                path, target, _reader(calls), QuantFormat.QDQ, OPERATORS, per_channel=True, reduce_range=True,
                activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, nodes_to_exclude=kept,
                extra_options={"MatMulConstBOnly": True},
            )  # fmt: skip
    path.with_name(f"{path.name}.data").unlink(missing_ok=True)  # a quarter of it is in the model now


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


def _left(node: "onnx.NodeProto", leave: Sequence[str]) -> bool:
    """A matrix product with its bias is a MatMul to those who leave it out."""
    operator = "MatMul" if node.op_type == "Gemm" else node.op_type
    return any(excluded(name.removesuffix(".T"), operator, leave) for name in node.input)


def _reader(calls: Calls) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        """Of each call the calibrator keeps two numbers a tensor, so that it may keep them all.

        Told to keep fewer (CalibMaxIntermediateOutputs), onnxruntime 1.32 forgets them before it has looked at them.
        """

        def __init__(self) -> None:
            self.feeds = iter(calls)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.feeds, None)

    return Reader()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without onnxruntime's advice, which `convert` follows already."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
