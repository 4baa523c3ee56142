"""One component of a checkpoint → one .mlpackage.

Trace, convert, compress, describe, save. The same weights give the same bytes, and other weights of the same shapes give the
same program beside another weight file: nothing that is random or belongs to one checkpoint is in the program.
"""

import json
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convert.apple.chunks import DEFAULT, function_name, halves, joined
from convert.apple.lint import Advice, advice
from convert.apple.program import convert, mil_name
from convert.apple.schemes import Plan
from convert.apple.targets import TargetName
from convert.calibration import Calls
from kdc_edge.checkpoint import Checkpoint
from kdc_edge.files import read_json
from kdc_edge.ports import Ports, zeros
from kdc_edge.process import peak_mib
from kdc_edge.runtimes.apple import PACKAGES
from kdc_edge.spec import axis_sizes, component_ports, pipeline_spec
from kdc_edge.torch_ref.quiet import silent

if TYPE_CHECKING:
    from torch import nn

    from convert.apple.compression import Compressed
    from convert.apple.hollow import Weights
    from convert.apple.mixed import Sensitivity
    from convert.apple.ranges import Overflow

SPACE = uuid.UUID("b7a9f1a2-6f0e-5d57-9f43-3f3f0a7b3c11")  # names of a package's items become its identifiers
PROGRAM = "Data/com.apple.CoreML/model.mlmodel"
SIZED = ("unet", "vae_decoder", "vae_encoder")
PROBES = 4  # calls that a tensor's sensitivity is measured on


@dataclass(frozen=True)
class About:
    """What Xcode shows of a package."""

    author: str
    licence: str
    version: str


@dataclass(frozen=True)
class Settings:
    """How packages are made."""

    target: TargetName
    half: bool
    """fp16 arithmetic; the timestep's sine and cosine, and `islands`, stay fp32."""
    about: About
    batch: int = 1
    attention: str = "original"
    chunk: bool = False
    """The U-Net in two packages."""
    resolutions: tuple[tuple[int, int], ...] = ()
    """Heights and widths of latents that the U-Net and the decoder have a function for, beside their own."""
    islands: tuple[str, ...] = ()
    """Operators, by the output names that a conversion without islands gives them, that stay fp32."""


@dataclass(frozen=True)
class Budget:
    """MiB for a component's weights, given to tensors by their measured sensitivity."""

    mib: float
    uniform: bool


@dataclass(frozen=True)
class Spare:
    """As many layers left alone as the output needs to stay above this floor, dB."""

    floor_db: float


@dataclass(frozen=True)
class Packaged:
    """What the packaging of one component took, and what the program holds."""

    seconds: float
    peak_mib: float
    parameters: int
    macs: int
    operators: dict[str, int]
    packages: tuple[str, ...]
    compressed: "Compressed"
    islands: tuple[str, ...] = ()
    sensitivity: "dict[str, Sensitivity]" = field(default_factory=dict)
    """Of a mixed plan, by weight."""
    spared: tuple[str, ...] = ()
    """Weights that were left alone because the output suffered most from them."""
    advice: tuple[Advice, ...] = ()
    """About the Neural Engine."""
    overflow: "Overflow | None" = None
    """The largest activation met in fp16 arithmetic, and the operators that became fp32 islands; None where nobody looked."""


def package_component(
    checkpoint: Path,
    component: str,
    folder: Path,
    settings: Settings,
    plan: Plan,
    wanted: Budget | Spare | None = None,
    calls: Calls | None = None,
) -> Packaged:
    """Writes `folder`/TITLE.mlpackage; where something is wanted of the plan, it is measured on `calls`."""
    import torch

    from convert.apple.compression import compress, together
    from convert.apple.hollow import hollow
    from convert.apple.networks import wrap
    from kdc_edge.torch_ref.networks import load_network

    start = time.perf_counter()
    opened = Checkpoint.open(checkpoint)
    plain = load_network(opened, component, torch.float16 if settings.half and wanted is None else torch.float32)
    plan, sensitivity, spared = _measured(plain, settings.target, plan, wanted, calls)
    network = wrap(plain.model, component, settings.attention)
    weights = hollow(network) if settings.half else None
    network.float()
    parameters, macs = sum(p.numel() for p in network.parameters()), _macs(plain, opened, component)
    del plain
    names = {mil_name(name): name for name, _ in network.model.named_parameters()}
    with silent(), tempfile.TemporaryDirectory() as workspace:
        models, probe = _programs(network, weights, opened, component, settings, calls, Path(workspace))
        del network
        parts = _parts(models.pop(DEFAULT), component, settings.chunk, Path(workspace))
        made = {title: compress(part, plan, names) for title, part in parts.items()}
        for title, (part, _) in made.items():
            others = {name: compress(model, plan, names)[0] for name, model in models.items()}
            describe(part, component, settings.about)
            save(part, others, folder / f"{title}.mlpackage")
    paths = [folder / f"{title}.mlpackage" for title in made]
    return Packaged(
        seconds=time.perf_counter() - start,
        peak_mib=peak_mib(),
        parameters=parameters,
        macs=macs,
        operators=dict(sorted(sum(map(operators, paths), Counter[str]()).items())),
        packages=tuple(made),
        compressed=together([summary for _, summary in made.values()]),
        islands=() if probe is None else probe.operators,
        sensitivity=sensitivity,
        spared=spared,
        advice=tuple(line for path in paths for line in advice(path, chunks=bool(PACKAGES[component].chunks))),
        overflow=probe,
    )


def _measured(
    network: "nn.Module", target: TargetName, plan: Plan, wanted: Budget | Spare | None, calls: Calls | None
) -> "tuple[Plan, dict[str, Sensitivity], tuple[str, ...]]":
    """The plan that has what is wanted, and what it rests on: tensors' sensitivities, or the spared ones."""
    from convert.apple.mixed import mixed_plan
    from convert.apple.spared import spared_plan
    from convert.exclusions import STORED

    match wanted:
        case Budget(mib, uniform):
            return *mixed_plan(network, target, mib, uniform, calls.some(PROBES)), ()
        case Spare(floor_db):
            plan, names = spared_plan(network, plan, floor_db, calls.some(STORED.probes))
            return plan, {}, names
    return plan, {}, ()


def _programs(
    network: "nn.Module",
    weights: "Weights | None",
    checkpoint: Checkpoint,
    component: str,
    settings: Settings,
    calls: Calls | None,
    workspace: Path,
) -> "tuple[dict[str, Any], Overflow | None]":
    """A program for each size of latents, the checkpoint's own first; what was met that fp16 cannot hold is in none."""
    from convert.apple.networks import example, trace

    models: dict[str, Any] = {}
    probe: Overflow | None = None
    for size in (None, *(settings.resolutions if component in SIZED else ())):
        own = swift_ports(checkpoint, component, settings.batch)
        ports = own if size is None else _resized(checkpoint, component, settings.batch, size)
        traced = trace(network, example(ports))
        model = convert(traced, ports, settings, weights)
        if size is None and settings.half and calls is not None:
            probe = _probed(model, checkpoint, component, settings, calls, workspace)
            if probe.operators:
                settings = replace(settings, islands=probe.operators)
                model = convert(traced, ports, settings, weights)
        models[DEFAULT if size is None else function_name(*size)] = model
    return models, probe


def _probed(
    model: Any, checkpoint: Checkpoint, component: str, settings: Settings, calls: Calls, workspace: Path
) -> "Overflow":
    """What of an fp16 program passes fp16 on calls that were recorded."""
    from convert.apple.ranges import overflows

    model.save(str(workspace / "probe.mlpackage"))
    ports = component_ports(checkpoint, pipeline_spec(checkpoint))[component]
    return overflows(workspace / "probe.mlpackage", component, ports, settings.batch, calls.some(PROBES))


def save(model: Any, others: Mapping[str, Any], path: Path) -> None:
    """One package, with a function for each of `others`, too."""
    if others:
        joined({DEFAULT: model, **others}, path)
    else:
        model.save(str(path))
    tidy(path)


def _parts(model: Any, component: str, chunk: bool, workspace: Path) -> dict[str, Any]:
    package = PACKAGES[component]
    if not chunk or not package.chunks:
        return {package.title: model}
    return dict(zip(package.chunks, halves(model, workspace), strict=True))


def _resized(checkpoint: Checkpoint, component: str, batch: int, size: tuple[int, int]) -> Ports:
    """The Swift side's ports for latents of another size."""
    spec = pipeline_spec(checkpoint)
    factor = spec.image_size[0] // spec.latent[1]
    height, width = size
    picture = {"image_height": factor * height, "image_width": factor * width}
    sizes = {**axis_sizes(checkpoint, spec), "batch": batch, "height": height, "width": width, **picture}
    return PACKAGES[component].ports.bind(sizes)


def swift_ports(checkpoint: Checkpoint, component: str, batch: int) -> Ports:
    """The Swift side's ports with all sizes."""
    sizes = axis_sizes(checkpoint, pipeline_spec(checkpoint))
    return PACKAGES[component].ports.bind({**sizes, "batch": batch})


def describe(model: Any, component: str, about: About) -> None:
    """Author, licence, version, and a line about everything that goes in and comes out."""
    package = PACKAGES[component]
    model.author, model.license, model.version = about.author, about.licence, about.version
    model.short_description = package.summary
    described = (model.input_description, package.ports.inputs), (model.output_description, package.ports.outputs)
    for descriptions, ports in described:
        for port in ports:
            if port.name in descriptions:  # a half has not all of them
                descriptions[port.name] = package.about[port.name]


def tidy(path: Path) -> None:
    """Identifiers that say what they stand for instead of random ones, fields in one order."""
    import coremltools as ct

    manifest = read_json(path / "Manifest.json")
    items = manifest["itemInfoEntries"]
    new = {old: str(uuid.uuid5(SPACE, item["path"])).upper() for old, item in items.items()}
    manifest["itemInfoEntries"] = {new[old]: item for old, item in sorted(items.items(), key=lambda i: i[1]["path"])}
    manifest["rootModelIdentifier"] = new[manifest["rootModelIdentifier"]]
    (path / "Manifest.json").write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    spec = ct.proto.Model_pb2.Model.FromString((path / PROGRAM).read_bytes())
    (path / PROGRAM).write_bytes(spec.SerializeToString(deterministic=True))


def operators(path: Path) -> Counter[str]:
    """Operators of a package by kind, constants left out."""
    import coremltools as ct

    spec = ct.proto.Model_pb2.Model.FromString((path / PROGRAM).read_bytes())
    main = spec.mlProgram.functions[spec.description.defaultFunctionName or "main"]
    block = main.block_specializations[main.opset]
    return Counter(op.type for op in block.operations if op.type != "const" and not op.type.startswith("constexpr_"))


def _macs(network: "nn.Module", checkpoint: Checkpoint, component: str) -> int:
    """Of one call at batch 1."""
    import torch

    from kdc_edge.torch_ref import macs

    ports = component_ports(checkpoint, pipeline_spec(checkpoint))[component]
    inputs = {name: torch.from_numpy(array) for name, array in zeros(ports.inputs, {"batch": 1}).items()}
    return macs.count(network, inputs).macs
