"""Convolutions and matrix products in int8, by onnxruntime's own quantiser: weights per channel, activations unsigned.

Statically scaled, an activation's range is the least and the greatest that calibration met; dynamically, it is found on every
call. Weights use 7 bits: a processor without VNNI adds two products in 16 bits, where products of 8 bits overflow. What a
convolution returns is rounded to 8 bits, too, or onnxruntime would convolve in fp32; a matrix product returns fp32.
"""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from convert.calibration import Calls
from convert.schemes import Dynamic, Static, excluded
from kdc_edge.files import replacing

if TYPE_CHECKING:
    import onnx

PRODUCTS = ["MatMul", "Gemm"]
OPERATORS = ["Conv", *PRODUCTS]


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
                extra_options={"MatMulConstBOnly": True, "OpTypesToExcludeOutputQuantization": PRODUCTS},
            )  # fmt: skip
    path.with_name(f"{path.name}.data").unlink(missing_ok=True)  # a quarter of it is in the model now


def _left(node: "onnx.NodeProto", leave: Sequence[str]) -> bool:
    operator = "MatMul" if node.op_type in PRODUCTS else node.op_type
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
