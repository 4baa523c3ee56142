"""A typed ONNX graph on any CPU: computed in fp32, with every tensor rounded to the type that the graph gives it.

onnxruntime's CPU kernels know neither bf16 nor fp8 arithmetic, and compute fp16 in fp32 from one operator to the next. Here
each 16-bit tensor goes through its type, so that what is lost by rounding is lost; sums inside an operator are still fp32.
For checking bundles, not for speed.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdc_edge.bundle import Bundle
from kdc_edge.errors import BundleError, MissingBackend
from kdc_edge.runtimes import Options, Runtime, ort
from kdc_edge.runtimes.half import widened

if TYPE_CHECKING:
    import onnx


def open(bundle: Bundle, component: str, options: Options) -> Runtime:
    entry = bundle.component(component)
    path = bundle.path / entry.files[0]
    onnxruntime = ort.toolchain()
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = ort.QUIET
    if options.threads is not None:
        settings.intra_op_num_threads = options.threads
    try:
        session = onnxruntime.InferenceSession(rounded(path), settings, providers=[ort.PROVIDERS["cpu"]])
    except Exception as error:  # the library's own classes derive from nothing narrower
        raise BundleError(f"{path}: onnxruntime {onnxruntime.__version__} cannot load it: {error}") from error
    return widened(ort.OrtRuntime(session, component, entry.ports))


def placement(bundle: Bundle, component: str, options: Options) -> dict[str, int]:
    """Everything runs on the CPU."""
    return {"cpu": sum((bundle.component(component).operators or {}).values())}


def available() -> list[str]:
    return [name for name in ort.available() if name == "cpu"]


def rounded(path: Path) -> bytes:
    """The model at `path`, computing in fp32. Raises MissingBackend without the onnx package."""
    try:
        import onnx
    except ImportError:
        raise MissingBackend("onnx is not installed; pip install 'kdc-edge[onnx]'") from None
    from onnx.shape_inference import infer_shapes

    model = onnx.load(path)
    graph = model.graph
    narrow = {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
    kinds = {
        v.name: v.type.tensor_type.elem_type
        for v in (*graph.input, *infer_shapes(model).graph.value_info, *graph.output)
    }
    kinds |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    nodes = list(_entries(graph, kinds, narrow))
    for node in graph.node:
        nodes += _rounding(node, {name: kinds[name] for name in node.output if kinds.get(name) in narrow}, narrow)
    ends = [value for value in graph.output if kinds[value.name] in narrow]
    for value in ends:
        for node in nodes:
            _rename(node, value.name, f"{value.name}{WIDE}")
        nodes.append(_cast(f"{value.name}{WIDE}", value.name, kinds[value.name]))
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    return model.SerializeToString()


WIDE = ".computed"


def _entries(graph: "onnx.GraphProto", kinds: dict[str, int], narrow: set[int]) -> "Iterator[onnx.NodeProto]":
    """Casts to fp32 of 16-bit weights and inputs, which the nodes then read instead."""
    names = [value.name for value in (*graph.input, *graph.initializer) if kinds[value.name] in narrow]
    for name in names:
        yield _cast(name, f"{name}{WIDE}", 1)
    entries = set(names)
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name in entries:
                node.input[place] = f"{name}{WIDE}"


def _rounding(node: "onnx.NodeProto", kinds: dict[str, int], narrow: set[int]) -> "list[onnx.NodeProto]":
    """The node in fp32, then each 16-bit result through its type."""
    import onnx

    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i in narrow:
            attribute.i = onnx.TensorProto.FLOAT
        if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type in narrow:
            wide = onnx.numpy_helper.to_array(attribute.t).astype("float32")
            attribute.t.CopyFrom(onnx.numpy_helper.from_array(wide))
    after: list[Any] = []
    for place, name in enumerate(node.output):
        if name in kinds:
            node.output[place] = f"{name}.exact"
            after += [_cast(f"{name}.exact", f"{name}.narrow", kinds[name]), _cast(f"{name}.narrow", name, 1)]
    return [node, *after]


def _rename(node: "onnx.NodeProto", old: str, new: str) -> None:
    for names in (node.input, node.output):
        for place, name in enumerate(names):
            if name == old:
                names[place] = new


def _cast(source: str, target: str, kind: int) -> "onnx.NodeProto":
    import onnx

    return onnx.helper.make_node("Cast", [source], [target], to=kind)
