"""What int8 products save on this machine, layer by layer: each is timed alone, as a graph of one operator.

The time of a network with some layers in int8 is that in fp32 less what each of them saves; rounding its input, and of a
convolution restoring its output, are part of a layer's time.
"""

import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from convert.integers import quantise
from convert.schemes import Static
from kdc_edge import timing

if TYPE_CHECKING:
    import onnx
    from torch import nn

OPSET, IR_VERSION = 18, 10
WARMUP, SAMPLES = 2, 9
Shape = tuple[int, ...]


def savings(layers: Mapping[str, "nn.Module"], shapes: Mapping[str, Shape]) -> dict[str, float]:
    """Milliseconds by name of layer, below 0 where int8 costs; `shapes` are those of their inputs.

    Layers alike are timed once.
    """
    found: dict[Any, float] = {}
    result = {}
    for name, layer in layers.items():
        shape = shapes[name] if layer.weight.ndim == 4 else (math.prod(shapes[name][:-1]), shapes[name][-1])
        kind = (type(layer), tuple(layer.weight.shape), shape, layer.bias is None, getattr(layer, "stride", None))
        if kind not in found:
            found[kind] = _alone(layer, shape)
        result[name] = found[kind]
    return result


def call_ms(path: Path, feed: Mapping[str, np.ndarray]) -> float:
    """Milliseconds of one call of a model."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return 1000 * timing.measure(lambda: session.run(None, dict(feed)), warmup=WARMUP, samples=SAMPLES).p50


def _alone(layer: "nn.Module", shape: Shape) -> float:
    import onnx

    feed = {"x": np.random.default_rng(0).standard_normal(shape, np.float32)}
    with tempfile.TemporaryDirectory() as folder:
        fp32, int8 = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        onnx.save(graph(layer, shape), fp32)
        quantise(fp32, int8, Static(), [feed], [])
        return call_ms(fp32, feed) - call_ms(int8, feed)


def graph(layer: "nn.Module", shape: Shape) -> "onnx.ModelProto":
    """A convolution, or a product of rows, of `x`, in the form in which `convert.products` leaves them."""
    from onnx import TensorProto, helper, numpy_helper

    if layer.weight.ndim == 4:
        operator, attributes, weight = "Conv", _attributes(layer), layer.weight.numpy()
    else:
        operator, attributes, weight = "MatMul" if layer.bias is None else "Gemm", {}, layer.weight.numpy().T
    arrays = {"w": weight} | ({} if layer.bias is None else {"b": layer.bias.numpy()})
    node = helper.make_node(operator, ["x", *arrays], ["y"], **attributes)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * len(shape))
    weights = [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in arrays.items()]
    made = helper.make_graph([node], "layer", [x], [y], weights)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


def _attributes(layer: "nn.Module") -> dict[str, Any]:
    """Of a convolution."""
    return {
        "strides": layer.stride,
        "pads": [*layer.padding, *layer.padding],
        "dilations": layer.dilation,
        "group": layer.groups,
    }
