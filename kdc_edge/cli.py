"""`kdc-edge`: draw pictures, look into bundles and checkpoints, check the installation, reach the other stages."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn

import tyro
from PIL import Image
from tqdm import tqdm

from kdc_edge import command, doctor, machine
from kdc_edge.conformance import conformance
from kdc_edge.errors import UsageError, choose
from kdc_edge.files import replacing
from kdc_edge.images import check_picture, contact_sheet, pixel_hash
from kdc_edge.inspection import lines, look, open_any, summarize
from kdc_edge.pipeline import Pipeline
from kdc_edge.runtimes import Options, apple, compiled, mil
from kdc_edge.runtimes.engines import BuildOptions
from kdc_edge.stages import STAGES, run_stage

DESCRIPTION = f"""Text to image on the device.

kdc-edge {"|".join(STAGES)} … runs the commands of the other stages: kdc-edge convert onnx --help."""


@dataclass(frozen=True)
class GenerateConfig:
    """Where a default is None, the bundle's own value is taken."""

    prompts: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PROMPT...")]
    """Texts to draw, one picture each; the empty one is the unconditional prompt."""
    bundle: Path | None = None
    """Bundle folder; None is the one that comes with this package."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("out.png")
    """Picture to write; several prompts write NAME-1, NAME-2, ..."""
    sheet: bool = False
    """Write one contact sheet instead."""
    seed: int = 0
    """Of the first picture; each further one has the next."""
    steps: int | None = None
    """Evaluations of the network, about."""
    guidance: float | None = None
    """How far to follow the prompt: 0 ignores it, 1 does not press it, 3 to 8 are usual."""
    sampler: str | None = None
    """euler, ddim, dpmpp_2m, pndm or lcm."""
    negative: str = ""
    """What to steer away from."""
    height: int | None = None
    """Pixels, of bundles that were converted with --any-size."""
    width: int | None = None
    runtime: str | None = None
    """ort, openvino, coreml or tensorrt; if not given the first that reads the bundle and can be had; auto: the fastest,
    measured once; mil and emulated check Core ML and 16-bit graphs on any machine; fake: noise, without a network."""
    provider: str | None = None
    """Of the runtime: cpu, cuda, tensorrt, coreml, openvino, ..."""
    threads: int | None = None
    """Of the runtime."""
    allow_fallback: bool = False
    """Go on where the provider asked for cannot be used."""
    cache_dir: Path | None = None
    """Folder for what the runtime compiles for this machine: the first start fills it, later ones are faster; the user's
    cache, ~/.cache/kdc-edge, if not given."""
    low_memory: bool = False
    """Hold one component in memory at a time; each picture takes longer."""


@dataclass(frozen=True)
class PathConfig:
    """Where to look."""

    path: tyro.conf.Positional[Path]
    """A bundle or a checkpoint; to inspect, also a replay buffer."""


@dataclass(frozen=True)
class VerifyConfig:
    """What to check."""

    path: tyro.conf.Positional[Path]
    """A bundle, a checkpoint, or a Core ML package (.mlpackage)."""
    against: Path | None = None
    """Of a Core ML package: the checkpoint whose network it must compute."""


@dataclass(frozen=True)
class DoctorConfig:
    """What to look at."""

    extra: str | None = None
    """Only the packages of this extra."""


def generate(config: GenerateConfig) -> dict[str, Any]:
    """Draw pictures from prompts."""
    outputs = _outputs(config)
    cache = compiled.usual() if config.cache_dir is None else config.cache_dir
    options = Options(config.threads, config.provider, config.allow_fallback, cache, config.low_memory)
    with Pipeline.open(config.bundle, config.runtime, options) as pipe:
        images = [_draw(pipe, config, i) for i in range(len(config.prompts))]
    written = [contact_sheet(images, config.prompts)] if config.sheet else images
    for image, path in zip(written, outputs, strict=True):
        with replacing(path) as temporary:
            image.save(temporary)
        print(f"{path}  {image.width}×{image.height}", file=sys.stderr)
    for image in images:
        check_picture(image)
    if pipe.choice is not None:
        print(pipe.choice, file=sys.stderr)
    for name, seconds in pipe.timings.totals().items():
        print(f"{name:14}{seconds:8.3f} s in {len(pipe.timings.calls[name])} calls", file=sys.stderr)
    pictures = [
        {"prompt": prompt, "seed": config.seed + i, "sha256": pixel_hash(image)}
        for i, (prompt, image) in enumerate(zip(config.prompts, images, strict=True))
    ]
    timings = asdict(pipe.timings)
    return {"bundle": pipe.id, "files": [str(path) for path in outputs], "pictures": pictures, "seconds": timings}


def inspect(config: PathConfig) -> dict[str, Any]:
    """Say what is in a bundle, a checkpoint or a replay buffer."""
    summary = look(config.path)
    print(*lines(summary), sep="\n", file=sys.stderr)
    return summary


def verify(config: VerifyConfig) -> dict[str, Any]:
    """Check a bundle or a checkpoint: schema, sizes, SHA-256, weights; execute a Core ML package operator by operator."""
    if config.path.suffix == apple.SUFFIX:
        return mil.verify(config.path, config.against)
    if config.against is not None:
        raise UsageError(f"--against is for Core ML packages ({apple.SUFFIX}); {config.path} is checked by its hashes")
    summary = summarize(open_any(config.path))
    print(f"{config.path}: {summary['kind']} {summary['id']} is whole", file=sys.stderr)
    return {key: summary[key] for key in ("kind", "id")}


def diagnose(config: DoctorConfig) -> dict[str, Any]:
    """Say what of this project can run here."""
    found, about = doctor.packages(), machine.describe()
    if config.extra is not None:
        choose(config.extra, sorted({package.extra for package in found}), "extra")
        found = [package for package in found if package.extra == config.extra]
    print(*lines(about), sep="\n", file=sys.stderr)
    if not found:
        print("kdc-edge itself is not installed, so nothing says what it needs: pip install -e .", file=sys.stderr)
    for package in found:
        versions = f"{package.installed or '-':12}{package.tested or '-':12}"
        print(f"{package.extra:10}{package.name:22}{versions}{package.state}", file=sys.stderr)
    return {"machine": about, "packages": [{**asdict(package), "state": package.state} for package in found]}


@dataclass(frozen=True)
class BuildConfig:
    """What to build, and how; the builder's own choice where a default is None."""

    bundle: tyro.conf.Positional[Path]
    """A TensorRT bundle."""
    cache_dir: Path | None = None
    """Folder for engines; the user's cache, ~/.cache/kdc-edge, if not given."""
    workspace_mib: int | None = None
    """Memory that kernels may use beside weights and activations."""
    version_compatible: bool = False
    """Runs on later TensorRT of the same major version, too."""
    hardware_compatible: bool = False
    """Runs on other devices of Ampere and later, too; slower."""
    weight_streaming: bool = False
    """Weights may stay outside the device's memory."""
    refit: bool = False
    """Weights can be replaced later."""
    optimization_level: int | None = None
    """0 to 5: how long to look for kernels."""
    dry_run: bool = False
    """Print the trtexec lines, and stop."""


def build(config: BuildConfig) -> dict[str, Any]:
    """Build a TensorRT bundle's engines for this device, into its cache."""
    from kdc_edge.runtimes.building import build_bundle

    fields = ("workspace_mib", "version_compatible", "hardware_compatible", "weight_streaming", "refit")
    chosen = BuildOptions(**{name: getattr(config, name) for name in (*fields, "optimization_level")})
    return build_bundle(config.bundle, config.cache_dir, chosen, config.dry_run)


@dataclass(frozen=True)
class RefitConfig:
    """Which engine, and whose weights."""

    engine: tyro.conf.Positional[Path]
    """One that kdc-edge build --refit made on this machine."""
    bundle: tyro.conf.Positional[Path]
    """A TensorRT bundle of the same graph."""


def refit(config: RefitConfig) -> dict[str, Any]:
    """Put a newer bundle's weights into an engine; one that then answers otherwise than onnxruntime is built anew."""
    from kdc_edge.runtimes.refits import refit_engine

    return refit_engine(config.engine, config.bundle)


COMMANDS: dict[str, command.Command] = {
    "build": build,
    "refit": refit,
    "generate": generate,
    "inspect": inspect,
    "verify": verify,
    "conformance": conformance,
    "doctor": diagnose,
}


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The console script."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in STAGES:
        command.guard(lambda: sys.exit(run_stage(arguments[0], arguments[1:])))
    command.run(COMMANDS, arguments, prog="kdc-edge", description=DESCRIPTION)


def _draw(pipe: Pipeline, config: GenerateConfig, index: int) -> Image.Image:
    """Picture `index`, with a progress bar over its steps."""
    prompt = config.prompts[index]
    frames = pipe.stream(
        prompt,
        seed=config.seed + index,
        steps=config.steps,
        guidance=config.guidance,
        sampler=config.sampler,
        negative=config.negative,
        height=config.height,
        width=config.width,
    )
    with tqdm(desc=prompt[:30], unit="step", disable=None) as bar:
        for frame in frames:
            bar.total = frame.total
            bar.update()
    return frame.image()


def _outputs(config: GenerateConfig) -> list[Path]:
    """The files to write, refused before any work is done."""
    path, count = config.output, len(config.prompts)
    if not count:
        raise UsageError("no prompt; for example: kdc-edge generate 'red apple'")
    known = [suffix for suffix, name in Image.registered_extensions().items() if name in Image.SAVE]
    if path.suffix.lower() not in known:
        raise UsageError(f"{path}: cannot write pictures of type '{path.suffix}'; use .png, .jpg or .webp")
    if count == 1 or config.sheet:
        return [path]
    return [path.with_name(f"{path.stem}-{i + 1}{path.suffix}") for i in range(count)]
