"""How fast features and distances are, as ratios and floors of one run.

    pytest bench/test_quality.py --benchmark-enable           # seconds
    pytest bench/test_quality.py -m slow -s                   # shares of the bare network, FID of 10,000 pictures

The bare network gets batches that are already tensors in memory; the extraction reads PNGs from disk, decodes, resizes.
Both in processor time, all threads added up: what reads ahead beside the network counts as if it came before.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kdc_edge import timing
from kdc_edge.pictures import Reading, listing
from kdc_edge.torch_ref import extractors, inception
from kdc_edge.torch_ref.distances import Moments, frechet
from kdc_edge.torch_ref.extractors import BATCH, Extractor

SHARE = 0.8  # of what the bare network reaches
FID_SECONDS = 20.0
ROUNDS = 5
JUDGE = Path(__file__).parents[1] / "assets" / "emoji-64" / "judge"


def judge() -> Extractor:
    return extractors.judge_images(str(JUDGE))[1]


def inception_v3() -> Extractor:
    """Random weights: they cost what the published ones cost."""
    network = inception.InceptionV3().eval().requires_grad_(False).to(memory_format=torch.channels_last)

    def forward(x: torch.Tensor) -> torch.Tensor:
        return network(x.to(memory_format=torch.channels_last))

    return Extractor("InceptionV3", "", inception.RESIZE, inception.DIMENSIONS, inception.prepare, forward)


NETWORKS: dict[str, tuple[Callable[[], Extractor], int, int]] = {
    "judge": (judge, 64, 8 * BATCH),
    "inception": (inception_v3, 512, BATCH),
}


@pytest.fixture(params=NETWORKS)
def work(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Extractor, list[Path]]:
    """A network and pictures of the size it usually sees: smooth ones with grain, as PNG."""
    build, side, count = NETWORKS[request.param]
    rng = np.random.default_rng(0)
    grid = np.linspace(0, 9, side)
    for i in range(count):
        smooth = 127 + 90 * np.sin(grid[:, None, None] * (1 + i % 5) + grid[None, :, None] * [1, 2, 3])
        pixels = (smooth + rng.normal(0, 6, (side, side, 3))).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i:04}.png", compress_level=1)
    return build(), listing(tmp_path)


@pytest.mark.slow
def test_extraction_reaches_its_share_of_the_bare_network(work: tuple[Extractor, list[Path]], tmp_path: Path) -> None:
    extractor, paths = work
    _, pictures = Reading().batch(paths[:BATCH])
    ready, runs = extractor.prepare(pictures), iter(range(10**6))

    def bare() -> None:
        with torch.inference_mode():
            for _ in range(len(paths) // BATCH):
                extractor.network(ready)

    def whole() -> None:
        folder = tmp_path / "features" / str(next(runs))
        extractors.gather(extractors.stream(extractor, paths, Reading(), folder))

    found = timing.compare(whole, bare, seed=0, samples=ROUNDS, warmup=1, clock="cpu")
    print(f"{extractor.name}: {found.ratio:.3f} [{found.low:.3f}, {found.high:.3f}] of the bare network's speed")
    assert found.ratio >= SHARE


@pytest.mark.slow
def test_fid_of_ten_thousand_pictures() -> None:
    rng = np.random.default_rng(0)
    features = [rng.standard_normal((10_000, 2048), np.float32) for _ in range(2)]
    taken = timing.measure(lambda: frechet(*(Moments.of(f) for f in features)), warmup=0, samples=1)
    print(f"FID of 10,000 features against 10,000: {taken.p50:.1f} s wall, {taken.quantile(0.5, 'cpu'):.1f} s CPU")
    assert taken.quantile(0.5, "cpu") < FID_SECONDS


@pytest.mark.parametrize("side", [64, 512])
def test_resize(benchmark: Any, side: int) -> None:
    pixels = np.random.RandomState(0).randint(0, 256, (side, side, 3)).astype(np.uint8)
    benchmark(lambda: inception.resize(pixels, 299))
