"""A whole measurement: cards written and shown, and the verdict of `--against` as an exit code."""

import shlex
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from PIL import Image

from kdc_edge import cards, machine
from kdc_edge.cards import Card, Cards
from kdc_edge.drawing import ALONE, Part
from kdc_edge.errors import GateError
from kdc_edge.quality import Quality
from kdc_edge.runtimes import Options
from kdc_edge.torch_ref.measure import Bench, Seen, against, cards_of, clear, work_folder
from kdc_edge.torch_ref.subject import Subject

VERSIONS = ("kdc-edge", "numpy", "pillow", "torch", "transformers", "torchmetrics", "onnxruntime")
More = Callable[[Bench, Subject, list[Seen]], list[Card]]


def measure(
    path: Path,
    quality: Quality,
    runtime: str = "ort",
    options: Options | None = None,
    part: Part = ALONE,
    more: More | None = None,
) -> Cards:
    """The cards of one model, those that `more` makes of it, and the verdict against the other if one is named."""
    options = Options() if options is None else options
    bench = Bench.open(quality, part)
    subject = Subject.open(path, runtime, options, quality)
    seen = cards_of(bench, subject)
    verdict = {} if quality.against is None else against(bench, seen, runtime, options)
    made = [one.card for one in seen] + ([] if more is None else more(bench, subject, seen))
    found = Cards(
        format=cards.FORMAT,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=shlex.join(["python", "-m", _module(), *sys.argv[1:]]),
        machine=machine.describe(),
        versions=machine.versions(VERSIONS),
        cards=tuple(made),
        verdict=verdict,
    )
    if part.first:
        if quality.output is not None:
            cards.write(quality.output, found)
        show(found)
        if quality.keep:
            folders = [str(work_folder(quality, one.drawings) / "pictures") for one in seen]
            print(f"drawings: {', '.join(folders)}", file=sys.stderr)
    clear(bench, seen)
    subject.close()
    return found


def show(found: Cards) -> None:
    """A table for each set of prompts."""
    for prompts in dict.fromkeys(card.prompts for card in found.cards):
        print(cards.table([card for card in found.cards if card.prompts == prompts]), file=sys.stderr)
    for change in found.verdict.get("changes", ()):
        band = f"{change['band']:.2%} ({change['band_from']})"
        seen = f"{change['value']:+.2%} [{change['low']:+.2%}, {change['high']:+.2%}] of {change['count']} pictures"
        print(
            f"{change['prompts']}, {change['metric']}: worse by {seen}, band {band}: {change['outcome']}",
            file=sys.stderr,
        )


def conclude(verdict: dict[str, Any]) -> None:
    """GateError unless the model is as good, or nothing was asked."""
    if not verdict or verdict["outcome"] == "equivalent":
        return
    reasons = []
    for change in verdict["changes"]:
        if change["outcome"] == verdict["outcome"]:
            where = (
                f"{change['metric']} on {change['prompts']} is worse by [{change['low']:+.2%}, {change['high']:+.2%}]"
            )
            reasons.append(f"{where}, the band is {change['band']:.2%}{_remedy(change)}")
    raise GateError(f"{verdict['outcome']}: {'; '.join(reasons)}")


def _remedy(change: dict[str, Any]) -> str:
    if change["outcome"] != "inconclusive":
        return ""
    if change["decisive_count"] is None:
        return "; no number of pictures would decide it, the change is the band's own size"
    return f"; about {change['decisive_count']:,} pictures would decide, there are {change['count']:,}"


def sheet_of(seen: Seen, count: int) -> list[Image.Image]:
    """The first pictures of a set."""
    assert seen.sample.folder is not None
    files = [seen.drawings.pictures[number].file for number in seen.sample.numbers[:count]]
    return [Image.open(seen.sample.folder / file).convert("RGB") for file in files]


def _module() -> str:
    """What `python -m` ran."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return "kdc_edge" if spec is None else spec.name.removesuffix(".__main__")
