"""Whether a port does what the bundle's golden vectors say, stage by stage: `kdc-edge conformance <bundle>`.

An app runs the stages from golden inputs and writes what it got to one JSON file (docs/conformance.md); `judge` holds it
against golden/. Without such a file the bundle's own runtime takes the test.
"""

# P prompts, S steps, B batch (1, or 2 under guidance), C H W latent

import base64
import binascii
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from kdc_edge import golden, machine, schema
from kdc_edge.bundle import Bundle
from kdc_edge.errors import BundleError, GateError, UsageError, choose, suggest
from kdc_edge.files import read_json, write_json
from kdc_edge.golden import Golden
from kdc_edge.noise import gaussian
from kdc_edge.pipeline import DEFAULT_BUNDLE, Pipeline
from kdc_edge.runtimes import Options, Own
from kdc_edge.runtimes import own as own_runtime
from kdc_edge.samplers import SAMPLERS

FORMAT = 1
ROUNDING = 1e-6  # of the largest value: arithmetic in double precision, stored as float32
State = Literal["passed", "failed", "not measured"]


@dataclass(frozen=True)
class Stage:
    """One thing that a port is asked; `array` of the golden ones answers it."""

    name: str
    array: str
    about: str
    tolerance: Literal["exact", "rounding", "stored"]


STAGES = {
    stage.name: stage
    for stage in (
        Stage("text_ids", "text_ids", "tokenizer: ids of golden.json's texts", "exact"),
        Stage("input_ids", "input_ids", "tokenizer: ids of negative and prompts", "exact"),
        Stage("noise", "noise", "noise: unit normal, from the seeds", "exact"),
        Stage("timesteps", "timesteps", "schedule: what the U-Net is told", "rounding"),
        Stage("sigmas", "sigmas", "schedule: noise level after each step", "rounding"),
        Stage("last_hidden_state", "last_hidden_state", "text encoder, from golden ids", "stored"),
        Stage("latents", "latents", "U-Net and sampler, from golden noise and text", "stored"),
        Stage("images", "images", "decoder, from the last golden latents", "stored"),
        Stage("pictures", "images", "everything, from prompts and seeds", "stored"),
    )
}


@dataclass(frozen=True)
class Measured:
    """An array: little-endian bytes, row by row, in base64."""

    dtype: Literal["int64", "int32", "float32", "uint8"]
    shape: tuple[int, ...]
    data: str


@dataclass(frozen=True)
class Results:
    """What an app measured: the file it writes."""

    format: int
    bundle: str
    """Bundle id."""
    app: str
    """What ran: app, device, provider."""
    stages: dict[str, Measured]

    def __post_init__(self) -> None:
        if unknown := [name for name in self.stages if name not in STAGES]:
            raise ValueError(f"has a stage '{unknown[0]}' that nobody knows{suggest(unknown[0], STAGES)}")


@dataclass(frozen=True)
class Verdict:
    """One stage, judged; `difference` is the largest absolute one, and `at` is where."""

    stage: str
    state: State
    tolerance: float
    difference: float | None = None
    at: tuple[int, ...] = ()
    problem: str | None = None


@dataclass(frozen=True)
class ConformanceConfig:
    """What to judge."""

    bundle: Annotated[Path | None, tyro.conf.Positional] = None
    """Bundle folder; None is the one that comes with this package."""
    results: Path | None = None
    """What an app measured; None runs the bundle here."""
    stages: tuple[str, ...] = tuple(STAGES)
    """Those that must have been measured and pass."""
    runtime: str | None = None
    """Where the bundle runs here: which runtime; None is the first one that reads it and can be had."""
    provider: str | None = None
    """And which of its providers."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """Where the bundle runs here: file to write what it measured to, as an app would."""


def conformance(config: ConformanceConfig) -> dict[str, Any]:
    """Judge what an app, or the bundle's own runtime, makes of the golden vectors."""
    for name in config.stages:
        choose(name, STAGES, "stage")
    if config.results is not None and config.output is not None:
        raise UsageError("--output is for what runs here; leave it out, or leave out --results")
    bundle = Bundle.open(DEFAULT_BUNDLE if config.bundle is None else config.bundle)
    vectors = golden.read(bundle)
    if config.results is None:
        chosen = own_runtime(bundle) if config.runtime is None else Own(config.runtime)
        if chosen.missing:
            print(chosen, file=sys.stderr)
        runtime = chosen.runtime
        app = f"kdc-edge on {machine.processor()}, {runtime}"
        arrays = own(bundle, vectors, runtime, Options(provider=config.provider))
    else:
        app, arrays = read(config.results, bundle.id)
    if config.output is not None:
        write_json(config.output, schema.dump(results(app, bundle.id, arrays)))
    verdicts = judge(vectors, arrays, config.stages)
    print(f"{app}", *map(line, verdicts), sep="\n", file=sys.stderr)
    gate(verdicts)
    return {"bundle": bundle.id, "app": app, "stages": [asdict(verdict) for verdict in verdicts]}


def judge(vectors: Golden, arrays: Mapping[str, np.ndarray], stages: Sequence[str] = tuple(STAGES)) -> list[Verdict]:
    """A verdict for each of `stages`, in the order in which a picture is made."""
    return [_judge(STAGES[name], vectors, arrays.get(name)) for name in STAGES if name in stages]


def gate(verdicts: Sequence[Verdict]) -> None:
    """GateError with the first stage that did not pass; the ones behind it may be wrong because it is."""
    for verdict in verdicts:
        if verdict.state != "passed":
            raise GateError(
                f"{verdict.stage} ({STAGES[verdict.stage].about}): {_why(verdict)}; see docs/conformance.md"
            )


def _why(verdict: Verdict) -> str:
    if verdict.problem is not None:
        return verdict.problem
    return f"off by {verdict.difference:.6g} at {list(verdict.at)}, at most {verdict.tolerance:.6g} is allowed"


def line(verdict: Verdict) -> str:
    """For people."""
    difference = "" if verdict.difference is None else f"{verdict.difference:.6g}"
    return f"{verdict.stage:18}{verdict.state:14}{difference:>12} of {verdict.tolerance:<12.6g}{verdict.problem or ''}"


def read(path: Path, bundle_id: str) -> tuple[str, dict[str, np.ndarray]]:
    """What ran, and its arrays by stage. Raises BundleError for a file that is not one, or is of another bundle."""
    data: Any = read_json(path)
    schema.check_format(data, FORMAT, path, if_older="run the app's conformance again")
    found = schema.parse(Results, data, path)
    if found.bundle != bundle_id:
        raise BundleError(f"{path}: measured on bundle {found.bundle:.12}…, this one is {bundle_id:.12}…")
    return found.app, {name: _decode(measured, f"{path}: {name}") for name, measured in found.stages.items()}


def results(app: str, bundle_id: str, arrays: Mapping[str, np.ndarray]) -> Results:
    """The file's content."""
    return Results(FORMAT, bundle_id, app, {name: _encode(array) for name, array in arrays.items()})


def own(bundle: Bundle, vectors: Golden, runtime: str, options: Options | None = None) -> dict[str, np.ndarray]:
    """The stages, run here, each from golden inputs."""
    told, stored = vectors.settings, vectors.arrays
    with Pipeline.open(bundle, runtime, options) as pipe:
        plan = SAMPLERS[choose(told.sampler, SAMPLERS, "sampler")].plan(pipe.schedule, told.steps)
        seeds = range(told.seed, told.seed + len(told.prompts))
        texts = [[prompt] if told.guidance == 1 else [told.negative, prompt] for prompt in told.prompts]
        encoder = pipe.components["text_encoder"]
        hidden = [encoder(input_ids=ids)["last_hidden_state"] for ids in stored["input_ids"]]
        settings = {name: getattr(told, name) for name in ("sampler", "steps", "guidance", "negative")}
        pictures = [pipe.generate(p, seed=seed, **settings) for p, seed in zip(told.prompts, seeds, strict=True)]
        return {
            "text_ids": pipe.tokenizer(told.texts).ids,
            "input_ids": np.stack([pipe.tokenizer(pair).ids for pair in texts]),
            "noise": np.stack([gaussian(seed)(pipe.spec.latent) for seed in seeds]),
            "timesteps": np.array([pipe.schedule.timestep(sigma) for sigma in plan.sigmas], np.float32),
            "sigmas": plan.targets.astype(np.float32),
            "last_hidden_state": np.stack([states[-1] for states in hidden]),
            "latents": np.stack([_latents(pipe, vectors, p, states) for p, states in enumerate(hidden)]),
            "images": np.stack([np.asarray(pipe.decode(steps[-1:])) for steps in stored["latents"]]),
            "pictures": np.stack([np.asarray(picture) for picture in pictures]),
        }


def _latents(pipe: Pipeline, vectors: Golden, p: int, states: np.ndarray) -> np.ndarray:
    """(S, C, H, W) after each step of prompt `p`, in unit variance."""
    told, stored = vectors.settings, vectors.arrays
    sampler, noise = SAMPLERS[told.sampler], gaussian(told.seed + p)
    noise(pipe.spec.latent)
    text = np.concatenate([states[:-1], stored["last_hidden_state"][p : p + 1]])
    plan = sampler.plan(pipe.schedule, told.steps)
    steps = sampler.loop(pipe.denoiser(text, told.guidance), stored["noise"][p : p + 1] * plan.start, plan, noise)
    return np.stack([step.x[0] / math.hypot(1, step.sigma) for step in steps]).astype(np.float32)


def _judge(stage: Stage, vectors: Golden, array: np.ndarray | None) -> Verdict:
    wanted = vectors.arrays[stage.array]
    tolerance = _tolerance(stage, vectors)
    if array is None:
        return Verdict(stage.name, "not measured", tolerance, problem="not measured")
    if array.shape != wanted.shape:
        return Verdict(stage.name, "failed", tolerance, problem=f"shape {array.shape}, must be {wanted.shape}")
    differences = np.abs(array.astype(np.float64) - wanted.astype(np.float64))
    if not np.isfinite(differences).all():
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(differences))[0])
        return Verdict(stage.name, "failed", tolerance, at=where, problem=f"not a finite number at {where}")
    largest = float(differences.max())
    at = tuple(int(i) for i in np.unravel_index(differences.argmax(), differences.shape))
    return Verdict(stage.name, "passed" if largest <= tolerance else "failed", tolerance, largest, at)


def _tolerance(stage: Stage, vectors: Golden) -> float:
    if stage.tolerance == "stored":
        if stage.array not in vectors.settings.tolerances:
            raise BundleError(f"{golden.SETTINGS}: no tolerance for {stage.array}; convert the model again")
        return vectors.settings.tolerances[stage.array]
    return 0.0 if stage.tolerance == "exact" else ROUNDING * float(np.abs(vectors.arrays[stage.array]).max())


def _encode(array: np.ndarray) -> Measured:
    data = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
    return Measured(str(array.dtype), array.shape, base64.b64encode(data).decode("ascii"))  # type: ignore[arg-type]


def _decode(measured: Measured, where: str) -> np.ndarray:
    try:
        data = base64.b64decode(measured.data, validate=True)
        flat = np.frombuffer(data, np.dtype(measured.dtype).newbyteorder("<"))
        return flat.reshape(measured.shape) if min(measured.shape, default=0) >= 0 else _bad_shape(measured)
    except (binascii.Error, ValueError) as error:
        raise BundleError(f"{where}: not {measured.dtype} of shape {measured.shape} in base64 ({error})") from None


def _bad_shape(measured: Measured) -> np.ndarray:
    raise ValueError(f"negative size in {measured.shape}")
