"""A checkpoint → Core ML packages in Apple's layout, checked against PyTorch fp32 while they are made. On Linux or macOS.

    python -m convert.coreml --model assets/emoji-64/fewstep --precision palette6 -o runs/palette6    # two minutes on 2 cores

Each component is converted by a process of its own, then answers the very calls PyTorch answered while making pictures: by
Core ML itself on a Mac, elsewhere by the saved program executed operator by operator. Below its floor (SNR 90 dB at fp32, 50
at fp16, 33 with 8-bit weights) the conversion fails and leaves nothing. Golden vectors, the report and a model card are
written into the bundle.
"""

import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from convert import calibration, golden, provenance
from convert.apple import layout, schemes, sizes
from convert.apple.chunks import function_name
from convert.apple.package import SIZED, About, Budget, Packaged, Settings, Spare, package_component
from convert.apple.schemes import PRECISIONS, Plan, Precision, floor_db
from convert.apple.targets import TARGETS, TargetName
from convert.apple.versions import require_tested
from convert.estimate import Estimate
from convert.layout import copy_configs, copy_tokenizer
from convert.settings import ConvertConfig, carry_out, finish
from kdc_edge import command
from kdc_edge.checkpoint import Checkpoint
from kdc_edge.errors import UsageError
from kdc_edge.manifest import FORMAT, Component, Manifest, PipelineSpec, Requires
from kdc_edge.process import in_own_process
from kdc_edge.runtimes.apple import RESOURCES
from kdc_edge.spec import component_ports

TOOLS = ("torch", "diffusers", "transformers", "coremltools", "numpy")
ComponentName = Literal["text_encoder", "unet", "vae_decoder", "vae_encoder"]
HOW = {"mil": "executed op by op, not by Core ML", "coreml": "Core ML"}


@dataclass(frozen=True)
class CoremlConfig(ConvertConfig):
    """What to convert, and how."""

    target: TargetName = "ios17"
    """The oldest system that will read it; a Mac's is macOS 13, 14 or 15."""
    precision: Precision | None = None
    """How weights are stored; fp16 if not given, nor a plan. Arithmetic is fp16 everywhere but in fp32."""
    plan: Path | None = None
    """JSON file that says it by component, weight and operator instead: grouped, joint and sparse schemes."""
    budget_mib: float | None = None
    """MiB for the U-Net's weights, with --precision mixed."""
    uniform: bool = False
    """Palettes of equal steps, made at once, instead of k-means."""
    calibration: Path | None = None
    """Text file with a prompt on each line: what the model draws while its tensors are measured. For mixed and int8."""
    calibration_prompts: int = 4
    """Prompts of it that are drawn."""
    spare: bool = True
    """With int8, find and leave at fp16 what cannot bear it: every layer is measured alone, hours for a large U-Net."""
    attention: Literal["original", "split-einsum"] = "original"
    """As it is, which GPUs prefer, or head by head in 1×1 convolutions, which the Neural Engine does."""
    batch: Literal[1, 2] = 1
    """Of the U-Net; 2 draws with guidance in one call where 1 needs two."""
    chunk: bool = False
    """The U-Net in two packages of about equal weight, for devices that cannot hold it in one."""
    resolutions: tuple[str, ...] = ()
    """Further sizes of pictures, HEIGHTxWIDTH, as functions of the same packages; from ios18 on."""
    components: tuple[ComponentName, ...] = ("text_encoder", "unet", "vae_decoder")
    """Components to convert; a bundle without these three makes no pictures, vae_encoder is for starting from one."""
    author: str = "kdc-edge"
    """Shown by Xcode."""
    licence: str = "that of the checkpoint"
    """Shown by Xcode."""
    version: str = "1"
    """Shown by Xcode."""
    skip_probe: bool = False
    """Do not look for operators whose results fp16 cannot hold on the model's own activations, to keep them in fp32."""
    allow_untested: bool = False
    """Go on with versions of numpy, torch or coremltools that were not tested."""


@dataclass(frozen=True)
class Job:
    """A conversion whose every choice is made."""

    config: CoremlConfig
    checkpoint: Checkpoint
    spec: PipelineSpec
    precision: str
    plans: Mapping[str, Plan]
    prompts: list[str]
    """To measure sensitivity on."""
    predicted: Mapping[str, int]
    """Bytes of each component's weights."""
    needed: Estimate

    @property
    def settings(self) -> Settings:
        about = About(self.config.author, self.config.licence, self.config.version)
        config = self.config
        sizes = tuple(_latent(size, self.spec) for size in config.resolutions)
        half = self.precision != "fp32"
        return Settings(config.target, half, about, config.batch, config.attention, config.chunk, sizes)

    def floor_db(self, component: str) -> float:
        """A budget buys what it can: nothing is asked of it but more signal than noise."""
        budgeted = isinstance(self.wanted(component), Budget)
        return 0.0 if budgeted else floor_db(self.plans[component], self.precision)

    def wanted(self, component: str) -> Budget | Spare | None:
        """What its plan is measured for."""
        if component != "unet":
            return None
        if self.config.budget_mib is not None:
            return Budget(self.config.budget_mib, self.config.uniform)
        return Spare(floor_db(self.plans[component], self.precision)) if _spares(self.config) else None


def convert(config: CoremlConfig) -> dict[str, Any]:
    """Convert a checkpoint to Core ML, checked against PyTorch."""
    job = plan(config)
    for name, size in job.predicted.items() if config.dry_run else ():
        memory = job.needed.memory_mib[name]
        print(f"{name:13} {size / 2**20:8.2f} MiB of weights, {memory} MiB to convert (estimated)", file=sys.stderr)
    packages = {name: {"weight_bytes": size, "by": "estimated"} for name, size in job.predicted.items()}
    result = carry_out(config, job.needed, TOOLS, "coreml", lambda folder: _build(job, folder), packages=packages)
    for name, took in result.get("conversion", {}).items():
        if took["islands"]:
            print(f"{name:13} kept in fp32: {len(took['islands'])} operators, see report.json", file=sys.stderr)
        for line in took["advice"]:
            print(f"{name:13} Neural Engine: {line['count']} × {line['says']} ({line['first']}, …)", file=sys.stderr)
    return result


def main(argv: list[str] | None = None) -> None:
    command.run(convert, argv, prog="python -m convert.coreml", description=__doc__)


def plan(config: CoremlConfig) -> Job:
    """Raises UsageError for settings that do not go together."""
    if config.plan is not None and config.precision is not None:
        raise UsageError("--plan says how every weight is stored; leave --precision out")
    precision = "plan" if config.plan is not None else config.precision or "fp16"
    if (precision == "mixed") != (config.budget_mib is not None):
        raise UsageError("--precision mixed and --budget-mib, the MiB for the U-Net's weights, go together")
    if config.resolutions and not TARGETS[config.target].blocks:
        raise UsageError(f"--resolutions are functions of one package, which ios18 reads and {config.target} does not")
    if config.resolutions and config.chunk:
        raise UsageError("--chunk and --resolutions do not go together; make a bundle for each size")
    checkpoint = Checkpoint.open(config.model)
    spec = config.spec(checkpoint)
    chosen = schemes.read_plans(config.plan) if config.plan is not None else PRECISIONS[precision]
    plans = {name: schemes.evened(chosen[name]) if config.uniform else chosen[name] for name in config.components}
    schemes.require(plans, config.target)
    for size in config.resolutions:
        _latent(size, spec)
    prompts = []
    if precision == "mixed" or _spares(config):
        prompts = calibration.read_prompts(config.calibration, config.calibration_prompts, f"--precision {precision}")
    predicted = {
        name: sizes.weight_bytes(
            checkpoint, name, chosen, 32 if precision == "fp32" else 16, config.budget_mib if name == "unet" else None
        )
        for name, chosen in plans.items()
    }
    whole = config.components if precision == "fp32" else ("unet",) if prompts else ()
    needed = sizes.estimate(checkpoint, predicted, whole)
    return Job(config, checkpoint, spec, precision, plans, prompts, predicted, needed)


def _spares(config: CoremlConfig) -> bool:
    return config.precision == "int8" and config.spare


def _latent(size: str, spec: PipelineSpec) -> tuple[int, int]:
    """Height and width of the latents of a picture's size. Raises UsageError."""
    factor = spec.image_size[0] // spec.latent[1]
    parts = size.split("x")
    if len(parts) != 2 or not all(part.isdigit() and int(part) and int(part) % (8 * factor) == 0 for part in parts):
        raise UsageError(f"--resolutions {size}: must be HEIGHTxWIDTH, both multiples of {8 * factor}")
    return int(parts[0]) // factor, int(parts[1]) // factor


def _build(job: Job, folder: Path) -> tuple[Manifest, dict[str, Any]]:
    """Fills `folder`: what is copied, what is converted, then what checks it. Raises GateError when all is written."""
    if not job.config.allow_untested:
        require_tested()
    copy_configs(job.checkpoint, folder, job.config.components)
    copy_tokenizer(job.checkpoint, folder)
    (folder / RESOURCES).mkdir()
    with tempfile.TemporaryDirectory() as calls:
        packaged = _package(job, Path(calls), folder)
    layout.write_resources(folder)
    draft = _manifest(job, packaged, folder)
    runtime = "coreml" if sys.platform == "darwin" else "mil"
    floors = {name: job.floor_db(name) for name in job.plans}
    told = {"checked": HOW[runtime]}
    return finish(
        job.config,
        job.checkpoint,
        folder,
        draft,
        runtime,
        floors,
        lambda manifest: told | _took(job, packaged, manifest),
    )


def _took(job: Job, packaged: Mapping[str, Packaged], manifest: Manifest) -> dict[str, Any]:
    """What was measured of each conversion beside what was estimated."""
    took = {}
    for name, done in packaged.items():
        weights = sum(manifest.files[file].bytes for file in manifest.components[name].files if file.endswith(".bin"))
        predicted = {"estimated_mib": job.needed.memory_mib[name], "estimated_weight_bytes": job.predicted[name]}
        took[name] = {**asdict(done), **predicted, "weight_bytes": weights}
    return {"conversion": took}


def _package(job: Job, calls: Path, folder: Path) -> dict[str, Packaged]:
    from tqdm import tqdm

    probed = job.settings.half and not job.config.skip_probe
    if job.prompts or probed:
        arguments = (job.checkpoint.path, job.spec, job.prompts or list(golden.PROMPTS), calls)
        in_own_process("drawing", calibration.record, *arguments)
    done = {}
    for name in tqdm(job.config.components, desc="converting", unit="component", disable=None):
        seen = calibration.Calls(calls / name) if job.prompts or probed else None
        arguments = (
            job.checkpoint.path,
            name,
            folder / RESOURCES,
            job.settings,
            job.plans[name],
            job.wanted(name),
            seen,
        )
        done[name] = in_own_process(name, package_component, *arguments)
    return done


def _manifest(job: Job, packaged: Mapping[str, Packaged], folder: Path) -> Manifest:
    """The manifest before anything is hashed."""
    config, ports = job.config, component_ports(job.checkpoint, job.spec)
    components = {
        name: Component(
            files=layout.files_of(folder, done.packages),
            inputs=ports[name].inputs,
            outputs=ports[name].outputs,
            parameters=done.parameters,
            macs=done.macs,
            operators=done.operators,
            quantization=_quantization(job, done),
            options=_options(job, name),
        )
        for name, done in packaged.items()
    }
    os = TARGETS[config.target].os
    return Manifest(
        format=FORMAT,
        name=config.bundle_name,
        version=config.version,
        runtime="coreml",
        target=config.target,
        precision=job.precision,
        pipeline=job.spec,
        components=components,
        files={},
        provenance=provenance.provenance(job.checkpoint, TOOLS),
        requires=Requires(runtime="Core ML", os=os),
    )


def _quantization(job: Job, done: Packaged) -> dict[str, Any] | None:
    """Tensors by how they are stored; small ones are fp16."""
    return {"tensors": done.compressed.tensors, "compute": "float16"} if job.settings.half else None


def _options(job: Job, component: str) -> dict[str, Any]:
    """How the package wants to be called, beside its ports."""
    options: dict[str, Any] = {}
    if component == "unet":
        options = {"batch": job.config.batch, "attention": job.config.attention}
    if component in SIZED and job.settings.resolutions:
        options["functions"] = {function_name(*size): list(size) for size in job.settings.resolutions}
    return options


if __name__ == "__main__":
    main()
