"""Two bundles against each other, interleaved in one process; or two recorded runs of one bundle."""

import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from bench import record
from bench.side import WHAT, Side, about, samples_of
from kdc_edge import machine, timing
from kdc_edge.errors import UsageError
from kdc_edge.files import write_json
from kdc_edge.runtimes import Options

FORMAT = 1


@dataclass(frozen=True)
class CompareConfig:
    """Two bundles, or two records of `bench run`, and how long to look."""

    a: tyro.conf.Positional[Path]
    """The bundle to compare with, or the earlier record."""
    b: tyro.conf.Positional[Path]
    """The bundle in question, or the later record; a ratio below 1 says it is the faster."""
    samples: int = 15
    """Timings of each component and bundle; the whole picture gets a third."""
    threads: int | None = None
    """Threads of the runtime; its own choice if not given."""
    seed: int = 0
    """Of the inputs and of the bootstrap."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """JSON file for the samples and figures."""


def compare(config: CompareConfig) -> dict[str, Any]:
    """Median times, their ratio b / a and its 95 % interval."""
    recorded = [path.is_file() for path in (config.a, config.b)]
    if any(recorded) and not all(recorded):
        raise UsageError("a bundle and a recorded run cannot take turns; give two bundles or two records")
    data = _recorded(config) if all(recorded) else _bundles(config)
    if config.output is not None:
        write_json(config.output, data)
    return data


def _bundles(config: CompareConfig) -> dict[str, Any]:
    """Nothing is timed before both have drawn a real picture."""
    if config.samples < timing.MIN_SAMPLES:
        raise UsageError(f"--samples is {config.samples}; at least {timing.MIN_SAMPLES} are needed for an interval")
    options = Options(threads=config.threads)
    results = {}
    with Side.open(config.a, "ort", options) as a, Side.open(config.b, "ort", options) as b:
        for side in (a, b):
            side.check(config.seed)
        for what in WHAT:
            samples = samples_of(what, config.samples)
            calls = (side.call(what, config.seed) for side in (a, b))
            found = timing.compare(*calls, seed=config.seed, samples=samples, warmup=2)
            show(what, found.a, found.b, (found.ratio, found.low, found.high))
            results[what] = found.to_json()
    return {
        "format": FORMAT,
        "machine": machine.describe(),
        "runtime": f"onnxruntime {version('onnxruntime')}",
        "threads": config.threads or "the runtime's choice",
        "bundles": {"a": about(a.bundle), "b": about(b.bundle)},
        "results": results,
    }


def _recorded(config: CompareConfig) -> dict[str, Any]:
    """Two runs of one bundle on one machine, days apart: drift and luck are in the ratio, and the output says so."""
    a, b = (record.read(path) for path in (config.a, config.b))
    _require_alike(a, b, config)
    results: dict[str, dict[str, Any]] = {}
    for what, before in a.latency.items():
        after = b.latency[what]
        if not before.warm_wall_s or not after.warm_wall_s:
            raise UsageError(f"{config.a if after.warm_wall_s else config.b}: the run ended before it timed the {what}")
        walls = (np.asarray(latency.warm_wall_s) for latency in (before, after))
        ratio = timing.unpaired_interval(*walls, seed=config.seed)
        show(what, before.samples, after.samples, ratio)
        results[what] = {
            "a": before.samples.to_json(),
            "b": after.samples.to_json(),
            **dict(zip(("ratio", "low", "high"), ratio, strict=True)),
        }
    print("not interleaved: what changed on the machine between the runs is in these ratios", file=sys.stderr)
    return {
        "format": FORMAT,
        "machine": a.machine,
        "runtime": "recorded",
        "threads": a.settings.threads or "the runtime's choice",
        "bundles": {"a": a.bundle, "b": b.bundle},
        "results": results,
    }


def _require_alike(a: record.Record, b: record.Record, config: CompareConfig) -> None:
    if a.bundle["id"] != b.bundle["id"]:
        raise UsageError(
            f"{config.a} is of bundle {a.bundle['id'][:12]}, {config.b} of {b.bundle['id'][:12]}: recordings of different "
            "bundles make no comparison; let them take turns: python -m bench compare BUNDLE BUNDLE"
        )
    if a.fingerprint != b.fingerprint:
        raise UsageError(
            f"{config.a} was taken on {a.machine['processor']} ({a.fingerprint}), {config.b} on {b.machine['processor']} "
            f"({b.fingerprint}): times of different machines are not compared"
        )
    if a.settings != b.settings:
        raise UsageError(f"{config.a} and {config.b} were run with different settings: {a.settings}, {b.settings}")


def show(what: str, a: timing.Samples, b: timing.Samples, ratio: tuple[float, float, float]) -> None:
    print(
        f"{what:>14}: {a.p50 * 1e3:8.2f} ms → {b.p50 * 1e3:8.2f} ms, "
        f"ratio {ratio[0]:.3f} [{ratio[1]:.3f}, {ratio[2]:.3f}], {len(a.wall)} and {len(b.wall)} samples",
        file=sys.stderr,
    )
