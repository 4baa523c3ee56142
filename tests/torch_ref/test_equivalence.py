"""Three answers about known changes, the band, how many pictures would decide; and the emoji judge's eye for bad pictures."""

from pathlib import Path

import numpy as np
import pytest

from kdc_edge.errors import GateError, UsageError
from kdc_edge.gallery import Gallery
from kdc_edge.torch_ref import equivalence, extractors
from kdc_edge.torch_ref.distances import Moments, frechet, kernel_distance
from kdc_edge.torch_ref.equivalence import Scores, band_of, change
from kdc_edge.torch_ref.measured import conclude
from kdc_edge.torch_ref.reference import of_features

ASSETS = Path(__file__).parents[2] / "assets"


def scores(mean: float, noise: float, count: int = 400, shared: float = 0.05, seed: int = 1) -> Scores:
    """Per-picture scores with what the prompts share, and a noise of the model's own."""
    values = (
        mean + np.random.default_rng(0).normal(0, shared, count) + np.random.default_rng(seed).normal(0, noise, count)
    )
    values += mean - values.mean()
    return Scores(mean, values - mean)


REFERENCE = scores(0.30, 0.0)


@pytest.mark.parametrize(
    ("model", "outcome"),
    [
        (REFERENCE, "equivalent"),
        (scores(0.30, 0.001), "equivalent"),
        (scores(0.32, 0.001), "equivalent"),
        (scores(0.29, 0.001), "degraded"),
        (scores(0.30, 0.03), "inconclusive"),
        (scores(0.2995, 0.01), "inconclusive"),
    ],
)
def test_three_answers(model: Scores, outcome: str) -> None:
    found = change("clip", "p", model, REFERENCE, (0.002, "MLPerf"))
    assert found.outcome == outcome and found.low <= found.value <= found.high
    assert (found.decisive_count is not None) == (outcome == "inconclusive")


def test_pairing_is_what_makes_it_sharp() -> None:
    """The same prompts explain most of the spread: unpaired, the interval would be many times as wide."""
    found = change("clip", "p", scores(0.30, 0.001), REFERENCE, (0.002, "MLPerf"))
    unpaired = change("clip", "p", Scores(0.30, np.roll(REFERENCE.parts, 1)), REFERENCE, (0.002, "MLPerf"))
    assert (unpaired.high - unpaired.low) > 10 * (found.high - found.low)


def test_the_named_number_of_pictures_decides() -> None:
    few = change("clip", "p", scores(0.30, 0.01, 200), scores(0.30, 0.0, 200), (0.002, "MLPerf"))
    assert few.outcome == "inconclusive" and few.decisive_count is not None
    count = int(few.decisive_count * 1.3)  # the spread of 200 is known to a tenth
    assert (
        change("clip", "p", scores(0.30, 0.01, count), scores(0.30, 0.0, count), (0.002, "MLPerf")).outcome
        == "equivalent"
    )


def test_a_lower_distance_is_better_and_a_lower_score_is_worse() -> None:
    a, b = Scores(9.0, np.zeros(50)), Scores(10.0, np.zeros(50))
    assert change("fid", "p", a, b, (0.02, "MLPerf")).value == pytest.approx(-0.1)
    assert change("clip", "p", a, b, (0.002, "MLPerf")).value == pytest.approx(0.1)
    with pytest.raises(UsageError, match="fid on p is 0"):
        change("fid", "p", a, Scores(0.0, np.zeros(50)), (0.02, "MLPerf"))


def test_what_is_not_a_number_is_never_equivalent() -> None:
    assert equivalence.judge(float("nan"), float("nan"), 0.02) == "inconclusive"


def test_the_band_is_mlperf_s_the_spread_of_seeds_or_the_given_one() -> None:
    assert band_of("fid", None, [10.0, 10.05]) == (0.02, "MLPerf")
    assert band_of("fid", None, [10.0, 10.5]) == (pytest.approx(0.05), "A/A spread over 2 seeds")
    assert band_of("clip", None, [0.3]) == (0.002, "MLPerf")
    assert band_of("fid", 0.01, [10.0, 10.5]) == (0.01, "given")


def test_the_verdict_is_the_worst_and_says_why() -> None:
    def verdict(*models: Scores) -> dict:
        changes = [change("clip", "p", model, REFERENCE, (0.002, "MLPerf")) for model in models]
        return {"outcome": equivalence.worst(changes), "changes": [vars(c) for c in changes]}

    good, bad, unclear = REFERENCE, scores(0.29, 0.001), scores(0.30, 0.03)
    conclude(verdict(good, good))
    conclude({})
    with pytest.raises(GateError, match=r"degraded: clip on p is worse by \[\+3\..*the band is 0.20%$"):
        conclude(verdict(good, unclear, bad))
    with pytest.raises(GateError, match=r"inconclusive: .*about [\d,]+ pictures would decide, there are 400"):
        conclude(verdict(good, unclear))


@pytest.fixture(scope="module")
def eye(tmp_path_factory: pytest.TempPathFactory) -> tuple[Gallery, extractors.Extractor]:
    """Every third emoji without skin tone, and the shipped judge's image tower."""
    gallery = Gallery.open(ASSETS / "emoji-64.tar", 64)
    plain = np.flatnonzero([not row.tone for row in gallery.rows])
    return gallery.select(plain[::3]), extractors.judge_images(str(ASSETS / "emoji-64" / "judge"))[1]


def test_a_copy_is_near_noise_is_far_and_collapse_is_caught(eye: tuple[Gallery, extractors.Extractor]) -> None:
    gallery, extract = eye
    real = extract(list(gallery.pixels))
    half = len(real) // 2
    known = of_features("real", "", real[::2])
    noise = extract(list(np.random.RandomState(0).randint(0, 256, (half, 64, 64, 3)).astype(np.uint8)))
    collapsed = np.repeat(real[:1], half, axis=0)

    def fid(features: np.ndarray) -> float:
        return frechet(Moments.of(features), known.moments)

    def kid(features: np.ndarray) -> float:
        return kernel_distance(features, known.sample).value

    others = real[1::2]
    assert abs(fid(real[::2])) < 1e-6 * fid(noise)
    assert fid(noise) > 3 * fid(others) and kid(noise) > 10 * abs(kid(others))
    assert fid(collapsed) > 3 * fid(others) and kid(collapsed) > 10 * abs(kid(others))
