"""How far two sets of features are apart: Fréchet distance, which is FID on Inception's, and kernel distance, which is KID.

arXiv 1706.08500 and 1801.01401. Fréchet distance is biased by the number of samples, and means nothing with fewer samples
than dimensions; the kernel distance is unbiased, and comes with an interval over subsets.
"""

# N samples, D dimensions

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdc_edge.errors import UsageError

Features = NDArray[np.floating]
SUBSETS, SUBSET = 100, 1000  # KID's usual
DEGREE = 3
RANK = 1e-10  # eigenvalues below this share of the greatest are rounding


@dataclass
class Moments:
    """Mean and covariance of features that come in parts; sums in float64."""

    count: int
    total: NDArray[np.float64]  # (D,)
    products: NDArray[np.float64]  # (D, D)

    @classmethod
    def empty(cls, dimensions: int) -> "Moments":
        return cls(0, np.zeros(dimensions), np.zeros((dimensions, dimensions)))

    @classmethod
    def of(cls, features: Features) -> "Moments":
        """Of one set, (N, D)."""
        found = cls.empty(features.shape[1])
        found.add(features)
        return found

    def add(self, features: Features) -> None:
        """Raises UsageError where a feature is not finite."""
        part = np.asarray(features, np.float64)
        if not np.isfinite(part).all():
            raise UsageError(f"features of {(~np.isfinite(part)).any(1).sum()} pictures are not finite")
        self.count += len(part)
        self.total += part.sum(0)
        self.products += part.T @ part

    @property
    def mean(self) -> NDArray[np.float64]:
        return self.total / self.count

    @property
    def covariance(self) -> NDArray[np.float64]:
        """Over N - 1, as `numpy.cov` has it."""
        return (self.products - np.outer(self.total, self.mean)) / (self.count - 1)


def frechet(a: Moments, b: Moments) -> float:
    """|μa - μb|² + tr(Σa + Σb - 2(ΣaΣb)^½) of two Gaussians."""
    root = _root(a.covariance)
    # (ΣaΣb)^½ has the trace of (Σa^½ Σb Σa^½)^½, which is symmetric
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(root @ b.covariance @ root), 0, None)).sum()
    difference = a.mean - b.mean
    return float(difference @ difference + np.trace(a.covariance) + np.trace(b.covariance) - 2 * cross)


def frechet_influence(a: Moments, b: Moments, features: Features) -> NDArray[np.float64]:
    """How each sample (N, D) of `a` moves the distance to `b`: (N,), of mean 0.

    The distance's derivative is 2(μa - μb) by the mean and I - T by the covariance, T the optimal transport's matrix from
    `a` to `b`. A bootstrap of its mean is one of the distance, without the bias that drawing samples twice brings.
    """
    root = _root(b.covariance)
    values, vectors = np.linalg.eigh(root @ a.covariance @ root)
    inverse = np.where(values > RANK * values.max(), 1 / np.sqrt(np.clip(values, 1e-300, None)), 0)
    transport = root @ (vectors * inverse) @ vectors.T @ root
    slope = np.eye(len(root)) - transport
    centred = np.asarray(features, np.float64) - a.mean
    found = 2 * centred @ (a.mean - b.mean) + ((centred @ slope) * centred).sum(1)
    return found - found.mean()


def _root(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T


@dataclass(frozen=True)
class KernelDistance:
    """The mean over subsets, and where 95 % of the subsets lie."""

    value: float
    low: float
    high: float
    subsets: int
    subset: int


def kernel_distance(
    a: Features, b: Features, seed: int = 0, subsets: int = SUBSETS, subset: int = SUBSET
) -> KernelDistance:
    """Squared maximum mean discrepancy under (x·y/D + 1)³, unbiased. Raises UsageError for fewer than two samples."""
    fewest = min(len(a), len(b))
    size = min(subset, max(2, fewest // 2))  # of few samples half, so that subsets differ
    if fewest < 2:
        raise UsageError(f"a kernel distance needs two samples of either set, there are {len(a)} and {len(b)}")
    rng = np.random.default_rng(seed)
    found = np.array([_mmd(rng.permutation(a)[:size], rng.permutation(b)[:size]) for _ in range(subsets)])
    low, high = np.quantile(found, [0.025, 0.975])
    return KernelDistance(float(found.mean()), float(low), float(high), subsets, size)


def _mmd(a: Features, b: Features) -> float:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    count = len(a)

    def kernel(x: Features, y: Features) -> NDArray[np.float64]:
        return (x @ y.T / x.shape[1] + 1) ** DEGREE

    within = sum(k.sum() - np.trace(k) for k in (kernel(a, a), kernel(b, b))) / (count * (count - 1))
    return float(within - 2 * kernel(a, b).mean())
