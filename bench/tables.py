"""The report's tables and its answer: plain HTML, so that they are there without scripts, on paper and for a search."""

from collections.abc import Mapping, Sequence
from typing import Any

from bench.estimate import error, errors, state
from bench.estimate import ms as rough
from bench.exports import ms, unit
from bench.record import NOT_MEASURED, Record
from bench.roofline import Estimate, Model
from bench.subjects import Subject, machines
from bench.verdict import MEASURED, Cell, choose
from kdc_edge.page import escape, table
from kdc_edge.pipeline import COMPONENTS

KINDS = {MEASURED: "measured", "estimated": "estimated", NOT_MEASURED: "none"}


def answer(cells: Mapping[str, Sequence[Cell]], metric: str | None, named: Mapping[str, str]) -> str:
    """A card per device: which bundle, how fast, how big, how good, how sure."""
    cards = []
    for device, row in cells.items():
        choice = choose(row, metric)
        if choice is None:
            cards.append(f'<article class="card"><h3>{escape(named[device])}</h3>{badge(NOT_MEASURED)}</article>')
            continue
        cell = choice.cell
        lines = [
            ("how fast", f"<b>{escape(duration(cell))}</b> a picture{escape(spread(cell))}"),
            ("how big", f"<b>{cell.subject.about['bytes'] / 1e6:.1f} MB</b>{escape(memory(cell.subject, device))}"),
            ("how good", escape(goodness(cell.subject, metric))),
            ("how sure", escape(certainty(cell))),
        ]
        facts = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in lines)
        cards.append(
            f'<article class="card {KINDS[cell.state]}"><h3>{escape(named[device])} {badge(cell.state)}</h3>'
            f'<p class="pick">{escape(cell.subject.label)}</p><p class="why">{escape(choice.why)}</p>'
            f"<dl>{facts}</dl></article>"
        )
    return f'<div class="cards">{"".join(cards)}</div>'


def badge(state: str) -> str:
    return f'<span class="state {KINDS[state]}">{state}</span>'


def duration(cell: Cell) -> str:
    if cell.seconds is None:
        return NOT_MEASURED
    if cell.estimate is None:
        return milliseconds(cell.seconds)
    return f"{'≥' if cell.estimate.method == 'roofline' else '≈'} {rough(cell.seconds)}"


def milliseconds(seconds: float) -> str:
    """Three digits."""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def spread(cell: Cell) -> str:
    return "" if cell.p90 is None else f", nine in ten under {milliseconds(cell.p90)}"


def memory(subject: Subject, device: str) -> str:
    run = subject.latest(device)
    known = run is not None and not isinstance(run.peak_rss_mib, str)
    return f", {run.peak_rss_mib:.0f} MiB at its peak" if run and known else ", peak memory not measured"


def goodness(subject: Subject, metric: str | None) -> str:
    number = subject.cards.get(metric or "")
    if number is None or metric is None:
        return NOT_MEASURED
    return f"{metric_name(metric)}: {value(metric, number['value'])} [{interval(metric, number)}], {number['count']} pictures"


def metric_name(metric: str) -> str:
    """`trained.by_text_top1` in words."""
    prompts, _, name = metric.rpartition(".")
    words = {
        "by_text_top1": "right emoji first, by text",
        "by_text_top5": "right emoji among five, by text",
        "by_picture_top1": "right emoji first, by picture",
        "by_picture_top5": "right emoji among five, by picture",
        "tone": "right skin tone",
        "clip": "CLIP score",
    }
    return f"{words.get(name, name.upper())} ({prompts})" if prompts else words.get(name, name)


def value(metric: str, number: float) -> str:
    return f"{number:.0%}" if is_share(metric) else f"{number:.3g}"


def interval(metric: str, number: Mapping[str, float]) -> str:
    return f"{value(metric, number['low'])}, {value(metric, number['high'])}"


def is_share(metric: str) -> bool:
    return metric.rpartition(".")[2].startswith(("by_", "tone"))


def certainty(cell: Cell) -> str:
    found = cell.estimate
    if found is None:
        return f"timed there, {cell.samples} pictures"
    off = error(found)
    return f"{state(found)}; error {off}" + ("" if off == "unknown" else " (median, chip left out)")


def devices(cells: Mapping[str, Sequence[Cell]], named: Mapping[str, str]) -> str:
    """A row per device, a column per bundle; the state of every number beside it."""
    labels = [cell.subject.label for cell in next(iter(cells.values()))]
    heads = "".join(f'<th scope="col">{escape(label)}</th>' for label in labels)
    rows = "".join(
        f'<tr><th scope="row">{escape(named[device])}</th>'
        + "".join(f'<td class="{KINDS[cell.state]}">{_time(cell)}</td>' for cell in row)
        + "</tr>"
        for device, row in cells.items()
    )
    return f'<div class="wide"><table class="devices"><thead><tr><th></th>{heads}</tr></thead>{rows}</table></div>'


def _time(cell: Cell) -> str:
    if cell.state == NOT_MEASURED:
        return badge(cell.state)
    return f"{escape(duration(cell))} {badge(cell.state)}<small>{escape(_basis(cell))}</small>"


def _basis(cell: Cell) -> str:
    found: Estimate | None = cell.estimate
    if found is None:
        return f"{cell.samples} samples, p90 {milliseconds(cell.p90 or 0)}"
    return f"{state(found).partition(': ')[2]}; error {error(found)}"


def how_far(model: Model) -> str:
    """The estimates' own error, as `bench estimate` prints it."""
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in errors(model))
    return table(head, rows)


def sizes(subjects: Sequence[Subject]) -> str:
    """A row per bundle, a column per component: parameters, MACs of a call, bytes on disk."""
    rows = [(s.label, *(_size(s.about["counters"][name]) for name in COMPONENTS)) for s in subjects]
    return table(("parameters, MACs a call, on disk", *map(spoken, COMPONENTS)), rows)


def _size(part: Mapping[str, float]) -> str:
    macs = f"MACs {NOT_MEASURED}" if part["macs"] is None else f"{part['macs'] / 1e6:,.0f} M"
    return f"{part['parameters'] / 1e6:,.2f} M, {macs}, {part['bytes'] / 1e6:.1f} MB"


def parity(subjects: Sequence[Subject]) -> str:
    rows = [(s.label, *(_snr(s.parity.get(name)) for name in COMPONENTS)) for s in subjects]
    return table(("worst SNR of a call, and its floor", *map(spoken, COMPONENTS)), rows)


def _snr(found: Mapping[str, float] | None) -> str:
    if not found:
        return NOT_MEASURED
    floor = found.get("floor_db")
    return f"{found['snr_db']:.1f} dB" + ("" if floor is None else f" (≥ {floor:.0f})")


def spoken(component: str) -> str:
    return component.replace("unet", "U-Net").replace("_", " ")


def qualities(subjects: Sequence[Subject]) -> str:
    """A row per bundle, a column per figure that any of them has, with its 95 % interval."""
    names = list(dict.fromkeys(name for subject in subjects for name in subject.cards))
    if not names:
        how = "python -m bench quality BUNDLE --record puts it into a bundle"
        return f'<p class="note">Quality was {NOT_MEASURED}; {how}.</p>'
    rows = [(subject.label, *(_quality(name, subject.cards.get(name)) for name in names)) for subject in subjects]
    better = {name: number["better"] for subject in subjects for name, number in subject.cards.items()}
    heads = [f"{metric_name(name)} {'↑' if better[name] == 'higher' else '↓'}" for name in names]
    return table(("with 95 % intervals", *heads), rows)


def _quality(name: str, number: Mapping[str, float] | None) -> str:
    return f"{value(name, number['value'])} [{interval(name, number)}]" if number else NOT_MEASURED


def ratios(subjects: Sequence[Subject]) -> str:
    """What took turns with what; empty where nothing did."""
    rows = []
    for subject in subjects:
        for run in subject.records[-1:]:
            for what, wall in run.against.wall.items() if run.against else ():
                other = f"{run.against.name} {run.against.precision}" if run.against else ""
                verdict = "faster" if wall.high < 1 else "slower" if wall.low > 1 else "no difference shown"
                ratio = f"{wall.ratio:.3f} [{wall.low:.3f}, {wall.high:.3f}]"
                rows.append((subject.label, other, spoken(what), ratio, verdict))
    return table(("bundle", "against, in turns", "", "time, ratio and 95 % interval", ""), rows) if rows else ""


def warm_and_cold(subjects: Sequence[Subject]) -> str:
    rows = []
    for device in machines(subjects):
        for subject in subjects:
            run = subject.latest(device)
            rows += [_start_row(subject, run)] if run else []
    return table(("bundle", "machine", "open", "first picture", "warm", "peak memory", "energy a picture"), rows)


def _start_row(subject: Subject, run: Record) -> tuple[str, ...]:
    picture = run.latency["picture"]
    return (
        *(subject.label, run.machine["processor"], ms(run.open_s), ms(picture.first_s), ms(picture.samples.p50)),
        *(unit(run.peak_rss_mib, "MiB"), unit(run.joules_per_picture, "J")),
    )


def changes(trends: Sequence[Mapping[str, Any]]) -> str:
    """Where a series of runs changed its level; a sentence where none did."""
    rows = []
    for trend in trends:
        points = trend["points"]
        for i, point in enumerate(points):
            if point["changed"]:
                went = f"{points[i - 1]['value']:.4g} → {point['value']:.4g} {trend['unit']}"
                revision = point["revision"] or "unknown"
                rows.append((trend["bundle"], trend["figure"], point["at"][:16], revision, went))
    if not rows:
        return '<p class="note">No change of level was found.</p>'
    return table(("bundle", "figure", "first run after", "revision", "from, to"), rows)


def reproduce(subjects: Sequence[Subject], command: str) -> str:
    """The exact commands, and what they ran on."""
    runs = {(run.command, run.fingerprint): run for subject in subjects for run in subject.records}
    lines = list(dict.fromkeys([*(run.command for run in runs.values()), command]))
    where = {run.fingerprint: _where(run) for run in runs.values()}
    ids = "".join(f"<li><code>{subject.id}</code> {escape(subject.label)}</li>" for subject in subjects)
    notes = "".join(f"<p>{escape(text)}</p>" for text in where.values())
    return (
        f"<pre>{escape(chr(10).join(lines))}</pre>{notes}<details><summary>Bundle ids</summary><ul>{ids}</ul></details>"
    )


def _where(run: Record) -> str:
    about, settings = run.machine, run.settings
    versions = ", ".join(f"{package} {number}" for package, number in run.versions.items())
    threads = settings.threads or "the runtime's choice of"
    revision = f"; revision {run.revision}" if run.revision else ""
    return (
        f"{about['processor']}, {about['cores']} cores, {about['os']}, Python {about['python']}; {versions}; "
        f"{threads} threads; power mode {settings.power_mode or NOT_MEASURED}{revision}; last run {run.created}."
    )
