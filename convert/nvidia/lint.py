"""Holds an ONNX file against what NVIDIA's parser takes, from TensorRT 10.3 to 11: rules as a table, findings with a remedy.

    python -m convert.tensorrt lint model.onnx

Each rule says what it rests on. Where that is the parser, a test puts a graph that breaks the rule to the one of tensorrt-rtx
and sees it refused; the others rest on a document, and that parser takes such graphs. It says nothing of speed, and not of
operators' own limits: for those, build.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kdc_edge.errors import BundleError

if TYPE_CHECKING:
    import onnx

MAX_OPSET = 20
STANDARD = ("", "ai.onnx")
PRODUCTS = ("Conv", "ConvTranspose", "MatMul", "Gemm")
INTEGER_PRODUCTS = ("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear")
KINDS = ("INT8", "FLOAT8E4M3FN", "INT4")  # that quantised values may have


@dataclass(frozen=True)
class Finding:
    """One thing that stands in the way; `node` is empty for what concerns the whole file."""

    rule: str
    node: str
    reason: str
    remedy: str


@dataclass(frozen=True, eq=False)
class Graph:
    """A model, and who makes and reads what in it."""

    model: "onnx.ModelProto"

    @cached_property
    def producers(self) -> "Mapping[str, onnx.NodeProto]":
        return {name: node for node in self.model.graph.node for name in node.output}

    @cached_property
    def initializers(self) -> "Mapping[str, onnx.TensorProto]":
        return {tensor.name: tensor for tensor in self.model.graph.initializer}

    @cached_property
    def types(self) -> Mapping[str, int]:
        """Element type by name, where inference can tell."""
        from onnx.shape_inference import infer_shapes

        graph = infer_shapes(self.model).graph
        found = {tensor.name: tensor.data_type for tensor in graph.initializer}
        values = (*graph.input, *graph.output, *graph.value_info)
        return {**found, **{value.name: value.type.tensor_type.elem_type for value in values}}

    def opset(self) -> int:
        return max((entry.version for entry in self.model.opset_import if entry.domain in STANDARD), default=0)

    def kind(self, node: "onnx.NodeProto") -> str:
        """Name of the type that a QuantizeLinear makes (uint8 if it does not say) or a DequantizeLinear reads."""
        from onnx import TensorProto

        said = node.input[2] if len(node.input) > 2 and node.input[2] else ""
        if node.op_type == "DequantizeLinear":
            said = said or node.input[0]
        default = next((a.i for a in node.attribute if a.name == "output_dtype" and a.i), TensorProto.UINT8)
        number = self.types.get(said, default if node.op_type == "QuantizeLinear" else TensorProto.UNDEFINED)
        return TensorProto.DataType.Name(number)

    def of(self, *operators: str) -> "Iterator[onnx.NodeProto]":
        return (node for node in self.model.graph.node if node.op_type in operators and node.domain in STANDARD)


Search = Callable[[Graph], Iterator[tuple[str, str]]]  # node and reason
PARSER = "refused by the parser of tensorrt-rtx 1.7"


@dataclass(frozen=True)
class Rule:
    """What to look for, what to do about it, and how that is known."""

    search: Search
    remedy: str
    source: str = PARSER


def _opset(graph: Graph) -> Iterator[tuple[str, str]]:
    if graph.opset() > MAX_OPSET:
        yield "", f"opset {graph.opset()}, TensorRT 10.3 reads up to {MAX_OPSET}"


def _domain(graph: Graph) -> Iterator[tuple[str, str]]:
    for node in graph.model.graph.node:
        if node.domain not in STANDARD:
            yield node.name, f"{node.domain}.{node.op_type} is no standard operator"


def _integer_products(graph: Graph) -> Iterator[tuple[str, str]]:
    for node in graph.of(*INTEGER_PRODUCTS):
        yield node.name, f"{node.op_type} has no importer"


def _zero_point(graph: Graph) -> Iterator[tuple[str, str]]:
    from onnx.numpy_helper import to_array

    for node in graph.of("QuantizeLinear", "DequantizeLinear"):
        zero = graph.initializers.get(node.input[2]) if len(node.input) > 2 else None
        if zero is not None and np.any(to_array(zero).astype(np.float32) != 0):
            yield node.name, f"zero point '{zero.name}' is not 0"


def _bias(graph: Graph) -> Iterator[tuple[str, str]]:
    for node in graph.of("DequantizeLinear"):
        if graph.kind(node) == "INT32":
            yield node.name, f"'{node.input[0]}' is an int32 bias"


def _unsigned(graph: Graph) -> Iterator[tuple[str, str]]:
    for node in graph.of("QuantizeLinear"):
        if graph.kind(node) == "UINT8":
            yield node.name, "makes uint8, which the parser silently reads as int8"


def _stored(graph: Graph) -> Iterator[tuple[str, str]]:
    for node in graph.of("QuantizeLinear", "DequantizeLinear"):
        kind = graph.kind(node)
        if node.op_type == "QuantizeLinear" and kind == "UINT8":
            continue  # has a rule of its own
        source = graph.producers.get(node.input[0])
        after_another = node.op_type == "DequantizeLinear" and source is not None and source.op_type == "QuantizeLinear"
        if kind not in (*KINDS, "INT32", "UNDEFINED") and not after_another:
            yield node.name, f"quantised values are {kind.lower()}"


def _scale(graph: Graph) -> Iterator[tuple[str, str]]:
    from onnx import TensorProto

    for node in graph.of("QuantizeLinear"):
        data, scale = (graph.types.get(name, 0) for name in node.input[:2])
        if data and scale and data != scale:
            yield (
                node.name,
                f"scale is {TensorProto.DataType.Name(scale).lower()}, data {TensorProto.DataType.Name(data).lower()}",
            )


def _scale_fixed(graph: Graph) -> Iterator[tuple[str, str]]:
    from onnx.numpy_helper import to_array

    for node in graph.of("QuantizeLinear", "DequantizeLinear"):
        scale = graph.initializers.get(node.input[1])
        source = graph.producers.get(node.input[1])
        if scale is None and (source is None or source.op_type != "Constant"):
            yield node.name, f"scale '{node.input[1]}' is not a constant"
        elif scale is not None and not np.all(to_array(scale).astype(np.float32) > 0):
            yield node.name, f"scale '{scale.name}' is not above 0 throughout"


def _half_quantised(graph: Graph) -> Iterator[tuple[str, str]]:
    def dequantised(name: str) -> bool:
        source = graph.producers.get(name)
        while source is not None and source.op_type in ("Transpose", "Reshape", "Cast"):
            source = graph.producers.get(source.input[0])
        return source is not None and source.op_type == "DequantizeLinear"

    for node in graph.of(*PRODUCTS):
        if dequantised(node.input[0]) and node.input[1] in graph.initializers:
            yield node.name, f"input is quantised, weight '{node.input[1]}' is not"


def _blocks(graph: Graph) -> Iterator[tuple[str, str]]:
    for node in graph.of("Conv", "ConvTranspose"):
        source = graph.producers.get(node.input[1])
        if source is not None and any(a.name == "block_size" and a.i for a in source.attribute):
            yield node.name, f"weight '{source.input[0]}' of a convolution is quantised in blocks"


RULES: dict[str, Rule] = {
    "opset": Rule(
        _opset,
        f"export at opset {MAX_OPSET} or below",
        "onnx-tensorrt's page of supported operators: TensorRT 10.0 reads opset 9 to 20; later parsers read more",
    ),
    "domain": Rule(_domain, "export without onnxruntime's fusions (python -m convert.tensorrt does)"),
    "integer product": Rule(
        _integer_products, "write it as Conv, MatMul or Gemm between QuantizeLinear and DequantizeLinear"
    ),
    "zero point": Rule(
        _zero_point, "quantise symmetrically: ActivationSymmetric and WeightSymmetric in onnxruntime's quantiser"
    ),
    "quantised bias": Rule(_bias, "leave biases in floating point: QuantizeBias=False in onnxruntime's quantiser"),
    "unsigned": Rule(
        _unsigned,
        "give it an int8 zero point of 0",
        "the parser of tensorrt-rtx 1.7 takes it, as a layer that makes int8",
    ),
    "element type": Rule(_stored, "use int8, or fp8 e4m3"),
    "scale type": Rule(
        _scale,
        "store the scale in the type of the data; 16-bit scales need opset 19",
        "ONNX, QuantizeLinear of opset 19: x and y_scale are of one type",
    ),
    "scale": Rule(
        _scale_fixed,
        "store positive scales as initializers",
        "NVIDIA's IQuantizeLayer: strictly positive; its operator page of 8.6: a build-time constant",
    ),
    "half quantised": Rule(
        _half_quantised,
        "store the weight as int8 with a scale for each channel, or leave the input alone",
        "NVIDIA's guide to explicit quantisation: quantise all inputs of weighted operations",
    ),
    "blocks": Rule(_blocks, "give convolutions a scale for each output channel"),
}


def lint(model: "onnx.ModelProto") -> list[Finding]:
    """All findings, rule by rule."""
    graph = Graph(model)
    return [Finding(name, node, why, rule.remedy) for name, rule in RULES.items() for node, why in rule.search(graph)]


def lint_file(path: Path) -> list[Finding]:
    """Raises BundleError for what is no ONNX file."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path, load_external_data=False)
    except (OSError, DecodeError) as error:
        raise BundleError(f"{path}: cannot be read as ONNX: {error}; export it again") from None
    if not model.graph.node:
        raise BundleError(f"{path}: holds no graph; export it again")
    onnx.external_data_helper.load_external_data_for_model(model, str(path.parent))
    return lint(model)
