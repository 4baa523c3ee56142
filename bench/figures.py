"""A record as flat figures, `component.metric` to number, so that runs can be lined up; what was not measured has none."""

from collections.abc import Iterator, Mapping
from typing import Any

from bench.record import Record
from bench.side import PICTURE

QUANTILES = {"p50_s": 0.5, "p90_s": 0.9, "p99_s": 0.99}
PICTURE_S = f"{PICTURE}.p50_s"
PEAK_MIB, BYTES = "peak_rss_mib", "bytes"
WORSE_LOWER = ("snr_db", "quality.")  # figures of which more is better; of all others less is


def figures(record: Record) -> dict[str, float]:
    """Every number of a record: seconds, MiB, bytes, MACs, dB, joules; quality by prompt set."""
    return {name: float(value) for name, value in _all(record) if isinstance(value, int | float)}


def _all(record: Record) -> Iterator[tuple[str, Any]]:
    for what, latency in record.latency.items():
        yield f"{what}.prepare_s", latency.prepare_s
        yield f"{what}.first_s", latency.first_s
        if latency.warm_wall_s:
            taken = latency.samples
            yield from ((f"{what}.{name}", taken.quantile(q)) for name, q in QUANTILES.items())
            if taken.cpu:
                yield f"{what}.cpu_p50_s", taken.quantile(0.5, "cpu")
    for name in ("open_s", PEAK_MIB, "device_mib", "joules_per_picture"):
        yield name, getattr(record, name)
    yield BYTES, record.bundle["bytes"]
    for what, counted in record.bundle["counters"].items():
        yield from ((f"{what}.{name}", value) for name, value in counted.items())
    if isinstance(record.parity, Mapping):
        yield from ((f"{what}.snr_db", found["snr_db"]) for what, found in record.parity.items())
    yield from ((f"quality.{name}", number["value"]) for name, number in quality(record.quality).items())


def quality(cards: Any) -> dict[str, dict[str, Any]]:
    """`prompts.figure` to its number, of the cards in a record or a bundle's report; empty where none were measured."""
    if not isinstance(cards, Mapping):
        return {}
    return {
        f"{card['prompts'].rpartition(':')[2]}.{name}": number
        for card in cards["cards"]
        if card["kind"] != "autoencoder"
        for name, number in card["numbers"].items()
    }
