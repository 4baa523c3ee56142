"""Tables of few numbers for many weights: the one of least squared error (k-means in one dimension, exactly), or equal steps.

A float16 tensor has at most 65,536 different numbers, and k-means needs no more than how often each occurs: so workers get
histograms, not weights, and answer with tables. They are processes of our own, started afresh: a fork of a process with
PyTorch's threads would hang.
"""

# n different numbers, K = 2^bits entries

import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from kdc_edge.errors import MissingBackend
from kdc_edge.process import processes

PATTERNS = 1 << 16
FEW = 8  # tensors that are not worth starting processes for


@dataclass(frozen=True, eq=False)
class Histogram:
    """The numbers of a float16 tensor in rising order (n,), and how often each occurs."""

    values: NDArray[np.float16]
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, weight: NDArray[np.float16]) -> "Histogram":
        counts = np.bincount(np.ascontiguousarray(weight).view(np.uint16).ravel(), minlength=PATTERNS)
        patterns = np.flatnonzero(counts)
        values = patterns.astype(np.uint16).view(np.float16)
        order = np.argsort(values, kind="stable")
        return cls(values[order], counts[patterns[order]])


@dataclass(frozen=True, eq=False)
class Table:
    """`entries` (K,) float16; `places` (n,) of the histogram's numbers among them."""

    entries: NDArray[np.float16]
    places: NDArray[np.uint8]

    def indices(self, weight: NDArray[np.float16], histogram: Histogram) -> NDArray[np.uint8]:
        """Which entry each weight becomes, in its shape."""
        by_pattern = np.zeros(PATTERNS, np.uint8)
        by_pattern[histogram.values.view(np.uint16)] = self.places
        return by_pattern[np.ascontiguousarray(weight).view(np.uint16)]


@dataclass(frozen=True, eq=False)
class Job:
    """A table to be found."""

    histogram: Histogram
    bits: int
    uniform: bool = False


def fit_all(jobs: Sequence[Job], workers: int) -> list[Table]:
    """A table for each, in order; the dearest are begun first."""
    if workers < 2 or len(jobs) < FEW:
        return [fit(job) for job in jobs]
    order = sorted(range(len(jobs)), key=lambda i: -len(jobs[i].histogram.values) << jobs[i].bits)
    with processes("palettes", workers) as pool:
        found = dict(zip(order, pool.map(fit, [jobs[i] for i in order]), strict=True))
    return [found[i] for i in range(len(jobs))]


def fit(job: Job) -> Table:
    """The table of one histogram."""
    return _uniform(job) if job.uniform else _kmeans(job)


def squared_error(job: Job, table: Table) -> float:
    """Summed over the weights."""
    off = job.histogram.values.astype(np.float64) - table.entries[table.places].astype(np.float64)
    return float(np.sum(job.histogram.counts * off**2))


def _kmeans(job: Job) -> Table:
    histogram, size = job.histogram, 1 << job.bits
    entries = np.zeros(size, np.float16)
    if len(histogram.values) <= size:
        entries[: len(histogram.values)] = histogram.values
        return Table(entries, np.arange(len(histogram.values), dtype=np.uint8))
    numbers, counts = histogram.values.astype(np.float64), histogram.counts.astype(np.float64)
    found = _library().cluster(numbers, size, weights=counts)
    entries[: len(found.centroids)] = found.centroids
    return Table(entries, np.asarray(found.clusters, np.uint8))


def _uniform(job: Job) -> Table:
    values, size = job.histogram.values.astype(np.float64), 1 << job.bits
    low, high = values[0], values[-1]
    entries = np.linspace(low, high, size)
    step = max(high - low, 1e-30) / (size - 1)
    return Table(entries.astype(np.float16), np.rint((values - low) / step).astype(np.uint8))


def _library() -> ModuleType:
    """The exact one-dimensional k-means that coremltools carries, without coremltools: workers start in a moment."""
    name = "kdc_edge_kmeans1d"
    if name not in sys.modules:
        spec = importlib.util.find_spec("coremltools")
        if spec is None or not spec.submodule_search_locations:
            raise MissingBackend("coremltools is not installed; pip install 'kdc-edge[coreml]'")
        folder = Path(spec.submodule_search_locations[0]) / "_deps" / "kmeans1d"
        found = importlib.util.spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        if found is None or found.loader is None or not folder.exists():
            raise MissingBackend(f"coremltools has no k-means in {folder}; install one of the tested versions")
        sys.modules[name] = module = importlib.util.module_from_spec(found)
        found.loader.exec_module(module)
    return sys.modules[name]
