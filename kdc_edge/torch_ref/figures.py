"""The figures of one model's pictures for one set of prompts, each with its interval and what it rests on."""

# N pictures, M candidates, D feature dimensions

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize

from kdc_edge.cards import Basis, Number
from kdc_edge.errors import UsageError
from kdc_edge.gallery import Gallery
from kdc_edge.prompts import PromptSet
from kdc_edge.quality import Quality
from kdc_edge.torch_ref import bootstrap
from kdc_edge.torch_ref.distances import Moments, frechet, frechet_influence, kernel_distance
from kdc_edge.torch_ref.extractors import Extractor
from kdc_edge.torch_ref.judge import Judge, identical, retrieval, wilson
from kdc_edge.torch_ref.reference import Reference, of_features

WILSON = "Wilson's of a share"
Better = Literal["lower", "higher"]


@dataclass(frozen=True)
class Known:
    """The data set with pictures as a network sees it: `features` (N, D) of all."""

    gallery: Gallery
    name: str
    features: NDArray[np.float32]

    def others(self, prompts: PromptSet) -> NDArray[np.int64]:
        """Numbers of the pictures of the same kind, with or without skin tone, that were not asked for."""
        asked = set(prompts.rows)
        toned = bool(self.gallery.rows[prompts.rows[0]].tone)
        rows = enumerate(self.gallery.rows)
        return np.array([i for i, row in rows if bool(row.tone) == toned and i not in asked], np.int64)


@dataclass(frozen=True)
class Networks:
    """What judges: a CLIP with its image tower, and the features of FID and KID, which may be the same."""

    judge: Judge
    images: Extractor
    features: Extractor

    def basis(self, what: str) -> Basis:
        """Of a figure by the CLIP."""
        name = self.images.name.removesuffix(" image tower")
        return Basis(f"{name}, {what}", self.images.hash, self.images.resize)


@dataclass(frozen=True)
class Sample:
    """Pictures `numbers` (N,) of a set, as the networks see them: `images` (N, D) by the CLIP, `features` (N, D')."""

    prompts: PromptSet
    numbers: NDArray[np.int64]
    images: NDArray[np.float32]
    features: NDArray[np.float32]
    folder: Path | None = None
    skipped: int = 0

    @property
    def asked(self) -> list[str]:
        return [self.prompts.prompts[i] for i in self.numbers]


@dataclass
class Figures:
    """Numbers by name, and of those that are not there, why."""

    quality: Quality
    numbers: dict[str, Number] = field(default_factory=dict)
    not_measured: dict[str, str] = field(default_factory=dict)

    def leave_out(self, metric: str, why: str) -> None:
        """UsageError where it was asked for by name."""
        if self.quality.named(metric):  # type: ignore[arg-type]
            raise UsageError(f"--metrics {metric}: {why}")
        self.not_measured[metric] = why


def too_few(count: int, dimensions: int) -> str:
    """Why there is no FID of so few, or nothing."""
    if count >= dimensions:
        return ""
    return (
        f"{count} pictures are fewer than the {dimensions} feature dimensions, and FID of so few means nothing; take kid, "
        "which is unbiased, more pictures, or --force"
    )


def distances(figures: Figures, networks: Networks, sample: Sample, reference: Reference | None) -> None:
    """FID and KID to real pictures."""
    quality, count = figures.quality, len(sample.numbers)
    for metric in ("fid", "kid"):
        if quality.wants(metric) and reference is None:
            none = (
                "fewer than two real pictures were not asked for"
                if sample.prompts.rows
                else "there are no real pictures"
            )
            figures.leave_out(metric, f"{none}; name a folder with --reference")
    if reference is None:
        return
    extractor = networks.features
    basis = Basis(extractor.name, extractor.hash, extractor.resize, reference.name, reference.hash)
    if quality.wants("fid"):
        few = min(count, reference.moments.count)
        if (why := too_few(few, extractor.dimensions)) and not quality.force:
            figures.leave_out("fid", why)
        else:
            figures.numbers["fid"] = fid(sample.features, reference, basis)
    if quality.wants("kid"):
        if min(count, len(reference.sample)) < 2:
            figures.leave_out(
                "kid", f"it takes two pictures of either set, there are {count} and {len(reference.sample)}"
            )
        else:
            figures.numbers["kid"] = kid(sample.features, reference, basis)


def fid(features: NDArray[np.float32], reference: Reference, basis: Basis) -> Number:
    """The bootstrap is of the distance's influence: resampling pictures themselves would bias it upwards."""
    moments = Moments.of(features)
    value = frechet(moments, reference.moments)
    low, high = bootstrap.interval(frechet_influence(moments, reference.moments, features))
    how = f"{bootstrap.PERCENTILE}, of the distance's influence"
    return Number(value, max(0.0, value + low), value + high, len(features), how, "lower", basis)


def kid(features: NDArray[np.float32], reference: Reference, basis: Basis) -> Number:
    found = kernel_distance(features, reference.sample)
    how = f"95 % of {found.subsets} subsets of {found.subset}"
    return Number(found.value, found.low, found.high, len(features), how, "lower", basis)


def clip_scores(judge: Judge, sample: Sample) -> NDArray[np.float64]:
    """Cosine of each picture with its prompt (N,)."""
    pictures = normalize(torch.from_numpy(sample.images), dim=-1)
    return (pictures * judge.texts(sample.asked)).sum(1).double().numpy()


def mean(values: NDArray[np.float64], better: Better, basis: Basis) -> Number:
    """Of one value a picture, with its bootstrap."""
    low, high = bootstrap.interval(values)
    return Number(float(values.mean()), low, high, len(values), bootstrap.PERCENTILE, better, basis)


def share(value: float, count: int, basis: Basis) -> Number:
    """Of `count` pictures that are right or not."""
    return Number(value, *wilson(value, count), count, WILSON, "higher", basis)


def retrievals(networks: Networks, sample: Sample, known: Known | None) -> dict[str, Number]:
    """The right candidate first, or among five: by text among all captions; by picture where there are real ones."""
    pictures = normalize(torch.from_numpy(sample.images), dim=-1)
    if known is None:
        texts, classes = list(sample.prompts.prompts), _same(sample.prompts.prompts)
        candidates, truth = np.arange(len(texts)), sample.numbers
    else:
        candidates = np.flatnonzero([not row.tone for row in known.gallery.rows])
        place = {row: i for i, row in enumerate(candidates.tolist())}
        texts = [known.gallery.rows[i].text for i in candidates]
        truth = np.array([place[sample.prompts.rows[i]] for i in sample.numbers])
        classes = identical(known.gallery.pixels[candidates])
    scores = {"text": pictures @ networks.judge.texts(texts).T}
    if known is not None:
        scores["picture"] = pictures @ normalize(torch.from_numpy(known.features[candidates]), dim=-1).T
    numbers = {}
    for by, score in scores.items():
        found = retrieval(score, truth, classes)
        basis = networks.basis(f"nearest {by} of {len(candidates):,}")
        for top in ("top1", "top5"):
            numbers[f"by_{by}_{top}"] = share(getattr(found, top), found.count, basis)
    return numbers


def tone(networks: Networks, sample: Sample, known: Known) -> Number:
    """Share of the pictures whose nearest tone variant of the same emoji has the right tone."""
    vectors, real = (normalize(torch.from_numpy(f), dim=-1).numpy() for f in (sample.images, known.features))
    rows = known.gallery.rows
    variants: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        if row.tone:
            variants.setdefault(row.base, []).append(i)
    right = []
    for vector, number in zip(vectors, sample.numbers, strict=True):
        asked = rows[sample.prompts.rows[number]]
        of = variants[asked.base]
        right.append(rows[of[int((real[of] @ vector).argmax())]].tone == asked.tone)
    return share(float(np.mean(right)), len(right), networks.basis("nearest tone variant of the emoji"))


def paired(
    name: str, compare: Callable[..., NDArray[np.float64]], pairs: Iterator[tuple[np.ndarray, np.ndarray]], basis: Basis
) -> Number:
    """Mean of a measure of two pictures over pairs (H, W, 3)."""
    values = np.concatenate([compare(a[None], b[None]) for a, b in pairs])
    return mean(values, "lower" if name == "lpips" else "higher", basis)


def all_of(
    quality: Quality, networks: Networks, sample: Sample, known: Known | None, reference: Reference | None
) -> Figures:
    """Whatever can be measured of one model alone."""
    figures = Figures(quality)
    distances(figures, networks, sample, reference)
    if quality.wants("clip"):
        figures.numbers["clip"] = mean(
            clip_scores(networks.judge, sample), "higher", networks.basis("text and picture")
        )
    toned = known is not None and bool(known.gallery.rows[sample.prompts.rows[0]].tone)
    if quality.wants("retrieval") and not toned:
        figures.numbers |= retrievals(networks, sample, known)
    if toned and known is not None and quality.wants("tone"):
        figures.numbers["tone"] = tone(networks, sample, known)
    return figures


def reference_in(known: Known, prompts: PromptSet, features: NDArray[np.float32]) -> Reference | None:
    """The data set's own pictures that were not asked for; `features` are of all its pictures. None of fewer than two."""
    others = known.others(prompts)
    if len(others) < 2:
        return None
    name = f"{known.name}, {len(others):,} others"
    return of_features(name, known.gallery.select(others).digest(), features[others])


def _same(texts: tuple[str, ...]) -> NDArray[np.int64]:
    """A class a text; the same for the same text."""
    return np.unique(np.array(texts), return_inverse=True)[1].reshape(-1)
