"""`--runtime auto`: whichever runtime draws a bundle's pictures fastest on this machine, measured once and remembered.

Every installed runtime that reads the bundle is opened, one after the other, and its components are timed. The result is kept
for this bundle, processor, thread count and these versions; whatever of them changes, it is measured anew. A runtime
that does not open the bundle is passed over, and that is said.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdc_edge import machine, timing
from kdc_edge.bundle import Bundle
from kdc_edge.errors import BundleError, KdcError, MissingBackend, ResourceError, UsageError
from kdc_edge.files import read_json, write_json
from kdc_edge.runtimes import AUTO, RUNTIMES, Options, Runtime, compiled, missing, open_all, open_runtime, usual_feed

WARMUP, SAMPLES, BUDGET_S = 2, 7, 10.0  # of each component
UNOPENED = (BundleError, MissingBackend, ResourceError)

log = logging.getLogger(__name__)


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


def open_chosen(
    bundle: Bundle, names: Sequence[str], choice: Choice, options: Options | None
) -> tuple[dict[str, Runtime], Choice]:
    """Components by the fastest runtime that opens them, and the choice without the others. Raises what the last one does."""
    while True:
        try:
            return open_all(bundle, names, choice.runtime, options), choice
        except UNOPENED as error:
            others = {name: seconds for name, seconds in choice.seconds.items() if name != choice.runtime}
            if not others:
                raise
            _pass_over(choice.runtime, error)
            choice = Choice(others, choice.remembered)


def fastest(bundle: Bundle, options: Options) -> Choice:
    """Raises MissingBackend where no runtime for the bundle is installed, UsageError where a provider is asked for."""
    if options.provider is not None:
        raise UsageError(f"provider {options.provider} belongs to one runtime; name that instead of {AUTO}")
    names = _installed(bundle)
    path = _path(bundle, options)
    known = _read(path)
    if known is not None and known.keys() == set(names) and any(known.values()):
        return Choice(_sorted(known), remembered=True)
    taken = _measured(bundle, names, options)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, taken)
    return Choice(_sorted(taken), remembered=False)


def _sorted(taken: Mapping[str, float | None]) -> dict[str, float]:
    return dict(sorted(((name, s) for name, s in taken.items() if s is not None), key=lambda item: item[1]))


def _read(path: Path) -> dict[str, float | None] | None:
    """Of every runtime its seconds, None where it does not open the bundle; None for a record that is none."""
    if not path.exists():
        return None
    try:
        known: Any = read_json(path)
    except (BundleError, OSError) as error:
        log.warning("%s; runtimes are measured anew", error)
        return None
    if not isinstance(known, dict) or not all(s is None or (type(s) in (int, float) and s > 0) for s in known.values()):
        log.warning("%s: not seconds by runtime; they are measured anew", path)
        return None
    return known


def _measured(bundle: Bundle, names: Sequence[str], options: Options) -> dict[str, float | None]:
    """Raises what the last one does where none opens the bundle."""
    taken: dict[str, float | None] = {}
    for name in names:
        try:
            taken[name] = _seconds(bundle, name, options)
        except UNOPENED as error:
            if name == names[-1] and not any(taken.values()):
                raise
            _pass_over(name, error)
            taken[name] = None
    return taken


def _pass_over(name: str, error: KdcError) -> None:
    log.warning("runtime %s does not open the bundle: %s; another one is taken", name, error)


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
    versions = machine.versions(("onnxruntime", *machine.ORT, "openvino"))
    made = (f"{name} {version}" for name, version in versions.items())
    return compiled.folder(cache, bundle, AUTO, f"threads {options.threads}", *made) / "seconds.json"


def _seconds(bundle: Bundle, name: str, options: Options) -> float:
    """Of one picture with the bundle's own steps and guidance: the medians of its components, added up."""
    spec = bundle.manifest.pipeline
    total = 0.0
    for component in bundle.manifest.components:
        runtime, feed = open_runtime(bundle, component, name, options), usual_feed(bundle, component)
        taken = timing.measure(lambda: runtime(**feed), warmup=WARMUP, samples=SAMPLES, budget_s=BUDGET_S)  # noqa: B023
        total += taken.p50 * (spec.steps if component == "unet" else 1)
        runtime.close()
    return total
