"""Core ML packages at full size: palettes against coremltools' single worker in the same run, and the memory that it takes.

pytest bench/test_coreml.py -m slow -s
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.test_full_size import save
from convert.apple.package import About, Settings, package_component
from convert.apple.palettes import Histogram, Job, fit_all, squared_error
from convert.apple.schemes import PRECISIONS, Precision
from kdc_edge.process import in_own_process
from tests.train.test_student import SD1

SIZES = (640 * 640 * 9, 320 * 320 * 9, 1280 * 1280, 640 * 2560, 1280 * 640, 320 * 768, 640 * 640, 320 * 320)
BITS = 6
FASTER = 1.6
GB = 1e9 / 2**20  # in MiB


def _ours(weights: list[np.ndarray]) -> float:
    """Seconds as a user waits them, processes' start included; squared error."""
    jobs = [Job(Histogram.of(weight), BITS) for weight in weights]
    tables = fit_all(jobs, 2)
    for weight, job, table in zip(weights, jobs, tables, strict=True):
        table.indices(weight, job.histogram)
    return sum(squared_error(job, table) for job, table in zip(jobs, tables, strict=True))


def _theirs(weights: list[np.ndarray]) -> float:
    from coremltools.models.neural_network.quantization_utils import _get_kmeans_lookup_table_and_weight

    total = 0.0
    for weight in weights:
        lut, places = _get_kmeans_lookup_table_and_weight(BITS, weight)
        total += float(np.sum((weight.astype(np.float64) - lut.astype(np.float16)[places.ravel()]) ** 2))
    return total


@pytest.mark.slow
def test_palettes_are_found_faster_than_by_one_worker_and_are_no_worse() -> None:
    pytest.importorskip("coremltools", reason="coremltools is not installed; pip install 'kdc-edge[coreml]'")
    random = np.random.RandomState(0)
    weights = [(random.standard_normal(size) * 0.04).astype(np.float16) for size in SIZES]
    start = time.perf_counter()
    ours = _ours(weights)
    middle = time.perf_counter()
    theirs = _theirs(weights)
    ratio = (time.perf_counter() - middle) / (middle - start)
    print(f"{sum(SIZES) / 1e6:.1f}M weights, {BITS} bits: {middle - start:.1f} s, coremltools {ratio:.2f} times that")
    assert ours <= theirs * (1 + 1e-6)
    assert ratio >= FASTER


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "precision", "most_gb"),
    [(None, "fp16", 4.0), (None, "palette6", 4.0), (SD1, "fp16", 5.5)],
    ids=["482M student, fp16", "482M student, palette6", "Stable Diffusion 1.5, fp16"],
)
def test_what_a_unet_takes(shape: dict[str, Any] | None, precision: Precision, most_gb: float, tmp_path: Path) -> None:
    """The converting process; the two that look for palettes beside it hold about 0.1 GB each."""
    pytest.importorskip("coremltools", reason="coremltools is not installed; pip install 'kdc-edge[coreml]'")
    save(tmp_path / "checkpoint", 64, shape)
    settings = Settings("ios17", True, About("someone", "Apache-2.0", "1"), batch=2)
    plan = PRECISIONS[precision]["unet"]
    took = in_own_process("unet", package_component, tmp_path / "checkpoint", "unet", tmp_path, settings, plan)
    print(f"{took.parameters / 1e6:.1f}M parameters: {took.peak_mib:.0f} MiB at most, {took.seconds:.0f} s")
    assert took.peak_mib <= most_gb * GB
