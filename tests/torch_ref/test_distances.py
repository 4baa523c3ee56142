"""Distances of feature sets against closed forms, scipy's matrix root, and their own promises."""

import numpy as np
import pytest

from kdc_edge.errors import UsageError
from kdc_edge.torch_ref.bootstrap import interval
from kdc_edge.torch_ref.distances import Moments, frechet, frechet_influence, kernel_distance


def gaussian(count: int, mean: float = 0.0, scale: float = 1.0, dimensions: int = 4, seed: int = 0) -> np.ndarray:
    return mean + scale * np.random.default_rng(seed).standard_normal((count, dimensions))


def exact(mean: np.ndarray, covariance: np.ndarray) -> Moments:
    """Moments whose mean and covariance are these."""
    count = 11
    return Moments(count, count * mean, (count - 1) * covariance + count * np.outer(mean, mean))


def test_gaussians_of_one_dimension_in_closed_form() -> None:
    a, b = (exact(np.array([mean]), np.array([[scale**2]])) for mean, scale in ((1.0, 2.0), (4.0, 3.0)))
    assert frechet(a, b) == pytest.approx(9 + 1)


def test_covariances_that_share_no_axes_against_a_matrix_root() -> None:
    rng = np.random.default_rng(0)
    halves = [rng.standard_normal((5, 5)) for _ in range(2)]
    a, b = (exact(rng.standard_normal(5), half @ half.T) for half in halves)
    product = a.covariance @ b.covariance
    values, vectors = np.linalg.eig(product)  # its root, the unsymmetric way
    root = (vectors @ np.diag(np.sqrt(values.astype(complex))) @ np.linalg.inv(vectors)).real
    assert np.allclose(root @ root, product)
    expected = ((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance + b.covariance - 2 * root)
    assert frechet(a, b) == pytest.approx(expected)


def test_moments_in_parts_are_numpys() -> None:
    features = gaussian(100, mean=3)
    moments = Moments.empty(4)
    for part in np.array_split(features, 7):
        moments.add(part.astype(np.float32).astype(np.float64))
    assert np.allclose(moments.mean, features.mean(0), atol=1e-6)
    assert np.allclose(moments.covariance, np.cov(features.T), atol=1e-6)


def test_a_copy_is_at_no_distance_and_noise_is_far() -> None:
    a, other = gaussian(500), gaussian(500, mean=2, seed=1)
    assert frechet(Moments.of(a), Moments.of(a)) == pytest.approx(0, abs=1e-9)
    assert frechet(Moments.of(a), Moments.of(other)) > 10
    assert kernel_distance(a, other).low > 1


def test_one_picture_over_and_over_is_caught() -> None:
    real = gaussian(400, dimensions=8)
    collapsed = np.repeat(real[:1] * 0, 400, axis=0)
    spread = gaussian(400, dimensions=8, seed=1)
    assert frechet(Moments.of(real), Moments.of(collapsed)) > 20 * frechet(Moments.of(real), Moments.of(spread))
    assert kernel_distance(real, collapsed).low > kernel_distance(real, spread).high


def test_the_kernel_distance_is_unbiased_and_the_frechet_distance_is_not() -> None:
    """Small and large samples of one distribution: the one stays at nought, the other falls with the count."""
    small = [
        kernel_distance(gaussian(20, seed=2 * i), gaussian(20, seed=2 * i + 1), subsets=1).value for i in range(400)
    ]
    assert abs(np.mean(small)) < 3 * np.std(small) / 20
    few, many = (
        np.mean([frechet(*(Moments.of(gaussian(n, seed=2 * i + j)) for j in (0, 1))) for i in range(20)])
        for n in (20, 500)
    )
    assert few > 5 * many


def test_the_kernel_is_the_cubic_one() -> None:
    a, b = np.array([[1.0, 2.0], [0.0, 1.0]]), np.array([[1.0, 0.0], [2.0, 2.0]])
    k = lambda x, y: (x @ y / 2 + 1) ** 3  # noqa: E731
    expected = k(a[0], a[1]) + k(b[0], b[1]) - 2 * np.mean([k(x, y) for x in a for y in b])
    assert kernel_distance(a, b, subsets=1).value == pytest.approx(expected)


def test_what_is_no_sample() -> None:
    with pytest.raises(UsageError, match="of 1 pictures are not finite"):
        Moments.of(np.array([[1.0, np.nan], [1.0, 2.0]]))
    with pytest.raises(UsageError, match="there are 1 and 3"):
        kernel_distance(gaussian(1), gaussian(3))


def test_the_frechet_distance_by_scipy_s_root_and_by_torchmetrics() -> None:
    linalg = pytest.importorskip("scipy.linalg")
    a, b = Moments.of(gaussian(300, dimensions=16)), Moments.of(gaussian(200, 0.3, 1.4, 16, seed=1))
    root = linalg.sqrtm(a.covariance @ b.covariance).real
    expected = ((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance + b.covariance - 2 * root)
    assert frechet(a, b) == pytest.approx(expected)
    fid, torch = pytest.importorskip("torchmetrics.image.fid"), pytest.importorskip("torch")
    theirs = fid._compute_fid(*(torch.from_numpy(x) for x in (a.mean, a.covariance, b.mean, b.covariance)))
    assert frechet(a, b) == pytest.approx(float(theirs))


def test_the_kernel_distance_is_torchmetrics() -> None:
    kid, torch = pytest.importorskip("torchmetrics.image.kid"), pytest.importorskip("torch")
    a, b = gaussian(50, dimensions=16), gaussian(50, 0.2, dimensions=16, seed=1)
    expected = kid.poly_mmd(torch.from_numpy(a), torch.from_numpy(b))
    found = kernel_distance(np.concatenate([a, a]), np.concatenate([b, b]), subsets=1, subset=50)
    rows = np.random.default_rng(0)
    picks = [rows.permutation(np.concatenate([x, x]))[:50] for x in (a, b)]
    assert found.value == pytest.approx(float(kid.poly_mmd(*(torch.from_numpy(x) for x in picks))))
    assert np.isfinite(float(expected))


def test_the_influence_is_the_derivative() -> None:
    """One sample's weight raised a little: the distance moves as its influence says."""
    features, b = gaussian(60), Moments.of(gaussian(80, 0.5, 1.3, seed=1))
    influence = frechet_influence(Moments.of(features), b, features)
    eps = 1e-5
    for i in (0, 17, 42):
        weights = np.full(60, (1 - eps) / 60)
        weights[i] += eps
        mean = weights @ features
        covariance = (weights[:, None] * (features - mean)).T @ (features - mean) * 60 / 59
        moved = frechet(exact(mean, covariance), b)
        slope = (moved - frechet(Moments.of(features), b)) / eps
        assert influence[i] == pytest.approx(slope, rel=0.05, abs=0.05)
    assert influence.mean() == pytest.approx(0, abs=1e-12)


def test_its_interval_is_as_wide_as_the_distances_of_other_samples() -> None:
    b = Moments.of(gaussian(4000, 0.5, 1.3, 8, seed=1))
    values = [frechet(Moments.of(gaussian(300, dimensions=8, seed=i)), b) for i in range(100, 220)]
    widths = []
    for seed in range(5):
        features = gaussian(300, dimensions=8, seed=seed)
        low, high = interval(frechet_influence(Moments.of(features), b, features))
        widths.append((high - low) / 3.92)
    assert np.mean(widths) == pytest.approx(np.std(values), rel=0.25)
