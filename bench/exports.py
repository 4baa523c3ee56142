"""Records as other tools read them: a Markdown summary, pytest-benchmark's JSON, github-action-benchmark's list."""

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.record import NOT_MEASURED, Measured, Record
from bench.side import PICTURE
from kdc_edge.files import replace_file, write_json
from kdc_edge.markdown import table
from kdc_edge.timing import Samples

SUMMARY, PYTEST, GITHUB = "summary.md", "pytest-benchmark.json", "github-action-benchmark.json"
HEAD = ("bundle", "", "prepare", "first", "p50", "p90", "p99", "CPU p50", "MACs", "of fp32 peak")


def write_all(folder: Path, records: Sequence[Record]) -> str:
    """Writes the three files; returns the Markdown."""
    text = markdown(records)
    replace_file(folder / SUMMARY, text.encode())
    write_json(folder / PYTEST, pytest_benchmark(records))
    write_json(folder / GITHUB, smaller_is_better(records))
    return text


def markdown(records: Sequence[Record]) -> str:
    """Tables of latency, size and ratios, with the machine they hold for."""
    first = records[0]
    where, settings = first.machine, first.settings
    threads = {None: "the runtime's choice of threads", 1: "1 thread"}.get(
        settings.threads, f"{settings.threads} threads"
    )
    versions = ", ".join(f"{package} {number}" for package, number in first.versions.items())
    lines = [
        f"{where['processor']}, {where['cores']} cores, {'-'.join(where['os'].split('-')[:2])}; {versions}; {threads}; "
        f"{settings.samples} samples of a component, interleaved where ratios are given; power mode "
        f"{settings.power_mode or NOT_MEASURED}.",
        "",
        *table(HEAD, [row for record in records for row in _latency_rows(record)]),
        "",
        *table(
            ("bundle", "size", "peak memory", "open", "pictures/s", "energy a picture"),
            [_whole_row(record) for record in records],
        ),
    ]
    if compared := [row for record in records for row in _ratio_rows(record)]:
        lines += ["", *table(("bundle", "against", "", "wall", "CPU", "verdict"), compared)]
    return "\n".join(lines) + "\n"


def _latency_rows(record: Record) -> list[tuple[str, ...]]:
    rows = []
    for what, latency in record.latency.items():
        warm: list[str] = [NOT_MEASURED] * 4
        if latency.warm_wall_s:
            taken = latency.samples
            warm = [ms(taken.quantile(q)) for q in (0.5, 0.9, 0.99)]
            warm += [ms(taken.quantile(0.5, "cpu")) if taken.cpu else NOT_MEASURED]
        macs = record.bundle["counters"][what]["macs"]
        share = NOT_MEASURED if isinstance(record.roof, str) else record.roof["share_of_fp32"][what]
        rows.append(
            (
                record.label,
                what.replace("_", " "),
                ms(latency.prepare_s),
                ms(latency.first_s),
                *warm,
                NOT_MEASURED if macs is None else f"{macs / 1e6:,.0f} M",
                share if isinstance(share, str) else f"{share:.0%}",
            )
        )
    return rows


def _whole_row(record: Record) -> tuple[str, ...]:
    rate = 1 / record.latency[PICTURE].samples.p50 if record.latency[PICTURE].warm_wall_s else None
    joules = record.joules_per_picture
    return (
        record.label,
        f"{record.bundle['bytes'] / 1e6:.1f} MB",
        unit(record.peak_rss_mib, "MiB"),
        ms(record.open_s),
        NOT_MEASURED if rate is None else f"{rate:.2f}",
        unit(joules, "J") + (f" ({record.energy_source})" if record.energy_source else ""),
    )


def _ratio_rows(record: Record) -> list[tuple[str, ...]]:
    other = record.against
    if other is None:
        return []
    rows = []
    for what, wall in other.wall.items():
        cpu = other.cpu[what]
        cells = [f"{found.ratio:.3f} [{found.low:.3f}, {found.high:.3f}]" for found in (wall, cpu)]
        verdict = "faster" if wall.high < 1 else "slower: do not ship" if wall.low > 1 else "no difference shown"
        rows.append((record.label, f"{other.name} {other.precision}", what.replace("_", " "), *cells, verdict))
    return rows


def ms(seconds: Measured) -> str:
    return seconds if isinstance(seconds, str) else f"{seconds * 1e3:.2f} ms"


def unit(value: Measured, name: str) -> str:
    return value if isinstance(value, str) else f"{value:.1f} {name}"


def smaller_is_better(records: Sequence[Record]) -> list[dict[str, Any]]:
    """github-action-benchmark's `customSmallerIsBetter`: seconds with their spread, then what does not spread."""
    found: list[dict[str, Any]] = []
    for record in records:
        for what, latency in record.latency.items():
            if latency.warm_wall_s:
                wall = np.asarray(latency.warm_wall_s)
                spread = f"± {np.subtract(*np.quantile(wall, [0.75, 0.25])) / 2 * 1e3:.3f}"
                value = float(np.median(wall) * 1e3)
                found.append({"name": f"{record.label}: {what}", "unit": "ms", "value": value, "range": spread})
        found.append({"name": f"{record.label}: size", "unit": "bytes", "value": record.bundle["bytes"]})
        if not isinstance(record.peak_rss_mib, str):
            found.append({"name": f"{record.label}: peak memory", "unit": "MiB", "value": record.peak_rss_mib})
        for what, counted in record.bundle["counters"].items():
            if counted["macs"] is not None:
                found.append({"name": f"{record.label}: {what} MACs", "unit": "MACs", "value": counted["macs"]})
    return found


def pytest_benchmark(records: Sequence[Record]) -> dict[str, Any]:
    """As `pytest --benchmark-json` writes it, raw data included."""
    benchmarks = [
        {
            "group": None,
            "name": f"{record.label}: {what}",
            "fullname": f"bench::{record.label}: {what}",
            "params": None,
            "param": None,
            "extra_info": {"bundle": record.bundle["id"], "cpu_s": list(latency.warm_cpu_s)},
            "options": {
                "timer": "perf_counter",
                "disable_gc": False,
                "warmup": True,
                "min_rounds": record.settings.samples,
            },
            "stats": statistics(latency.samples),
        }
        for record in records
        for what, latency in record.latency.items()
        if latency.warm_wall_s
    ]
    machine = records[0].machine
    return {
        "machine_info": {
            "node": records[0].fingerprint,
            "processor": machine["processor"],
            "machine": platform.machine(),
            "python_version": machine["python"],
            "system": platform.system(),
            "cpu": {"brand_raw": machine["processor"], "count": machine["cores"]},
        },
        "commit_info": {"id": "unknown", "dirty": False},
        "benchmarks": benchmarks,
        "datetime": records[0].created,
        "version": "4.0.0",
    }


def statistics(taken: Samples) -> dict[str, Any]:
    """pytest-benchmark's `stats` of wall seconds."""
    data = taken.of("wall")
    q1, median, q3 = np.quantile(data, [0.25, 0.5, 0.75])
    mean, deviation = data.mean(), data.std(ddof=1) if len(data) > 1 else 0.0
    low, high = q1 - 1.5 * (q3 - q1), q3 + 1.5 * (q3 - q1)
    inside = data[(data >= low) & (data <= high)]
    by_quartiles, by_deviation = len(data) - len(inside), int((abs(data - mean) > deviation).sum())
    numbers = {
        "min": data.min(),
        "max": data.max(),
        "mean": mean,
        "stddev": deviation,
        "median": median,
        "iqr": q3 - q1,
        "q1": q1,
        "q3": q3,
        "ld15iqr": inside.min(),
        "hd15iqr": inside.max(),
        "ops": 1 / mean,
        "total": data.sum(),
    }
    return {
        **{name: float(value) for name, value in numbers.items()},
        "rounds": len(data),
        "iterations": 1,
        "iqr_outliers": by_quartiles,
        "stddev_outliers": by_deviation,
        "outliers": f"{by_deviation};{by_quartiles}",
        "data": data.tolist(),
    }
