"""What the page's charts show, as JSON data that `report.js` draws; a chart without data is not in it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.changes import change_points
from bench.database import Row
from bench.figures import PEAK_MIB, PICTURE_S, figures
from bench.history import series
from bench.record import Record
from bench.side import PICTURE, work
from bench.subjects import Subject, machines
from bench.verdict import Cell, front
from kdc_edge.errors import UsageError
from kdc_edge.files import read_json

TRENDS = {PICTURE_S: ("a picture", "ms", 1e3), PEAK_MIB: ("peak memory", "MiB", 1.0)}
SHORT = {"text_encoder": "text encoder", "unet": "U-Net", "vae_decoder": "decoder", PICTURE: "whole picture"}


def tradeoff(cells: Mapping[str, Sequence[Cell]], metric: str | None, named: Mapping[str, str]) -> list[dict[str, Any]]:
    """A dot per bundle and device with a time; on the front where no other of its device is better in everything."""
    found = []
    for device, row in cells.items():
        known = [cell for cell in row if cell.seconds is not None]
        ons = front([_coordinates(cell, metric) for cell in known])
        for cell, on in zip(known, ons, strict=True):
            number = cell.subject.cards.get(metric or "")
            found.append(
                {
                    "bundle": cell.subject.label,
                    "device": named[device],
                    "state": cell.state,
                    "ms": 1e3 * (cell.seconds or 0),
                    "mb": cell.subject.about["bytes"] / 1e6,
                    "front": on,
                    **({key: number[key] for key in ("value", "low", "high")} if number else {}),
                }
            )
    return found


def _coordinates(cell: Cell, metric: str | None) -> tuple[float, ...]:
    """Less is better in each; a bundle whose quality is unknown cannot beat one in it."""
    number = cell.subject.cards.get(metric or "")
    worth = float("inf") if number is None else number["value"] * (-1 if number["better"] == "higher" else 1)
    return cell.seconds or 0.0, float(cell.subject.about["bytes"]), worth


def latencies(subjects: Sequence[Subject], named: Mapping[str, str]) -> list[dict[str, Any]]:
    """Every warm sample of each bundle's last run on each machine."""
    return [
        {"bundle": subject.label, "device": named[device], "what": SHORT[what], "ms": round(1e3 * taken, 4)}
        for device, subject, run in _last(subjects)
        for what, latency in run.latency.items()
        for taken in latency.warm_wall_s
    ]


def waterfall(subjects: Sequence[Subject], named: Mapping[str, str]) -> list[dict[str, Any]]:
    """Where a picture's time goes: calls × median of each component one after the other, and what is left over.

    Components are timed as a guided picture calls them; of a bundle without guidance, calls at half that batch are counted
    as half a call.
    """
    found = []
    for device, subject, run in _last(subjects):
        start, whole = 0.0, run.latency[PICTURE].samples.p50
        for what, (calls, batch) in work(run.settings.steps, run.settings.guidance).items():
            latency = run.latency[what]
            if not latency.warm_wall_s:
                continue
            seconds = calls * latency.samples.p50 * batch / latency.batch
            found.append(_bar(subject, named[device], f"{SHORT[what]}, {calls} ×", SHORT[what], start, start + seconds))
            start += seconds
        rest = _bar(subject, named[device], "between the calls", "rest", start, whole)
        found += [rest] if whole > start else []
    return found


def _bar(subject: Subject, device: str, name: str, part: str, start: float, end: float) -> dict[str, Any]:
    times = {"start": 1e3 * start, "end": 1e3 * end}
    return {"bundle": subject.label, "device": device, "name": name, "part": part, **times}


def memory(subjects: Sequence[Subject], named: Mapping[str, str]) -> list[dict[str, Any]]:
    """MiB a process held, and MB on disk."""
    return [
        {"bundle": subject.label, "device": named[device], "mib": run.peak_rss_mib, "mb": subject.about["bytes"] / 1e6}
        for device, subject, run in _last(subjects)
        if not isinstance(run.peak_rss_mib, str)
    ]


def trajectory(subjects: Sequence[Subject]) -> list[dict[str, Any]]:
    """SNR against PyTorch fp32 after each step, of the bundle's own trajectory from the same noise."""
    found = []
    for subject in subjects:
        report = subject.bundle.report if subject.bundle else {}
        steps = report.get("picture", {}).get("latents_snr_db", [])
        found += [{"bundle": subject.label, "step": i + 1, "db": db} for i, db in enumerate(steps)]
    return found


def trends(subjects: Sequence[Subject], kept: Sequence[Row], named: Mapping[str, str]) -> list[dict[str, Any]]:
    """Series of three runs or more, of the records given and of a history, a run once."""
    labels = {subject.id: subject.label for subject in subjects}
    rows = {(row.created, *row.series): row for row in (*kept, *_rows(subjects))}
    found = []
    for (device, bundle, metric), runs in series(sorted(rows.values(), key=lambda row: row.created)).items():
        if metric not in TRENDS or bundle not in labels or len(runs) < 3:
            continue
        name, unit, scale = TRENDS[metric]
        changed = change_points([run.value for run in runs])
        points = [
            {
                "at": run.created,
                "value": scale * run.value,
                "revision": (run.revision or "")[:12],
                "changed": i in changed,
            }
            for i, run in enumerate(runs)
        ]
        where = named.get(device, f"{runs[-1].processor}; {runs[-1].how}")
        found.append({"bundle": labels[bundle], "device": where, "figure": name, "unit": unit, "points": points})
    return found


def training(path: Path) -> list[dict[str, Any]]:
    """Loss by term of a checkpoint's own report. Raises UsageError where it has none."""
    losses = read_json(path / "kdc.json").get("losses") or {}
    if not losses.get("terms"):
        raise UsageError(
            f"{path}: its kdc.json has no losses to show; leave --training out, or name another checkpoint"
        )
    return [
        {"step": step, "term": term, "loss": value}
        for term, values in losses["terms"].items()
        for step, value in zip(losses["steps"], values, strict=True)
    ]


def _rows(subjects: Sequence[Subject]) -> list[Row]:
    return [
        Row(
            key="",
            created=run.created,
            complete=int(run.complete),
            device=run.fingerprint,
            processor=run.machine["processor"],
            how=run.settings.how,
            bundle=subject.id,
            name=subject.about["name"],
            precision=subject.about["precision"],
            revision=run.revision,
            metric=metric,
            value=value,
        )
        for subject in subjects
        for run in subject.records
        for metric, value in figures(run).items()
        if metric in TRENDS
    ]


def _last(subjects: Sequence[Subject]) -> list[tuple[str, Subject, Record]]:
    found = [(device, subject, subject.latest(device)) for device in machines(subjects) for subject in subjects]
    return [(device, subject, run) for device, subject, run in found if run is not None]
