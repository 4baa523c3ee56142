"""Is a converted or updated model as good as its reference? Same prompts and noise, a paired bootstrap, three answers.

A change is how much worse the model is, as a share of the reference's figure. Equivalent: its 95 % interval ends inside
the band. Degraded: it begins beyond. Inconclusive: it does neither, and the answer says how many pictures would decide.
"""

# N prompts that both drew, D feature dimensions

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kdc_edge.errors import UsageError
from kdc_edge.torch_ref import bootstrap
from kdc_edge.torch_ref.distances import Moments, frechet, frechet_influence
from kdc_edge.torch_ref.figures import Networks, Sample, clip_scores
from kdc_edge.torch_ref.reference import Reference

MLPERF = {"fid": 0.02, "clip": 0.002}
WORSE = {"fid": 1, "clip": -1}  # the sign of a change for the worse
Outcome = Literal["equivalent", "degraded", "inconclusive"]
ORDER: tuple[Outcome, ...] = ("equivalent", "inconclusive", "degraded")


@dataclass(frozen=True)
class Scores:
    """A figure and what each picture contributes to it: value + mean of `parts` (N,), whose mean is 0."""

    value: float
    parts: NDArray[np.float64]


@dataclass(frozen=True)
class Change:
    """How much worse, as a share of the reference's figure; negative is better."""

    metric: str
    prompts: str
    value: float
    low: float
    high: float
    band: float
    band_from: str
    outcome: Outcome
    count: int
    decisive_count: int | None
    """Pictures that would decide an inconclusive answer, if the change stays; None where no number would."""


def scores(metric: str, networks: Networks, sample: Sample, reference: Reference | None) -> Scores:
    """`clip`, or `fid` against the reference pictures."""
    if metric == "clip":
        values = clip_scores(networks.judge, sample)
        return Scores(float(values.mean()), values - values.mean())
    if reference is None:
        raise UsageError("a FID needs real pictures; name a folder with --reference")
    moments = Moments.of(sample.features)
    parts = frechet_influence(moments, reference.moments, sample.features)
    return Scores(frechet(moments, reference.moments), parts)


def common(a: Sample, b: Sample) -> tuple[Sample, Sample]:
    """Both without the pictures that the other lacks."""
    both = np.intersect1d(a.numbers, b.numbers)

    def kept(sample: Sample) -> Sample:
        mask = np.isin(sample.numbers, both)
        return replace(sample, numbers=both, images=sample.images[mask], features=sample.features[mask])

    return kept(a), kept(b)


def spread(values: Sequence[float]) -> float:
    """The greatest share by which figures of one model with other seeds are apart."""
    return max((abs(a - b) / abs(b) for a in values for b in values), default=0.0) if len(values) > 1 else 0.0


def band_of(metric: str, given: float | None, same: Sequence[float]) -> tuple[float, str]:
    """The band and where it is from: given, MLPerf's, or the A/A spread of `same`, the reference's figures by seed."""
    if given is not None:
        return given, "given"
    apart = spread(same)
    if apart > MLPERF[metric]:
        return apart, f"A/A spread over {len(same)} seeds"
    return MLPERF[metric], "MLPerf"


def change(metric: str, prompts: str, model: Scores, reference: Scores, band: tuple[float, str]) -> Change:
    """Paired: the same prompts are drawn of both in every resample. Raises UsageError where the reference's figure is 0."""
    if not abs(reference.value) > 0:
        raise UsageError(
            f"the reference's {metric} on {prompts} is 0, so nothing is a share of it; give other pictures"
        )
    drawn = bootstrap.resampled(np.stack([model.parts, reference.parts], axis=1))
    of_model, of_reference = model.value + drawn[:, 0], reference.value + drawn[:, 1]
    shares = WORSE[metric] * (of_model - of_reference) / np.abs(of_reference)
    low, high = (float(end) for end in np.quantile(shares, bootstrap.TAILS))
    value = WORSE[metric] * (model.value - reference.value) / abs(reference.value)
    count = len(model.parts)
    outcome = judge(low, high, band[0])
    needed = decisive(value, (high - low) / 2, band[0], count) if outcome == "inconclusive" else None
    return Change(metric, prompts, value, low, high, *band, outcome, count, needed)


def judge(low: float, high: float, band: float) -> Outcome:
    """Of the interval of a change for the worse; what is not a number is never equivalent."""
    if high <= band:
        return "equivalent"
    return "degraded" if low > band else "inconclusive"


def decisive(value: float, half_width: float, band: float, count: int) -> int | None:
    """Pictures at which the interval would no longer hold the band: its width falls with the root of their number."""
    distance = abs(band - value)
    if not distance > 0 or not math.isfinite(half_width):
        return None
    return math.ceil(count * (half_width / distance) ** 2 * 1.05)  # a little beyond the edge


def worst(changes: Sequence[Change]) -> Outcome:
    return max((c.outcome for c in changes), key=ORDER.index)
