"""The metric card: every number with what it rests on. Two cards compare only where their rules agree.

`card.json` is format 1, strict: one card for each set of prompts. What was not measured is named with the reason.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from kdc_edge import markdown, schema
from kdc_edge.drawing import How
from kdc_edge.errors import UsageError, choose
from kdc_edge.files import read_json, write_json

FORMAT = 1
ACROSS = ("seed", "sampler", "steps", "guidance", "count")  # what may differ where that is asked for
NOT_MEASURED = "not measured"
CEILING = "autoencoder"  # the kind of a card of real pictures, encoded and decoded
UNKNOWN = "drawn elsewhere"


@dataclass(frozen=True)
class Basis:
    """What a number rests on besides the pictures."""

    extractor: str
    """The network, and which of its outputs; "pixels" where there is none."""
    extractor_hash: str
    """SHA-256 of its weights."""
    resize: str
    """How pictures were brought to its size."""
    reference: str = ""
    """What they were held against."""
    reference_hash: str = ""


@dataclass(frozen=True)
class Number:
    """A figure of `count` pictures, with its 95 % interval."""

    value: float
    low: float
    high: float
    count: int
    interval: str
    """How the interval was found."""
    better: Literal["lower", "higher"]
    basis: Basis


@dataclass(frozen=True)
class Card:
    """One model on one set of prompts."""

    model: str
    kind: str
    runtime: str
    id: str
    prompts: str
    prompts_hash: str
    count: int
    how: How
    numbers: dict[str, Number]
    not_measured: dict[str, str] = field(default_factory=dict)
    """By figure, why."""
    skipped: int = 0
    """Pictures that could not be read and were left out."""


@dataclass(frozen=True)
class Cards:
    """`card.json`: the cards of one run."""

    format: int
    created: str
    command: str
    machine: dict[str, Any]
    versions: dict[str, str]
    cards: tuple[Card, ...]
    verdict: dict[str, Any] = field(default_factory=dict)
    """Of `--against`."""


def read(path: Path) -> Cards:
    """Raises BundleError for a file that is no card."""
    data = read_json(path)
    schema.check_format(data, FORMAT, path, if_older="measure it again")
    return schema.parse(Cards, data, path)


def write(path: Path, cards: Cards) -> None:
    write_json(path, schema.dump(cards))


def differences(a: Card, b: Card, across: Sequence[str] = ()) -> list[str]:
    """What keeps two cards from being compared: every rule that differs and is not in `across`."""
    rules = {"prompts": (a.prompts_hash, b.prompts_hash), "count": (a.count, b.count)}
    rules |= {name: (getattr(a.how, name), getattr(b.how, name)) for name in ("seed", "sampler", "steps", "guidance")}
    found = [
        f"{name}: {_short(x)} against {_short(y)}" for name, (x, y) in rules.items() if x != y and name not in across
    ]
    for name in a.numbers:
        if name in b.numbers:
            x, y = a.numbers[name], b.numbers[name]
            pairs = {key: (getattr(x.basis, key), getattr(y.basis, key)) for key in schema.dump(x.basis)}
            if "count" not in across:
                pairs["count"] = (x.count, y.count)
            found += [f"{name}'s {key}: {_short(p)} against {_short(q)}" for key, (p, q) in pairs.items() if p != q]
    return found


def require_alike(cards: Sequence[Card], across: Sequence[str] = ()) -> None:
    """UsageError naming what differs between the first card and another."""
    for name in across:
        choose(name, ACROSS, "rule")
    for other in cards[1:]:
        if found := differences(cards[0], other, across):
            raise UsageError(f"{cards[0].model} and {other.model} were not measured alike: {'; '.join(found)}")


def table(cards: Sequence[Card]) -> str:
    """Markdown, a column a card: value and 95 % interval; below it what the numbers rest on."""
    names = list(dict.fromkeys(name for card in cards for name in (*card.numbers, *card.not_measured)))
    heads = (cards[0].prompts, *map(_head, cards))
    rows = [(_label(name, cards), *(_cell(card, name) for card in cards)) for name in names]
    return "\n".join([*markdown.table(heads, rows), "", *_notes(cards)]) + "\n"


def same_figures(a: Card, b: Card) -> bool:
    """To a thousandth of their intervals: another processor adds in another order."""
    return a.numbers.keys() == b.numbers.keys() and all(
        abs(x.value - y.value) <= (x.high - x.low) / 1000
        for x, y in ((a.numbers[name], b.numbers[name]) for name in a.numbers)
    )


def _head(card: Card) -> str:
    if card.kind == CEILING:
        return card.model
    way = f"{card.how.steps} {card.how.sampler} steps, guidance {card.how.guidance:g}" if card.how.steps else UNKNOWN
    return f"{card.model}, {way}"


def _label(name: str, cards: Sequence[Card]) -> str:
    better = next((card.numbers[name].better for card in cards if name in card.numbers), None)
    arrow = {"lower": " ↓", "higher": " ↑", None: ""}[better]
    return f"{name.replace('_', ' ')}{arrow}"


def _cell(card: Card, name: str) -> str:
    number = card.numbers.get(name)
    if number is None:
        return NOT_MEASURED
    return f"{number.value:.4g} [{number.low:.4g}, {number.high:.4g}]"


def _notes(cards: Sequence[Card]) -> list[str]:
    first = cards[0]
    notes = [f"{first.count} prompts ({first.prompts_hash[:12]}), seeds from {first.how.seed}; 95 % intervals."]
    rests: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for card in cards for name in card.numbers):
        number = next(card.numbers[name] for card in cards if name in card.numbers)
        rests.setdefault(_rest(number), []).append(name.replace("_", " "))
    notes += [f"{', '.join(names)}: {rest}." for rest, names in rests.items()]
    missing: dict[tuple[str, str], list[str]] = {}
    for card in cards:
        for pair in card.not_measured.items():
            missing.setdefault(pair, []).append(card.model)
    notes += [f"{', '.join(models)}: {name} {NOT_MEASURED}: {why}." for (name, why), models in missing.items()]
    notes += [f"{c.model}: {c.skipped} pictures could not be read and were left out." for c in cards if c.skipped]
    return [f"- {note}" for note in notes]


def _rest(number: Number) -> str:
    basis = number.basis
    by = basis.extractor + (f" ({basis.extractor_hash[:12]})" if basis.extractor_hash else "")
    against = f", against {basis.reference} ({basis.reference_hash[:12]})" if basis.reference else ""
    return f"{by}; {basis.resize}{against}; {number.count} pictures; {number.interval}"


def _short(value: object) -> str:
    text = str(value)
    return f"{text[:12]}…" if len(text) == 64 else text
