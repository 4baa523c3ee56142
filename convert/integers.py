"""Convolutions and matrix products in int8, by onnxruntime's own quantiser: weights per channel, activations unsigned.

Statically scaled, an activation's range is the least and the greatest that calibration met; dynamically, it is found on every
call. Weights use 7 bits: a processor without VNNI adds two products in 16 bits, where products of 8 bits overflow. What a
convolution returns is rounded to 8 bits, too, or onnxruntime would convolve in fp32; a matrix product returns fp32.
"""

import contextlib
import logging
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from convert.calibration import Calls
from convert.schemes import Dynamic, Static, excluded, floor_db
from kdc_edge.errors import UsageError

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir
    from torch import nn

    from convert.exclusions import Sensitivity
    from convert.weights import Feeds

PRODUCTS = ["MatMul", "Gemm"]
OPERATORS = ["Conv", *PRODUCTS]
TRIES = 3  # to come within a budget of time


def save_products(
    model: "ir.Model",
    network: "nn.Module",
    scheme: Static | Dynamic,
    calls: Calls | None,
    leave: Sequence[str],
    path: Path,
) -> tuple[Sequence[str], float | None]:
    """The fp32 `model` of `network` as an int8 one at `path`; patterns of what stays fp32, `leave` and what suffers.

    Where there is a budget of time, also the milliseconds of a call.
    """
    from convert.export import MODEL, save

    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        fp32 = Path(folder) / MODEL
        save(model, fp32)
        if isinstance(scheme, Static) and scheme.spare:
            from convert.exclusions import UNSIGNED, Sensitivity, spared

            found = Sensitivity(network, *calls.apart(UNSIGNED.probes), leave)
            if scheme.budget_ms is not None:
                return _in_time(found, fp32, path, scheme, calls, leave)
            leave = [*leave, *_parts(spared(found, floor_db(scheme)))]
        quantise(fp32, path, scheme, calls, leave)
    return leave, None


def _in_time(
    found: "Sensitivity", fp32: Path, path: Path, scheme: Static, calls: Calls, leave: Sequence[str]
) -> tuple[Sequence[str], float]:
    """A call takes longer than its layers' times add up to: what it is over is aimed below the budget, TRIES times.

    Raises UsageError where int8 wherever it is faster takes longer than the budget.
    """
    from convert.exclusions import afforded, slower
    from convert.latency import call_ms

    def made(names: Sequence[str]) -> tuple[list[str], float]:
        left = [*leave, *_parts(names)]
        quantise(fp32, path, scheme, calls, left)
        return left, call_ms(path, feed)

    feed, aim = calls.some(1)[0], scheme.budget_ms
    _, least = made(slower(found))
    if least > aim:
        raise UsageError(f"--budget-ms is {aim:g}; with int8 wherever it is faster a call takes {least:.2f} ms here")
    for _ in range(TRIES):
        left, took = made(afforded(found, aim - least))
        over = took - scheme.budget_ms
        if over <= 0:
            break
        aim = max(aim - over, least)
    return left, took


def _parts(names: Iterable[str]) -> list[str]:
    """Patterns: a shortcut's weight is split, and its parts are named after it."""
    return [f"{name}*" for name in names]


def quantise(fp32: Path, path: Path, scheme: Static | Dynamic, calls: "Feeds | None", leave: Sequence[str]) -> None:
    """The model at `fp32` as an int8 one at `path`; `leave` are patterns of weights or operators that stay fp32.

    Weights that lie beside their graph, being too many for one protobuf, do so in all that is made on the way.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static

    from convert.export import EXTERNAL

    graph = onnx.load(fp32, load_external_data=False).graph
    kept = [node.name for node in graph.node if _left(node, leave)]
    both = {
        "per_channel": True, "reduce_range": True, "weight_type": QuantType.QInt8, "nodes_to_exclude": kept,
        "use_external_data_format": fp32.with_name(EXTERNAL).exists(),
        "extra_options": {"MatMulConstBOnly": True, "OpTypesToExcludeOutputQuantization": PRODUCTS},
    }  # fmt: skip
    with _replacing(path) as target, _quiet():
        if isinstance(scheme, Dynamic):
            quantize_dynamic(fp32, target, ["MatMul", "Gather"], **both)
        else:
            quantize_static(
                fp32, target, _reader(calls), QuantFormat.QDQ, OPERATORS, activation_type=QuantType.QUInt8, **both
            )


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A path to write a model at, which takes the place of the one at `path` with the weights that lie beside it."""
    import onnx_ir as ir

    from convert.export import EXTERNAL, MODEL, save

    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / MODEL
        yield made
        if not made.with_name(EXTERNAL).exists():
            made.replace(path)
            return
        path.with_name(EXTERNAL).unlink(missing_ok=True)  # writers append to one that is there
        model = ir.load(made)
        ir.external_data.load_to_model(model)  # or the graph would go on to name the file that is left behind
        save(model, path)  # a quarter of it fits into the graph, most often


def _left(node: "onnx.NodeProto", leave: Sequence[str]) -> bool:
    """A matrix product with its bias is a MatMul to those who leave it out."""
    operator = "MatMul" if node.op_type in PRODUCTS else node.op_type
    return any(excluded(name.removesuffix(".T"), operator, leave) for name in node.input)


def _reader(calls: "Feeds") -> Any:
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
