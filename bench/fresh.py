"""A bundle's first minute, in a process that has done nothing else: opening, first calls, first picture, memory."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from bench import sensors
from bench.side import PICTURE, Side
from kdc_edge.bundle import Bundle
from kdc_edge.pipeline import COMPONENTS
from kdc_edge.process import in_own_process, peak_mib
from kdc_edge.runtimes import Options, open_runtime


@dataclass(frozen=True)
class Fresh:
    """Wall seconds; `prepare` and `first` by component, `first` also of the picture."""

    open_s: float
    prepare_s: dict[str, float]
    first_s: dict[str, float]
    peak_rss_mib: float
    device_mib: float | None
    """With the picture just made; None where no device tells."""


def measure(path: Path, runtime: str, options: Options) -> Fresh:
    """Two fresh processes: one takes the components one by one, the other makes a picture as an app does."""
    prepare, first = in_own_process("opening the components", _components, path, runtime, options)
    opened, picture, peak, device = in_own_process("making a first picture", _picture, path, runtime, options)
    return Fresh(opened, prepare, {**first, PICTURE: picture}, peak, device)


def opening(path: Path, component: str, runtime: str, options: Options) -> tuple[float, float, float]:
    """CPU seconds that a fresh process takes to verify a bundle and to open one component; its most memory, MiB."""
    return in_own_process(f"opening the {component}", _opening, path, component, runtime, options)


def _opening(path: Path, component: str, runtime: str, options: Options) -> tuple[float, float, float]:
    start = time.process_time()
    bundle, verified = Bundle.open(path), time.process_time()
    open_runtime(bundle, component, runtime, options)
    return verified - start, time.process_time() - verified, peak_mib()


def _components(path: Path, runtime: str, options: Options) -> tuple[dict[str, float], dict[str, float]]:
    bundle = Bundle.open(path)
    prepare, first = {}, {}
    for name in COMPONENTS:
        start = time.perf_counter()
        open_runtime(bundle, name, runtime, options).close()
        prepare[name] = time.perf_counter() - start
    with Side.open(bundle, runtime, options) as side:
        for name in COMPONENTS:
            call = side.call(name)
            start = time.perf_counter()
            call()
            first[name] = time.perf_counter() - start
    return prepare, first


def _picture(path: Path, runtime: str, options: Options) -> tuple[float, float, float, float | None]:
    start = time.perf_counter()
    with Side.open(path, runtime, options) as side:
        opened = time.perf_counter()
        side.draw()
        return opened - start, time.perf_counter() - opened, peak_mib(), sensors.device_mib(os.getpid())
