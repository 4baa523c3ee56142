"""One self-contained HTML page about bundles: pictures, training, sizes, parity, timings."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from kdc_edge import page
from kdc_edge.bundle import Bundle
from kdc_edge.errors import UsageError
from kdc_edge.files import read_json
from kdc_edge.page import escape, picture, section, table

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class ReportConfig:
    """What goes into the page."""

    bundles: tuple[Path, ...]
    """Bundles, the reference first."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """HTML file to write."""
    pictures: tuple[Path, ...] = ()
    """A PNG per bundle, from the same prompts and noise."""
    timings: Path | None = None
    """What `bench compare` wrote."""
    training: Path | None = None
    """Checkpoint folder whose loss curve to show."""
    title: str = "kdc-edge: from teacher to device"


def report(config: ReportConfig) -> dict[str, Any]:
    """Write the page; everything in it comes out of files that the stages wrote."""
    if config.pictures and len(config.pictures) != len(config.bundles):
        raise UsageError(
            f"{len(config.bundles)} bundles and {len(config.pictures)} pictures; give one picture per bundle"
        )
    bundles = [Bundle.open(path) for path in config.bundles]
    timings = read_json(config.timings) if config.timings else None
    body = [
        section("The pictures", pictures(bundles, config.pictures)) if config.pictures else "",
        section("Size and cost", sizes(bundles)),
        section("Speed, interleaved in one run", speed(timings)) if timings else "",
        section("Parity with PyTorch fp32", parity(bundles)),
        section("Training", training(read_json(config.training / "kdc.json"))) if config.training else "",
    ]
    size = page.write(config.output, config.title, body)
    print(f"{config.output}: {size / 1e6:.1f} MB, open it in a browser", file=sys.stderr)
    return {"report": str(config.output), "bundles": [bundle.id for bundle in bundles]}


def pictures(bundles: Sequence[Bundle], paths: Sequence[Path]) -> str:
    figures = "".join(
        f"<figure>{picture(path, f'Pictures by {label(bundle)}')}<figcaption>{escape(label(bundle))}</figcaption></figure>"
        for bundle, path in zip(bundles, paths, strict=True)
    )
    return f'<div class="pictures">{figures}</div>'


def sizes(bundles: Sequence[Bundle]) -> str:
    rows = []
    for bundle in bundles:
        for name, part in bundle.manifest.components.items():
            macs = NOT_MEASURED if part.macs is None else f"{part.macs / 1e6:,.1f} M"
            bytes_ = sum(bundle.manifest.files[path].bytes for path in part.files)
            rows.append((label(bundle), name, f"{part.parameters:,}", macs, f"{bytes_ / 1e6:.1f} MB"))
    return table(("bundle", "component", "parameters", "MACs per call", "on disk"), rows)


def speed(timings: Mapping[str, Any]) -> str:
    rows = [
        (
            name,
            f"{result['a']['p50_s'] * 1e3:.2f} ms",
            f"{result['b']['p50_s'] * 1e3:.2f} ms",
            f"{result['ratio']:.3f}",
            f"{result['low']:.3f} – {result['high']:.3f}",
            str(result["a"]["count"]),
        )
        for name, result in timings["results"].items()
    ]
    a, b = (timings["bundles"][key]["name"] for key in "ab")
    machine = timings["machine"]
    where = f"{machine['processor']}, {machine['cores']} cores, {timings['runtime']}, Python {machine['python']}"
    head = ("", a, b, "ratio", "95 % interval", "samples each")
    return table(head, rows) + f"<p>Medians. {escape(where)}.</p>"


def parity(bundles: Sequence[Bundle]) -> str:
    rows = []
    for bundle in bundles:
        measured = bundle.report.get("parity", {})
        for name in bundle.manifest.components:
            found = measured.get(name)
            value = f"{found['snr_db']:.1f} dB" if found else NOT_MEASURED
            floor = f"{found['floor_db']:.0f} dB" if found else "–"
            rows.append((label(bundle), name, value, floor))
    return table(("bundle", "component", "worst SNR", "floor"), rows)


def training(info: Mapping[str, Any]) -> str:
    losses = info["losses"]
    seconds = losses["seconds"]
    note = f"{info['recipe']}: {losses['steps'][-1]} steps in {seconds / 60:.1f} minutes. Loss by term, logarithmic."
    return curve(losses["steps"], losses["terms"]) + f"<p>{escape(note)}</p>"


def curve(steps: Sequence[int], terms: Mapping[str, Sequence[float]], width: int = 640, height: int = 240) -> str:
    """A line per loss term as inline SVG, log scale."""
    import math

    values = [math.log10(max(v, 1e-8)) for series in terms.values() for v in series]
    low, high = min(values), max(values)
    span = max(high - low, 1e-6)

    def points(series: Iterable[float]) -> str:
        return " ".join(
            f"{40 + (width - 50) * step / steps[-1]:.1f},{10 + (height - 40) * (high - math.log10(max(v, 1e-8))) / span:.1f}"
            for step, v in zip(steps, series, strict=True)
        )

    lines = "".join(
        f'<polyline class="line-{i}" points="{points(series)}"/><text class="text-{i}" x="{50 + 70 * i}" '
        f'y="{height - 6}">{escape(name)}</text>'
        for i, (name, series) in enumerate(terms.items())
    )
    ticks = f'<text x="2" y="18">{10**high:.2g}</text><text x="2" y="{height - 30}">{10**low:.2g}</text>'
    last = f'<text x="{width - 90}" y="{height - 6}">step {steps[-1]}</text>'
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="loss curve">{lines}{ticks}{last}</svg>'


def label(bundle: Bundle) -> str:
    return f"{bundle.manifest.name} · {bundle.manifest.precision}"
