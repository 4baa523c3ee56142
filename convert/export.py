"""One component of a checkpoint → one ONNX file.

Opset 18 keeps to operators every execution provider knows: GroupNorm as InstanceNormalization, attention as MatMul and
Softmax unless the target has it as one. The batch is dynamic, all else is fixed by the checkpoint. Weights carry their
names in it, with ".T" added where MatMul wants them transposed and ".view" where they have axes of 1 more. Traces, paths
and graph names of the exporter are removed: the same weights give the same bytes.
"""

import hashlib
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from convert.calibration import Calls
from convert.counters import Counters, count_file
from convert.schemes import Dynamic, Mixed, Scheme, Static, Weights, floor_db
from kdc_edge.checkpoint import Checkpoint
from kdc_edge.ports import Ports, free_axes, zeros
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


def export_component(
    checkpoint: Path,
    component: str,
    folder: Path,
    scheme: Scheme = None,
    calls: Calls | None = None,
    leave: Names = (),
    fused: bool = False,
) -> Exported:
    """Writes `folder`/model.onnx; `leave` are patterns of layers that are not made small, `fused` is a target's."""
    from convert.integers import quantise, split_shortcuts
    from convert.storing import store
    from kdc_edge.torch_ref.networks import load_network

    start = time.perf_counter()
    opened = Checkpoint.open(checkpoint)
    ports = component_ports(opened, pipeline_spec(opened))[component]
    network = load_network(opened, component)
    plan = _plan(network, scheme, calls, leave) if isinstance(scheme, Weights | Mixed) else {}
    if isinstance(scheme, Static):
        leave = [*leave, *_spared(network, scheme, calls, leave)]
    model, weights = traced(network, ports, fused)
    if isinstance(scheme, Static):
        split_shortcuts(model.graph)
    if isinstance(scheme, Weights | Mixed):
        store(model, weights, plan)
    save(model, folder / MODEL)
    if isinstance(scheme, Static | Dynamic):
        quantise(folder / MODEL, scheme, calls, leave)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    counters = count_file(folder / MODEL)
    return Exported(time.perf_counter() - start, peak_mib(), parameters, counters, tuple(leave))


def traced(network: "torch.nn.Module", ports: Ports, fused: bool) -> tuple["ir.Model", list[str]]:
    """The network's graph in fp32, attention as the target has it, and the names of its weights."""
    from convert.rewrites import rewrite

    model = _trace(network, ports, _tensors(ports, batch=2))
    rewrite(model, fused)
    return model, _name_weights(model.graph, network)


def _plan(network: "torch.nn.Module", scheme: Weights | Mixed, calls: Calls | None, leave: Names) -> "Plan":
    from convert.mixed import mixed_plan
    from convert.weights import plan

    if isinstance(scheme, Mixed):
        return mixed_plan(network, scheme, calls, calls.some(PROBES), leave)
    return plan(network, scheme, () if calls is None else calls, leave)


def _spared(network: "torch.nn.Module", scheme: Static, calls: Calls, leave: Names) -> list[str]:
    """Patterns: a shortcut's weight is split, and its parts are named after it."""
    from convert.exclusions import spared

    count = 2 * PROBES
    feeds = calls.others(count) if len(calls) > 2 * count else calls
    return [f"{name}*" for name in spared(network, feeds, calls.some(count), floor_db(scheme), leave)]


def _tensors(ports: Ports, batch: int) -> dict[str, "torch.Tensor"]:
    import torch

    return {name: torch.from_numpy(array) for name, array in zeros(ports.inputs, {"batch": batch}).items()}


def _trace(network: "torch.nn.Module", ports: Ports, inputs: dict[str, "torch.Tensor"]) -> "ir.Model":
    """The network as an optimised ONNX graph with the port table's names."""
    import torch

    # diffusers asks for batches of 64 and more whether they are contiguous; ONNX has no such notion
    batch = torch.export.Dim("batch", min=1, max=63)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside the exporter
        program = torch.onnx.export(
            network,
            (),
            kwargs=inputs,
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes={name: dict.fromkeys(axes, batch) for name, axes in free_axes(ports.inputs).items()},
            output_names=[port.name for port in ports.outputs],
            optimize=False,
            verbose=False,
        )
        program.optimize()
    _tidy(program.model)
    return program.model


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
