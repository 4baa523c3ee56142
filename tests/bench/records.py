"""Records of runs that nobody ran: the shipped one with other times, dates and bundles."""

from dataclasses import replace
from pathlib import Path

from bench import record
from bench.record import Latency, Record

BASELINE = Path(__file__).resolve().parents[2] / "bench" / "baseline.json"


def made(day: int = 1, bundle: str = "a", scale: float = 1.0, **changes: object) -> Record:
    """A run of a bundle whose id is one letter, `scale` times as slow as the shipped record."""
    shipped = record.read(BASELINE)
    about = shipped.bundle | {"id": bundle * 64, "name": f"bundle-{bundle}"}
    latency = {what: _scaled(found, scale) for what, found in shipped.latency.items()}
    created = f"2026-{1 + day // 28:02}-{1 + day % 28:02}T12:00:00+00:00"
    return replace(shipped, created=created, bundle=about, latency=latency, against=None, **changes)


def write(folder: Path, records: list[Record]) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:04}.json" for i in range(len(records))]
    for path, made_up in zip(paths, records, strict=True):
        record.write(path, made_up)
    return paths


def _scaled(latency: Latency, scale: float) -> Latency:
    wall, cpu = (tuple(s * scale for s in taken) for taken in (latency.warm_wall_s, latency.warm_cpu_s))
    return replace(latency, warm_wall_s=wall, warm_cpu_s=cpu)
