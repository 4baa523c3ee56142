"""What runs a component: named arrays in, named arrays out. Toolchains are imported when a component is opened.

A new runtime is one module here and one line in RUNTIMES. The module has `open(bundle, component, options)`,
`placement(bundle, component, options)`, which counts operators by what ran them, and `available()`, its providers here.
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from kdc_edge.bundle import Bundle
from kdc_edge.errors import MissingBackend, UsageError, choose
from kdc_edge.ports import Ports, zeros


@dataclass(frozen=True)
class Options:
    """How to run a component; None leaves the choice to the runtime."""

    threads: int | None = None
    provider: str | None = None
    """Execution provider or device, by the runtime's own short name."""
    allow_fallback: bool = False
    """Go on where the provider asked for is not the one used."""
    cache_dir: Path | None = None
    """Folder for what the runtime compiles for this device: the first open fills it, later ones are faster and smaller. If
    not given, what takes minutes is kept in the user's cache, other things nowhere."""
    low_memory: bool = False
    """Hold one component at a time; each picture opens them all anew."""

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"threads is {self.threads}, must be at least 1")


class Runtime(Protocol):
    """One loaded component."""

    ports: Ports

    def __call__(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Arrays by input name to arrays by output name; UsageError for a feed that does not fit the ports."""
        ...

    def close(self) -> None:
        """Let memory and device go."""
        ...


@dataclass(frozen=True)
class Entry:
    """A runtime's module and the kinds of bundle it reads."""

    module: str
    reads: tuple[str, ...]
    measured: bool = True
    """Whether it runs networks, so that its speed says something."""


AUTO = "auto"  # the fastest of them, see kdc_edge.runtimes.fastest
RUNTIMES: dict[str, Entry] = {
    "ort": Entry("kdc_edge.runtimes.ort", ("onnx", "tensorrt")),
    "openvino": Entry("kdc_edge.runtimes.openvino", ("onnx",)),
    "coreml": Entry("kdc_edge.runtimes.coreml", ("coreml",)),
    "mil": Entry("kdc_edge.runtimes.mil", ("coreml",), measured=False),
    "emulated": Entry("kdc_edge.runtimes.emulated", ("onnx", "tensorrt"), measured=False),
    "tensorrt": Entry("kdc_edge.runtimes.tensorrt", ("tensorrt",)),
    "fake": Entry("kdc_edge.runtimes.fake", ("onnx", "coreml", "tensorrt"), measured=False),
}


@dataclass(frozen=True)
class Own:
    """The runtime that a bundle has by itself here; why those that come before it cannot be had."""

    runtime: str
    missing: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"runtime {self.runtime}: {'; '.join(self.missing)}"


def own(bundle: Bundle) -> Own:
    """The first that reads it and can be had. Raises MissingBackend where none can."""
    reasons: list[str] = []
    for name, entry in RUNTIMES.items():
        if bundle.manifest.runtime in entry.reads and name != "fake":
            if (reason := missing(name)) is None:
                return Own(name, tuple(reasons))
            reasons.append(reason)
    raise MissingBackend("; ".join(dict.fromkeys(reasons)))


def missing(name: str) -> str | None:
    """Why a runtime cannot be had here; None where it can."""
    try:
        importlib.import_module(RUNTIMES[name].module).available()
    except MissingBackend as error:
        return str(error)
    return None


def open_runtime(bundle: Bundle, component: str, name: str, options: Options | None = None) -> Runtime:
    """Load a component of a bundle. Raises UsageError, or MissingBackend where the toolchain or device is absent."""
    entry = RUNTIMES[choose(name, RUNTIMES, "runtime")]
    kind = bundle.manifest.runtime
    if kind not in entry.reads:
        fitting = [other for other, known in RUNTIMES.items() if kind in known.reads]
        raise UsageError(f"{bundle.path} is a bundle for {kind}, which runtime {name} does not read; use {fitting[0]}")
    bundle.component(component)
    return importlib.import_module(entry.module).open(bundle, component, options or Options())


def usual_feed(bundle: Bundle, component: str) -> dict[str, np.ndarray]:
    """Zeros in the shapes of the calls that a picture with the bundle's own guidance takes."""
    spec = bundle.manifest.pipeline
    batch = 1 if spec.guidance == 1 or component == "vae_decoder" else 2
    return zeros(bundle.component(component).inputs, {"batch": batch, **spec.sizes})


def open_all(bundle: Bundle, names: Sequence[str], runtime: str, options: Options | None = None) -> dict[str, Runtime]:
    """Several components, loaded now or, with `low_memory`, in turns."""
    if options is None or not options.low_memory:
        return {name: open_runtime(bundle, name, runtime, options) for name in names}
    from kdc_edge.runtimes.turns import Turns

    turns = Turns({name: partial(open_runtime, bundle, name, runtime, options) for name in names})
    return {name: turns.component(name, bundle.component(name).ports) for name in names}
