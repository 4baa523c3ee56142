"""How long layers take on this machine, in fp32 and with int8 products: each alone, as a graph of one operator.

The time of a network with some layers in int8 is that in fp32 less what each of them saves; rounding its input, and of a
convolution restoring its output, are part of a layer's time.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdc_edge import timing

if TYPE_CHECKING:
    import onnx
    from torch import nn

OPSET, IR_VERSION = 18, 10
WARMUP, SAMPLES = 2, 9
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Saved:
    """Milliseconds of one layer."""

    fp32: float
    int8: float

    @property
    def ms(self) -> float:
        """What int8 saves; below 0 it costs."""
        return self.fp32 - self.int8


def savings(layers: Mapping[str, "nn.Module"], shapes: Mapping[str, Shape]) -> dict[str, Saved]:
    """By name of layer; `shapes` are those of their inputs. Layers alike are timed once."""
    found: dict[Any, Saved] = {}
    result = {}
    for name, layer in layers.items():
        shape = shapes[name] if layer.weight.ndim == 4 else (math.prod(shapes[name][:-1]), shapes[name][-1])
        kind = (type(layer), tuple(layer.weight.shape), shape, getattr(layer, "stride", None))
        if kind not in found:
            found[kind] = Saved(*(_milliseconds(_graph(layer, shape, int8), shape) for int8 in (False, True)))
        result[name] = found[kind]
    return result


def call_ms(path: Path, feed: Mapping[str, np.ndarray]) -> float:
    """Milliseconds of one call of a model."""
    return _timed(str(path), feed)


def _milliseconds(model: "onnx.ModelProto", shape: Shape) -> float:
    return _timed(model.SerializeToString(), {"x": np.zeros(shape, np.float32)})


def _timed(model: bytes | str, feed: Mapping[str, np.ndarray]) -> float:
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return 1000 * timing.measure(lambda: session.run(None, dict(feed)), warmup=WARMUP, samples=SAMPLES).p50


def _graph(layer: "nn.Module", shape: Shape, int8: bool) -> "onnx.ModelProto":
    """A convolution, or a matrix product of rows, of `x`; with `int8` between roundings, as convert.integers writes it."""
    from onnx import TensorProto, helper, numpy_helper

    weight = layer.weight.numpy()
    kind, attributes = ("Conv", _attributes(layer)) if weight.ndim == 4 else ("Gemm", {})
    weight, channels = (weight, 0) if kind == "Conv" else (weight.T, 1)
    scale = np.array(0.01, np.float32)
    arrays = {"w": weight}
    nodes = [helper.make_node(kind, ["x", "w"], ["y"], **attributes)]
    if int8:
        arrays = {"w8": np.ones(weight.shape, np.int8), "w.scale": np.full(weight.shape[channels], scale)}
        arrays |= {"scale": scale, "zero": np.array(128, np.uint8)}
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["x8"]),
            helper.make_node("DequantizeLinear", ["x8", "scale", "zero"], ["xd"]),
            helper.make_node("DequantizeLinear", ["w8", "w.scale"], ["wd"], axis=channels),
            helper.make_node(kind, ["xd", "wd"], ["yd" if kind == "Conv" else "y"], **attributes),
        ]
    if int8 and kind == "Conv":
        nodes += [
            helper.make_node("QuantizeLinear", ["yd", "scale", "zero"], ["y8"]),
            helper.make_node("DequantizeLinear", ["y8", "scale", "zero"], ["y"]),
        ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * len(shape))
    weights = [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "layer", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


def _attributes(layer: "nn.Module") -> dict[str, Any]:
    """Of a convolution."""
    return {
        "strides": layer.stride,
        "pads": [*layer.padding, *layer.padding],
        "dilations": layer.dilation,
        "group": layer.groups,
    }
