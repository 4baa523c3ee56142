"""A checkpoint → a TensorRT bundle: one typed ONNX for each component that TensorRT 10.3 to 11 build on the device.

    python -m convert.tensorrt --model assets/emoji-64/fewstep --precision fp16 -o runs/fewstep/tensorrt
    python -m convert.tensorrt lint model.onnx

Precision lives in the graph: 16-bit tensors, fp32 islands where a probe finds that numbers outgrow fp16, symmetric int8 or
fp8 with weights stored small. Parity is measured on onnxruntime's CPU with every 16-bit tensor rounded, which is emulation
and labelled so; engines are built on the device (kdc-edge build), for they fit one machine and one version only.
"""

import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import tyro

from convert import calibration, exclude
from convert.calibration import Calls
from convert.estimate import Estimate, estimate
from convert.export import EXTERNAL, MODEL
from convert.layout import copy_configs, copy_tokenizer
from convert.nvidia.lint import lint_file
from convert.nvidia.signature import signature
from convert.provenance import provenance
from convert.schemes import Typed, described, floor_db
from convert.settings import ComponentName, ConvertConfig, carry_out, finish
from convert.typed import PARITY_BY, TypedExport, export_typed, io
from kdc_edge import command
from kdc_edge.bundle import Bundle
from kdc_edge.checkpoint import Checkpoint
from kdc_edge.errors import GateError, UsageError
from kdc_edge.files import write_json
from kdc_edge.manifest import FORMAT, Component, Manifest, PipelineSpec, Requires
from kdc_edge.process import in_own_process
from kdc_edge.runtimes import device, engines
from kdc_edge.runtimes.building import build_bundle
from kdc_edge.runtimes.tensorrt import WEIGHTS
from kdc_edge.spec import component_ports

TOOLS = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "onnxruntime")
Precision = Literal["fp16", "bf16", "int8", "fp8", "int8-weights"]
SMALL = Typed(weights="int8")
PRECISIONS: dict[str, dict[str, Typed]] = {
    "fp16": dict.fromkeys(("text_encoder", "unet", "vae_decoder"), Typed()),
    "bf16": dict.fromkeys(("text_encoder", "unet", "vae_decoder"), Typed("bfloat16")),
    "int8-weights": dict.fromkeys(("text_encoder", "unet", "vae_decoder"), SMALL),
    "int8": {"text_encoder": SMALL, "unet": Typed(weights="int8", products=True), "vae_decoder": SMALL},
    "fp8": {"text_encoder": Typed(), "unet": Typed(weights="float8e4m3", products=True), "vae_decoder": Typed()},
}


@dataclass(frozen=True)
class TensorrtConfig(ConvertConfig):
    """What to convert, and how."""

    precision: Precision = "fp16"
    """fp8 needs sm_89 or later: not an Orin."""
    calibration: Path | None = None
    """Text file with a prompt on each line, to calibrate on; fp16 and bf16 do without."""
    calibration_prompts: int = 16
    """Prompts of it that are drawn."""
    exclude: tuple[str, ...] = ()
    """Weights by name (patterns) or operators (Conv, MatMul) left at 16 bits."""
    spare: bool = True
    """Find and leave at 16 bits what cannot bear 8: every layer is measured alone, hours for a large U-Net."""
    rounding: Literal["gptq", "nearest"] = "gptq"
    """Of int8 weights; nearest loses some decibels, and takes seconds where gptq takes an hour of a large U-Net."""
    like: Path | None = None
    """A bundle of an earlier version, whose layers at 16 bits and in fp32 stay so: its engines can be refitted."""
    max_batch: int = 2
    """Largest batch of an engine; guidance asks for 2."""
    fixed: bool = False
    """Engines for that batch alone."""
    components: tuple[ComponentName, ...] = ("text_encoder", "unet", "vae_decoder")
    """Components to convert; a bundle without all three makes no pictures."""
    build: bool = False
    """Then build its engines, on this machine and for it; kdc-edge build has the settings."""


@dataclass(frozen=True)
class LintConfig:
    """What to look at."""

    model: tyro.conf.Positional[Path]
    """An ONNX file, anyone's."""


@dataclass(frozen=True)
class Job:
    """A conversion whose every choice is made."""

    config: TensorrtConfig
    checkpoint: Checkpoint
    spec: PipelineSpec
    schemes: Mapping[str, Typed]
    prompts: list[str]
    needed: Estimate
    kept: Mapping[str, dict[str, Any]]
    """Of the bundle to be like, what was left as it was, by component."""


def lint(config: LintConfig) -> dict[str, Any]:
    """Hold an ONNX file against what NVIDIA's parser takes. Exit 1 where something stands in the way."""
    found = lint_file(config.model)
    for finding in found:
        print(f"{finding.rule}: {finding.node or config.model}: {finding.reason}; {finding.remedy}", file=sys.stderr)
    if found:
        raise GateError(f"{config.model}: {len(found)} findings")
    print(f"{config.model}: nothing stands in the way", file=sys.stderr)
    return {"model": str(config.model), "findings": []}


def convert(config: TensorrtConfig) -> dict[str, Any]:
    """Convert a checkpoint to a TensorRT bundle, checked against PyTorch."""
    job = plan(config)
    result = carry_out(config, job.needed, TOOLS, "onnx", lambda folder: _build(job, folder))
    if config.build and not config.dry_run:
        result |= build_bundle(config.output_dir, None, engines.BuildOptions())
    return result


def main(argv: list[str] | None = None) -> None:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["lint"]:
        command.run(lint, arguments[1:], prog="python -m convert.tensorrt lint", description=lint.__doc__)
    command.run(convert, arguments, prog="python -m convert.tensorrt", description=__doc__)


def plan(config: TensorrtConfig) -> Job:
    """Raises UsageError for settings that do not go together."""
    checkpoint = Checkpoint.open(config.model)
    spec = config.spec(checkpoint)
    least = 1 if spec.guidance == 1 else 2
    if config.max_batch < least:
        raise UsageError(f"--max-batch is {config.max_batch}; with guidance {spec.guidance:g} the U-Net takes {least}")
    spare = config.spare and config.like is None
    chosen = {"spare": spare, "rounding": config.rounding}
    schemes = {name: replace(PRECISIONS[config.precision][name], **chosen) for name in config.components}
    what = f"--precision {config.precision}"
    prompts = calibration.prompts_for(schemes.values(), config.calibration, config.calibration_prompts, what)
    exclude.check(config.exclude, checkpoint, schemes, config.precision)
    kept = {} if config.like is None else Bundle.open(config.like).report.get("conversion", {})
    if config.like is not None and not set(config.components) <= set(kept):
        raise UsageError(f"--like {config.like} does not say of {', '.join(config.components)} what it left at 16 bits")
    return Job(config, checkpoint, spec, schemes, prompts, estimate(checkpoint, schemes, len(prompts)), kept)


def _build(job: Job, folder: Path) -> tuple[Manifest, dict[str, Any]]:
    """Fills `folder`: what is copied, what is exported, then what checks it. Raises GateError when all is written."""
    if job.config.build:
        engines.toolchain()
        device.device(device.runtime())
    copy_configs(job.checkpoint, folder, job.config.components)
    copy_tokenizer(job.checkpoint, folder)
    with tempfile.TemporaryDirectory() as calls:
        arguments = (job.checkpoint.path, job.spec, job.prompts, Path(calls))
        seen = in_own_process("calibrating", calibration.record, *arguments)
        exported = {name: _export(job, name, Calls(Path(calls) / name), folder) for name in job.config.components}
    draft = _manifest(job, exported, seen, folder)
    floors = {name: floor_db(scheme) for name, scheme in job.schemes.items()}
    took = {name: {**asdict(done), "estimated_mib": job.needed.memory_mib[name]} for name, done in exported.items()}
    told = {"parity_by": PARITY_BY, "conversion": took}
    return finish(job.config, job.checkpoint, folder, draft, "emulated", floors, lambda _: told, memory=False)


def _export(job: Job, name: str, calls: Calls, folder: Path) -> TypedExport:
    """Raises GateError for a graph that the linter has something against."""
    config = job.config
    batch = config.max_batch if config.fixed else None
    kept = job.kept.get(name, {"left": [], "islands": {}})
    leave = (*config.exclude, *kept["left"])
    islands = tuple(kept["islands"])
    arguments = (job.checkpoint.path, name, folder / name, job.schemes[name], calls, leave)
    done = in_own_process(name, _export_signed, *arguments, narrow_ports=True, batch=batch, wide=islands)
    if found := lint_file(folder / name / MODEL):
        raise GateError(f"{name}: {found[0].node}: {found[0].reason}; {found[0].remedy}")
    return done


def _export_signed(*arguments: Any, **settings: Any) -> TypedExport:
    """With what `kdc-edge refit` holds an update against: what is in the file but for the weights' values."""
    done = export_typed(*arguments, **settings)
    folder: Path = arguments[2]
    write_json(folder / WEIGHTS, signature(folder / MODEL))
    return done


def _manifest(job: Job, exported: Mapping[str, TypedExport], seen: dict[str, Any], folder: Path) -> Manifest:
    """The manifest before anything is hashed."""
    config, ports = job.config, component_ports(job.checkpoint, job.spec)
    batches = [config.max_batch] * 3 if config.fixed else [1, config.max_batch, config.max_batch]
    components = {}
    for name, done in exported.items():
        files = tuple(f"{name}/{file}" for file in (MODEL, EXTERNAL) if (folder / name / file).exists())
        shaped = io(ports[name], job.schemes[name])
        shaped = shaped.bind({"batch": config.max_batch}) if config.fixed else shaped
        both = {"quantization": described(job.schemes[name], seen), "options": {"profile": {"batch": batches}}}
        components[name] = Component(
            files, shaped.inputs, shaped.outputs, done.parameters, **both, **asdict(done.counters)
        )
    return Manifest(
        format=FORMAT,
        name=config.bundle_name,
        version="1",
        runtime="tensorrt",
        target="cuda",
        precision=config.precision,
        pipeline=job.spec,
        components=components,
        files={},
        provenance=provenance(job.checkpoint, TOOLS),
        requires=Requires(runtime="TensorRT >= 10.3, < 12"),
    )


if __name__ == "__main__":
    main()
