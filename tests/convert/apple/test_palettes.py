"""Palettes against definitions and against coremltools' own k-means."""

import numpy as np
import pytest

from convert.apple import palettes
from convert.apple.palettes import Histogram, Job, fit, fit_all, squared_error
from kdc_edge.errors import MissingBackend

pytest.importorskip("coremltools", reason="coremltools is not installed; pip install 'kdc-edge[coreml]'")


def weights(size: int, seed: int = 0) -> np.ndarray:
    return (np.random.RandomState(seed).standard_normal(size) * 0.05).astype(np.float16)


def test_a_histogram_is_the_tensor_without_its_order():
    weight = np.array([[1, -2, 1], [0.5, -0.0, 0]], np.float16)
    found = Histogram.of(weight)
    assert found.values.tolist() == [-2.0, -0.0, 0.0, 0.5, 1.0]
    assert found.counts.sum() == weight.size


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_kmeans_is_no_worse_than_any_split_of_the_sorted_numbers(bits: int):
    """Clusters of least error in one dimension are runs: a hundred random splits are tried."""
    weight = weights(200)
    job = Job(Histogram.of(weight), bits)
    table = fit(job)
    values = np.sort(weight.astype(np.float64))
    random = np.random.RandomState(1)
    for _ in range(100):
        cuts = np.sort(random.choice(np.arange(1, 200), (1 << bits) - 1, replace=False))
        others = sum(((run - run.mean()) ** 2).sum() for run in np.split(values, cuts))
        assert squared_error(job, table) <= others * 1.001


@pytest.mark.parametrize("bits", [2, 4, 6, 8])
def test_the_error_is_that_of_coremltools_or_less(bits: int):
    from coremltools.models.neural_network.quantization_utils import _get_kmeans_lookup_table_and_weight

    weight = weights(12_000)
    job = Job(Histogram.of(weight), bits)
    table = fit(job)
    lut, indices = _get_kmeans_lookup_table_and_weight(bits, weight)
    theirs = np.sum((weight.astype(np.float64) - lut.astype(np.float16)[indices.ravel()]) ** 2)
    assert squared_error(job, table) <= theirs * (1 + 1e-6)
    restored = table.entries[table.indices(weight, job.histogram)]
    assert np.sum((weight.astype(np.float64) - restored) ** 2) == pytest.approx(squared_error(job, table))


def test_few_numbers_are_kept_exactly():
    weight = np.array([0.5, -1, 0.5, 3], np.float16)
    job = Job(Histogram.of(weight), 2)
    table = fit(job)
    np.testing.assert_array_equal(table.entries[table.indices(weight, job.histogram)], weight)


def test_even_steps_end_at_the_extremes():
    weight = weights(1000)
    job = Job(Histogram.of(weight), 4, uniform=True)
    table = fit(job)
    assert (table.entries[0], table.entries[-1]) == (weight.min(), weight.max())
    step = float(weight.max() - weight.min()) / 15
    off = np.abs(weight.astype(np.float64) - table.entries[table.indices(weight, job.histogram)])
    assert off.max() <= step / 2 * 1.02


def test_processes_answer_in_order():
    jobs = [Job(Histogram.of(weights(500 + 100 * i, i)), 1 + i % 4) for i in range(palettes.FEW)]
    for one, many in zip([fit(job) for job in jobs], fit_all(jobs, 2), strict=True):
        np.testing.assert_array_equal(one.entries, many.entries)
        np.testing.assert_array_equal(one.places, many.places)


def test_without_coremltools_its_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(palettes.sys.modules, "kdc_edge_kmeans1d", raising=False)
    monkeypatch.setattr(palettes.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingBackend, match=r"kdc-edge\[coreml\]"):
        fit(Job(Histogram.of(weights(100)), 1))
