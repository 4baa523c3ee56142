"""One component of a checkpoint → one ONNX file whose types say how it computes: 16 bits, fp32 islands, small weights.

Standard operators at opset 19, which TensorRT 10.3 to 11 read, unless a target's fused attention is asked for. Islands are
found by a probe on calls the model made while drawing; of int8 products, layers that cannot bear it stay in 16 bits.
"""

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from convert import export, probe
from convert.calibration import Calls
from convert.halves import narrow
from convert.schemes import Typed, floor_db
from kdc_edge.checkpoint import Checkpoint
from kdc_edge.ports import Port, Ports
from kdc_edge.process import peak_mib
from kdc_edge.spec import component_ports, pipeline_spec

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

    from convert.nvidia.quantise import Small

IR_VERSION = 9  # the last that TensorRT 10.3 was made with; opset 19's own
PARITY_BY = "emulated: fp32 on a CPU, every 16-bit tensor rounded"


@dataclass(frozen=True)
class TypedExport(export.Exported):
    """`islands`: operators that compute in fp32, with the reason."""

    islands: dict[str, str] = field(default_factory=dict)


def export_typed(
    checkpoint: Path,
    component: str,
    folder: Path,
    scheme: Typed,
    calls: Calls,
    leave: Sequence[str] = (),
    fused: bool = False,
    any_size: bool = False,
    narrow_ports: bool = False,
    batch: int | None = None,
    wide: Sequence[str] = (),
) -> TypedExport:
    """Writes `folder`/model.onnx.

    With `narrow_ports` inputs and outputs are 16 bits wide as `io` says; `batch` fixes it; operators that `wide` names are
    islands beside those that the probe finds.
    """
    import onnx_ir as ir

    from kdc_edge.torch_ref.networks import load_network

    start = time.perf_counter()
    opened = Checkpoint.open(checkpoint)
    spec = pipeline_spec(opened)
    ports = component_ports(opened, spec, any_size)[component]
    network = load_network(opened, component)
    plan, left = _plan(network, scheme, calls, leave)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    model, _ = export.traced(network, ports, spec, fused)
    del network
    _type_all(model.graph)
    peak = _peaks(model, calls)
    islands = probe.islands(model.graph, peak if scheme.rest == "float16" else {})
    islands |= {node: "asked for" for node in model.graph if node.name in wide and node not in islands}
    _make_small(model.graph, scheme, plan, peak)
    types = io(ports, scheme) if narrow_ports else ports
    kinds = {port.name: ir.DataType.FLOAT16 for port in (*types.inputs, *types.outputs) if port.dtype == "float16"}
    narrow(model, ir.DataType[scheme.rest.upper()], islands, kinds)
    if batch is not None:
        _fix_batch(model.graph, batch)
    model.ir_version = IR_VERSION
    folder.mkdir(parents=True, exist_ok=True)
    export.save(model, folder / export.MODEL)
    counters = export.counted(folder / export.MODEL, ports, spec)
    reasons = {node.name: why for node, why in islands.items()}
    size = export.weights_mib(folder / export.MODEL)
    return TypedExport(
        time.perf_counter() - start, peak_mib(), parameters, counters, tuple(left), size, islands=reasons
    )


def io(ports: Ports, scheme: Typed) -> Ports:
    """The ports as the graph has them: fp16 for arrays, fp32 for the timestep; numpy has no bf16, so fp32 there."""
    if scheme.rest != "float16":
        return ports

    def one(port: Port) -> Port:
        half = port.dtype == "float32" and port.shape != ()
        return Port(port.name, "float16", port.shape) if half else port

    return Ports(tuple(map(one, ports.inputs)), tuple(map(one, ports.outputs)))


def _plan(
    network: "torch.nn.Module", scheme: Typed, calls: Calls, leave: Sequence[str]
) -> tuple[dict[str, "Small"], list[str]]:
    """Small weights by name, and the patterns of layers that stay in 16 bits."""
    import torch

    from convert.exclusions import E4M3, STORED, SYMMETRIC, Sensitivity, spared
    from convert.nvidia.quantise import restored

    if scheme.weights is None:
        return {}, list(leave)
    left = list(dict.fromkeys([*leave, "Gather"]))
    arithmetic = {"int8": SYMMETRIC, "float8e4m3": E4M3}[scheme.weights] if scheme.products else STORED
    feeds, probes = calls.apart(arithmetic.probes)
    small = _small(network, scheme, feeds, left)
    if scheme.spare:
        stored = {name: torch.from_numpy(restored(values)) for name, values in small.items()}
        found = Sensitivity(network, feeds, probes, left, arithmetic, stored)
        left += (suffer := spared(found, floor_db(scheme)))
        small = {name: values for name, values in small.items() if name not in suffer}
    return small, left


def _small(network: "torch.nn.Module", scheme: Typed, calls: Calls, left: Sequence[str]) -> dict[str, "Small"]:
    from convert.nvidia.quantise import fp8_values, int8_values
    from convert.rounding import Grid, nearest
    from convert.schemes import Weights, excluded
    from convert.weights import operator, plan, weighted

    layers = {name: layer for name, layer in weighted(network).items() if not excluded(name, operator(layer), left)}
    if scheme.weights == "float8e4m3":
        return {name: fp8_values(layer.weight.detach().numpy()) for name, layer in layers.items()}
    if scheme.rounding == "nearest":
        return {name: int8_values(nearest(layer.weight.detach(), Grid(8))) for name, layer in layers.items()}
    found = plan(network, Weights(8), calls, left)
    return {name: int8_values(found[name]) for name in layers}


def _type_all(graph: "ir.Graph") -> None:
    """What rewriting left without a type is floating point."""
    import onnx_ir as ir

    for node in graph:
        for value in node.outputs:
            if value.type is None:
                value.type = ir.TensorType(ir.DataType.FLOAT)


def _peaks(model: "ir.Model", calls: Calls) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / export.MODEL
        export.save(model, path)
        return probe.peaks(path, [value.name for value in probe.floats(model.graph)], calls)


def _make_small(graph: "ir.Graph", scheme: Typed, plan: Mapping, peak: Mapping[str, float]) -> None:
    from convert.nvidia.quantise import quantise_inputs, store_weights

    if scheme.weights is not None:
        store_weights(graph, plan)
        if scheme.products:
            quantise_inputs(graph, peak, scheme.weights)


def _fix_batch(graph: "ir.Graph", batch: int) -> None:
    import onnx_ir as ir

    free = {axis.value for value in graph.inputs for axis in value.shape or () if isinstance(axis, ir.SymbolicDim)}
    values = [*graph.inputs, *(value for node in graph for value in node.outputs)]
    for value in values:
        if value.shape is not None:
            sizes = [batch if isinstance(a, ir.SymbolicDim) and a.value in free else a for a in value.shape]
            value.shape = ir.Shape(sizes)
