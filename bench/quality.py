"""How good are a bundle's pictures? FID, KID, CLIP score, LPIPS, PSNR, SSIM, retrieval, through its own runtime.

    python -m bench quality kdc_edge/data/emoji-64 -o runs/cards/bundle.json             # about four minutes on one CPU core
    python -m bench quality runs/int8 --against runs/fp32                                # is it as good?
    python -m bench cards runs/cards/*.json --across sampler steps guidance

Drawing needs no torch; judging does: pip install 'kdc-edge[quality]'.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from kdc_edge import cards as metric_cards
from kdc_edge import schema
from kdc_edge.bundle import Bundle
from kdc_edge.errors import MissingBackend, UsageError
from kdc_edge.files import write_json
from kdc_edge.quality import Quality
from kdc_edge.runtimes import Options


@dataclass(frozen=True)
class QualityConfig:
    """A bundle, how it runs, and what is measured."""

    bundle: tyro.conf.Positional[Path]
    """A bundle; or a checkpoint, or pictures that were drawn before."""
    quality: Quality = field(default_factory=Quality)
    runtime: str = "ort"
    provider: str | None = None
    threads: int | None = None
    """Of the runtime; its own choice if not given."""
    allow_fallback: bool = False
    """Go on where the provider asked for cannot be used."""
    record: bool = False
    """Write the cards into the bundle's report.json, too, which bench run's records take them from."""


@dataclass(frozen=True)
class CardsConfig:
    """Metric cards to lay side by side."""

    files: tyro.conf.Positional[tuple[Path, ...]]
    """JSON files of `bench quality` or `train.evaluate`."""
    across: tuple[str, ...] = ()
    """Rules that may differ: seed, sampler, steps, guidance, count. The table shows them."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """Markdown file for the tables."""


def quality(config: QualityConfig) -> dict[str, Any]:
    """Quality of a bundle's pictures; with --against exit 1 unless it is as good as the other."""
    try:
        from kdc_edge.torch_ref.measured import conclude, measure
    except ModuleNotFoundError as error:
        raise MissingBackend(f"{error.name} is not installed, and judges: pip install 'kdc-edge[quality]'") from error
    if config.record:
        Bundle.open(config.bundle)  # refused before hours of work
    options = Options(config.threads, config.provider, config.allow_fallback)
    found = measure(config.bundle, config.quality, config.runtime, options)
    data = schema.dump(found)
    if config.record:
        write_json(config.bundle / "report.json", {**Bundle.open(config.bundle).report, "quality": data})
    conclude(found.verdict)
    return data


def cards(config: CardsConfig) -> dict[str, Any]:
    """One table for each set of prompts; an error naming what differs where cards do not compare."""
    if not config.files:
        raise UsageError("no cards; give the JSON files of bench quality or train.evaluate")
    by_set: dict[str, list[metric_cards.Card]] = {}
    for path in config.files:
        for card in metric_cards.read(path).cards:
            alike = by_set.setdefault(card.prompts, [])
            if card.kind != metric_cards.CEILING or not any(metric_cards.same_figures(card, other) for other in alike):
                alike.append(card)  # models of one autoencoder have one ceiling
    for alike in by_set.values():
        metric_cards.require_alike(alike, config.across)
    text = "\n".join(metric_cards.table(alike) for alike in by_set.values())
    if config.output is not None:
        config.output.parent.mkdir(parents=True, exist_ok=True)
        config.output.write_text(text, encoding="utf-8")
    print(text, file=sys.stderr)
    return {"table": text}
