"""Draw, look, judge: the metric cards of one model, and whether it is as good as another.

Each set of prompts is drawn into a folder, its features are taken, and a card is made of them. Drawings and features
stay in the run folder until the cards are written, so that a run that was killed goes on where it was.
"""

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from kdc_edge import prompts as prompt_sets
from kdc_edge import schema
from kdc_edge.cards import Basis, Card
from kdc_edge.drawing import ALONE, Drawings, Part
from kdc_edge.errors import UsageError
from kdc_edge.gallery import Gallery
from kdc_edge.pictures import Reading
from kdc_edge.prompts import PromptSet
from kdc_edge.quality import Quality
from kdc_edge.runtimes import Options
from kdc_edge.torch_ref import equivalence, extractors, figures, perceptual, reference
from kdc_edge.torch_ref.equivalence import Change
from kdc_edge.torch_ref.extractors import Extractor
from kdc_edge.torch_ref.figures import Known, Networks, Sample
from kdc_edge.torch_ref.reference import Reference
from kdc_edge.torch_ref.subject import Subject

GALLERY_SIZE = 64  # pixels of emoji-64
APART = 1_000_003  # seeds between the A/A draws


@dataclass
class Bench:
    """What all models of a run are measured with."""

    quality: Quality
    networks: Networks
    sets: list[PromptSet]
    lpips: perceptual.Lpips | None
    part: Part
    gallery: Gallery | None = None
    _known: dict[str, Known] = field(default_factory=dict)
    _references: dict[str, Reference | None] = field(default_factory=dict)

    @classmethod
    def open(cls, quality: Quality, part: Part = ALONE) -> "Bench":
        """Load networks and prompts; whatever cannot be measured is refused before anything is drawn."""
        quality.check()
        sets = [prompt_sets.load(name, quality.data, quality.count) for name in quality.prompts]
        judge, images = extractors.judge_images(quality.judge, quality.device)
        features = images
        if quality.inception is not None:
            features = extractors.inception_v3(quality.inception, quality.inception_sha256, quality.device)
        lpips = None
        if quality.lpips is not None and quality.lpips_weights is not None:
            lpips = perceptual.Lpips.open(quality.lpips, quality.lpips_weights)
        images, features = (sized(extractor, quality.size) for extractor in (images, features))
        bench = cls(quality, Networks(judge, images, features), sets, lpips, part)
        if any(s.rows for s in sets):
            bench.gallery = Gallery.open(quality.data, quality.size or GALLERY_SIZE)
        for prompts in sets:
            why = figures.too_few(len(prompts.prompts), features.dimensions)
            if why and quality.named("fid") and not quality.force:
                raise UsageError(f"--metrics fid on {prompts.name}: {why}")
        return bench

    @property
    def cache(self) -> Path:
        return self.quality.run_dir / "cache"

    def known(self, extractor: Extractor) -> Known:
        """The data set with pictures, as `extractor` sees it."""
        if self.gallery is None:
            raise UsageError(f"none of the prompt sets is of {self.quality.data}")
        if extractor.hash not in self._known:
            seen = reference.of_gallery(extractor, self.gallery, self.cache)
            self._known[extractor.hash] = Known(self.gallery, self.quality.data.name, seen)
        return self._known[extractor.hash]

    def reference(self, prompts: PromptSet) -> Reference | None:
        """The real pictures for FID and KID of a set."""
        if prompts.name not in self._references:
            self._references[prompts.name] = self._reference(prompts)
        return self._references[prompts.name]

    def _reference(self, prompts: PromptSet) -> Reference | None:
        extractor, quality = self.networks.features, self.quality
        if prompts.rows and quality.reference is None:
            known = self.known(extractor)
            return figures.reference_in(known, prompts, known.features)
        if quality.reference is None:
            return None
        reading = Reading(quality.size, quality.skip_bad)
        return reference.of_folder(extractor, quality.reference, reading, self.cache, self.part)


def sized(extractor: Extractor, size: int | None) -> Extractor:
    """Its resize rule, told from the first resizing on."""
    return extractor if size is None else replace(extractor, resize=f"{_crop(size)}; then {extractor.resize}")


def _crop(size: int | None) -> str:
    return "none" if size is None else f"centre crop, Lanczos to {size}"


@dataclass(frozen=True)
class Seen:
    """One model's pictures of one set, and their figures."""

    subject: Subject
    drawings: Drawings
    sample: Sample
    card: Card


def cards_of(bench: Bench, subject: Subject) -> list[Seen]:
    """Draw and measure every set."""
    if subject.pipeline is None and len(bench.sets) > 1:
        raise UsageError(f"{subject.path}: these pictures are of one set of prompts; name it with --prompts")
    found = []
    for prompts in bench.sets:
        drawings, sample = look(bench, subject, prompts, bench.quality.seed)
        known = bench.known(bench.networks.images) if prompts.rows else None
        measured = figures.all_of(bench.quality, bench.networks, sample, known, bench.reference(prompts))
        about = (subject.name, subject.kind, subject.runtime, subject.id, prompts.name, prompts.hash)
        count = len(prompts.prompts)
        card = Card(*about, count, drawings.how, measured.numbers, measured.not_measured, sample.skipped)
        found.append(Seen(subject, drawings, sample, card))
    return found


def look(bench: Bench, subject: Subject, prompts: PromptSet, seed: int) -> tuple[Drawings, Sample]:
    """Draw a set, or find it drawn, and take its features."""
    wanted = subject.plan(prompts, bench.quality, seed)
    folder = work_folder(bench.quality, wanted)
    pictures = subject.draw(wanted, folder / "pictures", bench.part)
    paths = [pictures / drawn.file for drawn in wanted.pictures]
    wanted_by = {e.hash: e for e in (bench.networks.images, bench.networks.features)}
    # pictures of one's own may change between two runs; those drawn here do not
    content = None if subject.pipeline is not None else reference.digest_of([p for p in paths if p.exists()])
    found = {}
    for extractor in wanted_by.values():
        reading = Reading(bench.quality.size, bench.quality.skip_bad)
        name = extractors.key(extractor, [bench.quality.size, content])
        parts = extractors.stream(extractor, paths, reading, folder / "features" / name, bench.part)
        found[extractor.hash] = extractors.gather(parts)
    images, features = (found[e.hash] for e in (bench.networks.images, bench.networks.features))
    if len(images.numbers) == 0:
        raise UsageError(f"{pictures}: none of its pictures can be read")
    skipped = len(paths) - len(images.numbers)
    return wanted, Sample(prompts, images.numbers, images.features, features.features, pictures, skipped)


def work_folder(quality: Quality, wanted: Drawings) -> Path:
    """Named by everything that decides the pictures."""
    name = hashlib.sha256(schema.canonical(schema.dump(wanted))).hexdigest()[:12]
    return quality.run_dir / f"{wanted.model[:8]}-{name}"


def clear(bench: Bench, seen: list[Seen]) -> None:
    """Remove features and what was drawn; with --keep the drawings stay, and pictures of one's own always do."""
    bench.part.wait()  # others may still read
    for one in seen if bench.part.first else ():
        folder = work_folder(bench.quality, one.drawings)
        kept = bench.quality.keep or one.subject.pipeline is None
        shutil.rmtree(folder / "features" if kept else folder, ignore_errors=True)


def against(bench: Bench, seen: list[Seen], runtime: str, options: Options) -> dict[str, Any]:
    """The verdict, JSON-able; figures of pairs go into the cards of `seen`."""
    assert bench.quality.against is not None
    other = Subject.open(bench.quality.against, runtime, options, bench.quality)
    changes: list[Change] = []
    theirs = cards_of(bench, other)
    extra: list[Seen] = []
    for mine, reference_seen in zip(seen, theirs, strict=True):
        if bench.part.first:
            pair_figures(bench, mine, reference_seen)
        samples = [reference_seen.sample]
        if bench.quality.band is None and other.pipeline is not None:
            for drawings, sample in repeats(bench, other, mine.sample.prompts):
                samples.append(sample)
                extra.append(Seen(other, drawings, sample, reference_seen.card))
        if bench.part.first:
            changes += changes_of(bench, mine.sample, samples)
    clear(bench, theirs + extra)
    other.close()
    if not bench.part.first:
        return {}
    return {
        "outcome": equivalence.worst(changes),
        "reference": {"model": other.name, "kind": other.kind, "id": other.id, "how": asdict(theirs[0].drawings.how)},
        "changes": [asdict(change) for change in changes],
    }


def repeats(bench: Bench, subject: Subject, prompts: PromptSet) -> Iterator[tuple[Drawings, Sample]]:
    """The same prompts with other seeds."""
    for number in range(1, bench.quality.aa_seeds + 1):
        yield look(bench, subject, prompts, bench.quality.seed + number * APART)


def changes_of(bench: Bench, mine: Sample, samples: list[Sample]) -> list[Change]:
    """Of the first of `samples`, the reference's; the others say how far it is from itself."""
    known = bench.reference(mine.prompts)
    found = []
    few = figures.too_few(len(mine.numbers), bench.networks.features.dimensions)
    for metric in ("fid", "clip"):
        if not bench.quality.wants(metric) or (
            metric == "fid" and (known is None or (few and not bench.quality.force))
        ):
            continue
        same = [equivalence.scores(metric, bench.networks, sample, known).value for sample in samples]
        a, b = (equivalence.scores(metric, bench.networks, s, known) for s in equivalence.common(mine, samples[0]))
        band = equivalence.band_of(metric, bench.quality.band, same)
        found.append(equivalence.change(metric, mine.prompts.name, a, b, band))
    return found


def pair_figures(bench: Bench, mine: Seen, other: Seen) -> None:
    """PSNR, SSIM and LPIPS of pictures of the same prompt and noise."""
    mine_sample, other_sample = equivalence.common(mine.sample, other.sample)
    numbers = mine.card.numbers
    by = {"psnr": perceptual.psnr, "ssim": perceptual.ssim, "lpips": bench.lpips}
    for name, measure in by.items():
        if measure is None or not bench.quality.wants(name):  # type: ignore[arg-type]
            continue
        extractor, digest = ("pixels", "") if bench.lpips is None or name != "lpips" else _lpips(bench.lpips)
        basis = Basis(
            extractor,
            digest,
            _crop(bench.quality.size),
            f"{other.subject.name}, same prompts and noise",
            other.subject.id,
        )
        pairs = _pairs(bench.quality, mine_sample, mine.drawings, other_sample, other.drawings)
        numbers[name] = figures.paired(name, measure, pairs, basis)


def _pairs(
    quality: Quality, a: Sample, of_a: Drawings, b: Sample, of_b: Drawings
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    assert a.folder is not None and b.folder is not None
    reading = Reading(quality.size)
    for number in a.numbers:
        paths = [a.folder / of_a.pictures[number].file, b.folder / of_b.pictures[number].file]
        reading.expect(paths)
        _, pixels = reading.batch(paths)
        reading.finish(len(paths))
        yield pixels[0], pixels[1]


def _lpips(network: perceptual.Lpips) -> tuple[str, str]:
    return f"LPIPS 0.1, {network.name}", network.hash
