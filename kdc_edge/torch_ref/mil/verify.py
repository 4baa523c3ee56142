"""A package against the checkpoint it is said to be of: its outputs, its layers, and its ranges, on seeded calls."""

# B batch, T text tokens, D text width

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdc_edge.checkpoint import Checkpoint
from kdc_edge.differences import snr_db
from kdc_edge.errors import BundleError, UsageError
from kdc_edge.ports import resolve
from kdc_edge.runtimes import apple
from kdc_edge.spec import component_ports, pipeline_spec
from kdc_edge.torch_ref.mil.container import Package, operations
from kdc_edge.torch_ref.mil.program import Program
from kdc_edge.torch_ref.mil.report import Line, chosen, examine, first, recorded
from kdc_edge.torch_ref.networks import load_network

TIMESTEPS = (999.0, 501.0, 1.0)  # of the calls; few-step students run at the first
IDS = 256  # token ids are below, which every CLIP vocabulary has
DEPARTS = 0.01


@dataclass(frozen=True)
class Verified:
    """What a package was found to be; `snr_db` is the worst of the calls, by output."""

    component: str | None
    operators: int
    calls: int
    lines: list[Line]
    floor_db: float
    snr_db: dict[str, float] | None = None

    @property
    def passed(self) -> bool:
        return self.snr_db is None or all(db >= self.floor_db for db in self.snr_db.values())

    @property
    def shown(self) -> list[Line]:
        return chosen(self.lines, DEPARTS)

    @property
    def departs(self) -> Line | None:
        return first(self.lines, DEPARTS)

    def to_json(self) -> dict[str, Any]:
        """Numbers that are not finite become null."""
        broken = [line.name for line in self.lines if line.broken]
        return {
            "component": self.component,
            "operators": self.operators,
            "calls": self.calls,
            "floor_db": self.floor_db,
            "snr_db": None if self.snr_db is None else {name: _finite(db) for name, db in self.snr_db.items()},
            "overflows": [line.name for line in self.lines if line.overflows],
            "not_finite": broken,
            "departs": None if self.departs is None else _plain(self.departs),
            "lines": [_plain(line) for line in self.shown],
        }


def verify(path: Path, against: Path | None = None, function: str | None = None) -> Verified:
    """Raises BundleError for a package that cannot be executed, UsageError for a checkpoint of other shapes."""
    package = Package.open(path)
    name = package.function(function)
    program = Program.of(package, name)
    component = component_of(program)
    feeds = [feed(program, timestep) for timestep in (TIMESTEPS if "timestep" in program.inputs else TIMESTEPS[:1])]
    floor = floor_db(package, name)
    if against is None:
        return Verified(component, len(program.steps), len(feeds), examine(program, feeds), floor)
    if component is None:
        takes, gives = ", ".join(program.inputs), ", ".join(program.outputs)
        raise UsageError(
            f"{path} takes {takes} and gives {gives}, which no component does as a whole; leave --against out"
        )
    layers, worst = _compared(program, component, Checkpoint.open(against), feeds)
    return Verified(component, len(program.steps), len(feeds), examine(program, feeds, layers), floor, worst)


def component_of(program: Program) -> str | None:
    """Which component takes and gives what the program does."""
    for name, known in apple.PACKAGES.items():
        takes, gives = ({port.name for port in ports} for ports in (known.ports.inputs, known.ports.outputs))
        if program.inputs.keys() == takes and set(program.outputs) == gives:
            return name
    return None


def feed(program: Program, timestep: float) -> dict[str, np.ndarray]:
    """Standard normal inputs, token ids, and this timestep; the same at every call. A free size is 1."""
    rng = np.random.RandomState(0)
    made = {}
    for name, (shape, _) in program.inputs.items():
        sizes = tuple(1 if n is None else n for n in shape)
        if name == "timestep":
            made[name] = np.full(sizes, timestep, np.float32)
        elif name == "input_ids":
            made[name] = rng.randint(0, IDS, sizes).astype(np.float32)
        else:
            made[name] = rng.standard_normal(sizes).astype(np.float32)
    return made


def floor_db(package: Package, function: str) -> float:
    """The least SNR to PyTorch fp32: 90 dB in fp32, 50 in fp16, 33 with 8-bit weights, 0 with fewer bits or sparse ones."""
    every = list(operations(package.functions[function]))
    restored = [operation for operation in every if operation.type.startswith("constexpr_")]
    if restored:
        return 33.0 if all(_eight(operation) for operation in restored) else 0.0
    types = {out.type.tensorType.dataType for operation in every for out in operation.outputs}
    return 50.0 if _types().FLOAT16 in types else 90.0


def _eight(operation: Any) -> bool:
    """Whether a weight is restored from 8 bits."""
    if "sparse" in operation.type:
        return False
    stored = _arguments(operation)
    if "lut" in stored:
        sizes = [dimension.constant.size for dimension in stored["lut"].type.tensorType.dimensions]
        return (sizes[0] if len(sizes) == 1 else sizes[-2]) == 256
    data = stored.get("quantized_data", stored.get("data"))
    return data is None or data.type.tensorType.dataType in (_types().INT8, _types().UINT8)


def _arguments(operation: Any) -> Mapping[str, Any]:
    """Values that are written into the operator."""
    inside = {
        name: argument.arguments[0].value
        for name, argument in operation.inputs.items()
        if argument.arguments[0].WhichOneof("binding") == "value"
    }
    return {**operation.attributes, **inside}


def _types() -> Any:
    from coremltools.proto import MIL_pb2

    return MIL_pb2


def _compared(
    program: Program, component: str, checkpoint: Checkpoint, feeds: list[dict[str, np.ndarray]]
) -> tuple[list[dict[str, torch.Tensor]], dict[str, float]]:
    """The network's layers at every call, and the worst SNR of each output."""
    network = load_network(checkpoint, component)
    ports = component_ports(checkpoint, pipeline_spec(checkpoint))[component]
    known, worst = [], dict[str, float]()
    for arrays in feeds:
        ours = apple.back(component, arrays)
        for port in ports.inputs:
            if ours[port.name].shape != (wanted := resolve(port, {"batch": len(next(iter(arrays.values())))})):
                raise UsageError(
                    f"{program.path}: {port.name} is {ours[port.name].shape}, {checkpoint.path} has {wanted}; "
                    "name the checkpoint that the package was made from"
                )
        layers, outputs = recorded(network, {name: torch.from_numpy(array) for name, array in ours.items()})
        known.append(layers)
        given = program.run(arrays)
        for port, wanted_out in zip(apple.PACKAGES[component].ports.outputs, outputs, strict=True):
            if port.name not in given:
                raise BundleError(f"{program.path}: gives no {port.name}")
            db = snr_db(wanted_out.numpy(), given[port.name])
            worst[port.name] = db if not db >= worst.get(port.name, np.inf) else worst[port.name]
    return known, worst


def _finite(value: float | None) -> float | None:
    return value if value is not None and np.isfinite(value) else None


def _plain(line: Line) -> dict[str, Any]:
    return {key: _finite(value) if isinstance(value, float) else value for key, value in asdict(line).items()}
