"""`--runtime auto`: whichever runtime draws a bundle's pictures fastest on this machine, measured once and remembered.

Every installed runtime that reads the bundle is opened, one after the other, and its components are timed. The result is kept
for this bundle, processor, thread count and these versions; whatever of them changes, it is measured anew.
"""

from dataclasses import dataclass
from pathlib import Path

from kdc_edge import machine, timing
from kdc_edge.bundle import Bundle
from kdc_edge.errors import MissingBackend, UsageError
from kdc_edge.files import read_json, write_json
from kdc_edge.ports import zeros
from kdc_edge.runtimes import AUTO, RUNTIMES, Options, compiled, missing, open_runtime

WARMUP, SAMPLES, BUDGET_S = 2, 7, 10.0  # of each component


@dataclass(frozen=True)
class Choice:
    """Seconds a picture of every runtime that was measured, the fastest first."""

    seconds: dict[str, float]
    remembered: bool

    @property
    def runtime(self) -> str:
        return next(iter(self.seconds))

    def __str__(self) -> str:
        times = ", ".join(f"{name} {1000 * seconds:.1f} ms" for name, seconds in self.seconds.items())
        return f"runtime {self.runtime}, measured {'before' if self.remembered else 'now'}: {times} a picture"


def fastest(bundle: Bundle, options: Options) -> Choice:
    """Raises MissingBackend where no runtime for the bundle is installed, UsageError where a provider is asked for."""
    if options.provider is not None:
        raise UsageError(f"provider {options.provider} belongs to one runtime; name that instead of {AUTO}")
    names = _installed(bundle)
    path = _path(bundle, options)
    if path.exists() and set(known := read_json(path)) == set(names):
        return Choice(known, remembered=True)
    taken = {name: _seconds(bundle, name, options) for name in names}
    choice = Choice(dict(sorted(taken.items(), key=lambda item: item[1])), remembered=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, choice.seconds)
    return choice


def _installed(bundle: Bundle) -> list[str]:
    kind = bundle.manifest.runtime
    readers = [name for name, entry in RUNTIMES.items() if kind in entry.reads and entry.measured]
    reasons = {name: missing(name) for name in readers}
    found = [name for name, reason in reasons.items() if reason is None]
    if not found:
        raise MissingBackend("; ".join(filter(None, reasons.values())))
    return found


def _path(bundle: Bundle, options: Options) -> Path:
    cache = compiled.home() if options.cache_dir is None else options.cache_dir
    versions = machine.versions(("onnxruntime", "onnxruntime-gpu", "openvino"))
    made = (f"{name} {version}" for name, version in versions.items())
    return compiled.folder(cache, bundle, AUTO, f"threads {options.threads}", *made) / "seconds.json"


def _seconds(bundle: Bundle, name: str, options: Options) -> float:
    """Of one picture with the bundle's own steps and guidance: the medians of its components, added up."""
    spec = bundle.manifest.pipeline
    batch = 1 if spec.guidance == 1 else 2
    total = 0.0
    for component, about in bundle.manifest.components.items():
        runtime = open_runtime(bundle, component, name, options)
        feed = zeros(about.inputs, {"batch": 1 if component == "vae_decoder" else batch, **spec.sizes})
        taken = timing.measure(lambda: runtime(**feed), warmup=WARMUP, samples=SAMPLES, budget_s=BUDGET_S)  # noqa: B023
        total += taken.p50 * (spec.steps if component == "unet" else 1)
        runtime.close()
    return total
