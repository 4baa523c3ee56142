"""What a report is about: bundles, each with its runs, gathered from bundle folders, records and folders of records."""

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.figures import quality
from bench.history import read_all
from bench.record import NOT_MEASURED, Record
from bench.side import about
from kdc_edge.bundle import Bundle
from kdc_edge.cards import read as read_cards
from kdc_edge.errors import UsageError
from kdc_edge.schema import dump


@dataclass(frozen=True)
class Subject:
    """One bundle id. `bundle` is None where only records of it were given, `records` empty where nobody ran it."""

    about: dict[str, Any]
    """As records have it: id, name, precision, bytes, counters."""
    label: str
    bundle: Bundle | None
    records: tuple[Record, ...]
    """In the order they were taken."""
    cards: dict[str, dict[str, Any]]
    """Quality: `prompts.figure` to its number."""

    @property
    def id(self) -> str:
        return self.about["id"]

    @property
    def steps(self) -> int:
        return self.records[-1].settings.steps if self.bundle is None else self.bundle.manifest.pipeline.steps

    @property
    def guidance(self) -> float:
        return self.records[-1].settings.guidance if self.bundle is None else self.bundle.manifest.pipeline.guidance

    @property
    def parity(self) -> dict[str, Any]:
        """By component; empty where it was not measured."""
        found = self.records[-1].parity if self.bundle is None else self.bundle.report.get("parity", NOT_MEASURED)
        return found if isinstance(found, dict) else {}

    def latest(self, device: str) -> Record | None:
        """The last run at a place that timed a picture; a finished one if there is any."""
        timed = [run for run in self.records if run.place == device and _timed(run)]
        return next((run for run in reversed(timed) if run.complete), timed[-1] if timed else None)


def gather(sources: Sequence[Path], cards: Sequence[Path]) -> list[Subject]:
    """In the order given, a bundle once however often it is named. Raises UsageError where there is nothing."""
    bundles = [Bundle.open(path) for path in sources if (path / "manifest.json").is_file()]
    records = read_all([path for path in sources if not (path / "manifest.json").is_file()])
    abouts = {bundle.id: about(bundle) for bundle in bundles}
    for run in records:
        abouts.setdefault(run.bundle["id"], run.bundle)
    if not abouts:
        raise UsageError("nothing to report on; give bundle folders, records of bench run, or folders of records")
    opened = {bundle.id: bundle for bundle in reversed(bundles)}
    measured = _cards(cards)
    found = []
    for id, what in abouts.items():
        runs = sorted((run for run in records if run.bundle["id"] == id), key=lambda run: run.created)
        numbers = measured.pop(id, None) or _own_quality(opened.get(id), runs)
        label = f"{what['name']} {what['precision']}"
        found.append(Subject(what, label, opened.get(id), tuple(runs), numbers))
    if measured:
        strangers = ", ".join(id[:12] for id in measured)
        print(f"cards of {strangers}, which this report is not about, were left out", file=sys.stderr)
    return _told_apart(found)


def machines(subjects: Sequence[Subject]) -> dict[str, Record]:
    """By place, machine and way of running, a run that timed a picture there."""
    return {run.place: run for subject in subjects for run in subject.records if _timed(run)}


def _timed(run: Record) -> bool:
    return "picture" in run.latency and bool(run.latency["picture"].warm_wall_s)


def _own_quality(bundle: Bundle | None, runs: Sequence[Record]) -> dict[str, dict[str, Any]]:
    kept = bundle.report.get("quality") if bundle else None
    return quality(kept) or next((numbers for run in reversed(runs) if (numbers := quality(run.quality))), {})


def _cards(paths: Sequence[Path]) -> dict[str, dict[str, dict[str, Any]]]:
    """By id of what was measured."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for path in paths:
        for card in read_cards(path).cards:
            found.setdefault(card.id, {}).update(quality({"cards": [dump(card)]}))
    return {id: numbers for id, numbers in found.items() if numbers}


def _told_apart(subjects: list[Subject]) -> list[Subject]:
    """Bundles of one name and precision get the beginnings of their ids."""
    counted = Counter(subject.label for subject in subjects)
    twice = [name for name, count in counted.items() if count > 1]
    for name in twice:
        print(f"{counted[name]} bundles are called {name}; they are told apart by their ids", file=sys.stderr)
    return [
        replace(subject, label=f"{subject.label} {subject.id[:8]}") if subject.label in twice else subject
        for subject in subjects
    ]
