"""A bundle opened for measuring, and what its file says of itself."""

import importlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench.record import Layer
from kdc_edge.bundle import Bundle
from kdc_edge.errors import MissingBackend, choose
from kdc_edge.images import check_picture
from kdc_edge.noise import gaussian
from kdc_edge.pipeline import COMPONENTS, Pipeline
from kdc_edge.ports import zeros
from kdc_edge.runtimes import RUNTIMES, Options
from kdc_edge.timing import MIN_SAMPLES, Call

PROMPT = "red apple"
PICTURE = "picture"
WHAT = (*COMPONENTS, PICTURE)  # what is timed


@dataclass(frozen=True)
class Side:
    """A bundle and the pipeline opened from it."""

    bundle: Bundle
    pipeline: Pipeline

    @classmethod
    def open(cls, bundle: Bundle | Path, runtime: str, options: Options) -> "Side":
        bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        return cls(bundle, Pipeline.open(bundle, runtime, options))

    def __enter__(self) -> "Side":
        return self

    def __exit__(self, *_: object) -> None:
        self.pipeline.close()

    def draw(self, seed: int = 0, steps: int | None = None) -> Image.Image:
        return self.pipeline.generate(PROMPT, seed=seed, steps=steps)

    def check(self, seed: int = 0) -> None:
        """GateError where the bundle draws no picture: then no speed of it is worth a word."""
        check_picture(self.draw(seed))

    def call(self, what: str, seed: int = 0) -> Call:
        """One call of a component as a guided picture makes it (batch 2, 1 for the decoder), or the whole picture."""
        if what == PICTURE:
            return lambda: self.draw(seed)
        component, feed = self.pipeline.components[what], self.feed(what, seed)
        return lambda: component(**feed)

    def feed(self, component: str, seed: int = 0) -> dict[str, np.ndarray]:
        """Noise, and token ids of 0, for one call."""
        ports, noise = self.pipeline.components[component].ports.inputs, gaussian(seed)
        feed = zeros(ports, {"batch": batch(component), **self.pipeline.spec.sizes})
        return {port: noise(zero.shape) if zero.dtype.kind == "f" else zero for port, zero in feed.items()}


def batch(what: str) -> int:
    """Of one call in a guided picture; a picture is made alone."""
    return 1 if what in ("vae_decoder", PICTURE) else 2


def samples_of(what: str, samples: int) -> int:
    """A picture takes as long as dozens of calls, and gets a third of their samples."""
    return max(MIN_SAMPLES, samples // 3) if what == PICTURE else samples


def about(bundle: Bundle) -> dict[str, Any]:
    """What identifies a bundle, and its cost on any machine, as JSON data."""
    manifest = bundle.manifest
    weights = sum(manifest.files[file].bytes for part in manifest.components.values() for file in part.files)
    names = ("name", "version", "runtime", "target", "precision")
    return {
        "id": bundle.id,
        **{name: getattr(manifest, name) for name in names},
        "bytes": bundle.bytes,
        "weights_bytes": weights,
        "counters": counters(bundle),
    }


def counters(bundle: Bundle) -> dict[str, dict[str, int | None]]:
    """By component and for the whole picture: what does not depend on the machine; None where nobody counted."""
    found, calls = {}, work(bundle.manifest.pipeline.steps, bundle.manifest.pipeline.guidance)
    for name, part in bundle.manifest.components.items():
        nodes = None if part.operators is None else sum(part.operators.values())
        found[name] = {
            "parameters": part.parameters,
            "macs": part.macs,
            "bytes_moved": part.bytes_moved,
            "nodes": nodes,
            "bytes": sum(bundle.manifest.files[file].bytes for file in part.files),
        }
    picture: dict[str, int | None] = {}
    for key in ("macs", "bytes_moved"):
        values = [(math.prod(calls[name]), part[key]) for name, part in found.items()]
        known = all(value is not None for _, value in values)
        picture[key] = sum(times * value for times, value in values if value is not None) if known else None
    return {**found, PICTURE: picture}


def work(steps: int, guidance: float) -> dict[str, tuple[int, int]]:
    """What one picture takes: by component, calls and their batch."""
    both = 1 if guidance == 1 else 2
    return {"text_encoder": (1, both), "unet": (steps, both), "vae_decoder": (1, 1)}


def placement(bundle: Bundle, runtime: str, options: Options) -> dict[str, dict[str, int]]:
    """By component, the operators that each provider or device ran; MissingBackend where another than asked for ran some."""
    module = importlib.import_module(RUNTIMES[choose(runtime, RUNTIMES, "runtime")].module)
    found = {name: module.placement(bundle, name, options) for name in bundle.manifest.components}
    if options.provider is not None and not options.allow_fallback:
        for name, providers in found.items():
            if strayed := {key: nodes for key, nodes in providers.items() if key != options.provider}:
                ran = ", ".join(f"{nodes} on {key}" for key, nodes in strayed.items())
                raise MissingBackend(
                    f"{name}: {options.provider} was asked for, but {ran}; pass --allow-fallback to measure it as it is"
                )
    return found


def layers(bundle: Bundle, runtime: str, options: Options) -> dict[str, tuple[Layer, ...]] | None:
    """By component, times and types of layers; None of a runtime that does not tell them."""
    times = getattr(importlib.import_module(RUNTIMES[runtime].module), "layer_times", None)
    if times is None:
        return None
    return {name: tuple(Layer(**row) for row in times(bundle, name, options)) for name in bundle.manifest.components}
