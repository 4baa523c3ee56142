"""Measure bundles on this machine: one record per bundle, saved after every measurement, so that a kill loses one at most."""

import shlex
import sys
import time
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from bench import browser, exports, fresh, record, roof, sensors
from bench.record import NOT_MEASURED, Against, Latency, Measured, Minute, Ratio, Record, Settings
from bench.side import PICTURE, WHAT, Side, about, batch, layers, placement, samples_of
from kdc_edge import machine, timing
from kdc_edge.bundle import Bundle
from kdc_edge.errors import UsageError
from kdc_edge.runtimes import Options

VERSIONS = ("kdc-edge", "numpy", "onnxruntime", *machine.ORT)


@dataclass(frozen=True)
class RunConfig:
    """What to measure, and how long."""

    bundles: tyro.conf.Positional[tuple[Path, ...]]
    """Bundle folders; with --interleave the first is the one the others are compared with."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("runs/bench")
    """Folder for the records, one JSON each, and summary.md."""
    interleave: bool = False
    """Let the bundles take turns, and report ratios to the first."""
    samples: int = 30
    """Warm calls of each component; the whole picture gets a third."""
    soak: str | None = None
    """Then make pictures for this long, for example 10m: p50 and p90 per minute."""
    runtime: str = "ort"
    provider: str | None = None
    threads: int | None = None
    """Of the runtime; its own choice if not given."""
    allow_fallback: bool = False
    """Measure even where another provider than the one asked for runs operators."""
    cache_dir: Path | None = None
    """Where the runtime keeps what it compiles for this machine; the second run with it opens as later starts do."""
    browser: bool = False
    """Measure in this machine's browser instead, headless, with onnxruntime-web; the provider is wasm or webgpu."""
    seed: int = 0


def run(config: RunConfig) -> dict[str, Any]:
    """Latency, memory, cost, placement and energy of bundles on this machine."""
    if not config.bundles:
        raise UsageError("no bundle to measure; give one or more bundle folders")
    if config.samples < timing.MIN_SAMPLES:
        raise UsageError(f"--samples is {config.samples}; at least {timing.MIN_SAMPLES} are needed")
    if config.interleave and len(config.bundles) < 2:
        raise UsageError("--interleave needs two bundles or more, the first of which the others are compared with")
    if config.browser:
        others = (config.interleave, config.soak, config.allow_fallback, config.cache_dir, config.seed)
        if any(others) or config.runtime != "ort":
            raise UsageError(
                "--browser takes --samples, --threads, --provider and --output alone; leave the others out"
            )
        return browser.run(config.bundles, config.output, config.samples, config.threads, config.provider)
    soak_s = None if config.soak is None else parse_duration(config.soak)
    options = Options(config.threads, config.provider, config.allow_fallback, config.cache_dir)
    runs = [Run(Bundle.open(path), i, config, options) for i, path in enumerate(config.bundles)]
    peaks = roof.measure(config.threads) if config.runtime == "ort" else None
    for each in runs:
        each.cold()
    if config.interleave:
        for each in runs[1:]:
            warm_interleaved(runs[0], each, config, options)
    else:
        for each in runs:
            each.warm()
    for each in runs:
        if soak_s is not None:
            each.soak(soak_s)
        each.finish(peaks)
    print(exports.write_all(config.output, [each.record for each in runs]), file=sys.stderr)
    return {"records": [str(each.path) for each in runs], "summary": str(config.output / exports.SUMMARY)}


class Run:
    """One bundle's record as it grows."""

    def __init__(self, bundle: Bundle, index: int, config: RunConfig, options: Options) -> None:
        self.bundle, self.config, self.options = bundle, config, options
        spec, described = bundle.manifest.pipeline, machine.describe()
        self.record = Record(
            format=record.FORMAT,
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            complete=False,
            command=shlex.join(["python", "-m", "bench", *sys.argv[1:]]),
            machine=described,
            fingerprint=machine.fingerprint(described),
            versions=machine.versions(VERSIONS),
            settings=Settings(
                runtime=config.runtime,
                provider=config.provider,
                threads=config.threads,
                steps=spec.steps,
                guidance=spec.guidance,
                sampler=spec.sampler,
                samples=config.samples,
                seed=config.seed,
                power_mode=sensors.power_mode(),
            ),
            bundle=about(bundle),
            parity=bundle.report.get("parity", NOT_MEASURED),
            quality=bundle.report.get("quality", NOT_MEASURED),
            revision=machine.revision(),
        )
        self.path = record.path(config.output, self.record, index)

    def save(self, **changes: Any) -> None:
        self.record = replace(self.record, **changes)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        record.write(self.path, self.record)

    def side(self) -> Side:
        return Side.open(self.bundle, self.config.runtime, self.options)

    def cold(self) -> None:
        """Placement, then what a fresh process pays; nothing is timed before the bundle has drawn a picture."""
        found = placement(self.bundle, self.config.runtime, self.options)
        with self.side() as side:
            side.check(self.config.seed)
        first = fresh.measure(self.bundle.path, self.config.runtime, self.options)
        latency = {
            what: Latency(batch(what), first.prepare_s.get(what, first.open_s), first.first_s[what], (), ())
            for what in WHAT
        }
        memory = {"peak_rss_mib": first.peak_rss_mib, "device_mib": _or_not(first.device_mib)}
        if (told := layers(self.bundle, self.config.runtime, self.options)) is not None:
            self.save(layers=told)
        self.save(placement=found, open_s=first.open_s, latency=latency, **memory)

    def warm(self) -> None:
        with self.side() as side:
            for what in WHAT:
                samples = samples_of(what, self.config.samples)
                with sensors.measure_energy() as energy:
                    self.add(what, timing.measure(side.call(what, self.config.seed), warmup=2, samples=samples))
                if what == PICTURE and energy.joules is not None:
                    self.save(joules_per_picture=energy.joules / (samples + 2), energy_source=energy.source)

    def add(self, what: str, taken: timing.Samples) -> None:
        latency = replace(self.record.latency[what], warm_wall_s=taken.wall, warm_cpu_s=taken.cpu)
        self.save(latency={**self.record.latency, what: latency})

    def soak(self, seconds: float) -> None:
        """Pictures without a pause; a minute is saved when it is over, the last one may be shorter."""
        minutes: list[Minute] = []
        with self.side() as side:
            end = time.monotonic() + seconds
            while (left := end - time.monotonic()) > 0:
                taken = timing.measure(
                    lambda: side.draw(self.config.seed), warmup=0, samples=10**6, budget_s=min(60, left)
                )
                minutes.append(
                    Minute(
                        pictures=len(taken.wall),
                        p50_s=taken.p50,
                        p90_s=taken.quantile(0.9),
                        temperature_c=_or_not(sensors.temperature()),
                        clock_mhz=_or_not(sensors.clock_mhz()),
                    )
                )
                self.save(soak=tuple(minutes))

    def finish(self, peaks: roof.Roof | None) -> None:
        found: Any = NOT_MEASURED
        if peaks is not None:
            found = {
                "macs_per_s": peaks.macs_per_s,
                "bytes_per_s": peaks.bytes_per_s,
                "share_of_fp32": self._shares(peaks),
            }
        self.save(roof=found, complete=True)

    def _shares(self, peaks: roof.Roof) -> dict[str, Measured]:
        """Multiply-accumulates a second over the machine's fp32 peak."""
        shares: dict[str, Measured] = {}
        for what, latency in self.record.latency.items():
            macs, peak = self.record.bundle["counters"][what]["macs"], peaks.macs_per_s["fp32"]
            calls = 1 if what == PICTURE else latency.batch
            known = macs is not None and peak is not None and latency.warm_wall_s
            shares[what] = macs * calls / latency.samples.p50 / peak if known else NOT_MEASURED
        return shares


def warm_interleaved(first: Run, other: Run, config: RunConfig, options: Options) -> None:
    """Both take turns at everything; the ratios go into the record of `other`."""
    wall: dict[str, Ratio] = {}
    cpu: dict[str, Ratio] = {}
    with first.side() as a, other.side() as b:
        for what in WHAT:
            calls = (side.call(what, config.seed) for side in (a, b))
            found = timing.compare(*calls, seed=config.seed, warmup=2, samples=samples_of(what, config.samples))
            first.add(what, found.a)
            other.add(what, found.b)
            wall[what] = Ratio(found.ratio, found.low, found.high)
            of = (np.asarray(taken.cpu) for taken in (found.a, found.b))
            cpu[what] = Ratio(*timing.ratio_interval(*of, seed=config.seed))
    base = first.bundle
    other.save(against=Against(base.id, base.manifest.name, base.manifest.precision, wall, cpu))


def parse_duration(text: str) -> float:
    """Seconds in `90s`, `10m` or `2h`."""
    number, unit = text[:-1], text[-1:]
    factors = {"s": 1, "m": 60, "h": 3600}
    if unit not in factors or not number.replace(".", "", 1).isdigit() or float(number) == 0:
        raise UsageError(f"'{text}' is no duration; write for example 90s, 10m or 2h")
    return float(number) * factors[unit]


def _or_not(value: float | None) -> Measured:
    return NOT_MEASURED if value is None else value
