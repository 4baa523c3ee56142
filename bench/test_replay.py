"""Training steps with small and large replay buffers: what a draw costs must not grow with what is kept.

pytest bench/test_replay.py --benchmark-enable        # a draw of 32 rows from 1k, 10k and 100k items
pytest bench/test_replay.py -m slow -s                # whole steps of a 2.8M student, in turns
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from kdc_edge import timing
from kdc_edge.replay import Contents, read
from train import diffusion
from train.captions import CaptionChoice
from train.diffusion import Cache, Latents
from train.recipes import LoopConfig
from train.replay import Buffer, Scaled, new_about
from train.retention import Retention, continual_loss
from train.sequences import SMALL, RetentionWeights
from train.trainer import Part, Trainer, generator_at, seeded

ITEMS = (1_000, 10_000, 100_000)
CAPTIONS, WIDTH = 500, 256


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("buffers")


def stored(folder: Path, items: int) -> Cache:
    """A buffer on disk with so many emoji-64 latents of 500 captions, as training draws from it."""
    path = folder / str(items)
    if not path.exists():
        names = tuple(f"caption {i}" for i in range(CAPTIONS))
        about = new_about("v", "t", (16, 8, 8), (), store="int8", limit=10**9, policy="reservoir", seed=0)
        about = type(about)(**{**vars(about), "tasks": ("all",), "captions": names})
        rng = np.random.default_rng(0)
        columns = {
            "latents": rng.integers(-127, 128, (items, 16, 8, 8), np.int8),
            "scales": np.full(items, 0.03, np.float32),
            "pictures": rng.integers(0, 256, (items, 32), np.uint8),
            "caption": (np.arange(items) % CAPTIONS).astype(np.int32),
            "task": np.zeros(items, np.int32),
            "priority": np.zeros(items),
            "caption_task": np.zeros(CAPTIONS, np.int32),
        }
        Buffer(Contents(about, columns)).save(path)
    columns = read(path).columns
    numbers = torch.from_numpy(columns["caption"]).long() + 1
    text = torch.randn(CAPTIONS + 1, 77, WIDTH, generator=torch.Generator().manual_seed(0))
    latents = Latents(Scaled(columns["latents"], columns["scales"]))
    return Cache(latents, text, CaptionChoice([("",)] * items), numbers, torch.ones(items), diffusion.build_scheduler())


@pytest.mark.parametrize("items", ITEMS)
def test_draw(benchmark: Any, folder: Path, items: int) -> None:
    source = stored(folder, items)
    draw = benchmark(lambda: source.draw(32, Part(0, 0, 1, generator_at(0, 0), torch.device("cpu"))))
    if draw is not None:
        assert draw.noisy.shape == (32, 16, 8, 8) and torch.isfinite(draw.noisy).all()


@pytest.mark.slow
def test_a_step_takes_as_long_with_a_hundred_times_the_items(folder: Path) -> None:
    def step(items: int) -> Any:
        unet = seeded(0, lambda: diffusion.build(SMALL, 16, 8, WIDTH))
        student = diffusion.for_training(unet, torch.device("cpu"))
        retention = Retention(stored(folder, items), None, RetentionWeights(previous_weight=0.0))
        trainer = Trainer(student.train(), LoopConfig(10**6, 64, 1e-4), "", Accelerator(mixed_precision="no"))
        loss = continual_loss(stored(folder, ITEMS[0]), retention, 64, 32)
        return lambda: trainer.advance(loss)

    small = step(ITEMS[0])
    for items in ITEMS[1:]:
        found = timing.compare(step(items), small, seed=0, warmup=2, samples=25)
        print(f"\n{items:,} / {ITEMS[0]:,} items: {found.ratio:.3f} [{found.low:.3f}, {found.high:.3f}]")
        assert found.ratio <= 1.05
