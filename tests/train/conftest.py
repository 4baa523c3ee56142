"""A data set of sixteen real emoji, small enough to train on in a test."""

import json
import shutil
from pathlib import Path

import pytest

from tests.train.sequences import TASKS, within
from train.data import Pictures, load
from train.recipes import LoopConfig, PicturesConfig
from train.sequences import ContinualConfig, ReplayConfig

ASSET = Path(__file__).parents[2] / "assets" / "emoji-64.tar"


@pytest.fixture(scope="session")
def emoji() -> Pictures:
    """The shipped data set."""
    return load(str(ASSET), 64)


@pytest.fixture(scope="session")
def few(emoji: Pictures, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen of its pictures as an `imagefolder`."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("few")
    rows = []
    for i in range(0, 1600, 100):
        name = f"{i}.png"
        Image.fromarray(emoji.pixels[i]).save(folder / name)
        rows.append({**emoji.rows[i], "file_name": name, "split": "train"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="session")
def groups(emoji: Pictures, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures without skin tone of each of three groups, as an `imagefolder`."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("groups")
    rows = []
    for group in ("Smileys & Emotion", "Animals & Nature", "Food & Drink"):
        of = [i for i, row in enumerate(emoji.rows) if row["group"] == group]
        for i in of[:36:6]:
            Image.fromarray(emoji.pixels[i]).save(folder / f"{i}.png")
            rows.append({**emoji.rows[i], "file_name": f"{i}.png", "split": "train"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="session")
def sequence(groups: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> ContinualConfig:
    """Smileys, then animals, and 20 KB to remember them by; nothing is learned yet."""
    folder = tmp_path_factory.mktemp("continual")
    (folder / "tasks.toml").write_text(TASKS)
    return ContinualConfig(
        model=tiny_checkpoint,
        tasks=folder / "tasks.toml",
        pictures=PicturesConfig(str(groups), cache_dir=folder / "cache"),
        replay=ReplayConfig("20KB", pool=6, pool_steps=2),
        loop=LoopConfig(6, 8, 1e-3, warmup=1, ema=0.9),
    )


@pytest.fixture(scope="session")
def learned(sequence: ContinualConfig, tmp_path_factory: pytest.TempPathFactory) -> ContinualConfig:
    """The sequence, learned without interruption."""
    from train.continual import continual

    config = within(sequence, tmp_path_factory.mktemp("learned"))
    continual(config)
    return config


@pytest.fixture(scope="session")
def food(groups: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The third group's pictures in a folder of their own."""
    folder = tmp_path_factory.mktemp("more") / "food"
    folder.mkdir()
    rows = [json.loads(line) for line in (groups / "metadata.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["group"] == "Food & Drink"]
    for row in rows:
        shutil.copy(groups / row["file_name"], folder)
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
