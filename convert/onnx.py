"""A checkpoint → an ONNX bundle in optimum's layout, checked against PyTorch fp32 while it is made.

    python -m convert.onnx --model assets/emoji-64/student -o runs/student/onnx    # half a minute on 2 cores

Each component is exported by a process of its own, then answers the very calls PyTorch answered while making pictures;
below its floor (SNR 90 dB at fp32, 50 at fp16, 33 with 8-bit weights, 18 with int8 arithmetic) the conversion fails and
leaves nothing. Golden vectors, the report and a model card are written into the bundle.

fp16, int8-weights, int4-weights and mixed store weights small and compute in fp32: runtimes restore the weights when they
load, and every operator has its kernel on any CPU. int8 multiplies in int8; fp16 for --target cuda computes in fp16, but
for what a probe finds to outgrow it. What is rounded to integers is calibrated on the model's own drawings of the prompts
in --calibration.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from convert import calibration, exclude
from convert.estimate import Estimate, estimate
from convert.export import EXTERNAL, MODEL, Exported, export_component
from convert.layout import copy_configs, copy_tokenizer
from convert.provenance import provenance
from convert.schemes import (
    PRECISIONS,
    Mixed,
    Precision,
    Scheme,
    Static,
    Typed,
    Weights,
    calibrated,
    described,
    floor_db,
    least_runtime,
    session,
)
from convert.settings import ComponentName, ConvertConfig, carry_out, finish
from convert.targets import TARGETS, TargetName
from convert.typed import PARITY_BY, export_typed
from kdc_edge import command
from kdc_edge.checkpoint import Checkpoint
from kdc_edge.errors import GateError, UsageError
from kdc_edge.manifest import FORMAT, Component, Manifest, PipelineSpec, Requires
from kdc_edge.ports import Ports
from kdc_edge.process import in_own_process
from kdc_edge.spec import component_ports

TOOLS = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class OnnxConfig(ConvertConfig):
    """What to convert, and how."""

    precision: Precision = "fp32"
    """How numbers are stored and, with int8, multiplied."""
    target: TargetName = "cpu"
    """cpu and cuda hold attention as onnxruntime's own operator, mobile and web as standard ones; on cuda fp16 computes."""
    components: tuple[ComponentName, ...] = ("text_encoder", "unet", "vae_decoder")
    """Components to convert; a bundle without all three makes no pictures."""
    any_size: bool = False
    """Leave height and width open: the bundle draws pictures of other sizes, too."""
    calibration: Path | None = None
    """Text file with a prompt on each line: what the model draws while it is calibrated. For whole-number precisions."""
    calibration_prompts: int = 16
    """Prompts of it that are drawn."""
    exclude: tuple[str, ...] = ()
    """Weights by name (patterns) or operators (Conv, MatMul, Gather) left at fp16, or, where int8 multiplies, at fp32."""
    spare: bool = True
    """Find and leave at more bits what cannot bear 8: every layer is measured alone, hours for a large U-Net."""
    budget_mib: float | None = None
    """MiB for the U-Net's weights, with --precision mixed."""
    budget_ms: float | None = None
    """Milliseconds for a call of the U-Net on this machine, with int8: layers stay at fp32 as far as there is time."""


@dataclass(frozen=True)
class Job:
    """A conversion whose every choice is made."""

    config: OnnxConfig
    checkpoint: Checkpoint
    spec: PipelineSpec
    schemes: Mapping[str, Scheme]
    prompts: list[str]
    """To calibrate on."""
    needed: Estimate


def convert(config: OnnxConfig) -> dict[str, Any]:
    """Convert a checkpoint to an ONNX bundle, checked against PyTorch."""
    job = plan(config)
    return carry_out(config, job.needed, TOOLS, "onnx", lambda folder: _build(job, folder))


def main(argv: list[str] | None = None) -> None:
    command.run(convert, argv, prog="python -m convert.onnx", description=__doc__)


def plan(config: OnnxConfig) -> Job:
    """Raises UsageError for settings that do not go together."""
    checkpoint = Checkpoint.open(config.model)
    spec = config.spec(checkpoint)
    if (config.precision == "mixed") != (config.budget_mib is not None):
        raise UsageError("--precision mixed and --budget-mib, the MiB for the U-Net's weights, go together")
    if config.budget_ms is not None and (config.precision != "int8" or not config.spare):
        raise UsageError("--budget-ms is for --precision int8, without --no-spare")
    if (config.budget_mib, config.budget_ms) != (None, None) and "unet" not in config.components:
        raise UsageError("--budget-mib and --budget-ms are the U-Net's, which --components leaves out")
    if not config.components:
        raise UsageError("--components names none; leave it out for all three")
    schemes = {name: _scheme(config, name) for name in config.components}
    if config.calibration is not None and not any(map(calibrated, schemes.values())):
        raise UsageError(
            f"--calibration is for whole-number precisions; --precision {config.precision} looks at nothing"
        )
    what = f"--precision {config.precision}"
    prompts = calibration.prompts_for(schemes.values(), config.calibration, config.calibration_prompts, what)
    exclude.check(config.exclude, checkpoint, schemes, config.precision)
    return Job(config, checkpoint, spec, schemes, prompts, estimate(checkpoint, schemes, len(prompts)))


def _scheme(config: OnnxConfig, component: str) -> Scheme:
    match PRECISIONS[config.precision][component]:
        case Static():
            return Static(config.spare, config.budget_ms)
        case Mixed():
            return Mixed(config.budget_mib)
        case Weights(16) if TARGETS[config.target].halves:
            return Typed()
        case Weights() as scheme:
            return replace(scheme, spare=config.spare)
        case scheme:
            return scheme


def _build(job: Job, folder: Path) -> tuple[Manifest, dict[str, Any]]:
    """Fills `folder`: what is copied, what is exported, then what checks it. Raises GateError when all is written."""
    copy_configs(job.checkpoint, folder, job.config.components)
    copy_tokenizer(job.checkpoint, folder)
    with tempfile.TemporaryDirectory() as calls:
        seen = _calibrate(job, Path(calls))
        exported = _export(job, Path(calls), folder)
    draft = _manifest(job, exported, seen, folder)
    floors = {name: floor_db(scheme) for name, scheme in job.schemes.items()}
    took = {name: {**asdict(done), "estimated_mib": job.needed.memory_mib[name]} for name, done in exported.items()}
    told = {"conversion": took}
    typed = any(isinstance(scheme, Typed) for scheme in job.schemes.values())
    told, runtime = ({"parity_by": PARITY_BY, **told}, "emulated") if typed else (told, "ort")
    made = finish(job.config, job.checkpoint, folder, draft, runtime, floors, lambda _: told, memory=not typed)
    _gate_budgets(job.config, exported)
    return made


def _gate_budgets(config: OnnxConfig, exported: Mapping[str, Exported]) -> None:
    """Raises GateError where what was made is over what was allowed: the search estimates, this has measured."""
    for flag, allowed, unit in (("weights_mib", config.budget_mib, "MiB"), ("call_ms", config.budget_ms, "ms a call")):
        if allowed is not None and not (found := getattr(exported["unet"], flag)) <= allowed:
            raise GateError(f"the U-Net came to {found:.3f} {unit}, allowed are {allowed:g}; nothing was written")


def _calibrate(job: Job, folder: Path) -> dict[str, Any] | None:
    if not job.prompts:
        return None
    arguments = (job.checkpoint.path, job.spec, job.prompts, folder)
    return in_own_process("calibrating", calibration.record, *arguments)


def _export(job: Job, calls: Path, folder: Path) -> dict[str, Exported]:
    from tqdm import tqdm

    done = {}
    for name in tqdm(job.config.components, desc="exporting", unit="component", disable=None):
        seen = calibration.Calls(calls / name) if job.prompts else None
        fused = TARGETS[job.config.target].fused
        arguments = (job.checkpoint.path, name, folder / name, job.schemes[name], seen, job.config.exclude, fused)
        export = export_typed if isinstance(job.schemes[name], Typed) else export_component
        done[name] = in_own_process(name, export, *arguments, any_size=job.config.any_size)
    return done


def _manifest(job: Job, exported: Mapping[str, Exported], seen: dict[str, Any] | None, folder: Path) -> Manifest:
    """The manifest before anything is hashed."""
    config, ports = job.config, component_ports(job.checkpoint, job.spec, job.config.any_size)
    components = {
        name: _component(
            name, ports[name], done, described(job.schemes[name], seen), session(job.schemes[name]), folder
        )
        for name, done in exported.items()
    }
    return Manifest(
        format=FORMAT,
        name=config.bundle_name,
        version="1",
        runtime="onnx",
        target=config.target,
        precision=config.precision,
        pipeline=job.spec,
        components=components,
        files={},
        provenance=provenance(job.checkpoint, TOOLS),
        requires=Requires(runtime=f"onnxruntime >= {max(least_runtime(scheme) for scheme in job.schemes.values())}"),
    )


def _component(
    name: str, ports: Ports, done: Exported, quantization: dict[str, Any] | None, options: dict[str, Any], folder: Path
) -> Component:
    files = tuple(f"{name}/{file}" for file in (MODEL, EXTERNAL) if (folder / name / file).exists())
    counters = asdict(done.counters)
    both = {"quantization": quantization, "options": options}
    return Component(files, ports.inputs, ports.outputs, done.parameters, **both, **counters)


if __name__ == "__main__":
    main()
