"""One self-contained HTML page about bundles: which for which device, how fast, how big, how good, and how sure.

    python -m bench report kdc_edge/data/emoji-64 bench/baseline.json -o report.html
    python -m bench report runs/bench --history runs/history.sqlite --device iphone-14 raspberry-pi-5 -o report.html

It works offline and fetches nothing: its own policy forbids that. Charts are drawn by Observable Plot, which is in the page.
"""

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any

import tyro

from bench import charts, shown, tables, verdict
from bench.database import Row, Wanted, opened
from bench.estimate import split
from bench.roofline import shipped
from bench.subjects import Subject, gather, machines
from kdc_edge import page
from kdc_edge.errors import UsageError, choose
from kdc_edge.files import read_json
from kdc_edge.page import escape, section

HERE = Path(__file__).parent
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
NOTHING_TIMED = '<p class="note">Nothing was timed and no device was named: give records of bench run, or --device.</p>'
SCRIPTS = ("vendor/d3.min.js", "vendor/plot.umd.min.js", "report.js")


@dataclass(frozen=True)
class ReportConfig:
    """What goes into the page."""

    sources: tyro.conf.Positional[tuple[Path, ...]]
    """Bundles, records of bench run, and folders of records; the reference first."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """HTML file to write."""
    device: tuple[str, ...] = ()
    """Devices of bench/published.json to estimate for, apart by spaces or commas."""
    history: Path | None = None
    """What bench history keeps: trends of these bundles."""
    cards: tuple[Path, ...] = ()
    """Metric cards of bench quality, beside those in the bundles."""
    prompts: tuple[str, ...] = ()
    """Draw these now with every bundle; else the golden pictures that bundles bring along are shown."""
    seed: int = 0
    """Of the first prompt's noise; each further one has the next."""
    runtime: str = "ort"
    """That draws."""
    training: Path | None = None
    """Checkpoint folder whose loss curve to show."""
    force: bool = False
    """Replace a page that is there."""
    title: str = "Which bundle for which device"


@dataclass(frozen=True)
class Material:
    """Everything that is shown, gathered; nothing is measured from here on."""

    config: ReportConfig
    subjects: list[Subject]
    cells: dict[str, list[verdict.Cell]]
    metric: str | None
    """The quality figure of the answer and of the trade-off."""
    named: dict[str, str]
    """Devices in words."""
    kept: list[Row]
    pictures: list[shown.Pictures]


def report(config: ReportConfig) -> dict[str, Any]:
    """Write the page; everything in it comes out of files that the stages wrote, or says that it does not."""
    if config.output.exists() and not config.force:
        raise UsageError(f"{config.output} exists; choose another --output or pass --force to replace it")
    material = gathered(config)
    data = charted(material)
    parts = written(material, data)
    body = [_lead(material, parts), *(section(parts[key][0], parts[key][1], key) for key in parts), _scripts(data)]
    size = page.write(config.output, config.title, body, head=_head())
    print(f"{config.output}: {size / 1e6:.1f} MB, open it in a browser", file=sys.stderr)
    return {"report": str(config.output), "bundles": [subject.id for subject in material.subjects], "bytes": size}


def gathered(config: ReportConfig) -> Material:
    """Reads, and with --prompts draws. Raises UsageError and BundleError before anything is written."""
    model, asked = shipped(), split(config.device)
    for name in asked:
        choose(name, model.data.devices, "device")
    subjects = gather(config.sources, config.cards)
    kept = _kept(config.history)
    pictures = [
        shown.drawn(subject, config.prompts, config.seed, config.runtime) if config.prompts else shown.golden(subject)
        for subject in subjects
    ]
    return Material(
        config,
        subjects,
        cells=verdict.cells(subjects, model, asked),
        metric=verdict.figure(subjects),
        named=_named(subjects) | {name: model.data.devices[name].name for name in asked},
        kept=kept,
        pictures=pictures,
    )


def charted(material: Material) -> dict[str, Any]:
    """What `report.js` draws, by the name of its chart."""
    subjects, named, metric, training = material.subjects, material.named, material.metric, material.config.training
    better = next((s.cards[metric]["better"] for s in subjects if metric in s.cards), "") if metric else ""
    about = (
        {"name": tables.metric_name(metric), "higher": better == "higher", "share": tables.is_share(metric)}
        if metric
        else None
    )
    return {
        "bundles": [subject.label for subject in subjects],
        "metric": about,
        "tradeoff": charts.tradeoff(material.cells, metric, named),
        "latencies": charts.latencies(subjects, named),
        "waterfall": charts.waterfall(subjects, named),
        "memory": charts.memory(subjects, named),
        "trajectory": charts.trajectory(subjects),
        "trends": charts.trends(subjects, material.kept, named),
        "training": charts.training(training) if training else [],
    }


def written(material: Material, data: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Title and content by anchor, in order; what there is nothing to say about is left out."""
    subjects, cells, metric, named = material.subjects, material.cells, material.metric, material.named
    command = shlex.join(["python", "-m", "bench", *sys.argv[1:]])
    devices = tables.devices(cells, named) + _estimates(material.config) if cells else ""
    parts = {
        "answer": ("The answer", tables.answer(cells, metric, named) if cells else NOTHING_TIMED),
        "pictures": ("The same prompts, the same noise", shown.grid(subjects, material.pictures)),
        "tradeoff": ("Size, quality, latency", _chart("tradeoff", data)),
        "latency": ("How fast, call by call", _chart("latencies", data, tables.warm_and_cold(subjects))),
        "waterfall": ("Where a picture's time goes", _chart("waterfall", data, tables.ratios(subjects))),
        "memory": ("Size and memory", _chart("memory", data) + tables.sizes(subjects)),
        "quality": ("How good", tables.qualities(subjects)),
        "parity": ("Parity with PyTorch fp32", _chart("trajectory", data) + tables.parity(subjects)),
        "devices": ("Every device", devices),
        "trends": ("Over time", _chart("trends", data, tables.changes(data["trends"]))),
        "training": ("Training", _chart("training", data, _trained(material.config.training))),
        "reproduce": ("Do it again", tables.reproduce(subjects, command)),
    }
    return {key: part for key, part in parts.items() if part[1]}


def _lead(material: Material, parts: Mapping[str, tuple[str, str]]) -> str:
    runs = sum(len(subject.records) for subject in material.subjects)
    counts = (len(material.subjects), "bundle"), (runs, "run"), (len(machines(material.subjects)), "place")
    links = "".join(f'<a href="#{key}">{escape(title)}</a>' for key, (title, _) in parts.items())
    today = datetime.now(timezone.utc).strftime("%Y-%m-%d")
    return f'<p class="lead">{", ".join(_count(*each) for each in counts)}; {today}.</p><nav>{links}</nav>'


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _named(subjects: Sequence[Subject]) -> dict[str, str]:
    """Machines by processor; those of one processor are told apart by what differs."""
    found = machines(subjects)
    names = {
        key: f"{run.machine['processor']}, {_count(run.machine['cores'], 'core')}; {run.settings.how}"
        for key, run in found.items()
    }
    return {key: name if list(names.values()).count(name) == 1 else f"{name}, {key[:6]}" for key, name in names.items()}


def _kept(path: Path | None) -> list[Row]:
    if path is None:
        return []
    with opened(path, create=False) as database:
        return [row for metric in charts.TRENDS for row in database.rows(Wanted(metric=metric))]


def _estimates(config: ReportConfig) -> str:
    if not config.device:
        return ""
    note = "How far the estimates are from published measurements, each chip left out of the fit in turn:"
    return f'<p class="note">{note}</p>{tables.how_far(shipped())}'


def _trained(path: Path | None) -> str:
    if path is None:
        return ""
    info = read_json(path / "kdc.json")
    losses = info["losses"]
    note = f"{info['recipe']}: {losses['steps'][-1]} steps in {losses['seconds'] / 60:.1f} minutes; loss by term."
    return f'<p class="note">{escape(note)}</p>'


def _chart(name: str, data: Mapping[str, Any], below: str = "") -> str:
    """A place for `report.js` to draw in and what belongs below it; nothing where the chart has no data."""
    return f'<div class="chart" data-chart="{name}"></div>{below}' if data[name] else ""


def _head() -> str:
    style = (HERE / "report.css").read_text(encoding="utf-8")
    return f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n<style>\n{style}</style>'


def _scripts(data: Mapping[str, Any]) -> str:
    """JSON in a script ends at no `</script>` of its own: every `<` is escaped."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    code = "".join(f"<script>{(HERE / name).read_text(encoding='utf-8')}</script>\n" for name in SCRIPTS)
    none = '<noscript><p class="note">The charts need JavaScript; the tables do not.</p></noscript>'
    return f'{none}<script type="application/json" id="data">{text}</script>\n{code}'
