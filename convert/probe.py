"""How large the numbers inside a network get: every floating-point tensor of an ONNX file, over real calls.

What is beyond fp16's range, and what an operator squares or exponentiates inside, must stay in fp32 where a runtime computes
in 16 bits. The same numbers scale int8 activations.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

MASKED = 1e30  # larger numbers are masks' minus infinity, not activations
PEAK = ".peak"
HALF_MAX = 65504.0
HEADROOM = 4.0  # other calls than those that were probed go further
LOGITS = 128.0  # from here on fp16 stores a softmax's input in steps of 1/8 and more: probabilities off by 6 %

# operators that fail inside although input and output fit, whatever they are given
FRAGILE = {
    "InstanceNormalization": "squares its input",
    "GroupNormalization": "squares its input",
    "LayerNormalization": "squares its input",
    "ReduceSumSquare": "squares its input",
    "ReduceL2": "squares its input",
    "Pow": "raises its input to a power",
    "Exp": "overflows from 11.1 on",
    "Sin": "wants phases finer than 16 bits have",
    "Cos": "wants phases finer than 16 bits have",
}
PHASES = ("Sin", "Cos")
Feeds = Iterable[Mapping[str, np.ndarray]]


def floats(graph: "ir.Graph") -> Iterator["ir.Value"]:
    """Every floating-point value that is no weight."""
    import onnx_ir as ir

    yield from (value for value in graph.inputs if value.dtype == ir.DataType.FLOAT)
    yield from (value for node in graph for value in node.outputs if value.dtype == ir.DataType.FLOAT)


def peaks(path: Path, names: Iterable[str], feeds: Feeds) -> dict[str, float]:
    """Largest magnitude of each of `names` in the model at `path` over all feeds; memory does not grow with their number."""
    import onnxruntime

    names = list(names)
    probing = path.with_name(f"{path.name}.probe")
    probing.write_bytes(_watching(path, names))
    session = onnxruntime.InferenceSession(str(probing), _options(onnxruntime))
    found = np.zeros(len(names))
    for feed in feeds:
        found = np.fmax(found, session.run([f"{name}{PEAK}" for name in names], dict(feed)))
    del session
    probing.unlink()
    return dict(zip(names, found.tolist(), strict=True))


def islands(graph: "ir.Graph", peak: Mapping[str, float]) -> dict["ir.Node", str]:
    """The operators that stay in fp32, each with its reason."""
    found: dict[ir.Node, str] = {}
    for node in graph:
        touched = {
            value.name: peak.get(value.name, 0.0) for value in (*node.inputs, *node.outputs) if value is not None
        }
        name, largest = max(touched.items(), key=lambda item: item[1], default=("", 0.0))
        if node.op_type in FRAGILE:
            found[node] = FRAGILE[node.op_type]
        elif not largest <= HALF_MAX / HEADROOM:
            found[node] = f"'{name}' reaches {largest:.3g}"
        elif node.op_type == "Softmax" and peak.get(node.inputs[0].name, 0.0) > LOGITS:
            found[node] = f"logits reach {peak[node.inputs[0].name]:.3g}"
    for node in [node for node in found if node.op_type in PHASES]:
        found |= dict.fromkeys(_above(node), f"makes phases for {node.op_type}")
    return found


def _above(node: "ir.Node") -> Iterator["ir.Node"]:
    for value in node.inputs:
        if value is not None and (producer := value.producer()) is not None:
            yield producer
            yield from _above(producer)


def _watching(path: Path, names: Iterable[str]) -> bytes:
    """The model with the largest magnitude of each of `names` as an output of its own."""
    import onnx
    from onnx import TensorProto, helper

    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    graph.initializer.extend(
        helper.make_tensor(f"{n}{PEAK}", TensorProto.FLOAT, (), [v]) for n, v in _CONSTANTS.items()
    )
    names, nodes = set(names), []
    for value in [value.name for value in graph.input if value.name in names]:
        nodes += _magnitude(value)
    for node in graph.node:
        nodes.append(node)
        nodes += [step for name in node.output if name in names for step in _magnitude(name)]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.output.extend(helper.make_tensor_value_info(f"{n}{PEAK}", TensorProto.FLOAT, ()) for n in names)
    return model.SerializeToString()


def _magnitude(name: str) -> "list[onnx.NodeProto]":
    """Right behind what makes the value, so that it need not be kept."""
    from onnx import helper

    magnitude, masked, kept = [f"{name}.{step}{PEAK}" for step in ("magnitude", "masked", "kept")]
    return [
        helper.make_node("Abs", [name], [magnitude]),
        helper.make_node("Greater", [magnitude, f"limit{PEAK}"], [masked]),
        helper.make_node("Where", [masked, f"zero{PEAK}", magnitude], [kept]),
        helper.make_node("ReduceMax", [kept], [f"{name}{PEAK}"], keepdims=0),
    ]


_CONSTANTS = {"limit": MASKED, "zero": 0.0}


def _options(onnxruntime: object) -> object:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED  # as written, not depth first
    return options
