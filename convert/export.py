"""One component of a checkpoint → one ONNX file.

Opset 18 keeps to operators every execution provider knows: GroupNorm as InstanceNormalization, attention as MatMul and
Softmax unless the target has it as one. The batch is dynamic, all else is fixed by the checkpoint. Weights carry their
names in it, with ".T" added where MatMul wants them transposed and ".view" where they have axes of 1 more. Traces, paths
and graph names of the exporter are removed: the same weights give the same bytes.
"""

import hashlib
import re
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from convert.calibration import Calls
from convert.counters import Counters, count_file
from convert.schemes import Dynamic, Mixed, Scheme, Static, Weights, floor_db
from kdc_edge.checkpoint import Checkpoint
from kdc_edge.manifest import PipelineSpec
from kdc_edge.ports import Ports, free_axes, resolve, zeros
from kdc_edge.process import peak_mib
from kdc_edge.spec import component_ports, pipeline_spec

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir
    import torch

    from convert.weights import Plan

Names = Sequence[str]
OPSET = 18
EXTERNAL_BYTES = 1_500_000_000  # a protobuf ends at 2 GB: above this, weights go to model.onnx.data beside it
MODEL, EXTERNAL = "model.onnx", "model.onnx.data"
PREFIX = "model."  # of the wrapped network's parameters
PROBES = 4  # calls that a layer's sensitivity is measured on


@dataclass(frozen=True)
class Exported:
    """What the export of one component took, and what the graph costs."""

    seconds: float
    peak_mib: float
    parameters: int
    counters: Counters
    left: tuple[str, ...] = ()
    """Patterns of the layers that stayed as they were."""
    weights_mib: float = 0.0
    """Of the weights in the file."""
    call_ms: float | None = None
    """Of one call on the machine that converted, where a budget asked for it."""


def export_component(
    checkpoint: Path,
    component: str,
    folder: Path,
    scheme: Scheme = None,
    calls: Calls | None = None,
    leave: Names = (),
    fused: bool = False,
    any_size: bool = False,
) -> Exported:
    """Writes `folder`/model.onnx.

    `leave` are patterns of layers that are not made small, `fused` is a target's; `any_size` leaves height and width open.
    """
    from convert import products
    from convert.integers import save_products
    from convert.storing import store
    from kdc_edge.torch_ref.networks import load_network

    start = time.perf_counter()
    opened = Checkpoint.open(checkpoint)
    spec = pipeline_spec(opened)
    ports = component_ports(opened, spec, any_size)[component]
    network = load_network(opened, component)
    plan, leave = _plan(network, scheme, calls, leave) if isinstance(scheme, Weights | Mixed) else ({}, leave)
    model, weights = traced(network, ports, spec, fused)
    took = None
    if isinstance(scheme, Static):
        products.prepare(model)
    if isinstance(scheme, Weights | Mixed):
        store(model, weights, plan)
    if isinstance(scheme, Static | Dynamic):
        leave, took = save_products(model, network, scheme, calls, leave, folder / MODEL)
    else:
        save(model, folder / MODEL)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    counters, size = counted(folder / MODEL, ports, spec), weights_mib(folder / MODEL)
    return Exported(time.perf_counter() - start, peak_mib(), parameters, counters, tuple(leave), size, took)


def layer_names(checkpoint: Path, components: Names) -> list[tuple[str, str]]:
    """Name and operator of every layer whose weight can be small."""
    from convert.weights import operator, weighted
    from kdc_edge.torch_ref.networks import outline

    networks = [outline(Checkpoint.open(checkpoint), component) for component in components]
    return [(name, operator(layer)) for network in networks for name, layer in weighted(network).items()]


def counted(path: Path, ports: Ports, spec: PipelineSpec) -> Counters:
    """What a call costs at batch 1 and the model's own size."""
    return count_file(path, {port.name: resolve(port, {"batch": 1, **spec.sizes}) for port in ports.inputs})


def weights_mib(path: Path) -> float:
    """Of the weights in an ONNX file, their scales among them; constants of the graph, whose names have no dot, are none."""
    import onnx_ir as ir

    weights = ir.load(path).graph.initializers.items()
    return sum(value.const_value.nbytes for name, value in weights if "." in name) / 2**20


def traced(network: "torch.nn.Module", ports: Ports, spec: PipelineSpec, fused: bool) -> tuple["ir.Model", list[str]]:
    """The network's graph in fp32, attention as the target has it, and the names of its weights."""
    from convert.rewrites import rewrite

    model = _trace(network, ports, _tensors(ports, {"batch": 2, **spec.sizes}))
    rewrite(model, fused)
    return model, _name_weights(model.graph, network)


def _plan(
    network: "torch.nn.Module", scheme: Weights | Mixed, calls: Calls | None, leave: Names
) -> "tuple[Plan, Names]":
    """How weights are stored, and the patterns of those that 8 bits spare."""
    from convert.exclusions import STORED, Sensitivity, spared
    from convert.mixed import mixed_plan
    from convert.weights import Half, plan, weighted

    if isinstance(scheme, Mixed):
        return mixed_plan(network, scheme, calls, calls.some(PROBES), leave), leave
    if scheme.bits != 8 or not scheme.spare or calls is None:
        return plan(network, scheme, () if calls is None else calls, leave), leave
    feeds, probes = calls.apart(STORED.probes)
    found = plan(network, scheme, feeds, leave)
    restored = {name: stored.restored() for name, stored in found.items()}
    suffer = spared(Sensitivity(network, feeds, probes, leave, STORED, restored), floor_db(scheme))
    layers = weighted(network)
    return found | {name: Half(layers[name].weight) for name in suffer}, [*leave, *suffer]


def _tensors(ports: Ports, sizes: Mapping[str, int]) -> dict[str, "torch.Tensor"]:
    import torch

    return {name: torch.from_numpy(array) for name, array in zeros(ports.inputs, sizes).items()}


def _dims(network: "torch.nn.Module") -> dict[str, "torch.export.Dim"]:
    """Of the free axes; a U-Net halves height and width once for every stage but the last."""
    import torch

    # diffusers asks for batches of 64 and more whether they are contiguous; ONNX has no such notion
    batch = torch.export.Dim("batch", min=1, max=63)
    halvings = len(network.model.config.down_block_types) - 1 if "down_block_types" in network.model.config else 0
    height, width = (2**halvings * torch.export.Dim(name, min=2, max=4096) for name in ("rows", "columns"))
    return {"batch": batch, "height": height, "width": width}


def _trace(network: "torch.nn.Module", ports: Ports, inputs: dict[str, "torch.Tensor"]) -> "ir.Model":
    """The network as an optimised ONNX graph with the port table's names."""
    import torch

    dims = _dims(network)
    shapes = {name: {i: dims[axis] for i, axis in axes.items()} for name, axes in free_axes(ports.inputs).items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside the exporter
        program = torch.onnx.export(
            network,
            (),
            kwargs=inputs,
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=shapes,
            output_names=[port.name for port in ports.outputs],
            optimize=False,
            verbose=False,
        )
        program.optimize()
    _name_axes(program.model.graph, _symbols(program.exported_program.graph, shapes))
    _tidy(program.model)
    return program.model


def _symbols(graph: "torch.fx.Graph", shapes: Mapping[str, Mapping[int, "torch.export.Dim"]]) -> dict[str, str]:
    """torch's symbols → the names of the sizes they stand for."""
    inputs = {node.name: node.meta["val"] for node in graph.nodes if node.op == "placeholder" and node.name in shapes}
    found = {}
    for name, axes in shapes.items():
        for place, dim in axes.items():
            (symbol,) = inputs[name].shape[place].node.expr.free_symbols
            found[str(symbol)] = getattr(dim, "root", dim).__name__
    return found


def _name_axes(graph: "ir.Graph", names: Mapping[str, str]) -> None:
    """The exporter names the sizes of inputs, and leaves torch's symbols in those that follow from them."""
    import onnx_ir as ir

    for node in graph:
        for value in (out for out in node.outputs if out.shape is not None):
            for place, size in enumerate(value.shape):
                if isinstance(size, ir.SymbolicDim) and size.value is not None:
                    value.shape[place] = re.sub(r"\w+", lambda match: names.get(match[0], match[0]), size.value)


def _tidy(model: "ir.Model") -> None:
    """No traces, no paths, no names but those of weights, inputs and outputs."""
    graph = model.graph
    values = [*graph.inputs, *graph.initializers.values()]
    for i, node in enumerate(graph):
        node.name = f"{node.op_type}_{i}"
        values += node.outputs
        node.metadata_props.clear()
        node.doc_string = None
    for value in values:
        value.metadata_props.clear()
    graph.metadata_props.clear()
    model.metadata_props.clear()


def _name_weights(graph: "ir.Graph", network: "torch.nn.Module") -> list[str]:
    """Gives weights, and what was folded out of one of them, its name; lists them. The rest are constants of the graph."""
    folded = _folded_names(network)
    weights = []
    for value in list(graph.initializers.values()):
        name = value.name if value.name.startswith(PREFIX) else folded.get(_digest(value.const_value.numpy()))
        if name is not None:
            value.name = name.removeprefix(PREFIX)
            weights.append(value.name)
    return weights


def _folded_names(network: "torch.nn.Module") -> dict[bytes, str]:
    """Digest of a weight's values, also transposed → the name of an initializer that holds them.

    Weights that are one number throughout are left out: any constant may equal them.
    """
    names = {}
    for name, parameter in network.named_parameters():
        array = parameter.numpy()
        if (array == array.flat[0]).all():
            continue
        names[_digest(array)] = f"{name}.view"
        if array.ndim == 2:
            names[_digest(array.T)] = f"{name}.T"
    return names


def _digest(array: "np.ndarray") -> bytes:
    import numpy as np

    return hashlib.sha256(np.ascontiguousarray(array).data).digest()


def save(model: "ir.Model", path: Path) -> None:
    """Weights too large for one file go beside it."""
    import onnx_ir as ir

    weights = sum(value.const_value.nbytes for value in model.graph.initializers.values())
    if weights > EXTERNAL_BYTES:
        ir.save(model, path, external_data=EXTERNAL)
    else:
        ir.save(model, path)
