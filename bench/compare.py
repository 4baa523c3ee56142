"""Time two bundles against each other: interleaved in one process, every component and the whole picture."""

import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import tyro
from PIL import Image

from kdc_edge import machine, timing
from kdc_edge.bundle import Bundle
from kdc_edge.errors import UsageError
from kdc_edge.files import write_json
from kdc_edge.images import check_picture
from kdc_edge.noise import gaussian
from kdc_edge.pipeline import COMPONENTS, Pipeline
from kdc_edge.ports import zeros
from kdc_edge.runtimes import Options

FORMAT = 1
PROMPT = "red apple"


@dataclass(frozen=True)
class CompareConfig:
    """Two bundles, and how long to look."""

    a: tyro.conf.Positional[Path]
    """The bundle to compare with."""
    b: tyro.conf.Positional[Path]
    """The bundle in question; a ratio below 1 says it is the faster."""
    samples: int = 15
    """Timings of each component and bundle; the whole picture gets a third."""
    threads: int | None = None
    """Threads of the runtime; its own choice if not given."""
    seed: int = 0
    """Of the inputs and of the bootstrap."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """JSON file for the samples and figures."""


@dataclass(frozen=True)
class Side:
    """A bundle and the pipeline opened from it."""

    bundle: Bundle
    pipeline: Pipeline

    @classmethod
    def open(cls, path: Path, threads: int | None) -> "Side":
        bundle = Bundle.open(path)
        return cls(bundle, Pipeline.open(bundle, options=Options(threads=threads)))

    def draw(self, seed: int) -> Image.Image:
        return self.pipeline.generate(PROMPT, seed=seed)

    def about(self) -> dict[str, Any]:
        manifest = self.bundle.manifest
        return {
            "id": self.bundle.id,
            "name": manifest.name,
            "precision": manifest.precision,
            "bytes": self.bundle.bytes,
            "parameters": {name: part.parameters for name, part in manifest.components.items()},
            "macs": {name: part.macs for name, part in manifest.components.items()},
            "steps": manifest.pipeline.steps,
            "guidance": manifest.pipeline.guidance,
            "sampler": manifest.pipeline.sampler,
        }


def compare(config: CompareConfig) -> dict[str, Any]:
    """Median times, their ratio b / a and its 95 % interval; nothing is timed before both have drawn a real picture."""
    if config.samples < 3:
        raise UsageError(f"--samples is {config.samples}; at least 3 are needed for an interval")
    a, b = (Side.open(path, config.threads) for path in (config.a, config.b))
    for side in (a, b):
        check_picture(side.draw(config.seed))
    results = {
        name: timing.compare(call(a, name, config.seed), call(b, name, config.seed), seed=config.seed,
                             samples=config.samples, warmup=2)
        for name in COMPONENTS
    }  # fmt: skip
    results["picture"] = timing.compare(
        lambda: a.draw(config.seed), lambda: b.draw(config.seed), seed=config.seed, samples=max(3, config.samples // 3)
    )
    for name, result in results.items():
        show(name, result)
    data = {
        "format": FORMAT,
        "machine": machine.describe(),
        "runtime": f"onnxruntime {version('onnxruntime')}",
        "threads": config.threads or "the runtime's choice",
        "bundles": {"a": a.about(), "b": b.about()},
        "results": {name: result.to_json() for name, result in results.items()},
    }
    if config.output is not None:
        write_json(config.output, data)
    return data


def call(side: Side, name: str, seed: int) -> timing.Call:
    """One call of a component as a guided picture makes it: batch 2, batch 1 for the decoder."""
    component, noise = side.pipeline.components[name], gaussian(seed)
    feed = zeros(component.ports.inputs, {"batch": 1 if name == "vae_decoder" else 2})
    feed = {port: noise(zero.shape) if zero.dtype.kind == "f" else zero for port, zero in feed.items()}
    return lambda: component(**feed)


def show(name: str, result: timing.Comparison) -> None:
    print(
        f"{name:>14}: {result.a.p50 * 1e3:8.2f} ms → {result.b.p50 * 1e3:8.2f} ms, "
        f"ratio {result.ratio:.3f} [{result.low:.3f}, {result.high:.3f}], {len(result.a.wall)} samples each",
        file=sys.stderr,
    )
