"""Which bundle for which device: the rule, and the numbers it looks at.

Of the bundles whose quality cannot be told from the best one's (their 95 % intervals overlap), the fastest; of those within
5 % of its time, the smallest. Where quality was not measured, the same of all, and the reader is told.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bench.record import NOT_MEASURED
from bench.roofline import ESTIMATED, Estimate, Model
from bench.side import PICTURE
from bench.subjects import Subject, machines

AS_FAST = 1.05  # times the fastest
MEASURED: Literal["measured"] = "measured"
# What people would ask first, first; `prompts.figure` of a card ends in one of them.
PREFERRED = ("by_text_top1", "by_picture_top1", "clip", "fid", "kid", "lpips", "psnr", "ssim", "tone")


@dataclass(frozen=True)
class Cell:
    """What is known of one bundle on one device; `seconds` of a picture, None where it was not measured."""

    subject: Subject
    device: str
    """Where it was measured, or the name of a published device."""
    state: Literal["measured", "estimated", "not measured"]
    seconds: float | None = None
    p90: float | None = None
    samples: int = 0
    estimate: Estimate | None = None


@dataclass(frozen=True)
class Choice:
    """The bundle to take on a device, and why."""

    cell: Cell
    speed: str
    quality: str

    @property
    def why(self) -> str:
        return "; ".join(filter(None, (self.speed, self.quality)))


def cells(subjects: Sequence[Subject], model: Model, estimated: Sequence[str]) -> dict[str, list[Cell]]:
    """By device, a cell for every bundle: machines that measured first."""
    found = {device: [_measured(subject, device) for subject in subjects] for device in machines(subjects)}
    return found | {device: [_estimated(subject, device, model) for subject in subjects] for device in estimated}


def choose(row: Sequence[Cell], metric: str | None) -> Choice | None:
    """None where nothing is known of any bundle on this device."""
    known = [cell for cell in row if cell.seconds is not None]
    if not known:
        return None
    rated = [cell for cell in known if metric in cell.subject.cards]
    if metric is None or not rated:
        return Choice(*_fastest(known), "quality was not measured")
    numbers = {cell.subject.id: cell.subject.cards[metric] for cell in rated}
    higher = next(iter(numbers.values()))["better"] == "higher"
    best = (max if higher else min)(numbers.values(), key=lambda number: number["value"])
    good = [cell for cell in rated if _as_good(numbers[cell.subject.id], best, higher)]
    if len(good) > 1:
        return Choice(*_fastest(good), f"quality cannot be told from the best one's, as of {len(good)} in all")
    why = "clearly the best pictures" if len(rated) > 1 else "the only one whose quality was measured"
    return Choice(good[0], "", why)


def _fastest(cells: Sequence[Cell]) -> tuple[Cell, str]:
    """The fastest, or a smaller one that is as fast; and which of the two it is."""
    seconds = {id(cell): cell.seconds or 0.0 for cell in cells}
    fastest = min(cells, key=lambda cell: seconds[id(cell)])
    alike = [cell for cell in cells if seconds[id(cell)] <= AS_FAST * seconds[id(fastest)]]
    smallest = min(alike, key=lambda cell: (cell.subject.about["bytes"], seconds[id(cell)]))
    return smallest, "the fastest" if len(alike) == 1 else f"the smallest of {len(alike)} as fast"


def figure(subjects: Sequence[Subject]) -> str | None:
    """The quality figure that most bundles have, the preferred one among equals; None where there is none."""
    counted = Counter(name for subject in subjects for name in subject.cards)
    return min(counted, key=lambda name: (-counted[name], _rank(name), name)) if counted else None


def front(points: Sequence[tuple[float, ...]]) -> list[bool]:
    """Pareto: no other point is as low in every coordinate and lower in one."""
    return [not any(_beats(other, point) for other in points) for point in points]


def _beats(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return all(x <= y for x, y in zip(a, b, strict=True)) and a != b


def _rank(name: str) -> int:
    ending = name.rpartition(".")[2]
    return PREFERRED.index(ending) if ending in PREFERRED else len(PREFERRED)


def _as_good(number: dict[str, Any], best: dict[str, Any], higher: bool) -> bool:
    return number["high"] >= best["low"] if higher else number["low"] <= best["high"]


def _measured(subject: Subject, device: str) -> Cell:
    run = subject.latest(device)
    if run is None:
        return Cell(subject, device, NOT_MEASURED)
    taken = run.latency[PICTURE].samples
    return Cell(subject, device, MEASURED, taken.p50, taken.quantile(0.9), len(taken.wall))


def _estimated(subject: Subject, device: str, model: Model) -> Cell:
    found = model.estimate(device, subject.about["counters"], subject.steps, subject.guidance)
    if found is None:
        return Cell(subject, device, NOT_MEASURED)
    return Cell(subject, device, ESTIMATED, found.picture_s, estimate=found)
