"""A reduced comparison: two tasks, two methods and training from scratch, networks of a few thousand parameters."""

from pathlib import Path

import numpy as np
import pytest

from kdc_edge.files import read_json
from train.comparison import comparison
from train.recipes import LoopConfig, PicturesConfig, UNetConfig
from train.sequences import ComparisonConfig, ReplayConfig

BASE = """
[[task]]
name = "smileys"
where = { group = "Smileys & Emotion" }
"""
TASKS = """
[[task]]
name = "animals"
where = { group = "Animals & Nature" }

[[task]]
name = "food"
where = { group = "Food & Drink" }
"""


@pytest.fixture(scope="module")
def config(
    groups: Path, tiny_checkpoint: Path, tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory
) -> ComparisonConfig:
    folder = tmp_path_factory.mktemp("comparison")
    (folder / "base.toml").write_text(BASE)
    (folder / "tasks.toml").write_text(TASKS)
    return ComparisonConfig(
        output_dir=folder / "out",
        methods=("naive", "replay"),
        model=tiny_checkpoint,
        tasks=folder / "tasks.toml",
        base=folder / "base.toml",
        pictures=PicturesConfig(str(groups), cache_dir=folder / "cache"),
        unet=UNetConfig((32, 32), (False, True), 1, 16),
        base_steps=4,
        loop=LoopConfig(3, 4, 1e-3, warmup=1, ema=0.9),
        replay=ReplayConfig("20KB", pool=4, pool_steps=2),
        judge=str(tiny_clip),
        prompts=3,
        draw_steps=2,
        strip=1,
    )


@pytest.fixture(scope="module")
def first(config: ComparisonConfig) -> dict:
    return comparison(config)


def test_two_methods_two_tasks(config: ComparisonConfig, first: dict) -> None:
    found = read_json(config.output_dir / "results.json")
    assert set(found["seeds"]["0"]) == set(found["methods"]) == {"naive", "replay", "scratch"}
    for method in ("naive", "replay"):
        scores = found["seeds"]["0"][method]
        assert np.shape(scores["top1"]) == np.shape(scores["kid"]) == (3, 2) and scores["count"] == [3, 3]
        assert all(value in (0.0, 1 / 3, 2 / 3, 1.0) for row in scores["top1"] for value in row)
        assert len(scores["seconds"]) == 2 and min(scores["seconds"]) > 0
    naive, replay = (found["seeds"]["0"][method] for method in ("naive", "replay"))
    assert naive["kid"][:2] == replay["kid"][:2], "the first task has nothing to replay"
    assert naive["kid"][2] != replay["kid"][2]
    assert [aim["met"] is None for aim in first["aims"]] == [True, not has_forgotten(naive), True, False, True, True]


def has_forgotten(result: dict) -> bool:
    return result["top1"][1][0] > result["top1"][2][0]
